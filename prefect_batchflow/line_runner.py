"""Runs a line: its attempts, its time limit, its record. The tasks of a run share it, here and on a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import time
from itertools import islice
from typing import TYPE_CHECKING

from prefect_batchflow.errors.classes import ErrorClass, class_of_error
from prefect_batchflow.errors.waits import not_before_sec
from prefect_batchflow.exceptions import BatchflowException
from prefect_batchflow.execution.executor import Wait
from prefect_batchflow.prefect_runtime.logs import PrintedLog
from prefect_batchflow.prefect_runtime.task_runs import jittered
from prefect_batchflow.storage.reserve import FLUSH_BYTES
from prefect_batchflow.storage.writer import RecordWriter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from prefect_batchflow.execution.executor import Executor, LineOutcome
    from prefect_batchflow.execution.line_feed import LineEvents
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.settings import LinePolicy
    from prefect_batchflow.storage.records import RunRecords


FLUSH_EVERY_SEC = 2.0
"""A chunk writes finished lines at least this often. A kill loses no more than that."""
SHOWN_OF_STOPPED = 5
"""Failed lines of a chunk that are shown when the run was stopped: someone waits for its end."""


class _HeldError(Exception):
    """A line was taken back before a worker began it, because the storage fails."""


class LineRunner:
    """Shared by the tasks of one run: runs attempts, writes records, reports to the run."""

    def __init__(
        self,
        executor: Executor,
        records: RunRecords,
        policy: LinePolicy,
        events: LineEvents,
        *,
        printed: PrintedLog | None = None,
    ) -> None:
        self.executor = executor
        self.policy = policy
        self.open_lines = 0
        """Lines that wait for a worker or have one. Lines that wait for their next attempt do not count."""
        self.on_room: Callable[[], None] = lambda: None
        self.unsettled: dict[int, Receipt] = {}
        """The failed attempts of lines whose next attempt has not ended."""
        self.stopped = False
        self.canceled: set[int] = set()
        """The lines that were running when the run was stopped, and did not end."""
        self.writer = RecordWriter(records, self._kept, events.failed)
        self._stopping = asyncio.Event()
        self._events = events
        self._settles = True
        self._printed = PrintedLog() if printed is None else printed
        self._not_before: dict[int, Wait] = {}
        """By line, when its next attempt may begin, if the error of the failed attempt asks for a wait."""
        self._attempts: dict[asyncio.Task[LineOutcome], int] = {}
        """The running attempts, and their line numbers."""
        self._ended_lines = False
        self._storage_works = asyncio.Event()
        """Unset while calls of the storage fail and are tried again. No line begins then: its result might not be kept."""
        self._storage_works.set()
        records.when_failing(self._on_failing)

    def _on_failing(self, is_failing: bool) -> None:
        if not is_failing:
            self._storage_works.set()
            return
        self._storage_works.clear()
        running = self.executor.running()
        for attempt, number in self._attempts.items():
            if number not in running:
                attempt.cancel()  # `_attempt` begins it anew

    def stop(self, *, drain: bool = False) -> None:
        """Begin no line and no further attempt, and end the lines that run. Idempotent.

        With `drain`, the lines that run end by themselves, until a call without it.
        """
        self.stopped = True
        self._stopping.set()
        self._storage_works.set()  # wakes those that wait; they see the stop
        running = self.executor.running()
        if not drain and not self._ended_lines:
            self._ended_lines = True
            self.canceled = running
        for attempt, number in self._attempts.items():
            if not (drain and number in running):
                attempt.cancel()

    def is_final(self, receipt: Receipt) -> bool:
        """Whether no further attempt follows."""
        return (
            receipt.error is None
            or receipt.attempt > self.policy.retries
            or not self.policy.retries_error(receipt.error)
        )

    async def attempt(self, line: Line, attempt: int) -> LineOutcome | None:
        """Run one attempt of a line, which then is no longer load. Returns `None` if the run was stopped first."""
        try:
            while not self.stopped:
                await self._storage_works.wait()
                with contextlib.suppress(_HeldError):
                    return None if self.stopped else await self._attempt(line, attempt)
            return None
        finally:
            self.open_lines -= 1
            self.on_room()

    async def _attempt(self, line: Line, attempt: int) -> LineOutcome | None:
        work = asyncio.ensure_future(self.executor.run_line(line, attempt=attempt, timeout_sec=self.policy.timeout_sec))
        self._attempts[work] = line.line_number
        try:
            outcome = await work
        except asyncio.CancelledError:
            if not work.cancelled():
                raise
            if self.stopped:
                return None
            task = asyncio.current_task()
            if not self._storage_works.is_set() and task is not None and not task.cancelling():
                raise _HeldError from None
            raise
        except BatchflowException as exc:
            self._events.failed(exc)
            raise
        finally:
            self._attempts.pop(work, None)
            # If the caller was cancelled, the work must not continue unseen.
            work.cancel()
        self._attempt_ended(outcome)
        return outcome

    def _attempt_ended(self, outcome: LineOutcome) -> None:
        self._printed.add(outcome)
        if self.is_final(outcome.receipt):
            self._events.ended(outcome.receipt)
        elif asked := not_before_sec(outcome.receipt.error or {}):
            is_rate = class_of_error(outcome.receipt.error or {}) is ErrorClass.RATE_LIMIT
            self._not_before[outcome.receipt.line_number] = Wait(time.monotonic() + asked, 429 if is_rate else None)

    def running(self) -> int:
        """How many lines a worker is running."""
        return len(self.executor.running())

    def waits(self) -> list[Wait]:
        """The lines that wait for a service: before their next attempt, or inside of this one."""
        return [*self._not_before.values(), *self.executor.waits().values()]

    async def written(self, limit_sec: float) -> None:
        """Wait, for a bounded time, until nothing is being written. No line is settled after that."""
        await self.writer.wait(limit_sec)
        self._settles = False

    async def wait_turn(self, line: Line) -> None:
        """Wait for as long as the service that refused the last attempt asked for. Then the line is load again."""
        if (wait := self._not_before.get(line.line_number)) is not None:
            await self.pause(wait.until - time.monotonic())
            del self._not_before[line.line_number]
        self.open_lines += 1

    async def pause(self, delay_sec: float) -> None:
        """Wait before the next attempt; ends early if the run is stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_sec):
                await self._stopping.wait()

    def _kept(self, outcomes: Sequence[LineOutcome]) -> None:
        """Settle lines whose final record is safe."""
        if self._events.persisted is not None:
            self._events.persisted(outcomes)
        for outcome in outcomes:
            number = outcome.receipt.line_number
            if self.is_final(outcome.receipt):
                self.canceled.discard(number)
                self.unsettled.pop(number, None)
                if self._settles:
                    self._events.settled(outcome.receipt)
            else:
                self.unsettled[number] = outcome.receipt


class ChunkRun:
    """Runs the lines of one task run, as many at once as the executor has room for, and writes their records in groups.

    `show_failed`, if given, gets the final receipts of failed lines once their records are safe.
    """

    def __init__(
        self, runner: LineRunner, show_failed: Callable[[Sequence[Receipt]], Awaitable[None]] | None = None
    ) -> None:
        self.completed = 0
        self.failures: list[Receipt] = []
        """The final receipts of lines that failed."""
        self._runner = runner
        self._show_failed = show_failed
        self._shown = 0
        self._unkept: list[LineOutcome] = []
        self._bytes = 0
        self._keeping = asyncio.Lock()

    async def run(self, lines: Sequence[Line], attempts: Mapping[int, int] | None = None) -> None:
        """Run the lines until they end, or until the run is stopped. `attempts` has the attempts to begin with, by line number.

        A line that is not in `attempts` begins with its first.
        """
        first = attempts or {}
        pending = {asyncio.create_task(self._run_line(line, first.get(line.line_number, 1))) for line in lines}
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=FLUSH_EVERY_SEC, return_when=asyncio.FIRST_EXCEPTION
                )
                for finished in done:
                    finished.result()
                await self._keep()
                await self._show()
        finally:
            for unfinished in pending:
                unfinished.cancel()
            # Finished lines are paid for, so keep them even if the chunk ends early.
            with contextlib.suppress(BatchflowException):
                await asyncio.shield(self._keep())

    async def _run_line(self, line: Line, first: int) -> None:
        policy = self._runner.policy
        delays = islice(policy.delays(), first - 1, None)
        for attempt in range(first, policy.retries + 2):
            outcome = await self._runner.attempt(line, attempt)
            if outcome is None:
                return
            self._unkept.append(outcome)
            self._bytes += len(outcome.record)
            if self._bytes > FLUSH_BYTES:
                await self._keep()
            if self._runner.is_final(outcome.receipt):
                if outcome.receipt.error is None:
                    self.completed += 1
                else:
                    self.failures.append(outcome.receipt)
                return
            await self._runner.pause(jittered(next(delays), policy.retry_jitter))
            await self._runner.wait_turn(line)

    async def _keep(self) -> None:
        async with self._keeping:
            if self._unkept:
                outcomes, self._unkept, self._bytes = self._unkept, [], 0
                await self._runner.writer.keep(outcomes)

    async def _show(self) -> None:
        failures, self._shown = self.failures[self._shown :], len(self.failures)
        if self._show_failed is not None:
            await self._show_failed(failures[:SHOWN_OF_STOPPED] if self._runner.stopped else failures)
