"""The third stage: run the lines that are not done, on this machine or on a cluster, and count them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any

from prefect_batchflow.cluster.feed import ClusterFeed, Shares
from prefect_batchflow.cluster.work import RunDescription
from prefect_batchflow.errors.chosen import runs_again
from prefect_batchflow.exceptions import UnexpectedError
from prefect_batchflow.execution.line_feed import STOP_GRACE_SEC, LineEvents
from prefect_batchflow.execution.workers.pool import WorkerPool
from prefect_batchflow.lines import chunks
from prefect_batchflow.prefect_runtime.flow_runs import is_cancelled_in_prefect
from prefect_batchflow.prefect_runtime.gone_server import drop_excess
from prefect_batchflow.prefect_runtime.logs import few_task_runs_logged
from prefect_batchflow.report.artifacts import ProgressArtifact
from prefect_batchflow.results.models import line_result
from prefect_batchflow.results.records import Receipt, Status
from prefect_batchflow.run.failure_limits import FailureLimits
from prefect_batchflow.run.handle import ProgressReport
from prefect_batchflow.run.window import Window
from prefect_batchflow.storage.control import Driver
from prefect_batchflow.storage.custom import persist_lines
from prefect_batchflow.tasks import LocalFeed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence, Set

    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.execution.line_feed import LineFeed
    from prefect_batchflow.lines import Line
    from prefect_batchflow.run.preparation import Prepared
    from prefect_batchflow.run.resuming import Resumed
    from prefect_batchflow.run.state import RunState
    from prefect_batchflow.storage.index import Stored

READ_LINES = 500
"""Lines read at once, in a thread, because reading can wait for a network."""
WRITE_GRACE_SEC = 5.0
"""How long a write may still take when a run is stopped. Lines that are not written by then are not done."""
REPORT_EVERY_SEC = 0.25
LOOK_EVERY_SEC = 2.0


class Feeding:
    """Runs the lines of a run, and knows afterwards which of its records count.

    `places` is the number of tasks that the cluster, if there is one, runs at once.
    """

    def __init__(self, state: RunState, prepared: Prepared, opened: Resumed, places: int) -> None:
        self._state = state
        self._options, self._live, self._tally = state.options, state.live, state.tally
        self._prepared = prepared
        self._executor = prepared.executor
        self._total_lines = prepared.inventory.total_lines
        self._opened = opened
        self._places = places
        if isinstance(self._executor, WorkerPool):
            self._executor.on_note = state.note
        self._canceled: Set[int] = frozenset()
        self._rerun, self._rerun_lines = state.options.errors_to_rerun, state.options.lines_to_rerun
        self._others_stay = bool(self._rerun_lines) and not state.options.rerun
        """Whether lines run again by their numbers only, and not by their errors."""
        self._earlier: dict[int, Receipt] = {}
        """The earlier receipts of lines that were chosen to run again, until they have."""
        self._limits = FailureLimits(state.options, self._total_lines)
        self._left_failed = 0
        """Lines that failed in an earlier start and that `rerun` does not select."""
        self._changed_lines: set[int] = set()
        """Lines whose records of earlier sessions had other inputs, and no longer count."""
        self._logged_slots = self._executor.slots
        """The number of lines at once that the log has."""
        has_own_numbers = any(source.own_numbers for source in prepared.inventory.sources)
        self._unsent = 0
        """Events and log records that were dropped, because the server did not take them."""
        self._numbers: set[int] | None = set() if has_own_numbers else None
        """The data's own line numbers; `None` for lines numbered by position."""

    async def run(self) -> None:
        """Run the lines that are not done, and count all lines."""
        self._live.begun.set()
        if self._live.run_storage is not None and self._opened.index.lines:
            await self._state.stop.unless_stopped(self._persist_earlier())
        async with self._opened_feed() as feed:
            await self._run_lines(feed)
        if self._unsent:
            self._state.note(
                f"The Prefect server was away or too slow. {self._unsent} events and log records that waited for it in memory "
                "were dropped. Its UI lacks some task runs."
            )
        self._keep_earlier(feed)
        self._account_for_every_line(feed)
        if self._left_failed:
            why = f"rerun is {','.join(self._rerun)!r} and their errors are different"
            if self._others_stay:
                why = f"rerun_lines is {str(self._rerun_lines)!r}"
            self._state.note(f"Failed lines that did not run again, because {why}: {self._left_failed}.")

    def counts(self, stored: Stored) -> bool:
        """Whether the newest record of a line belongs to this run's data and is final."""
        number = stored.receipt.line_number
        of_other_inputs = number in self._changed_lines and stored.session < self._opened.session
        is_in_data = number < self._total_lines if self._numbers is None else number in self._numbers
        # A canceled line can have the record of an earlier, failed attempt.
        return is_in_data and not of_other_inputs and number not in self._canceled

    def _ended(self, receipt: Receipt) -> None:
        if (error := self._limits.add(receipt)) is not None:
            self._state.stop.on_failure_limit(error)

    @contextlib.asynccontextmanager
    async def _opened_feed(self) -> AsyncIterator[LineFeed]:
        """This process, or a cluster whose tasks see, as long as the block lasts, that the run is alive."""
        state, records, options = self._state, self._opened.records, self._options
        events = LineEvents(
            settled=self._settled,
            ended=self._ended,
            persisted=self._persisted if self._live.run_storage is not None else None,
            failed=state.stop.fail,
        )
        if (cluster := self._prepared.cluster) is not None:
            async with Driver(self._prepared.files, state.keys, self._opened.session) as driver:
                most, grows = self._executor.most_slots, self._executor.most_slots > self._executor.slots
                shares = Shares(most, self._places, self._total_lines, grows=grows)
                yield ClusterFeed(cluster, driver, self._description(driver, shares), records, shares, events)
        else:
            yield LocalFeed(
                self._executor,
                records,
                options.policy,
                events,
                run_id=state.request.run_id,
                granularity=options.granularity,
                total_lines=self._total_lines
                if self._rerun_lines
                else max(1, self._total_lines - self._opened.index.completed_count()),
                flow_run_id=state.flow_run.id,
            )

    def _description(self, driver: Driver, shares: Shares) -> RunDescription:
        """The run as the tasks on a cluster need it."""
        files, options, given = self._prepared.files, self._options, self._executor.given()
        assert given is not None, "checked with the options"
        return RunDescription(
            run_id=self._state.request.run_id,
            session=self._opened.session,
            since=self._opened.records_since,
            records_run=self._opened.manifest.identity,
            unnamed_until=self._opened.manifest.unnamed_until,
            owner=driver.owner,
            storage_url=files.url,
            storage_options={name: value.get_secret_value() for name, value in files.storage_options.items()},
            flow=self._prepared.loaded_flow,
            given=given,
            policy=options.policy,
            ends_on_failure=options.max_failures == "1",
            lines_at_once=shares.lines_at_once,
            line_memory_mb=options.line_memory_mb or None,
            grows=shares.grows,
            rerun_lines=self._rerun_lines,
            rerun_since=self._opened.request_since,
        )

    async def _run_lines(self, feed: LineFeed) -> None:
        state, run_id, total = self._state, self._state.request.run_id, self._total_lines
        window = Window(lambda: feed.width, feed.load)
        feed.on_room = window.wake
        state.stop.feed = feed
        state.stop.raise_failure()
        state.logger.info("Run %s: %d lines of %s, %s", run_id, total, self._prepared.flow.name, feed.how)
        with state.stop.stops(window.wake), few_task_runs_logged(state.flow_run.id):
            async with ProgressArtifact(run_id, total) as progress, _beside(self._watch(progress, window, feed)):
                deadline = 0.0
                try:
                    async for lines in self._undone(feed):
                        if state.stop.is_stopped:
                            # Read on for a short time, only to count later lines that are already done.
                            if time.monotonic() > (deadline := deadline or time.monotonic() + STOP_GRACE_SEC):
                                state.note("Stopped before all data was read. More lines may be done than are counted.")
                                break
                            continue
                        await window.begin(functools.partial(feed.run, lines))
                    await window.drain()
                finally:
                    await window.end(feed.stop_grace_sec if state.stop.is_stopped else 0)
                    await feed.written(WRITE_GRACE_SEC)
                    state.task_runs = feed.task_runs
                self._tell_workers()
                progress.update(self._tally.ended_lines, self._tally.failed_lines)
                self._tell(time.monotonic() - state.clock)

    def _settled(self, receipt: Receipt) -> None:
        self._earlier.pop(receipt.line_number, None)
        self._tally.add(receipt)

    def _keep_earlier(self, feed: LineFeed) -> None:
        """Count what there was of lines that were to run again and were stopped before they had a new record."""
        kept = {number: receipt for number, receipt in self._earlier.items() if number not in feed.unsettled}
        for receipt in kept.values():
            self._state.reused_lines += receipt.error is None
            self._tally.add(receipt)
        self._changed_lines -= kept.keys()
        self._canceled = feed.canceled - kept.keys()
        if kept:
            self._state.note(
                f"The run was stopped before {len(kept)} of the chosen lines ran again. They keep their earlier results."
            )

    def _account_for_every_line(self, feed: LineFeed) -> None:
        for number in self._canceled:
            self._tally.add(Receipt(line_number=number, status=Status.Canceled))
        for number, receipt in feed.unsettled.items():
            if number not in self._canceled:
                self._tally.add(receipt)  # stopped before its next attempt, so it has failed
        self._state.stop.raise_failure()
        total = self._total_lines
        if not self._state.stop.is_stopped and self._tally.ended_lines != total:
            raise UnexpectedError(
                f"The data has {total} lines, but {self._tally.ended_lines} have ended. Please report this. To run the other "
                "lines, resume the run."
            )

    async def _undone(self, feed: LineFeed) -> AsyncIterator[list[Line]]:
        """The lines that are to run, in groups. Counts the others on the way."""
        index = self._opened.index
        batches = chunks(self._prepared.lines(), READ_LINES)
        group: list[Line] = []
        size = feed.group
        while batch := await asyncio.to_thread(next, batches, None):
            for line in batch:
                if self._numbers is not None:
                    self._numbers.add(line.line_number)
                ended = index.ended(line.line_number, line.input_hash) if index.lines else None
                if ended is not None and self._stays(ended):
                    self._take_as_it_is(ended)
                    continue
                if ended is not None and line.line_number in self._rerun_lines:
                    self._earlier[line.line_number] = ended
                if line.line_number in index.lines:
                    self._changed_lines.add(line.line_number)
                group.append(line)
                if len(group) == size:
                    yield group
                    group, size = [], feed.group
        if group:
            yield group

    def _stays(self, ended: Receipt) -> bool:
        """Whether a line that has ended before stays as it is."""
        number = ended.line_number
        is_chosen = number in self._rerun_lines
        # A Retry of this very request does not run again what its first try has.
        if is_chosen and self._opened.index.lines[number].session < self._opened.request_since:
            return False
        if ended.error is None or (self._others_stay and not is_chosen):
            return True
        return not runs_again(self._rerun, ended.error)

    def _take_as_it_is(self, ended: Receipt) -> None:
        self._state.reused_lines += ended.error is None
        self._left_failed += ended.error is not None
        self._limits.add_earlier(ended)
        self._tally.add(ended)

    async def _watch(self, progress: ProgressArtifact, window: Window, feed: LineFeed) -> None:
        """Report progress, ask how far the server is behind, and check for a cancel in the UI.

        Prefect does not tell a run without deployment about a cancel.
        """
        look_again = time.monotonic() + LOOK_EVERY_SEC
        began = time.monotonic()
        while True:
            progress.update(self._tally.ended_lines, self._tally.failed_lines)
            window.wake()
            self._tell(time.monotonic() - began)
            await asyncio.sleep(REPORT_EVERY_SEC)
            if time.monotonic() >= look_again:
                look_again = time.monotonic() + LOOK_EVERY_SEC
                self._unsent += drop_excess()
                await feed.look()
                if self._executor.slots != self._logged_slots:
                    self._tell_workers()
                if self._state.flow_run.deployment_id is None and await is_cancelled_in_prefect(
                    self._state.flow_run.id
                ):
                    self._live.cancel("Canceled in Prefect.")

    def _tell_workers(self) -> None:
        """Log how many workers there are and why, if that has changed; for the report too."""
        workers = self._executor.told() if self._prepared.cluster is None else ""
        if workers != self._live.workers:
            self._logged_slots, self._live.workers = self._executor.slots, workers
            self._state.logger.info("Run %s: %s", self._state.request.run_id, workers)

    def _tell(self, elapsed_sec: float) -> None:
        """Tell the caller how far the run is. A listener that raises does not fail the run."""
        if self._live.listener is None:
            return
        feed = self._state.stop.feed
        waits = [] if feed is None else feed.waits()
        first = min(waits, key=lambda wait: wait.until, default=None)
        report = ProgressReport(
            run_id=self._state.request.run_id,
            flow_name=self._prepared.flow.name,
            total_lines=self._total_lines,
            completed_lines=self._tally.completed_lines,
            failed_lines=self._tally.failed_lines,
            reused_lines=self._state.reused_lines,
            running_lines=0 if feed is None else feed.running(),
            elapsed_sec=elapsed_sec,
            waiting_lines=len(waits),
            next_wait_sec=max(0.0, first.until - time.monotonic()) if first else 0.0,
            wait_status=first.status if first else None,
        )
        try:
            self._live.listener(report)
        except Exception as exc:  # noqa: BLE001 - the caller's code
            self._live.listener = None
            self._state.note(f"The listener raised ({type(exc).__name__}) {exc}. It gets no further progress.")

    async def _persist_earlier(self) -> None:
        """Give the lines that stay as they are to the storage that the caller gave, by number, before any line runs.

        Source: promptflow `batch/_batch_engine.py`, `_copy_previous_run_result`.
        """
        assert self._live.run_storage is not None, "asked before"
        storage, run_id, index = self._live.run_storage, self._state.request.run_id, self._opened.index

        def stay() -> set[int]:
            ended = (index.ended(line.line_number, line.input_hash) for line in self._prepared.lines())
            return {receipt.line_number for receipt in ended if receipt is not None and self._stays(receipt)}

        numbers = await asyncio.to_thread(stay)
        async for stored, record in self._opened.records.newest():
            if stored.receipt.line_number in numbers:
                persist_lines(storage, [line_result(record, run_id)])

    def _persisted(self, outcomes: Sequence[LineOutcome]) -> None:
        """Give lines to the storage that the caller gave."""
        assert self._live.run_storage is not None, "asked before"
        run_id = self._state.request.run_id
        persist_lines(self._live.run_storage, (line_result(outcome.parsed(), run_id) for outcome in outcomes))


@contextlib.asynccontextmanager
async def _beside(work: Any) -> AsyncIterator[None]:
    """Run something in the background of a block, and cancel it at the end."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
