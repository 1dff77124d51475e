"""`rerun`: of the lines that failed before, those with certain errors run again; the others stay as they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import AbstractBatchRunStorage, BatchEngine, BatchResult, FlowRunInfo, RunInfo
from prefect_batchflow.errors.chosen import rerun_errors
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
            "'timeouts' is not an error class. Did you mean 'timeout'? The classes are failed, timed_out, ",
        ),
        ("TIMED_OUT", "'TIMED_OUT' is not an error class. Did you mean 'timed_out'?"),
        ("failed,crash", "'failed' means all failed lines. Remove it, or remove the other names."),
    ],
)
def test_what_cannot_be_asked_for_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidOptionError) as refused:
        rerun_errors(text)
    assert str(refused.value).startswith(said)
