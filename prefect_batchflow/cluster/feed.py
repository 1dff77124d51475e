"""The lines of a run on a cluster: submits chunks, takes their reports, ends them."""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
from typing import TYPE_CHECKING, Any

from prefect_batchflow.cluster.clusters import LostTaskError
from prefect_batchflow.cluster.node import run_chunk
from prefect_batchflow.cluster.work import Assignment, Report
from prefect_batchflow.exceptions import BatchflowException, ClusterError
from prefect_batchflow.execution.executor import LineOutcome
from prefect_batchflow.execution.line_feed import STOP_GRACE_SEC
from prefect_batchflow.line_runner import SHOWN_OF_STOPPED
from prefect_batchflow.storage.control import LOOK_EVERY_SEC
from prefect_batchflow.storage.keys import SegmentName
from prefect_batchflow.tasks import FailedLines

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from prefect_batchflow.cluster.clusters import Cluster
    from prefect_batchflow.cluster.work import RunDescription
    from prefect_batchflow.execution.executor import Wait
    from prefect_batchflow.execution.line_feed import LineEvents
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.storage.control import Driver, Order
    from prefect_batchflow.storage.records import RunRecords

logger = logging.getLogger(__name__)

SUBMISSIONS = 3
"""How often a chunk is submitted before the run stops. Dask and Ray also retry each task themselves, on other workers."""
CHUNKS_A_PLACE = 4
"""More chunks than places, so that a place that finishes early finds another chunk."""
LARGEST_CHUNK = 1_000
"""Lines that travel at once, and that a dying worker takes with it."""
AHEAD = 2
"""Chunks that wait in the cluster, so that no place waits for this process to submit one."""


class Shares:
    """Spreads the lines of a run that may run at once over a cluster, which runs one task per place.

    With `grows`, `lines_at_once` is the most; each task begins with one line and follows what its lines do.
    """

    def __init__(self, lines_at_once: int, places: int, total_lines: int, *, grows: bool = False) -> None:
        self.places = places
        self.lines_at_once = max(1, lines_at_once // places)
        """Lines of one chunk that run at once."""
        chunks = lines_at_once // self.lines_at_once
        self.running = min(chunks, places)
        """Chunks that run at once."""
        self.submitted = self.running + (AHEAD if chunks >= places else 0)
        """Chunks in the cluster, with those that wait. None wait if places are free: they would exceed `lines_at_once`."""
        fair = math.ceil(total_lines / (CHUNKS_A_PLACE * self.running))
        self.chunk_size = min(max(fair, 1 if grows else self.lines_at_once), LARGEST_CHUNK)
        self.grows = grows


class ClusterFeed:
    """Runs lines in tasks of a cluster, one chunk per task. Calls `events` when a chunk has ended; only reads `records`."""

    stop_grace_sec = 2.0 + LOOK_EVERY_SEC + STOP_GRACE_SEC / 2
    """Longer than on this machine, because tasks hear of a stop with a delay."""

    def __init__(
        self,
        cluster: Cluster,
        driver: Driver,
        description: RunDescription,
        records: RunRecords,
        shares: Shares,
        events: LineEvents,
    ) -> None:
        self.group = shares.chunk_size
        self.width = shares.submitted
        self._begun = 0
        self._failed_lines = FailedLines(f"run:{description.run_id}")
        self.how = (
            f"{shares.chunk_size} a task, {shares.running} tasks at once on {shares.places} places of {cluster.kind}, "
            f"{shares.lines_at_once} lines at once in each"
        )
        self.on_room: Callable[[], None] = lambda: None
        self.canceled: set[int] = set()
        self.unsettled: dict[int, Receipt] = {}
        self._is_stopped = False
        self._submitted = 0
        self._cluster = cluster
        self._driver = driver
        self._run_id = description.run_id
        self._session = description.session
        self._run_key = f"{description.run_id}/{driver.owner}"
        self._packed_run = pickle.dumps(description)
        self._lines_at_once = description.lines_at_once
        self._records = records
        self._events = events
        self._seen_segments: set[str] = set()
        self._unanswered: dict[int, Sequence[Line]] = {}
        """Chunks without a report, by their first line."""
        self._telling: set[asyncio.Task[None]] = set()
        self._told: Order = "run"

    def waits(self) -> list[Wait]:
        """Nothing: chunks report only when they end."""
        return []

    def running(self) -> int:
        """The most lines that can be running now. Chunks report only when they end."""
        return sum(min(len(lines), self._lines_at_once) for lines in self._unanswered.values())

    def load(self) -> int:
        """Chunks that have been submitted and have not ended."""
        return self._submitted

    @property
    def task_runs(self) -> int:
        """Task runs of chunks and of failed lines."""
        return self._begun + self._failed_lines.task_runs

    async def look(self) -> None:
        """Nothing decides about the next chunks but the cluster's size."""

    def stop(self, *, drain: bool = False) -> None:
        """Begin no chunk, and end the lines of running chunks, or let them end with `drain`. Idempotent."""
        self._is_stopped = True
        order: Order = "drain" if drain else "stop"
        if self._told in (order, "stop"):
            return
        self._told = order
        telling = asyncio.ensure_future(self._tell(order))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _tell(self, order: Order) -> None:
        try:
            await self._driver.tell(order)
        except Exception as exc:  # noqa: BLE001 - the next beat writes it again
            logger.warning("Cannot send the cluster's tasks the signal to %s: (%s) %s", order, type(exc).__name__, exc)

    def run(self, lines: Sequence[Line]) -> Coroutine[Any, Any, None]:
        """Run one chunk: submit it until its report comes, or until it was lost too often."""
        self._unanswered[lines[0].line_number] = lines
        self._submitted += 1
        self._begun += 1
        return self._run(lines)

    async def _run(self, lines: Sequence[Line]) -> None:
        try:
            await self._submit(lines)
        finally:
            self._submitted -= 1
            self.on_room()

    async def _submit(self, lines: Sequence[Line]) -> None:
        assignment = Assignment(self._run_id, self._run_key, self._packed_run, lines)
        lost = ""
        for _ in range(SUBMISSIONS):
            if self._is_stopped:
                return
            try:
                report = await self._report(assignment)
            except LostTaskError as exc:
                lost = str(exc)
            except BatchflowException as exc:
                self._events.failed(exc)
                return
            else:
                lost = _why_again(report)
                if not lost or self._is_stopped:
                    await self._take(report)
                    self._unanswered.pop(lines[0].line_number, None)
                    return
            logger.warning(
                "Submitting %r of run %s again, because their task was lost: %s", assignment, self._run_id, lost
            )
        if not self._is_stopped:
            self._events.failed(
                ClusterError(
                    f"The cluster lost the task of {assignment!r} {SUBMISSIONS} times, the last time because: {lost}. "
                    "These lines are not the cause, because lines run in their own processes. The run stops and keeps all "
                    "lines that have ended. Find out what ends the cluster's workers, then resume the run."
                )
            )

    async def _report(self, assignment: Assignment) -> Report:
        state = await self._cluster.run(run_chunk, {"assignment": assignment})
        report = getattr(state.data, "result", None)
        if not isinstance(report, Report):
            raise LostTaskError(f"its task run ended in {state.name}: {state.message}")
        return report

    async def _take(self, report: Report) -> None:
        if report.failure is not None:
            self._events.failed(report.failure)
            return
        try:
            await self._hand_on(report.segments)
        except BatchflowException as exc:
            self._events.failed(exc)
            return
        for receipt in report.settled:
            self._events.ended(receipt)
            self._events.settled(receipt)
        self.canceled |= report.canceled
        self.unsettled.update((receipt.line_number, receipt) for receipt in report.unsettled)
        failures = [receipt for receipt in report.settled if receipt.error is not None]
        await self._failed_lines.show(failures[:SHOWN_OF_STOPPED] if self._is_stopped else failures)

    async def _hand_on(self, segments: Sequence[str]) -> None:
        """Note what a chunk wrote, and read it for the storage that the caller gave, if any."""
        self._records.expect(map(SegmentName.parse, segments))
        if self._events.persisted is None:
            return
        for name in segments:
            if name in self._seen_segments:
                continue
            self._seen_segments.add(name)
            segment = await self._records.read(SegmentName.parse(name))
            self._events.persisted(
                [
                    LineOutcome(stored.receipt, record, stored.input_hash)
                    for stored, record in zip(segment.stored, segment.records, strict=True)
                ]
            )

    async def written(self, limit_sec: float) -> None:
        """Settle, for a bounded time, lines that ended in chunks without a report. No line is settled after that."""
        try:
            async with asyncio.timeout(limit_sec):
                for lines in list(self._unanswered.values()):
                    await self._ask_storage(lines)
        except (TimeoutError, BatchflowException) as exc:
            logger.warning("More lines may be done than are counted: (%s) %s", type(exc).__name__, exc)
        self._unanswered.clear()

    async def _ask_storage(self, lines: Sequence[Line]) -> None:
        numbers = [line.line_number for line in lines]
        index, names = await self._records.scan_between(min(numbers), max(numbers))
        settled: list[Receipt] = []
        for line in lines:
            stored = index.lines.get(line.line_number)
            if stored is not None and stored.session == self._session and stored.input_hash == line.input_hash:
                settled.append(stored.receipt)
        segments = [name.name for name in names if name.session == self._session]
        await self._take(Report(settled=settled, segments=segments))


def _why_again(report: Report) -> str:
    """Why a chunk must run again although its report has come; empty if it need not."""
    if report.failure is not None or report.ended_by not in ("orphaned", "leaving"):
        return ""
    if report.ended_by == "leaving":
        return f"the cluster closed its worker on {report.host}"
    return f"the worker on {report.host} heard nothing from this run for too long"
