"""A run whose records are damaged or lost while it runs, in the middle or at its end: never success with fewer rows."""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.cli.commands import main
from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.flows import run_batch
from prefect_batchflow.run import ending
from prefect_batchflow.run.ending import Ending
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.storage import retries
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

LINES = 6


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "LOOK_AGAIN_SEC", (0.0, 0.0))


@pytest.fixture
def parameters(tmp_path: Path, storage: Path, write_rows: Callable[..., Path]) -> dict[str, Any]:
    (tmp_path / "flow.py").write_text(
        "class Grade:\n    def __call__(self, n: int) -> int:\n        return 6 // n\n"
        "    def __aggregate__(self, results):\n        return {'lines': len(results)}\n"
    )
    rows: list[dict[str, object]] = [{"n": number} for number in range(LINES)]
    return {
        "flow": f"{tmp_path / 'flow.py'}:Grade",
        "data": str(write_rows(rows)),
        "storage": str(storage),
        "run_id": "r",
        "granularity": "line",
    }


def harmed_at(monkeypatch: pytest.MonkeyPatch, stage: str, harm: Callable[[Ending], Any]) -> None:
    """Do something just before a stage of the ending."""
    really = getattr(Ending, stage)

    async def later(self: Ending) -> Any:
        done = harm(self)
        if asyncio.iscoroutine(done):
            await done
        return await really(self)

    monkeypatch.setattr(Ending, stage, later)


def one_segment(run: Path) -> Path:
    return sorted((run / "records").glob("*.json*"))[0]


HARMS: dict[str, Callable[[Path], Any]] = {
    "a segment is cut": lambda run: one_segment(run).write_bytes(one_segment(run).read_bytes()[:60]),
    "a segment is emptied": lambda run: one_segment(run).write_bytes(b""),
    "a segment is deleted": lambda run: one_segment(run).unlink(),
    "the records are deleted": lambda run: shutil.rmtree(run / "records"),
    "the run is deleted": shutil.rmtree,
    "the storage is deleted": lambda run: shutil.rmtree(run.parent),
    "the run is renamed": lambda run: run.rename(run.with_name("renamed")),
}


QUICK = ("a segment is cut", "the run is deleted")
"""The others take as long, and are the same for the code."""


@pytest.mark.parametrize(
    ("harm", "stage"),
    [
        *(pytest.param(harm, "report", marks=() if harm in QUICK else pytest.mark.faults) for harm in HARMS),
        *(pytest.param(harm, "aggregate", marks=() if harm in QUICK[:1] else pytest.mark.faults) for harm in HARMS),
    ],
)
def test_lost_records_end_the_run_without_outputs(
    parameters: dict[str, Any], storage: Path, monkeypatch: pytest.MonkeyPatch, harm: str, stage: str
) -> None:
    harmed_at(monkeypatch, stage, lambda _: HARMS[harm](storage / "r"))
    live = LiveRun()

    with pytest.raises(StorageError, match="no outputs were written"):
        run_batch(parameters, live)

    assert live.result is None
    assert not list(storage.glob("*/outputs.jsonl"))
    assert not list(storage.glob("*/batch_result.json"))


def test_a_resume_runs_the_lost_lines_and_no_others(
    parameters: dict[str, Any], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        harmed_at(patched, "report", lambda _: HARMS["a segment is cut"](storage / "r"))
        with pytest.raises(StorageError):
            run_batch(parameters, LiveRun())
    live = LiveRun()

    result = run_batch(parameters, live)

    assert (result.completed_lines, result.failed_lines) == (LINES - 1, 1)
    assert sum("records/damaged/" in note and "run again" in note for note in live.notes) == 1
    assert len(list((storage / "r" / "records" / "damaged").iterdir())) == 1
    rows = [json.loads(line) for line in (storage / "r" / "outputs.jsonl").read_text().splitlines()]
    assert [row["line_number"] for row in rows] == list(range(1, LINES))


@pytest.mark.parametrize(
    "how", ["short", "stale listing", *(pytest.param(how, marks=pytest.mark.faults) for how in ("empty", "absent"))]
)
def test_one_wrong_answer_at_the_ending_loses_no_row(
    parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    name = f"memory://{uuid.uuid4().hex}"
    really_read, really_list = RunStorageBlock.read_path, RunStorageBlock.list_names
    left: list[str] = []

    async def read_path(block: RunStorageBlock, path: str) -> bytes:
        content = await really_read(block, path)
        if "/records/" in path and left and how != "stale listing":
            left.clear()
            if how == "absent":
                raise FileNotFoundError(path)
            return content[:50] if how == "short" else b""
        return content

    async def list_names(block: RunStorageBlock, folder: str) -> list[str]:
        names = await really_list(block, folder)
        if folder.endswith("/records") and left and how == "stale listing":
            left.clear()
            return names[:2]
        return names

    monkeypatch.setattr(RunStorageBlock, "read_path", read_path)
    monkeypatch.setattr(RunStorageBlock, "list_names", list_names)
    harmed_at(monkeypatch, "report", lambda _: left.append("once"))

    result = run_batch({**parameters, "storage": name}, LiveRun())

    assert not left
    assert (result.completed_lines, result.failed_lines) == (LINES - 1, 1)
    rows = asyncio.run(RunStorageBlock(url=name).read_path("r/outputs.jsonl")).splitlines()
    assert [json.loads(row)["line_number"] for row in rows] == list(range(1, LINES))


@pytest.mark.parametrize(
    ("spoil", "completed", "failed"),
    [
        (lambda records: records[:-1], 4, 1),
        (lambda records: records[1:], 5, 0),
        (lambda records: [*records, records[-1]], 6, 1),
        (lambda records: [(stored, record | {"status": "Completed"}) for stored, record in records], 6, 0),
    ],
    ids=["a completed line less", "a failed line less", "a line twice", "a failed line as completed"],
)
def test_records_that_are_not_the_counted_lines_end_the_run(
    parameters: dict[str, Any],
    storage: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[list[Any]], list[Any]],
    completed: int,
    failed: int,
) -> None:
    newest = RunRecords.newest

    async def spoilt(self: RunRecords) -> AsyncIterator[Any]:
        for pair in spoil([pair async for pair in newest(self)]):
            yield pair

    harmed_at(monkeypatch, "report", lambda _: monkeypatch.setattr(RunRecords, "newest", spoilt))

    with pytest.raises(StorageError, match=rf"5 lines completed and 1 failed, but .* have {completed} and {failed}"):
        run_batch(parameters, LiveRun())

    assert not (storage / "r" / "outputs.jsonl").exists()


def test_a_run_whose_folder_is_gone_at_its_end_is_not_canceled(
    parameters: dict[str, Any], storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def gone(*_: Any) -> None:
        shutil.rmtree(storage / "r")

    monkeypatch.setattr(ending, "_hand_in", gone)
    options = ["--data", parameters["data"], "--storage", parameters["storage"], "--run-id", "r"]

    status = main(["run", parameters["flow"], *options])

    said = capsys.readouterr().err
    assert status == 1
    assert "its folder is gone" in said
    assert "Canceled" not in said
