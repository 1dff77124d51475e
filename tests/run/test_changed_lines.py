"""A resume after the data has changed: lines are found by their inputs, and the message counts what has become of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import BatchEngine, BatchResult
from prefect_batchflow.exceptions import RunChangedError
from prefect_batchflow.flows import run_batch
from prefect_batchflow.run import resuming
from prefect_batchflow.run.handle import LiveRun

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

FLOW = """
from pathlib import Path

HERE = Path(__file__).parent

def main(q: str):
    with (HERE / "begun.log").open("a") as begun:
        begun.write(q + "\\n")
    if q == "bad":
        raise ValueError("bad")
    return {"q": q, "run": len((HERE / "begun.log").read_text().splitlines())}
"""


class Run:
    """A run over rows that a user edits between its starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "flow.py").write_text(FLOW)

    def start(self, rows: Sequence[str], run_id: str = "r", limit: int | None = None, **options: Any) -> BatchResult:
        data = self.folder / "data.jsonl"
        data.write_text("".join(json.dumps({"q": q}) + "\n" for q in rows))
        (self.folder / "begun.log").touch()
        self.before = len(self.begun_ever)
        engine = BatchEngine(
            f"{self.folder / 'flow.py'}:main", run_storage_url=str(self.folder / "runs"), worker_count=1, **options
        )
        return engine.run({"data": data}, run_id=run_id, max_lines_count=limit)

    @property
    def begun_ever(self) -> list[str]:
        return (self.folder / "begun.log").read_text().split()

    @property
    def begun(self) -> list[str]:
        """The lines that the last start ran."""
        return self.begun_ever[self.before :]

    def outputs(self, run_id: str = "r") -> list[tuple[int, str, int]]:
        rows = (self.folder / "runs" / run_id / "outputs.jsonl").read_text().splitlines()
        return [(row["line_number"], row["q"], row["run"]) for row in map(json.loads, rows)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_rows_inserted_on_top_are_the_only_ones_that_run(run: Run) -> None:
    run.start(list("abacd"))

    with pytest.raises(RunChangedError, match=r"the data of source 'data' changed \(2 lines new, 5 moved\)\. Give"):
        run.start(list("xyabacd"))
    result = run.start(list("xyabacd"), on_change="reuse")

    assert run.begun == ["x", "y"]
    assert result.completed_lines == 7
    assert [(number, q) for number, q, _ in run.outputs()] == list(enumerate("xyabacd"))
    assert [made for *_, made in run.outputs()[2:]] == [1, 2, 3, 4, 5], "each of the equal lines has its own output"
    assert run.start(list("xyabacd")).completed_lines == 7
    assert run.begun == []


def test_other_data_with_the_same_lines_is_no_change(run: Run) -> None:
    run.start(list("abc"))
    data = run.folder / "other.csv"
    data.write_text("note,text\n" + "".join(f"{n},{q}\n" for n, q in enumerate("abc")))
    flow, storage = f"{run.folder / 'flow.py'}:main", str(run.folder / "runs")

    result = BatchEngine(flow, run_storage_url=storage).run({"data": data}, {"q": "${data.text}"}, run_id="r")

    assert (result.completed_lines, len(run.begun)) == (3, 3)
    data.write_text("note,text\n0,a\n1,b\n2,x\n")
    with pytest.raises(RunChangedError, match=r"data of source 'data' changed \(1 line changed\)\. Give"):
        BatchEngine(flow, run_storage_url=storage).run({"data": data}, {"q": "${data.text}"}, run_id="r")


def test_a_changed_mapping_is_named_by_its_inputs(run: Run) -> None:
    run.start(list("abc"))
    engine = BatchEngine(f"{run.folder / 'flow.py'}:main", run_storage_url=str(run.folder / "runs"))
    said = r"since it began: the inputs_mapping changed \(q is new; 3 lines changed\)\. Give"
    with pytest.raises(RunChangedError, match=said):
        engine.run({"data": run.folder / "data.jsonl"}, {"q": "same"}, run_id="r")


def test_chosen_lines_run_again_by_their_new_numbers(run: Run) -> None:
    run.start(list("abc"))

    run.start(list("xabc"), on_change="reuse", rerun_lines="1,3")
    assert run.begun == ["x", "a", "c"]
    run.start(list("yxabc"), on_change="reuse", rerun_lines="3")
    assert run.begun == ["y", "b"]
    assert [(number, q) for number, q, _ in run.outputs()] == list(enumerate("yxabc"))


def test_a_line_that_was_removed_and_comes_back_is_not_paid_again(run: Run) -> None:
    run.start(list("abc"))
    run.start(list("ac"), on_change="reuse")
    assert run.begun == []
    run.start(list("cba"), on_change="reuse")
    assert run.begun == []
    assert [(q, made) for _, q, made in run.outputs()] == [("c", 3), ("b", 2), ("a", 1)]


def test_failed_lines_move_too(run: Run) -> None:
    run.start(["a", "bad", "c"])
    result = run.start(["x", "a", "bad", "c"], on_change="reuse", rerun="timed_out")

    assert run.begun == ["x"]
    assert [error.line_number for error in result.error_summary.error_list] == [2]


def test_everything_that_changed_is_named(run: Run) -> None:
    run.start(list("abc"))
    (run.folder / "flow.py").write_text(FLOW + "# edited\n")
    said = r"the data of source 'data' changed \(2 lines new, 1 changed\); the flow's files changed \(flow\.py changed\)\. Give"
    with pytest.raises(RunChangedError, match=said):
        run.start(list("axcde"))


@pytest.mark.parametrize(("before", "now", "runs"), [(2, 4, "cd"), (2, None, "cdef"), (4, 2, ""), (None, 3, "")])
def test_another_limit_is_no_change(run: Run, before: int | None, now: int | None, runs: str) -> None:
    run.start(list("abcdef"), limit=before)
    result = run.start(list("abcdef"), limit=now)
    assert run.begun == list(runs)
    assert result.total_lines == result.completed_lines == (now or 6)


def test_another_limit_hides_no_change(run: Run) -> None:
    run.start(list("abcdef"), limit=2)
    with pytest.raises(RunChangedError, match=r"changed \(2 lines new, 1 changed\)"):
        run.start(list("axcdef"), limit=4)


def test_a_start_that_died_while_it_moved_records_loses_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.start(list("abcb"))

    async def dies(*_: Any, **__: Any) -> int:
        raise OSError("no space left")

    with monkeypatch.context() as dying:
        dying.setattr(resuming, "copy_matches", dies)
        with pytest.raises(Exception, match="no space left"):
            run.start(list("xabcb"), on_change="reuse")
    assert run.start(list("abcb")).completed_lines == 4, "the old data is no change"
    assert run.begun == []
    run.start(list("xabcb"), on_change="reuse")
    assert run.begun == ["x"]


def test_a_new_run_finds_the_lines_of_another_by_content(run: Run) -> None:
    run.start(list("abc"), run_id="old")
    run.before = len(run.begun_ever)
    data = run.folder / "data.jsonl"
    data.write_text("".join(json.dumps({"q": q}) + "\n" for q in "xcba"))

    result = run_batch(
        {
            "flow": f"{run.folder / 'flow.py'}:main",
            "data": str(data),
            "storage": str(run.folder / "runs"),
            "run_id": "new",
            "resume_from": "old",
        },
        LiveRun(),
    )

    assert result.completed_lines == 4
    assert run.begun == ["x"]
    assert [q for _, q, _ in run.outputs("new")] == list("xcba")
