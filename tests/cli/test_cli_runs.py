"""What `batchflow list` and `batchflow show` read from a storage: no run is made, the storage is written by hand."""

from __future__ import annotations

import asyncio
import fcntl
import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.cli.runs import find_run, list_runs, read_run
from prefect_batchflow.exceptions import (
    InvalidRunIdError,
    RunNotFoundError,
    StorageError,
    ToolExecutionError,
    error_dict,
)
from prefect_batchflow.execution.executor import LineOutcome
from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.records import Receipt, Status
from prefect_batchflow.results.tally import Tally
from prefect_batchflow.settings import RunOptions
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.lease import this_process
from prefect_batchflow.storage.manifest import Manifest, Session, write_manifest
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from pathlib import Path

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture
def files(storage: Path) -> RunStorageBlock:
    return RunStorageBlock(url=str(storage))


def write_run(files: RunStorageBlock, run_id: str, *starts: datetime, total_lines: int = 3) -> Manifest:
    """A run that was started at these times, without result or records."""
    sessions = [Session(started_at=s.isoformat(), prefect_flow_run_id=None, versions={}) for s in starts or (START,)]
    manifest = Manifest(
        run_id=run_id,
        flow_name="shout",
        flow="/flows/shout.py:shout",
        working_dir="/flows",
        data={"data": "/rows.jsonl"},
        inputs_mapping={},
        init_names=[],
        init_kwargs={},
        options=RunOptions(),
        output_dir=None,
        total_lines=total_lines,
        fingerprints={},
        sessions=sessions,
    )
    asyncio.run(write_manifest(files, RunKeys(run_id), manifest))
    return manifest


def receipt(line_number: int, *, failed: bool = False) -> Receipt:
    error = error_dict(ToolExecutionError(f"row {line_number} is bad")) if failed else None
    return Receipt(line_number=line_number, status=Status.Failed if failed else Status.Completed, error=error)


def write_result(files: RunStorageBlock, run_id: str, start: datetime, **how: Any) -> None:
    """The result of a start: line 0 completed, line 1 failed, line 2 not started."""
    tally = Tally()
    tally.add(receipt(0))
    tally.add(receipt(1, failed=True))
    result = BatchResult.of(tally, 3, start, start + timedelta(seconds=5), **how)
    asyncio.run(files.write_path(RunKeys(run_id).batch_result, result.model_dump_json().encode()))


def write_records(files: RunStorageBlock, run_id: str, *receipts: Receipt) -> None:
    outcomes = [LineOutcome(r, json.dumps({"error": r.error}).encode(), "hash") for r in receipts]
    asyncio.run(RunRecords(files, RunKeys(run_id), session=1).append(outcomes))


def test_a_finished_run_is_told_by_its_result(files: RunStorageBlock, storage: Path) -> None:
    manifest = write_run(files, "r1")
    write_result(files, "r1", START)

    run = asyncio.run(read_run(files, manifest))

    assert (run.status, run.is_finished) == ("Completed", True)
    assert (run.result.completed_lines, run.result.failed_lines, run.result.total_lines) == (1, 1, 3)
    assert [(g.code, g.count, g.line_numbers) for g in run.error_groups] == [("ToolExecutionError", 1, [1])]
    assert (run.folder, run.outputs) == (f"{storage}/r1", f"{storage}/r1/outputs.jsonl")
    assert run.failed == f"{storage}/r1/failed.jsonl"


def test_a_run_without_a_result_is_told_by_its_records(files: RunStorageBlock) -> None:
    manifest = write_run(files, "r1")
    write_records(files, "r1", receipt(0), receipt(2, failed=True))

    run = asyncio.run(read_run(files, manifest))

    assert (run.status, run.is_finished) == ("Unfinished", False)
    assert (run.result.completed_lines, run.result.failed_lines, run.result.not_started_lines) == (1, 1, 1)
    assert [group.line_numbers for group in run.error_groups] == [[2]]
    assert (run.outputs, run.failed) == (None, None)


def test_the_result_of_an_earlier_start_is_not_that_of_a_later_one(files: RunStorageBlock) -> None:
    manifest = write_run(files, "r1", START, START + timedelta(hours=1))
    write_result(files, "r1", START)

    assert asyncio.run(read_run(files, manifest)).status == "Unfinished"

    write_result(files, "r1", START + timedelta(hours=1), status=Status.Canceled)

    assert asyncio.run(read_run(files, manifest)).status == "Canceled"


def test_a_run_that_a_process_holds_is_running(files: RunStorageBlock, storage: Path) -> None:
    manifest = write_run(files, "r1")
    with (storage / "r1" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert asyncio.run(read_run(files, manifest)).status == "Running"

    assert asyncio.run(read_run(files, manifest)).status == "Unfinished"


@pytest.mark.parametrize(
    ("lease", "status"),
    [
        ({"released": False, "age_sec": 1}, "Running"),
        ({"released": True, "age_sec": 1}, "Unfinished"),
        ({"released": False, "age_sec": 3600}, "Unfinished"),
        (None, "Unfinished"),
    ],
    ids=["renewed", "released", "stale", "none"],
)
def test_elsewhere_the_lease_tells_whether_a_run_is_running(lease: dict[str, Any] | None, status: str) -> None:
    files = RunStorageBlock(url="memory://batchflow-cli-lease")
    manifest = write_run(files, "r1")
    text = json.dumps(lease and {**this_process(), **lease, "owner": "x", "renewed_at": time.time() - lease["age_sec"]})
    asyncio.run(files.write_path(RunKeys("r1").lease(1), text.encode()))

    assert asyncio.run(read_run(files, manifest)).status == status


def test_a_damaged_segment_is_a_note_and_its_lines_count_as_not_run(files: RunStorageBlock, storage: Path) -> None:
    manifest = write_run(files, "r1")
    write_records(files, "r1", receipt(0))
    segment = next((storage / "r1" / "records").iterdir())
    segment.write_text(segment.read_text()[:-20])

    run = asyncio.run(read_run(files, manifest))

    assert run.result.not_started_lines == 3
    assert segment.name in run.notes[0]


def test_runs_are_listed_by_their_last_start(files: RunStorageBlock) -> None:
    write_run(files, "resumed", START, START + timedelta(hours=3))
    write_run(files, "old", START + timedelta(hours=1))
    write_run(files, "new", START + timedelta(hours=2))

    everything, two = asyncio.run(list_runs(files)), asyncio.run(list_runs(files, limit=2))

    assert [run.manifest.run_id for run in everything.runs] == ["resumed", "new", "old"]
    assert [run.manifest.run_id for run in two.runs] == ["resumed", "new"]
    assert (everything.total, two.total) == (3, 3)


def test_one_damaged_run_does_not_hide_the_others(files: RunStorageBlock, storage: Path) -> None:
    write_run(files, "good")
    write_run(files, "bad")
    write_run(files, "worse")
    (storage / "bad" / "manifest.json").write_text("{")
    (storage / "bad" / "manifests" / "0001.json").unlink()
    (storage / "worse" / "batch_result.json").write_text("{")
    (storage / ".hidden").mkdir()
    (storage / "empty").mkdir()

    listing = asyncio.run(list_runs(files))

    assert [run.manifest.run_id for run in listing.runs] == ["good"]
    assert sorted(name for name in ("bad", "worse") for p in listing.problems if f"/{name}/" in p) == ["bad", "worse"]


def test_a_storage_that_is_not_there_yet_holds_no_runs(files: RunStorageBlock) -> None:
    assert asyncio.run(list_runs(files)).runs == []


def test_a_storage_that_cannot_be_listed_is_an_error(storage: Path) -> None:
    storage.write_text("a file, no folder")

    with pytest.raises(StorageError, match="Cannot list the run storage"):
        asyncio.run(list_runs(RunStorageBlock(url=f"{storage}/runs")))


def test_a_run_that_is_not_there_is_told_with_names_that_are_near(files: RunStorageBlock) -> None:
    write_run(files, "nightly-eval")

    with pytest.raises(RunNotFoundError, match=r"no run 'nigthly-eval'.*Did you mean nightly-eval\?"):
        asyncio.run(find_run(files, "nigthly-eval"))
    with pytest.raises(RunNotFoundError) as caught:
        asyncio.run(find_run(files, "something"))
    assert "Did you mean" not in str(caught.value)


def test_a_name_that_leads_out_of_the_storage_is_refused(files: RunStorageBlock) -> None:
    with pytest.raises(InvalidRunIdError):
        asyncio.run(find_run(files, "../x"))
