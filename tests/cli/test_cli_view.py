"""What the command line shows, of runs made up here."""

from __future__ import annotations

import io
import json
import math
import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from prefect_batchflow.cli import screen, view_run, view_runs
from prefect_batchflow.cli.progress import Progress, progress_text
from prefect_batchflow.cli.runs import Listing, StoredRun
from prefect_batchflow.cli.view_run import next_commands
from prefect_batchflow.exceptions import BatchRunTimeoutError, InvalidUserData, ToolExecutionError, error_dict
from prefect_batchflow.results.models import AggregationResult, BatchResult
from prefect_batchflow.results.records import Receipt, Status, Tokens
from prefect_batchflow.results.tally import Tally
from prefect_batchflow.run.handle import ProgressReport
from prefect_batchflow.settings import RunOptions
from prefect_batchflow.storage.manifest import Manifest, Session

if TYPE_CHECKING:
    from collections.abc import Callable

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EVIL = "[bold red]row[/] \x1b[31mred\x1b[0m \x07\u202e \ud800 end"


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make standard output a terminal of so many columns."""

    def set_columns(count: int) -> None:
        monkeypatch.setenv("COLUMNS", str(count))
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("NO_COLOR", "1")

    return set_columns


def manifest(**values: Any) -> Manifest:
    facts: dict[str, Any] = {
        "run_id": "r1",
        "flow_name": "shout",
        "flow": "/flows/my shout.py:shout",
        "working_dir": "/flows",
        "data": {"data": "/rows.jsonl"},
        "inputs_mapping": {},
        "init_names": [],
        "init_kwargs": {},
        "options": RunOptions(),
        "output_dir": None,
        "total_lines": 4,
        "fingerprints": {},
        "sessions": [Session(started_at=START.isoformat(), prefect_flow_run_id=None, versions={})],
    }
    return Manifest(**facts | values)


def stored_run(
    *, completed: int = 2, failed: int = 1, total: int = 4, message: str = "row 2 is bad", **values: Any
) -> StoredRun:
    tally = Tally()
    for number in range(completed):
        tally.add(Receipt(line_number=number, status=Status.Completed, tokens=Tokens(30, 20, 10)))
    for number in range(completed, completed + failed):
        error = error_dict(ToolExecutionError(message))
        tally.add(Receipt(line_number=number, status=Status.Failed, error=error))
    tally.add_aggregation(AggregationResult(metrics=values.pop("metrics", {})).counts())
    result = BatchResult.of(
        tally,
        total,
        START,
        START + timedelta(seconds=90),
        **{k: values.pop(k) for k in ("batch_error",) if k in values},
    )
    run = StoredRun(
        manifest=manifest(total_lines=total),
        status=result.status.value,
        result=result,
        error_groups=tally.error_groups,
        folder="/runs/r1",
        outputs="/runs/r1/outputs.jsonl",
        failed="/runs/r1/failed.jsonl" if failed else None,
    )
    return replace(run, **values)


def report(**values: Any) -> ProgressReport:
    counts = ("completed_lines", "failed_lines", "reused_lines", "running_lines")
    facts: dict[str, Any] = dict.fromkeys(counts, 0) | {"total_lines": 100, "elapsed_sec": 0.0}
    return ProgressReport(run_id="r1", flow_name="shout", **facts | values)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "0 of 100 lines"),
        ({"running_lines": 4}, "0 of 100 lines, 4 running"),
        (
            {"completed_lines": 38, "failed_lines": 2, "running_lines": 4, "elapsed_sec": 10.0},
            "40 of 100 lines, 2 failed, 4 running, 4 per second, 15 s left",
        ),
        (
            {"completed_lines": 60, "reused_lines": 50, "elapsed_sec": 10.0},
            "60 of 100 lines, 1 per second, 40 s left",
        ),
        ({"completed_lines": 60, "reused_lines": 60, "elapsed_sec": 1.0}, "60 of 100 lines"),
        ({"completed_lines": 100, "elapsed_sec": 10.0}, "100 of 100 lines, 10 per second, finishing the run"),
        (
            {"completed_lines": 1, "total_lines": 100_000, "elapsed_sec": 1.0},
            "1 of 100000 lines, 1 per second, 27 h 46 min left",
        ),
    ],
    ids=["begun", "running", "in the middle", "resumed", "only resumed", "ended", "long"],
)
def test_progress_is_told_in_a_line(values: dict[str, Any], text: str) -> None:
    assert progress_text(report(**values)) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"waiting_lines": 12, "next_wait_sec": 7.8, "wait_status": 429},
            "12 lines wait for the service (429, next in 8 s)",
        ),
        ({"waiting_lines": 1, "next_wait_sec": 0.1}, "1 line waits for the service (next in 1 s)"),
        (
            {"waiting_lines": 2, "next_wait_sec": 150.0, "wait_status": 503},
            "2 lines wait for the service (503, next in 2 min",
        ),
    ],
)
def test_lines_that_wait_are_part_of_the_progress(values: dict[str, Any], text: str) -> None:
    assert f"0 of 100 lines, 20 running, {text}" in progress_text(report(running_lines=20, **values))


def test_without_a_terminal_a_wait_is_told_when_it_begins() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, width=200)) as progress:
        for sec in range(1, 50):
            progress.update(report(elapsed_sec=float(sec), waiting_lines=3 if sec > 5 else 0, next_wait_sec=9.0))

    assert [line.partition(", ")[2] for line in out.getvalue().splitlines()] == [
        "3 lines wait for the service (next in 9 s)"
    ]


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, width=200)) as progress:
        for tenth in range(1, 700):  # a line is done every second
            progress.update(report(completed_lines=tenth // 10, elapsed_sec=tenth / 10))

    lines = out.getvalue().splitlines()

    assert [line.split()[0] for line in lines] == ["10", "20", "30", "40", "50", "60"]


def test_without_a_terminal_a_slow_run_is_heard_of_every_minute_and_a_fast_one_every_two_seconds() -> None:
    slow, fast = io.StringIO(), io.StringIO()
    with Progress(Console(file=slow)) as progress:
        for sec in range(301):
            progress.update(report(completed_lines=1, elapsed_sec=float(sec)))
    with Progress(Console(file=fast)) as progress:
        for tenth in range(1, 31):
            progress.update(report(completed_lines=tenth * 3, elapsed_sec=tenth / 10))

    assert len(slow.getvalue().splitlines()) == 5
    assert len(fast.getvalue().splitlines()) == 1


def test_what_goes_on_beside_lines_is_said_once() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, width=200)) as progress:
        progress.say("a server starts")
        progress.update(report())
        progress.say("a server starts")

    assert out.getvalue() == "a server starts\n"


@pytest.mark.parametrize("width", [20, 59, 60, 200])
def test_on_a_terminal_progress_is_one_line_however_narrow_and_leaves_nothing(width: int) -> None:
    out = io.StringIO()
    screen = Console(file=out, width=width, force_terminal=True)
    with Progress(screen) as progress:
        progress.update(report(completed_lines=38, failed_lines=2, running_lines=4, elapsed_sec=10.0))
        drawn = screen.render_lines(progress._line())

    assert len(drawn) == 1
    assert out.getvalue().endswith("\x1b[1A\x1b[2K") or "\x1b[2K" in out.getvalue()


def test_a_run_is_shown_with_counts_metrics_errors_notes_and_places(capsys: pytest.CaptureFixture[str]) -> None:
    run = stored_run(metrics={"accuracy": 2 / 3, "labels": ["a"]}, notes=("the flow's files changed",))

    view_run.print_run(run, reused_lines=1, prefect_url="http://server/run")

    out = capsys.readouterr().out
    for part in (
        "shout: 2 of 4 lines completed, 1 failed, 1 not started\n",
        "Run          r1\n",
        "Done before  1 of the completed lines\n",
        "Duration     90 s, 0.0222 lines per second\n",
        "Tokens       60: 40 prompt, 20 completion\n",
        "Metrics\n  accuracy  0.666667\n  labels    ",
        "Errors\n  ToolExecutionError, line 2\n    row 2 is bad\n    Read the traceback",
        "Notes\n  the flow's files changed\n",
        "Failed lines  /runs/r1/failed.jsonl\n",
        "Prefect       http://server/run\n",
        "To run the 2 lines that have not completed:\n  batchflow resume r1\n",
    ):
        assert part in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]


def test_what_failed_beside_lines_is_shown_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    view_run.print_run(stored_run(batch_error=error_dict(BatchRunTimeoutError("exceeded its limit of 9 seconds"))))

    out = capsys.readouterr().out
    assert "BatchRunTimeoutError, the run\n    exceeded its limit of 9 seconds\n    Resume the run" in out


def test_errors_of_many_kinds_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    for number in range(40):
        error = error_dict(ToolExecutionError("many" if number < 20 else "x" * number))
        tally.add(Receipt(line_number=number, status=Status.Failed, error=error))

    view_run.print_run(stored_run(error_groups=tally.error_groups))

    out = capsys.readouterr().out
    assert "ToolExecutionError, 20 lines: the first 0, 1, 2, 3, 4\n    many\n" in out
    assert f"and {40 - 20 - (view_run.SHOWN_ERROR_GROUPS - 1)} more lines with other errors" in out


def test_texts_of_rows_are_neither_markup_nor_control_characters(
    capsys: pytest.CaptureFixture[str], columns: Callable[[int], None]
) -> None:
    columns(60)
    run = stored_run(message=EVIL, metrics={EVIL: EVIL}, notes=(EVIL,))
    run = replace(run, manifest=manifest(flow_name=EVIL), folder=f"/runs/{EVIL}")

    view_run.print_run(run)
    view_runs.print_runs(Listing([run], 2, []), EVIL)
    view_runs.print_runs(Listing([], 0, []), EVIL)
    screen.print_error(EVIL)
    screen.print_note(EVIL)

    shown = "".join(capsys.readouterr())
    shown = shown.replace("\x1b[1m", "").replace("\x1b[3m", "").replace("\x1b[0m", "")  # ours: bold, italic, end
    assert [char for char in shown if not char.isprintable() and char != "\n"] == []
    assert shown.count("[bold red]") >= 8


@pytest.mark.parametrize("width", [30, 40, 80])
def test_on_a_narrow_terminal_nothing_of_a_command_or_a_run_id_is_lost(
    width: int, capsys: pytest.CaptureFixture[str], columns: Callable[[int], None]
) -> None:
    columns(width)
    run = stored_run()
    run = replace(run, manifest=manifest(run_id="9b6b0274-5c51-4957-9ddb-b2e97b62f7ae"))

    view_run.print_run(run)
    shown = capsys.readouterr().out
    view_runs.print_runs(Listing([run], 1, []), "/runs")
    listed = capsys.readouterr().out

    assert "batchflow resume 9b6b0274-5c51-4957-9ddb-b2e97b62f7ae" in shown
    assert max(len(line.replace("\x1b[1m", "").replace("\x1b[0m", "")) for line in listed.splitlines()) <= width
    assert "".join(line.split(" ")[0] for line in listed.splitlines()[1:]) == "9b6b0274-5c51-4957-9ddb-b2e97b62f7ae"


def test_a_list_that_is_cut_says_so_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    view_runs.print_runs(Listing([stored_run()], 7, []), "/runs")

    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["RUN", "FLOW", "STATUS", "COMPLETED", "FAILED", "TOTAL", "STARTED", "TOOK"]
    assert out.splitlines()[1].split()[:6] == ["r1", "shout", "Completed", "2", "1", "4"]
    assert "the newest 1 of 7 runs" in err


@pytest.mark.parametrize(
    "run",
    [
        stored_run(completed=4, failed=0),
        stored_run(status="Running"),
        stored_run(manifest=manifest(flow=None)),
    ],
    ids=["whole", "running", "in memory"],
)
def test_a_run_that_cannot_go_on_has_no_next_command(run: StoredRun) -> None:
    assert next_commands(run) == []


def test_rows_that_could_not_be_read_are_not_run_as_a_run_of_their_own() -> None:
    tally = Tally()
    tally.add(
        Receipt(line_number=2, status=Status.Failed, error=error_dict(InvalidUserData("d.jsonl, line 3: not JSON")))
    )

    assert len(next_commands(stored_run(error_groups=tally.error_groups))) == 1
    tally.add(Receipt(line_number=3, status=Status.Failed, error=error_dict(ToolExecutionError("no"))))
    assert len(next_commands(stored_run(error_groups=tally.error_groups))) == 2


def test_the_next_commands_can_be_typed_as_they_stand() -> None:
    options = RunOptions(line_timeout_sec=5, worker_count=2)
    run = stored_run(manifest=manifest(inputs_mapping={"q": "${rows.q}", "line_number": "x"}, options=options))

    (_, resume), (_, again) = next_commands(run, "s3://b/runs")

    assert shlex.split(resume) == ["batchflow", "resume", "r1", "--storage", "s3://b/runs"]
    assert shlex.split(again) == [
        *("batchflow", "run", "/flows/my shout.py:shout", "--data", "/runs/r1/failed.jsonl", "--map", "q=${data.q}"),
        *("--workers", "2", "--line-timeout", "5", "--storage", "s3://b/runs"),
    ]


def test_init_values_may_be_secret_and_are_in_no_command() -> None:
    run = stored_run(manifest=manifest(init_names=["key"], init_kwargs={"key": "s3cret"}))

    commands = next_commands(run)

    assert [shlex.split(command)[1] for _, command in commands] == ["resume"]
    assert "s3cret" not in str(commands)


def test_a_document_for_programs_is_json_for_any_parser(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_json({"deep": [{"x": math.nan}, -math.inf], "half": "\ud800", "fine": 0.5})

    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told == {"deep": [{"x": None}, None], "half": r"\ud800", "fine": 0.5}


def test_documents_for_programs_hold_what_people_see(capsys: pytest.CaptureFixture[str]) -> None:
    run = stored_run(message=EVIL, notes=("a note",))

    screen.print_json(view_run.run_document(run, reused_lines=1))
    document = json.loads(capsys.readouterr().out)
    screen.print_json(view_runs.runs_document(Listing([run], 1, [])))
    listed = json.loads(capsys.readouterr().out)

    assert (document["run_id"], document["status"], document["notes"]) == ("r1", "Completed", ["a note"])
    assert (document["result"]["failed_lines"], document["reused_lines"]) == (1, 1)
    assert document["error_groups"][0]["line_numbers"] == [2]
    assert document["next_commands"][0] == "batchflow resume r1"
    assert (listed[0]["run_id"], listed[0]["completed_lines"], listed[0]["duration_sec"]) == ("r1", 2, 90.0)
