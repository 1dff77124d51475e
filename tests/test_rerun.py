"""`rerun`: of the lines that failed before, those with certain errors run again; the others stay as they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import AbstractBatchRunStorage, BatchEngine, BatchResult, FlowRunInfo, RunInfo
from prefect_batchflow.cli.commands import main
from prefect_batchflow.errors.chosen import LineNumbers, numbered_lines, rerun_errors
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.flows import run_batch
from prefect_batchflow.run.handle import LiveRun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

FLOW = """
import os, time
from pathlib import Path

HERE = Path(__file__).parent

def main(n: int, does: str) -> int:
    with (HERE / "begun").open("a") as begun:
        begun.write(f"{n}\\n")
    if does != "completes" and not (HERE / "mended").exists():
        if does == "hangs":
            while True:
                time.sleep(60)
        if does == "dies":
            os._exit(3)
        raise ValueError("not yet")
    return n
"""
ROWS = [{"n": n, "does": does} for n, does in enumerate(["completes", "hangs", "dies", "raises", "hangs"])]


class Nothing(AbstractBatchRunStorage):
    """A storage of the caller's in which nothing is."""

    def persist_node_run(self, run_info: RunInfo) -> None:
        pass

    def persist_flow_run(self, run_info: FlowRunInfo) -> None:
        pass

    def load_node_run_info_for_line(self, line_number: int) -> Sequence[RunInfo]:
        return ()

    def load_flow_run_info(self, line_number: int) -> FlowRunInfo | None:
        return None


class Nightly:
    """A run of which each kind of line has failed, and whose reasons are mended since."""

    def __init__(self, folder: Path, storage: Path, data: Path) -> None:
        self.folder, self.storage, self.data = folder, storage, data
        self.flow = f"{folder / 'kinds.py'}:main"
        (folder / "kinds.py").write_text(FLOW)
        assert self.start().failed_lines == 4
        (folder / "mended").touch()

    def start(self, **options: Any) -> BatchResult:
        """Start it, again."""
        engine = BatchEngine(
            self.flow, line_timeout_sec=1, worker_count=2, run_storage_url=str(self.storage), **options
        )
        (self.folder / "begun").write_text("")
        return engine.run({"data": self.data}, run_id="nightly")

    def begun(self) -> list[int]:
        """The lines that ran in the last start."""
        return sorted(map(int, (self.folder / "begun").read_text().split()))

    def records(self) -> dict[str, list[int]]:
        """The lines whose records are in each record file, by its name."""
        files = (self.storage / "nightly" / "records").glob("*.jsonl")
        rows = {file.name: map(json.loads, file.read_text().splitlines()) for file in files}
        return {name: [row["line_number"] for row in each if "line_number" in row] for name, each in rows.items()}

    def result(self) -> dict[str, Any]:
        """The stored result."""
        result: dict[str, Any] = json.loads((self.storage / "nightly" / "batch_result.json").read_text())
        return result

    def failed(self, run_id: str = "nightly") -> list[int]:
        """The lines that are in the file of failed ones."""
        rows = (self.storage / run_id / "failed.jsonl").read_text().splitlines()
        return [json.loads(row)["n"] for row in rows]


@pytest.fixture
def nightly(tmp_path: Path, storage: Path, write_rows: Callable[..., Path]) -> Nightly:
    return Nightly(tmp_path, storage, write_rows(ROWS))


@pytest.mark.parametrize(
    ("rerun", "again"),
    [
        ("timed_out", [1, 4]),
        ("crash", [2]),
        ("ValueError", [3]),
        (["crash", "user_code"], [2, 3]),
        ("ProcessCrashError,timeout", [1, 2, 4]),
        ("failed", [1, 2, 3, 4]),
        ("", [1, 2, 3, 4]),
        ("rate_limit", []),
        ("crashed", [2]),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_only_lines_with_these_errors_run_again(nightly: Nightly, rerun: str | list[str], again: list[int]) -> None:
    result = nightly.start(rerun=rerun)

    left = sorted({1, 2, 3, 4} - set(again))
    assert nightly.begun() == again
    assert (result.total_lines, result.completed_lines, result.failed_lines) == (5, 1 + len(again), len(left))
    assert [error.line_number for error in result.error_summary.error_list] == left
    assert nightly.failed() == left


def test_what_was_left_is_said_and_runs_with_the_next_start(nightly: Nightly) -> None:
    live = LiveRun()
    parameters = {"flow": nightly.flow, "data": str(nightly.data), "storage": str(nightly.storage), "run_id": "nightly"}

    run_batch({**parameters, "rerun": "timed_out"}, live)

    assert live.notes == [
        "Failed lines that did not run again, because rerun is 'timed_out' and their errors are different: 2."
    ]
    assert run_batch(parameters, LiveRun()).completed_lines == 5, "a choice counts for one start"


def test_lines_that_never_ended_run_whatever_is_asked_for(nightly: Nightly) -> None:
    nightly.data.write_text(nightly.data.read_text() + json.dumps({"n": 5, "does": "completes"}) + "\n")

    result = nightly.start(rerun="crash", on_change="reuse")

    assert nightly.begun() == [2, 5]
    assert (result.completed_lines, result.failed_lines) == (3, 3)


def test_a_failed_line_whose_inputs_have_changed_runs_again(nightly: Nightly) -> None:
    nightly.data.write_text(nightly.data.read_text().replace('"n": 3', '"n": 30'))

    result = nightly.start(rerun="crash", on_change="reuse")

    assert nightly.begun() == [2, 30]
    assert (result.completed_lines, result.failed_lines) == (3, 2)


def test_a_new_run_on_an_old_ones_lines_takes_over_the_failures_that_stay(nightly: Nightly) -> None:
    parameters = {"flow": nightly.flow, "data": str(nightly.data), "storage": str(nightly.storage), "run_id": "again"}
    (nightly.folder / "begun").write_text("")

    result = run_batch({**parameters, "resume_from": "nightly", "rerun": "timed_out"}, LiveRun())

    assert nightly.begun() == [1, 4]
    assert (result.completed_lines, result.failed_lines) == (3, 2)
    assert nightly.failed("again") == [2, 3]


def test_a_storage_that_is_brought_has_no_failed_lines_to_choose_among(nightly: Nightly) -> None:
    parameters = {"flow": nightly.flow, "data": str(nightly.data), "storage": str(nightly.storage), "run_id": "again"}
    (nightly.folder / "begun").write_text("")

    with pytest.raises(InvalidOptionError, match="Nothing gives completed lines only, and all other lines run"):
        run_batch({**parameters, "rerun": "timed_out"}, LiveRun(resume_storage=Nothing()))

    assert nightly.begun() == []
    assert not (nightly.storage / "again").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "timeouts",
            "'timeouts' is not an error class. Did you mean 'timeout'? The classes are failed, timed_out, crashed, ",
        ),
        ("TIMED_OUT", "'TIMED_OUT' is not an error class. Did you mean 'timed_out'?"),
        ("failed,crash", "'failed' means all failed lines. Remove it, or remove the other names."),
    ],
)
def test_what_cannot_be_asked_for_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidOptionError) as refused:
        rerun_errors(text)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("chosen", "again"),
    [
        ({"rerun_lines": "0"}, [0]),
        ({"rerun_lines": "0-1, 3"}, [0, 1, 3]),
        ({"rerun_lines": "0", "rerun": "crash"}, [0, 2]),
        ({"rerun_lines": "0", "rerun": "failed"}, [0, 1, 2, 3, 4]),
    ],
    ids=["completed", "some", "lines and errors", "lines and all that failed"],
)
def test_lines_run_again_by_their_numbers(nightly: Nightly, chosen: dict[str, str], again: list[int]) -> None:
    before, records = nightly.result(), nightly.records()

    result = nightly.start(**chosen)

    assert nightly.begun() == again
    left = sorted({1, 2, 3, 4} - set(again))
    assert (result.completed_lines, nightly.failed()) == (5 - len(left), left)
    after = nightly.records()
    assert after.keys() >= records.keys(), "earlier attempts are kept"
    assert {name: after[name] for name in records} == records
    ran = [n for name in after.keys() - records.keys() for n in after[name]]
    assert sorted(ran) == again
    assert nightly.result()["start_time"] > before["start_time"]
    assert nightly.result()["completed_lines"] == result.completed_lines


@pytest.mark.programs
def test_the_command_reruns_in_place(nightly: Nightly, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(nightly.storage)]
    (nightly.folder / "begun").write_text("")
    assert main(["rerun", "nightly", "--only", "timed_out", *storage]) == 3
    assert nightly.begun() == [1, 4]
    (nightly.folder / "begun").write_text("")
    assert main(["rerun", "nightly", "--lines", "0,2", *storage]) == 3
    assert nightly.begun() == [0, 2]
    (nightly.folder / "begun").write_text("")
    assert main(["rerun", "nightly", *storage]) == 0
    assert nightly.begun() == [3]
    capsys.readouterr()
    for words, said in (
        (["--lines", "7"], "the run 'nightly' has no line 7. It has 5 lines, 0 to 4."),
        (["--lines", "3-1"], "The range '3-1' is empty. Write the smaller number first: 1-3."),
        (["--lines", "x"], "'x' is not the number of a line"),
        (["--lines", ""], "--lines is empty."),
        (["--only", "timeouts"], "'timeouts' is not an error class."),
        (["--lines", "1", "--rerun-lines", "2"], "--lines and --rerun-lines are the same option."),
    ):
        assert main(["rerun", "nightly", *words, *storage]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert main(["rerun", "nightli", *storage]) == 2
    assert "Did you mean nightly?" in " ".join(capsys.readouterr().err.split())


def test_lines_of_a_run_that_has_not_begun_are_refused(nightly: Nightly) -> None:
    parameters = {"flow": nightly.flow, "data": str(nightly.data), "storage": str(nightly.storage), "run_id": "new"}
    with pytest.raises(InvalidOptionError, match="the run 'new' has not begun before"):
        run_batch({**parameters, "rerun_lines": "0"}, LiveRun())


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("", ()),
        ("3", ("3",)),
        ("7,3,4", ("3-4", "7")),
        ("20-30, 25 - 40", ("20-40",)),
        ("0-999999999999", ("0-999999999999",)),
    ],
)
def test_numbers_of_lines_are_read(text: str, ranges: tuple[str, ...]) -> None:
    assert numbered_lines(text) == ranges
    lines = LineNumbers(ranges)
    assert bool(lines) == bool(ranges)
    assert all((int(part.partition("-")[0]) in lines) for part in ranges)
    assert 2 not in lines or ranges == ("0-999999999999",)


def test_a_number_that_is_not_there_is_found() -> None:
    assert LineNumbers(["3-999999999999"]).beyond(5) == 5
    assert LineNumbers(["3-4"]).beyond(5) is None
    assert LineNumbers(["3-999999999999"]).missing({3, 4, 7}) == 5
    assert LineNumbers(["3-4", "7"]).missing({3, 4, 7}) is None
