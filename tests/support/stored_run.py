"""A run in a storage, as a finished start leaves it, without running it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from outcomes import outcome_of

from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.tally import Tally
from prefect_batchflow.settings import RunOptions
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.manifest import Manifest, Session, versions, write_manifest
from prefect_batchflow.storage.outputs import write_outputs
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prefect_batchflow.blocks import RunStorageBlock
    from prefect_batchflow.results.records import LineRecord

STARTED = datetime(2026, 1, 2, tzinfo=UTC)


async def stored_run(files: RunStorageBlock, run_id: str = "r", lines: int = 5, *, failed: int = 1) -> Manifest:
    """Write a run of one start: its last lines failed, each second line is in a segment of its own."""
    keys = RunKeys(run_id)
    outcomes = [outcome_of(n, error="no" if n >= lines - failed else None) for n in range(lines)]
    records = RunRecords(files, keys, session=1)
    for start in range(0, lines, 2):
        await records.append(outcomes[start : start + 2])
    manifest = manifest_of(run_id, total_lines=lines)
    await write_manifest(files, keys, manifest)
    tally = Tally()
    for outcome in outcomes:
        tally.add(outcome.receipt)

    async def newest() -> AsyncIterator[LineRecord]:
        async for _, record in records.newest():
            yield record

    await write_outputs(files, keys, newest(), BatchResult.of(tally, lines, STARTED, STARTED), None)
    return manifest


def manifest_of(run_id: str, **facts: Any) -> Manifest:
    """A manifest of one start."""
    known: dict[str, Any] = {
        "run_id": run_id,
        "flow_name": "f",
        "flow": "/f",
        "working_dir": "/f",
        "data": {"data": "/rows.jsonl"},
        "inputs_mapping": {},
        "init_names": [],
        "init_kwargs": {},
        "options": RunOptions(),
        "output_dir": None,
        "total_lines": 5,
        "fingerprints": {},
        "sessions": [Session(started_at=STARTED.isoformat(), prefect_flow_run_id=None, versions=versions())],
    }
    return Manifest(**{**known, **facts})
