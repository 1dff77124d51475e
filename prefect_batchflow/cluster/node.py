"""The cluster's side of a run: the task that runs a chunk, and everything that the chunks of a run share in one process.

Lines run in our own worker processes, as on one machine; they are children of the cluster's worker process. One event loop
serves all chunks, in its own thread, because each task has a thread of its own, and with Ray a process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import sys
import threading
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

from prefect import task
from pydantic import SecretStr

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.cluster.work import Assignment, Report, RunDescription
from prefect_batchflow.definition.load import merged
from prefect_batchflow.exceptions import BatchflowException, FlowNotFoundError, InvalidOptionError, RunInUseError
from prefect_batchflow.execution.line_feed import LineEvents
from prefect_batchflow.execution.workers.pool import WorkerPool
from prefect_batchflow.line_runner import ChunkRun, LineRunner
from prefect_batchflow.prefect_runtime.logs import PrintedLog
from prefect_batchflow.prefect_runtime.task_runs import KEEPS_NOTHING, in_memory_result, tag_task_run, task_parameter
from prefect_batchflow.storage.control import LOOK_EVERY_SEC, Follower
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.records import RunRecords
from prefect_batchflow.storage.reserve import Reserve
from prefect_batchflow.tasks import chunk_name, chunk_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from prefect.client.schemas.objects import State

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.storage.control import Verdict
    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import SegmentName

logger = logging.getLogger(__name__)

IDLE_SEC = 10.0
"""How long the worker processes of a run wait for its next chunk. A later chunk starts new ones."""
WRITE_SEC = 5.0
"""How long a write may still take when a chunk is ended."""
ASK_CLUSTER_EVERY_SEC = 0.5


@task(
    name="run_chunk",
    task_run_name=lambda: chunk_name(task_parameter("assignment").lines),
    **KEEPS_NOTHING,
)
def run_chunk(assignment: Assignment) -> State[Any]:
    """Run the lines of a chunk that are not done, and return their receipts as the result of the state."""
    tag_task_run(f"run:{assignment.run_id}")
    report = run_assignment(assignment)
    failures = [receipt for receipt in report.settled if receipt.error is not None]
    completed = len(report.settled) - len(failures)
    state = chunk_state(len(assignment.lines), completed, failures, report.failure)
    state.data = in_memory_result(report)
    return state


def run_assignment(assignment: Assignment) -> Report:
    """Run a chunk and wait for its end. End it early if the cluster takes away this process or the task."""
    loop = _loop()
    chunk = ChunkWork(assignment.lines)
    work = asyncio.run_coroutine_threadsafe(_run(assignment, chunk), loop)
    try:
        while not work.done():
            concurrent.futures.wait([work], timeout=ASK_CLUSTER_EVERY_SEC)
            if _is_leaving():
                loop.call_soon_threadsafe(chunk.end, "leaving")
        return work.result()
    finally:
        work.cancel()


class ChunkWork:
    """One chunk that runs here."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.ended_by = ""
        self.runner: LineRunner | None = None

    def end(self, why: str, *, drain: bool = False) -> None:
        """Begin no more of its lines, and end the running ones unless it drains. Idempotent."""
        self.ended_by = self.ended_by or why
        if self.runner is not None:
            self.runner.stop(drain=drain)


class RemoteRun:
    """A run in this process, shared by its chunks: the storage, the worker pools, and the orders of the run."""

    def __init__(self, description: RunDescription) -> None:
        self._run = description
        self._keys = RunKeys(description.run_id)
        self._files = RunStorageBlock(
            url=description.storage_url,
            storage_options={name: SecretStr(value) for name, value in description.storage_options.items()},
        )
        self._follower = Follower(self._files, self._keys, description.session, description.owner)
        self._is_fenced = False
        self._chunks: set[ChunkWork] = set()
        self._free: list[WorkerPool] = []
        """Pools without a chunk. A pool has its own worker processes, and one chunk at a time."""
        self._merged = contextlib.ExitStack()
        self._flow: Flow | None = None
        self._printed = PrintedLog()
        """One log for all chunks here, because its limit counts lines of the run."""
        self._loading = asyncio.Lock()
        self._idle_since = time.monotonic()

    async def run(self, chunk: ChunkWork) -> Report:
        """Run the lines of a chunk that are not in the storage yet. The report has any error; nothing is raised."""
        self._chunks.add(chunk)
        try:
            return await self._run_chunk(chunk)
        except BatchflowException as exc:
            return Report(failure=exc, host=socket.gethostname())
        finally:
            self._chunks.discard(chunk)
            self._idle_since = time.monotonic()

    async def _run_chunk(self, chunk: ChunkWork) -> Report:
        self._obey(await self._follower.look())
        numbers = [line.line_number for line in chunk.lines]
        records = _ChunkRecords(self._files, self._keys, self._run, self._check_writer)
        index, segments = await records.scan_between(min(numbers), max(numbers))
        settled: list[Receipt] = []
        if chunk.ended_by:
            return self._report(chunk, settled, segments)
        pool = await self._pool()

        def ended(receipt: Receipt) -> None:
            if self._run.ends_on_failure and receipt.error is not None:
                chunk.end("limit")

        runner = LineRunner(
            pool, records, self._run.policy, LineEvents(settled=settled.append, ended=ended), printed=self._printed
        )
        try:
            lines, attempts = [], {}
            for line in chunk.lines:
                done = index.completed(line.line_number, line.input_hash)
                stored = index.lines.get(line.line_number)
                if stored is not None and line.line_number in self._run.rerun_lines:
                    done = done if stored.session >= self._run.rerun_since else None
                if done is None and stored is not None and stored.session == self._run.session:
                    # Written by this chunk's task before it was lost: a final failure counts, any other gets its next attempt.
                    done = stored.receipt if runner.is_final(stored.receipt) else None
                    attempts[line.line_number] = stored.receipt.attempt + 1
                if done is not None:
                    settled.append(done)
                else:
                    lines.append(line)
            chunk.runner = runner
            if chunk.ended_by:
                runner.stop()
            await ChunkRun(runner).run(lines, attempts)
        finally:
            chunk.runner = None
            await runner.written(WRITE_SEC)
            self._free.append(pool)
        return self._report(chunk, settled, [*segments, *records.written], runner)

    def _report(
        self,
        chunk: ChunkWork,
        settled: list[Receipt],
        segments: Sequence[SegmentName],
        runner: LineRunner | None = None,
    ) -> Report:
        return Report(
            settled=settled,
            unsettled=list(runner.unsettled.values()) if runner else (),
            canceled=frozenset(runner.canceled) if runner else frozenset(),
            segments=[name.name for name in segments if name.session == self._run.session],
            ended_by=chunk.ended_by if len(settled) < len(chunk.lines) else "",
            host=socket.gethostname(),
        )

    async def watch(self) -> None:
        """Obey the run's orders until it is over, or until this process has had no chunk for a while."""
        while True:
            await asyncio.sleep(LOOK_EVERY_SEC)
            verdict = await self._look()
            self._obey(verdict)
            is_over = verdict in ("end", "superseded", "orphaned")
            if not self._chunks and (is_over or time.monotonic() - self._idle_since > IDLE_SEC):
                return

    async def close(self) -> None:
        """End all worker processes of the run in this process."""
        pools, self._free = self._free, []
        await asyncio.gather(*(pool.close() for pool in pools))
        await asyncio.to_thread(self._merged.close)

    async def _look(self) -> Verdict:
        try:
            return await self._follower.look()
        except BatchflowException as exc:
            logger.warning("%s", exc)
            return "orphaned"  # it was there before, so someone removed the run

    async def _check_writer(self) -> None:
        """Refuse a write if another start has taken over. This process may just have woken up: it looks before each write."""
        if not self._is_fenced:
            self._obey(await self._follower.look())
        if self._is_fenced:
            raise RunInUseError("The run was started again elsewhere, so this task of its earlier start may not write.")

    def _obey(self, verdict: Verdict) -> None:
        if verdict == "superseded":
            self._is_fenced = True
        if verdict != "run":
            for chunk in self._chunks:
                chunk.end(verdict, drain=verdict == "drain")

    async def _pool(self) -> WorkerPool:
        if self._free:
            return self._free.pop()
        run = self._run
        async with self._loading:
            flow = await self._loaded()
        pool = WorkerPool(
            flow,
            given=run.given,
            worker_count=0 if run.grows else run.lines_at_once,
            max_concurrency=run.lines_at_once,
            line_memory_mb=run.line_memory_mb,
            alone=False,
        )
        pool.on_note = logger.warning
        try:
            await pool.start()
        except BaseException:
            await pool.close()
            raise
        return pool

    async def _loaded(self) -> Flow:
        """The flow as it runs here. Its files have the same paths on every machine; additional includes are merged here."""
        if self._flow is None:
            flow = self._run.flow
            if not flow.working_dir.is_dir():
                raise FlowNotFoundError(
                    f"The cluster worker on {socket.gethostname()} does not have the folder {flow.working_dir} of the flow "
                    f"{flow.name!r}. A flow needs the same path on every machine of the cluster: put it on a shared disk, "
                    "or into the workers' image."
                )
            if flow.additional_includes:
                flow, _ = await asyncio.to_thread(self._merged.enter_context, merged(flow))
            self._flow = flow
        return self._flow


class _ChunkRecords(RunRecords):
    """Records that note what a chunk writes, and refuse writes once another start of the run has taken over."""

    def __init__(
        self, files: RunFiles, keys: RunKeys, run: RunDescription, check_writer: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(files, keys, run.session, run.since, run.records_run, run.unnamed_until)
        self.reserve = Reserve(files, keys)
        self.written: list[SegmentName] = []
        self._check_writer = check_writer

    async def append(self, outcomes: Sequence[LineOutcome]) -> SegmentName:
        await self._check_writer()
        self.written.append(name := await super().append(outcomes))
        return name


# Module state, because tasks arrive one by one with nothing but their assignment, and workers must outlive a chunk.
_starting = threading.Lock()
_started: list[asyncio.AbstractEventLoop] = []
_runs: dict[str, RemoteRun] = {}
"""By run key; used on the loop only."""
_watching: set[asyncio.Task[None]] = set()


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        if not _started:
            loop = asyncio.new_event_loop()
            # A daemon, so that this process can end without waiting for lines. Supervisors then end the workers.
            threading.Thread(target=loop.run_forever, name="batchflow-remote", daemon=True).start()
            _started.append(loop)
        return _started[0]


async def _run(assignment: Assignment, chunk: ChunkWork) -> Report:
    run = _runs.get(assignment.run_key)
    if run is None:
        description = assignment.description()
        if description.version != (here := metadata.version("prefect-batchflow")):
            version = InvalidOptionError(
                f"The cluster worker on {socket.gethostname()} has prefect-batchflow {here}, but the run has "
                f"{description.version}. Install the same version on every machine."
            )
            return Report(failure=version, host=socket.gethostname())
        run = _runs[assignment.run_key] = RemoteRun(description)
        watching = asyncio.create_task(_watch(assignment.run_key, run))
        _watching.add(watching)
        watching.add_done_callback(_watching.discard)
    return await run.run(chunk)


async def _watch(run_key: str, run: RemoteRun) -> None:
    try:
        await run.watch()
    finally:
        # Forget it before closing it: a chunk that comes meanwhile gets a new one.
        _runs.pop(run_key, None)
        await run.close()


def _is_leaving() -> bool:
    """Whether Dask is closing this worker. It has given the task to another worker, but lets this thread continue."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return False
    try:
        worker = distributed.get_worker()
    except ValueError:
        return False
    return worker.status.name not in ("init", "starting", "running", "paused")
