"""`batchflow` as it is typed: its help, its runs, its errors and exit statuses, and what a terminal sees of them."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from typed_command import Shown
from waiting import wait_until

from prefect_batchflow import exceptions
from prefect_batchflow.cli import commands, runs
from prefect_batchflow.cli.commands import main
from prefect_batchflow.cli.running import EXIT_STATUSES, exit_status
from prefect_batchflow.results.models import AggregationResult, BatchResult
from prefect_batchflow.results.records import Receipt, Status
from prefect_batchflow.results.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


FLOW = """
def shout(text: str, times: int = 1) -> str:
    if text == "bad":
        raise ValueError("[red]this row is bad[/red]")
    return text.upper() * times
"""
ROWS: list[dict[str, object]] = [{"text": "a"}, {"text": "bad"}, {"text": "c"}]

HANGING_FLOW = """
import threading
from pathlib import Path
from pathlib import Path

def hang(place: str) -> str:
    if place:
        Path(place).touch()
        threading.Event().wait()
    return "done"
"""
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def batchflow(
    capsys: pytest.CaptureFixture[str], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Shown]:
    """Type a command, in this process, with a storage of the test's own."""
    monkeypatch.setenv("BATCHFLOW_STORAGE", str(storage))

    def call(*words: str | Path) -> Shown:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return Shown(status, *capsys.readouterr())

    return call


@pytest.fixture
def flow(tmp_path: Path) -> str:
    """A flow that fails on one kind of row."""
    (tmp_path / "loud.py").write_text(FLOW)
    return f"{tmp_path / 'loud.py'}:shout"


# --- help, and what is imported for it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["run", "resume", "list", "show", "Exit status"]),
        (
            ["run"],
            [
                "--file",
                "--data",
                "--map",
                "--run-id",
                "--resume-from",
                "--line-timeout",
                "--retry-on",
                "--init",
                "--json",
            ],
        ),
        (["resume"], ["RUN", "--workers", "--limit", "--on-change", "--storage", "--debug"]),
        (["list"], ["--storage", "--limit", "--json"]),
        (["show"], ["RUN", "--storage", "--json"]),
        (["check"], ["FLOW", "--variant", "--node-connections", "--working-dir", "--json"]),
        (["connection"], ["create", "list", "show", "delete"]),
        (["rerun"], ["RUN", "--only", "--lines", "--storage"]),
        (["verify"], ["RUN", "--storage", "--json"]),
        (["copy"], ["RUN", "URL", "--storage", "--json"]),
        (["export"], ["RUN", "--format", "--storage"]),
        (["compact"], ["RUN", "--storage", "--json"]),
        (["delete"], ["RUN", "--storage", "-y", "--json"]),
    ],
    ids=[
        *("batchflow", "run", "resume", "list", "show", "check", "connection"),
        *("rerun", "verify", "copy", "export", "compact", "delete"),
    ],
)
def test_each_command_has_help(batchflow: Callable[..., Shown], words: list[str], parts: list[str]) -> None:
    shown = batchflow(*words, "--help")

    assert shown.status == 0
    assert [part for part in parts if part not in shown.out] == []


def test_every_command_is_in_the_help_test() -> None:
    assert {name for name in commands.app if not name.startswith("-")} == {
        *("run", "resume", "rerun", "list", "show", "check", "connection", "test"),
        *("verify", "copy", "export", "compact", "delete"),
    }


def test_version_names_this_package_and_prefect(batchflow: Callable[..., Shown]) -> None:
    assert batchflow("--version").out.startswith("batchflow 0.1.0, Prefect 3.")


def test_help_imports_neither_prefect_nor_pydantic() -> None:
    code = (
        "import sys; from prefect_batchflow.cli.commands import main; main(['run', '--help']); main(['--version']); "
        "print([m for m in ('prefect', 'pydantic', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run"], "FLOW"),
        (["run", "--file", "nothing.yaml"], "--file nothing.yaml: expected a run file"),
        (["run", "{flow}"], "No data was given"),
        (["run", "nowhere", "--data", "{data}"], "No flow at"),
        (["run", "{flow}", "--data", "nothing.jsonl"], "nothing.jsonl not found"),
        (["run", "{flow}", "--data", "{data}", "--map", "text"], "--map takes name=value"),
        (["run", "{flow}", "--data", "{data}", "--init", "text"], "--init takes name=value"),
        (["run", "{flow}", "--data", "{data}", "--connections", "c=b"], "--connection NAME=BLOCK"),
        (["run", "{flow}", "--data", "{data}", "--node-connections", "a.c=b"], "is not a flow.dag.yaml"),
        (["run", "{flow}", "--data", "{data}", "--run-id", "../x"], "is not valid. Use 1 to 128"),
        (["run", "{flow}", "--run", "a/b"], "is not valid. Use 1 to 128"),
        (["run", "{flow}", "--data", "{data}", "--resume-from", "a b"], "is not valid. Use 1 to 128"),
        (["run", "{flow}", "--data", "{data}", "--resume-from", "a/b"], "is not a run folder of promptflow"),
        (["run", "{flow}", "--data", "{data}", "--worker", "3"], "Did you mean --workers?"),
        (["run", "{flow}", "--data", "{data}", "--workers", "-1"], "--workers"),
        (["run", "{flow}", "--data", "{data}", "--workers", "many"], "--workers"),
        (
            ["run", "{flow}", "--data", "{data}", "--line-memory-mb", "3"],
            "0 for no limit, or a whole number of at least 16",
        ),
        (["run", "{flow}", "--data", "{data}", "--granularity", "lines"], '"line"'),
        (["run", "{flow}", "{data}"], "{data}"),
        (["show"], "RUN"),
        (["show", "../x"], "is not valid. Use 1 to 128"),
        (["show", "nothing"], "There is no run 'nothing'"),
        (["resume", "nothing"], "There is no run 'nothing'"),
        (["list", "--storage", "nope://x"], "nope"),
        (["list", "--limit", "0.4"], "found '0.4'. It must be a whole number of at least 0."),
        (["run", "{flow}", "--data", "{data}", "--fail-fast"], "Use --max-failures 1."),
        (["run", "{flow}", "--max-failed-lines=3"], "Use --max-failures 50."),
        (["run", "{flow}", "--max-failed-percent", "3"], "Use --max-failures 5%."),
        (["run", "{flow}", "--data", "{data}", "--max-failures", "9" * 5000], "a share, such as 5%"),
        (["shwo"], "shwo"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_wrong_use_is_told_in_a_paragraph_and_leaves_nothing(
    batchflow: Callable[..., Shown],
    flow: str,
    write_rows: Callable[..., Path],
    storage: Path,
    words: list[str],
    part: str,
) -> None:
    names = {"flow": flow, "data": write_rows(ROWS)}

    shown = batchflow(*(word.format(**names) for word in words))

    assert shown.status == 2
    assert shown.err.startswith("Error: ")
    assert part.format(**names) in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not storage.exists()


def test_with_json_an_error_is_a_document_too(batchflow: Callable[..., Shown]) -> None:
    shown = batchflow("show", "nothing", "--json")

    assert shown.status == 2
    assert shown.document["error"]["innerError"]["code"] == "RunNotFoundError"
    assert shown.err.startswith("Error: There is no run")


def test_debug_shows_where_an_error_came_from(batchflow: Callable[..., Shown]) -> None:
    shown = batchflow("show", "nothing", "--debug")

    assert "Traceback (most recent call last)" in shown.err
    assert "RunNotFoundError" in shown.err


def test_what_nobody_foresaw_is_an_error_as_well(
    batchflow: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(runs, "find_stored", broken)

    shown = batchflow("resume", "r1")

    assert (shown.status, shown.err) == (
        1,
        "Error: (ZeroDivisionError) a fault of ours. Add --debug for the traceback.\n",
    )


# --- exit statuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (exceptions.UserErrorException(), 2),
        (exceptions.InvalidOptionError(), 2),
        (exceptions.InputMappingError(), 2),
        (exceptions.RunInUseError(), 2),
        (exceptions.RunChangedError(), 2),
        (exceptions.BatchRunTimeoutError(), 1),
        (exceptions.LineFailureError(), 3),
        (exceptions.StorageError(), 1),
        (exceptions.WorkerStartError(), 1),
        (exceptions.UnexpectedError(), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_the_exit_status_of_its_class(
    batchflow: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(runs, "find_stored", fail)

    assert batchflow("resume", "r1").status == status


def test_every_error_of_the_package_has_an_exit_status() -> None:
    kinds = tuple(kind for kind, _ in EXIT_STATUSES)
    assert issubclass(exceptions.UserErrorException, kinds)
    assert issubclass(exceptions.SystemErrorException, kinds)


@pytest.mark.parametrize(
    ("completed", "failed", "how", "status"),
    [
        (2, 0, {}, 0),
        (1, 1, {}, 3),
        (0, 2, {}, 3),
        (1, 0, {"status": Status.Canceled}, 130),
        (1, 0, {"batch_error": exceptions.error_dict(exceptions.BatchRunTimeoutError("late"))}, 1),
    ],
    ids=["completed", "some failed", "all failed", "canceled", "batch timeout"],
)
def test_a_result_has_the_exit_status_of_how_it_ended(
    completed: int, failed: int, how: dict[str, Any], status: int
) -> None:
    tally = Tally()
    for number in range(completed + failed):
        tally.add(Receipt(line_number=number, status=Status.Completed if number < completed else Status.Failed))

    assert exit_status(BatchResult.of(tally, 2, NOON, NOON, **how)) == status


def test_a_failed_aggregation_is_no_success() -> None:
    tally = Tally()
    tally.add(Receipt(line_number=0, status=Status.Completed))
    tally.add_aggregation(
        AggregationResult(error=exceptions.error_dict(exceptions.ToolExecutionError("no metrics"))).counts()
    )

    assert exit_status(BatchResult.of(tally, 1, NOON, NOON)) == 3


# --- real runs -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prefect_server")
def test_a_run_is_built_on_another_and_resumed_with_it(
    batchflow: Callable[..., Shown], flow: str, write_rows: Callable[..., Path], storage: Path
) -> None:
    batchflow("run", flow, "--data", write_rows(ROWS), "--run-id", "base", "--workers", "1")

    chained = batchflow("run", flow, "--run", "base", "--map", "text=${run.outputs.output}", "--map", "times=2",
                        "--run-id", "on-base", "--workers", "1")  # fmt: skip
    resumed = batchflow("resume", "on-base", "--json")
    missing = batchflow("run", flow, "--run", "bose", "--map", "text=${run.outputs.output}")

    assert (chained.status, resumed.status) == (0, 0)
    assert "1 of 3 lines of run base are left out" in chained.out.replace("\n  ", " ")
    assert [json.loads(line) for line in (storage / "on-base" / "outputs.jsonl").read_text().splitlines()] == [
        {"line_number": 0, "output": "AA"},
        {"line_number": 2, "output": "CC"},
    ]
    assert (missing.status, "There is no run 'bose'" in missing.err) == (2, True)


@pytest.mark.usefixtures("prefect_server")
def test_a_run_file_runs_and_what_is_typed_wins_over_it(
    batchflow: Callable[..., Shown], flow: str, write_rows: Callable[..., Path], storage: Path, tmp_path: Path
) -> None:
    write_rows([{"text": "a", "other": "z"}])
    file = tmp_path / "run.yaml"
    file.write_text(
        "name: written\nflow: loud.py:shout\ndata: data.jsonl\ndescription: of no effect\n"
        "column_mapping: {text: '${data.text}', times: 2}\n"
    )

    as_written = batchflow("run", "--file", file, "--workers", "1")
    typed = batchflow("run", "--file", file, "--run-id", "typed", "--map", "text=${data.other}", "--workers", "1")

    assert (as_written.status, typed.status) == (0, 0)
    assert "run.yaml: these keys have no effect here: description." in as_written.out.replace("\n", " ")
    outputs = [json.loads((storage / run / "outputs.jsonl").read_text())["output"] for run in ("written", "typed")]
    assert outputs == ["AA", "ZZ"]


@pytest.mark.usefixtures("prefect_server")
def test_values_of_environment_variables_are_not_kept_and_asked_for_again(
    batchflow: Callable[..., Shown], flow: str, write_rows: Callable[..., Path], storage: Path
) -> None:
    options = ["--data", write_rows(ROWS), "--map", "text=${data.text}", "--workers", "1"]

    ran = batchflow("run", flow, *options, "--run-id", "keyed", "--environment-variables", "MY_KEY=canary-4713")
    refused = batchflow("resume", "keyed")
    resumed = batchflow("resume", "keyed", "--environment-variables", "MY_KEY=canary-4713")

    assert (ran.status, refused.status, resumed.status) == (3, 2, 3)
    assert "--environment-variables MY_KEY=…" in refused.err.replace("\n", " ")
    assert [p for p in storage.rglob("*") if p.is_file() and b"canary-4713" in p.read_bytes()] == []
    assert "canary-4713" not in ran.out + ran.err


@pytest.mark.usefixtures("prefect_server")
def test_promptflows_variables_set_what_no_option_does(
    batchflow: Callable[..., Shown],
    flow: str,
    write_rows: Callable[..., Path],
    storage: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("PF_WORKER_COUNT", "3"), ("PF_LINE_TIMEOUT_SEC", "7"), ("PF_BATCH_TIMEOUT_SEC", "none")):
        monkeypatch.setenv(name, value)

    batchflow(
        "run", flow, "--data", write_rows(ROWS), "--run-id", "set", "--line-timeout", "8", "--granularity", "chunk"
    )

    options = json.loads((storage / "set" / "manifest.json").read_text())["options"]
    assert (options["worker_count"], options["line_timeout_sec"], options["batch_timeout_sec"]) == (3, 8, 0)


@pytest.mark.usefixtures("prefect_server")
def test_files_and_json_of_a_run_have_null_for_nan_and_a_note_names_the_place(
    batchflow: Callable[..., Shown], tmp_path: Path, write_rows: Callable[..., Path], storage: Path
) -> None:
    (tmp_path / "score.py").write_text(
        "class Score:\n"
        "    def __call__(self, text): return {'score': float('nan'), 'at': {text}}\n"
        "    def __aggregate__(self, lines): return {'mean': float('inf')}\n"
    )

    ran = batchflow(
        "run", f"{tmp_path}/score.py:Score", "--data", write_rows([{"text": "a"}]), "--run-id", "n", "--json"
    )

    document = json.loads(ran.out, parse_constant=pytest.fail)
    assert document["result"]["metrics"] == {"mean": None}
    assert [note.partition(":")[0] for note in document["notes"]] == ["outputs.jsonl", "batch_result.json"]
    assert "'score' (1 line)" in document["notes"][0]
    outputs = (storage / "n" / "outputs.jsonl").read_text()
    assert outputs == '{"line_number": 0, "score": null, "at": ["a"]}\n'
    assert "NaN" in "".join(path.read_text() for path in (storage / "n" / "records").glob("*.jsonl"))


@pytest.mark.usefixtures("prefect_server")
def test_a_run_is_shown_listed_and_resumed(
    batchflow: Callable[..., Shown], flow: str, write_rows: Callable[..., Path], storage: Path, tmp_path: Path
) -> None:
    data = write_rows(ROWS)

    ran = batchflow(
        "run", flow, "--data", data, "--map", "text=${data.text}", "--map", "times=2", "--run-id", "r1",
        "--workers", "1", "--output-dir", tmp_path / "out",
    )  # fmt: skip

    assert ran.status == 3
    assert "shout: 2 of 3 lines completed, 1 failed\n" in ran.out
    assert "(ValueError) [red]this row is bad[/red]" in ran.out
    assert "  batchflow resume r1\n" in ran.out
    outputs = [json.loads(line)["output"] for line in (tmp_path / "out" / "output.jsonl").read_text().splitlines()]
    assert outputs == ["AA", "CC"]

    shown = batchflow("show", "r1")
    assert shown.status == 0
    assert shown.out.splitlines()[0] == ran.out.splitlines()[0]

    listed = batchflow("list", "--json").document
    assert [(run["run_id"], run["status"], run["failed_lines"]) for run in listed] == [("r1", "Completed", 1)]
    assert "r1" in batchflow("list").out

    (tmp_path / "loud.py").write_text(FLOW.replace('== "bad"', '== "worse"'))
    refused = batchflow("resume", "r1")
    assert (refused.status, "the flow's files changed" in refused.err) == (2, True)

    resumed = batchflow("resume", "r1", "--on-change", "reuse", "--workers", "2", "--json")
    assert resumed.status == 0
    assert resumed.document["result"]["completed_lines"] == 3
    assert resumed.document["next_commands"] == []
    manifest = json.loads((storage / "r1" / "manifest.json").read_text())
    assert (manifest["inputs_mapping"], manifest["options"]["worker_count"]) == (
        {"text": "${data.text}", "times": 2},
        2,
    )


@pytest.mark.usefixtures("prefect_server")
def test_the_failed_lines_can_be_run_as_the_command_says(
    batchflow: Callable[..., Shown], flow: str, write_rows: Callable[..., Path]
) -> None:
    first = batchflow("run", flow, "--data", write_rows(ROWS), "--map", "times=2", "--json")
    again = first.document["next_commands"][1]

    second = batchflow(*shlex.split(again)[1:], "--json")

    assert second.status == 3
    assert (second.document["result"]["total_lines"], second.document["error_groups"][0]["line_numbers"]) == (1, [1])


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("words", "rows", "part"),
    [
        (["--map", "text=${data.txet}"], ROWS, "Did you mean ${data.text}?"),
        ([], [{"text": "a"}, {"txt": "b"}], "have no column 'text'"),
    ],
    ids=["misspelt column", "a row lacks it"],
)
def test_data_and_mapping_that_do_not_fit_are_wrong_use(
    batchflow: Callable[..., Shown],
    flow: str,
    write_rows: Callable[..., Path],
    storage: Path,
    words: list[str],
    rows: list[dict[str, object]],
    part: str,
) -> None:
    shown = batchflow("run", flow, "--data", write_rows(rows), *words)

    assert (shown.status, shown.out) == (2, "")
    assert part in shown.err
    assert not storage.exists()


@pytest.mark.usefixtures("prefect_server")
def test_a_storage_that_cannot_be_written_stops_the_run_before_its_lines(
    batchflow: Callable[..., Shown], flow: str, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    shown = batchflow("run", flow, "--data", write_rows(ROWS), "--storage", tmp_path / "file" / "runs")

    assert (shown.status, shown.out) == (1, "")
    assert "Cannot" in shown.err


@pytest.mark.usefixtures("prefect_server")
def test_a_run_of_python_objects_is_not_resumed_by_command(
    batchflow: Callable[..., Shown], write_rows: Callable[..., Path], storage: Path
) -> None:
    from prefect_batchflow import BatchEngine

    def secret(text: str) -> str:
        return text

    engine = BatchEngine(secret, worker_count=1, run_storage_url=str(storage))
    engine.run({"data": write_rows(ROWS)}, run_id="r1")

    shown = batchflow("resume", "r1")

    assert shown.status == 2
    assert "is a Python object" in shown.err


INIT_FLOW = """
class Greeter:
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def __call__(self, text: str) -> str:
        return f"{self.greeting} {text}"
"""


@pytest.mark.usefixtures("prefect_server")
def test_init_values_that_are_not_kept_are_asked_for(
    batchflow: Callable[..., Shown], write_rows: Callable[..., Path], storage: Path, tmp_path: Path
) -> None:
    from prefect_batchflow import BatchEngine

    (tmp_path / "greet.py").write_text(INIT_FLOW)
    flow = f"{tmp_path / 'greet.py'}:Greeter"
    engine = BatchEngine(flow, worker_count=1, run_storage_url=str(storage), init_kwargs={"greeting": "hi"})
    engine.run({"data": write_rows(ROWS)}, run_id="r1")

    refused = batchflow("resume", "r1")
    resumed = batchflow("resume", "r1", "--init", "greeting=hi", "--json")

    assert (refused.status, "--init greeting=…" in refused.err) == (2, True)
    assert (resumed.status, resumed.document["result"]["completed_lines"]) == (0, 3)


@pytest.mark.usefixtures("no_blocks")
def test_a_resume_takes_connections_from_the_same_blocks(
    batchflow: Callable[..., Shown], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    from prefect_batchflow.blocks import OpenAIConnectionBlock

    OpenAIConnectionBlock(api_key=SecretStr("sk-canary-1")).save("cli-block", overwrite=True)
    (tmp_path / "ask.py").write_text(
        "from promptflow.connections import OpenAIConnection\n"
        "class Ask:\n"
        "    def __init__(self, c: OpenAIConnection): self.c = c\n"
        "    def __call__(self, **row): return self.c.name\n"
    )
    write_rows(ROWS)
    command = [
        "run",
        f"{tmp_path / 'ask.py'}:Ask",
        "--data",
        str(tmp_path / "data.jsonl"),
        "--run-id",
        "r1",
        "--init",
        "c=ai",
    ]

    refused = batchflow(*command, "--limit", "1")
    done = batchflow(*command, "--limit", "1", "--connection", "ai=cli-block", "--json")
    resumed = batchflow("resume", "r1", "--json")

    assert (refused.status, "The connection 'ai' for init 'c' was not given; given: none" in refused.err) == (
        2,
        True,
    )
    assert (done.status, resumed.status) == (0, 0)


# --- as a process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def process(prefect_server: None, storage: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command as a process of its own, against the tests' server."""
    from prefect.settings import get_current_settings

    started: list[subprocess.Popen[str]] = []
    env = {
        **{name: value for name, value in os.environ.items() if name != "PREFECT_LOGGING_LEVEL"},
        "PREFECT_API_URL": str(get_current_settings().api.url),
        "BATCHFLOW_STORAGE": str(storage),
    }

    def start(*words: str | Path, **how: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "prefect_batchflow.cli", *map(str, words)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        started.append(subprocess.Popen(command, env=env, cwd=tmp_path, text=True, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for one in started:
        if one.poll() is None:
            one.kill()
        one.communicate()


def test_a_process_shows_nothing_of_prefects_own_lines(
    process: Callable[..., subprocess.Popen[str]], flow: str, write_rows: Callable[..., Path]
) -> None:
    running = process("run", flow, "--data", write_rows(ROWS), "--json")
    out, err = running.communicate(timeout=100)

    assert (running.returncode, err) == (3, "")
    assert json.loads(out)["prefect_url"] is None or "/runs/flow-run/" in json.loads(out)["prefect_url"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_gives_what_was_done_and_the_run_can_go_on(
    process: Callable[..., subprocess.Popen[str]],
    batchflow: Callable[..., Shown],
    write_rows: Callable[..., Path],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    (tmp_path / "hanging.py").write_text(HANGING_FLOW)
    hangs = tmp_path / "hangs"
    data = write_rows([{"place": ""}, {"place": str(hangs)}, {"place": ""}])
    running = process("run", "hanging.py:hang", "--data", data, "--run-id", "r1", "--workers", "1", "--json")
    wait_until(hangs.exists, description="the second line runs", timeout_sec=60)

    in_use = batchflow("run", f"{tmp_path}/hanging.py:hang", "--data", data, "--run-id", "r1")
    status_meanwhile = batchflow("show", "r1", "--json").document["status"]
    running.send_signal(number)
    out, err = running.communicate(timeout=60)

    document = json.loads(out)
    assert (running.returncode, document["status"]) == (130, "Canceled")
    assert (document["result"]["completed_lines"], document["result"]["canceled_lines"]) == (1, 1)
    assert document["next_commands"][0] == "batchflow resume r1"
    assert "Traceback" not in err
    assert status_meanwhile == "Running"
    assert (in_use.status, "is already running" in in_use.err) == (2, True)


def test_on_a_terminal_the_run_is_drawn_and_then_shown(
    process: Callable[..., subprocess.Popen[str]], flow: str, write_rows: Callable[..., Path]
) -> None:
    ours, theirs = pty.openpty()
    screen = bytearray()

    def read() -> None:
        try:
            while block := os.read(ours, 4096):
                screen.extend(block)
        except OSError:
            pass  # the last process of the terminal has ended

    running = process("run", flow, "--data", write_rows(ROWS), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    status = running.wait(timeout=100)
    reader.join(timeout=30)
    os.close(ours)

    text = screen.decode()
    assert status == 3
    assert "of 3 lines" in text
    assert "2 of 3 lines completed, 1 failed" in text
    assert "Traceback" not in text
    assert "Finished in state" not in text


def test_nobody_reads_on_and_nothing_is_said(process: Callable[..., subprocess.Popen[str]]) -> None:
    """As behind `| head`: standard output is closed before the list is written."""
    read, write = os.pipe()
    os.close(read)
    running = process("list", "--json", stdout=write)
    os.close(write)
    _, err = running.communicate(timeout=60)

    assert (running.returncode, err) == (1, "")


@pytest.mark.server
def test_ctrl_c_without_a_configured_server_gives_what_was_done(
    write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    """Prefect's own server gets the signal too, as all processes of a terminal do, and must outlive it."""
    (tmp_path / "hanging.py").write_text(HANGING_FLOW)
    hangs = tmp_path / "hangs"
    data = write_rows([{"place": ""}, {"place": str(hangs)}])
    command = [sys.executable, "-m", "prefect_batchflow.cli", "run", "hanging.py:hang", "--data", str(data), "--json"]
    env = {**os.environ, "PREFECT_HOME": str(tmp_path / "home"), "BATCHFLOW_STORAGE": str(tmp_path / "runs")}
    env.pop("PREFECT_API_URL", None)
    with subprocess.Popen(
        command,
        env=env,
        cwd=tmp_path,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        try:
            wait_until(hangs.exists, description="the second line runs", timeout_sec=90)
            os.killpg(running.pid, signal.SIGINT)
            out, err = running.communicate(timeout=25)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)

    assert (running.returncode, json.loads(out)["status"]) == (130, "Canceled")
    assert "Traceback" not in err


@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_promptflow_began_goes_on(batchflow: Callable[..., Shown], storage: Path) -> None:
    recorded = Path(__file__).parent.parent / "storage" / "promptflow_run"

    ran = batchflow("run", recorded / "flow", "--data", recorded / "data.jsonl", "--resume-from", recorded / "begun",
                    "--run-id", "on", "--workers", "1", "--json")  # fmt: skip

    assert ran.status == 0
    assert (ran.document["reused_lines"], ran.document["result"]["completed_lines"]) == (3, 4)
    assert ran.document["result"]["metrics"] == {"accuracy": 0.75, "lines": 4}
