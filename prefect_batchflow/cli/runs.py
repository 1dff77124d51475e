"""The runs of a storage, read for `batchflow list`, `show` and `resume`."""

from __future__ import annotations

import asyncio
import difflib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from prefect_batchflow.blocks import is_block, open_storage
from prefect_batchflow.errors.groups import ErrorGroups
from prefect_batchflow.exceptions import BatchflowException, InvalidRunIdError, RunNotFoundError
from prefect_batchflow.prefect_runtime.flow_runs import set_right
from prefect_batchflow.prefect_runtime.own_server import has_own_server
from prefect_batchflow.prefect_runtime.reached_server import check_server
from prefect_batchflow.prefect_runtime.states import of_result
from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.tally import Tally
from prefect_batchflow.settings import default_storage_url
from prefect_batchflow.storage.earlier import require_manifest
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.lease import is_held
from prefect_batchflow.storage.manifest import read_manifest, run_names
from prefect_batchflow.storage.outputs import read_result
from prefect_batchflow.storage.records import records_of

if TYPE_CHECKING:
    from prefect_batchflow.blocks import RunStorageBlock
    from prefect_batchflow.storage.manifest import Manifest

RUNNING, UNFINISHED = "Running", "Unfinished"
"""The status of a run without a result: a process is running it, or none is and you can resume it."""

_READ_AT_ONCE = 16
SET_RIGHT_SEC = 5.0
"""How long `batchflow show` may ask and correct the Prefect server."""
ENDS_WITHIN_SEC = 30.0
"""How long after its result a run's process may still tell the Prefect server."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run, as its storage has it."""

    manifest: Manifest
    status: str
    """`Completed`, `Failed` or `Canceled`, as its last start ended; or `Running` or `Unfinished`."""
    result: BatchResult
    """The result of its last start. If there is none yet, the counts of its records so far."""
    error_groups: ErrorGroups
    folder: str
    """Its folder: a path on this machine, or a URL."""
    outputs: str | None
    """Its outputs file, if there is one."""
    failed: str | None
    """The file of its failed lines, if any failed. It can be the data of a new run."""
    notes: tuple[str, ...] = ()
    """Things to know that are not errors."""

    @property
    def is_finished(self) -> bool:
        """Whether its last start has a result."""
        return self.status not in (RUNNING, UNFINISHED)


@dataclass(frozen=True, slots=True)
class Listing:
    """The runs of a storage."""

    runs: list[StoredRun]
    """Newest first."""
    total: int
    """The number of all runs in the storage."""
    problems: list[str]
    """Why some runs cannot be shown."""


def find_stored(run_id: str, storage: str) -> Manifest:
    """The manifest of a run, as `find_run`; `storage` is a path or URL, empty is the default one."""

    async def find() -> Manifest:
        return await find_run(await opened(storage), run_id)

    return asyncio.run(find())


def read_stored(run_id: str, storage: str) -> StoredRun:
    """What a storage has of a run, as `read_run`."""

    async def read() -> StoredRun:
        files = await opened(storage)
        return await read_run(files, await find_run(files, run_id))

    return asyncio.run(read())


def list_stored(storage: str, limit: int | None) -> tuple[Listing, str]:
    """The runs of a storage, as `list_runs`, and where it is."""

    async def read() -> tuple[Listing, str]:
        files = await opened(storage)
        return await list_runs(files, limit), files.location()

    return asyncio.run(read())


def set_right_in_prefect(stored: StoredRun) -> StoredRun:
    """The run, after its Prefect server knows how its last start ended, if it was away then or the process was killed."""
    flow_run_id = stored.manifest.sessions[-1].prefect_flow_run_id
    ended_sec = (datetime.now(UTC) - stored.result.end_time).total_seconds()
    if flow_run_id is None or stored.status == RUNNING or has_own_server():
        return stored
    if stored.is_finished and ended_sec < ENDS_WITHIN_SEC:
        return stored  # its process may be about to tell it
    ended = of_result(stored.result) if stored.is_finished else None
    if not asyncio.run(set_right(UUID(flow_run_id), ended, within_sec=SET_RIGHT_SEC)):
        return stored
    state = ended.type.value.title() if ended is not None else "Crashed"
    note = f"The Prefect server showed this run as running, or as crashed. Its flow run {flow_run_id} is {state} now."
    return replace(stored, notes=(*stored.notes, note))


async def opened(storage: str) -> RunStorageBlock:
    """A storage; empty is the default one."""
    storage = storage or default_storage_url()
    if is_block(storage):
        await check_server()
    return await open_storage(storage)


async def find_run(files: RunStorageBlock, run_id: str) -> Manifest:
    """The manifest of a run.

    Raises:
        RunNotFoundError: There is no such run. The message names runs with a similar name.
        InvalidRunIdError: It is not a valid name for a run.
        StorageError: The storage cannot be read.
    """
    keys = RunKeys(run_id)
    try:
        return await require_manifest(files, keys)
    except RunNotFoundError as exc:
        near = difflib.get_close_matches(run_id, await run_names(files), n=2, cutoff=0.8)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise RunNotFoundError(f"{exc}{meant}", run_id=run_id) from None


async def read_run(files: RunStorageBlock, manifest: Manifest) -> StoredRun:
    """Read a run.

    Raises:
        StorageError: The storage cannot be read, or the result or the records are damaged.
    """
    keys = RunKeys(manifest.run_id)
    result = await read_result(files, keys, manifest)
    if result is None:
        return await _unfinished(files, keys, manifest)
    groups = ErrorGroups()
    for line in result.error_summary.error_list:
        groups.add(line.line_number, line.error)
    return StoredRun(
        manifest=manifest,
        status=result.status.value,
        result=result,
        error_groups=groups,
        folder=files.location(keys.run_id),
        outputs=files.location(keys.outputs),
        failed=files.location(keys.failed) if result.failed_lines else None,
    )


async def list_runs(files: RunStorageBlock, limit: int | None = None) -> Listing:
    """The runs of a storage, by their last start, newest first: `limit` of them, or all.

    Raises:
        StorageError: The storage cannot be listed. A run that cannot be read becomes one of the problems.
    """
    problems: list[str] = []
    gate = asyncio.Semaphore(_READ_AT_ONCE)

    async def manifest_of(name: str) -> Manifest | None:
        async with gate:
            try:
                return await read_manifest(files, RunKeys(name))
            except InvalidRunIdError:
                return None  # not a run
            except BatchflowException as exc:
                problems.append(str(exc))
                return None

    async def run_of(manifest: Manifest) -> StoredRun | None:
        async with gate:
            try:
                return await read_run(files, manifest)
            except BatchflowException as exc:
                problems.append(str(exc))
                return None

    found = [m for m in await asyncio.gather(*map(manifest_of, await run_names(files))) if m is not None]
    found.sort(key=lambda manifest: (manifest.last_started_at, manifest.run_id), reverse=True)
    runs = await asyncio.gather(*map(run_of, found[:limit]))
    return Listing([run for run in runs if run is not None], len(found), problems)


async def _unfinished(files: RunStorageBlock, keys: RunKeys, manifest: Manifest) -> StoredRun:
    """A run without a result, counted from its records."""
    index, damaged = await records_of(files, keys, manifest).scan()
    tally = Tally()
    for stored in index.lines.values():
        tally.add(stored.receipt)
    started_at = manifest.last_started_at
    # Records of lines that are no longer in the data still count here.
    total_lines = max(manifest.total_lines, tally.ended_lines)
    return StoredRun(
        manifest=manifest,
        status=RUNNING if await is_held(files, keys) else UNFINISHED,
        result=BatchResult.of(tally, total_lines, started_at, started_at),
        error_groups=tally.error_groups,
        folder=files.location(keys.run_id),
        outputs=None,
        failed=None,
        notes=tuple(f"{damage} Its lines count as not run." for damage in damaged),
    )
