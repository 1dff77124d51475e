"""The third stage: the lines that are not done, fed to a window of task runs, here or on a cluster, and counted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_batchflow.cluster.feed import ClusterRunner, Shares
from prefect_batchflow.cluster.work import RunDescription
from prefect_batchflow.errors.chosen import runs_again
from prefect_batchflow.exceptions import UnexpectedError
from prefect_batchflow.execution.workers.pool import WorkerPool
from prefect_batchflow.line_runner import LineRunner
from prefect_batchflow.lines import chunks
from prefect_batchflow.prefect_runtime.flow_runs import is_cancelled_in_prefect
from prefect_batchflow.prefect_runtime.logs import completed_lines_unlogged
from prefect_batchflow.report.artifacts import ProgressArtifact
from prefect_batchflow.results.models import line_result
from prefect_batchflow.results.records import Receipt, Status
from prefect_batchflow.run.failure_limits import FailureLimits
from prefect_batchflow.run.handle import ProgressReport
from prefect_batchflow.run.window import Window
from prefect_batchflow.storage.control import LOOK_EVERY_SEC, Driver
from prefect_batchflow.storage.custom import persist_lines
from prefect_batchflow.tasks import Chunk, chunk_task, is_broken, line_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from prefect_batchflow.cluster.clusters import Cluster
    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.lines import Line
    from prefect_batchflow.run.opening import Opened
    from prefect_batchflow.run.preparation import Prepared
    from prefect_batchflow.run.state import RunState
    from prefect_batchflow.settings import Granularity
    from prefect_batchflow.storage.index import Stored

LINE_GRANULARITY_UP_TO = 1_000
"""Lines for which `auto` makes a task run each."""
SMALLEST_CHUNK = 50
MOST_TASK_RUNS = 200
"""Chunks grow so that a run has no more: what a person can look through, and a server takes in within seconds."""
LINES_AHEAD = 100
"""Lines of the next chunk that are begun before the one before ends: beginning a task run takes longer than short lines."""
READ_LINES = 500
"""Lines read at once, in a thread: reading may wait for a network."""
WRITE_GRACE_SEC = 5.0
"""How long the write that is going on when a run is stopped may take; what is not written by then is not done."""
STOP_GRACE_SEC = 3.0
"""How long the lines of a stopped run may take to end and be written."""
CLUSTER_STOP_GRACE_SEC = 2.0 + LOOK_EVERY_SEC + STOP_GRACE_SEC / 2
"""The same on a cluster, whose tasks hear of it with a delay."""
REPORT_EVERY_SEC = 0.25
LOOK_FOR_CANCEL_EVERY_SEC = 2.0


@dataclass(frozen=True, slots=True)
class _Course:
    """How the lines of a run are run."""

    runner: LineRunner | ClusterRunner
    run: Callable[[list[Line]], Coroutine[Any, Any, None]]
    """Runs a group of lines."""
    window: Window
    group: int
    """Lines of a group."""
    how: str
    """For the log."""

    @property
    def stop_grace_sec(self) -> float:
        """How long the lines of a stopped run may take to end and be written."""
        return STOP_GRACE_SEC if isinstance(self.runner, LineRunner) else CLUSTER_STOP_GRACE_SEC


class Feeding:
    """Runs the lines of a run, and knows afterwards which of its records count.

    Args:
        state: The run.
        prepared: What it runs on.
        opened: Its records.
        places: Tasks that the cluster runs at once, if there is one.
    """

    def __init__(self, state: RunState, prepared: Prepared, opened: Opened, places: int) -> None:
        self._state = state
        self._options, self._live, self._tally = state.options, state.live, state.tally
        self._prepared = prepared
        self._executor = prepared.executor
        self._total_lines = prepared.inventory.total_lines
        self._opened = opened
        self._places = places
        self._runner: LineRunner | ClusterRunner | None = None
        self._limits = FailureLimits(state.options, self._total_lines)
        self._left_failed = 0
        """Lines that failed in an earlier start and do not run again, as was asked."""
        self._changed_lines: set[int] = set()
        """Lines that an earlier session has no fitting record of: what it has does not count any more."""
        has_own_numbers = any(source.own_numbers for source in prepared.inventory.sources)
        self._numbers: set[int] | None = set() if has_own_numbers else None
        """The data's own line numbers; `None` for lines numbered by position."""

    async def run(self) -> None:
        """Feed the lines that are not done to a window of task runs, and count what comes back."""
        async with self._course() as course:
            await self._feed(course)
        self._account_for_every_line(course.runner)
        if self._left_failed:
            self._state.note(
                f"Lines that failed before and were left as they are: {self._left_failed}. rerun is "
                f"{','.join(self._options.rerun)!r}, and they failed with other errors."
            )

    def counts(self, stored: Stored) -> bool:
        """Whether the newest record of a line is of this run's data, and was its last word."""
        number = stored.receipt.line_number
        of_other_inputs = number in self._changed_lines and stored.session < self._opened.session
        # Its earlier attempt has failed, and counts no more: the line was canceled in the next one.
        was_canceled = self._runner is not None and number in self._runner.canceled
        return self._is_in_data(number) and not of_other_inputs and not was_canceled

    def _is_in_data(self, line_number: int) -> bool:
        return line_number < self._total_lines if self._numbers is None else line_number in self._numbers

    def _ended(self, receipt: Receipt) -> None:
        if (error := self._limits.add(receipt)) is not None:
            self._state.stop.on_failure_limit(error)

    @contextlib.asynccontextmanager
    async def _course(self) -> AsyncIterator[_Course]:
        """How lines are run: by task runs in this process, or on the cluster while its tasks are told that the run goes on."""
        if self._prepared.cluster is not None:
            async with Driver(self._prepared.files, self._state.keys, self._opened.session) as driver:
                yield self._course_on_cluster(self._prepared.cluster, driver)
            return
        runner = LineRunner(
            self._executor,
            self._opened.records,
            self._options.policy,
            self._tally.add,
            ended=self._ended,
            persisted=self._persisted,
        )
        chunk_size = _chunk_size(self._options.granularity, self._total_lines)
        make_task = line_task if chunk_size is None else chunk_task
        run_task = functools.partial(self._run_task, make_task(runner, f"run:{self._state.request.run_id}"))
        # More lines than workers, so that none waits while Prefect begins and ends task runs. Lines are counted, not
        # task runs: a chunk whose last line hangs must not keep the next one from the other workers.
        slots = self._executor.slots
        width = slots + max(4, slots // 4, min(chunk_size or 0, LINES_AHEAD))
        window = Window(width, lambda: runner.open_lines)
        how = "a task run each" if chunk_size is None else f"{chunk_size} a task run"
        yield _Course(runner, run_task, window, chunk_size or 1, f"{how}, {slots} at once")

    def _course_on_cluster(self, cluster: Cluster, driver: Driver) -> _Course:
        shares = Shares(self._executor.slots, self._places, self._total_lines)
        assert isinstance(self._executor, WorkerPool), "checked with the options"
        files, opened, options = self._prepared.files, self._opened, self._options
        description = RunDescription(
            run_id=self._state.request.run_id,
            session=opened.session,
            since=opened.records_since,
            owner=driver.owner,
            storage_url=files.url,
            storage_options={name: value.get_secret_value() for name, value in files.storage_options.items()},
            flow=self._prepared.loaded_flow,
            given=self._executor.given(),
            policy=options.policy,
            ends_on_failure=options.max_failures == "1",
            lines_at_once=shares.lines_at_once,
            line_memory_mb=options.line_memory_mb,
        )
        runner = ClusterRunner(
            cluster,
            driver,
            description,
            opened.records,
            self._tally.add,
            ended=self._ended,
            persisted=self._persisted if self._live.run_storage is not None else None,
        )
        how = f"{shares.chunk_size} a task, {shares.running} tasks at once on {self._places} places of {cluster.kind}"
        how += f", {shares.lines_at_once} lines at once in each"
        return _Course(runner, runner.run, Window(shares.submitted), shares.chunk_size, how)

    async def _feed(self, course: _Course) -> None:
        state, runner, window = self._state, course.runner, course.window
        self._runner = state.stop.runner = runner
        state.stop.raise_failure()
        runner.on_room = window.wake
        run_id, total = state.request.run_id, self._total_lines
        state.logger.info("Run %s: %d lines of %s, %s", run_id, total, self._prepared.flow.name, course.how)
        with state.stop.stops(window.wake), completed_lines_unlogged(state.flow_run.id):
            async with ProgressArtifact(run_id, total) as progress, _beside(self._watch(progress, window)):
                deadline = 0.0
                try:
                    async for lines in self._undone(course.group):
                        if runner.stopped:
                            # Only to count the lines behind that are done already, and not for long.
                            if time.monotonic() > (deadline := deadline or time.monotonic() + STOP_GRACE_SEC):
                                state.note("Stopped before all data was read: more lines may be done than are counted.")
                                break
                            continue
                        state.task_runs += 1
                        await window.begin(functools.partial(course.run, lines))
                        runner.enter(len(lines))
                    await window.drain()
                finally:
                    await window.end(course.stop_grace_sec if runner.stopped else 0)
                    await runner.written(WRITE_GRACE_SEC)
                progress.update(self._tally.ended_lines, self._tally.failed_lines)
                self._tell(time.monotonic() - state.clock)

    async def _run_task(self, task: Any, lines: list[Line]) -> None:
        """One task run; its lines are counted as they end, so its state only tells whether all of them did."""
        # `Any`: Prefect's types do not tell that an async task asked for its state gives an awaitable.
        state = await task(Chunk(lines), return_state=True)
        if is_broken(state):
            self._state.stop.fail(
                UnexpectedError(
                    f"The task run of {len(lines)} lines from line {lines[0].line_number} on ended in {state.name}: "
                    f"{state.message}. The run stops; resume it."
                )
            )

    def _account_for_every_line(self, runner: LineRunner | ClusterRunner) -> None:
        for number in runner.canceled:
            self._tally.add(Receipt(line_number=number, status=Status.Canceled))
        for number, receipt in runner.unsettled.items():
            if number not in runner.canceled:
                self._tally.add(receipt)  # stopped before its next attempt: it has failed
        if runner.failure is not None:
            raise runner.failure
        total = self._total_lines
        if not runner.stopped and self._tally.ended_lines != total:
            raise UnexpectedError(
                f"{total} lines were counted before the run, {self._tally.ended_lines} have ended; every line must be "
                "accounted for. Please report this; resuming the run runs the others."
            )

    async def _undone(self, size: int) -> AsyncIterator[list[Line]]:
        """The lines without a fitting completed record, in groups; the others are counted on the way."""
        index = self._opened.index
        batches = chunks(self._prepared.lines(), READ_LINES)
        group: list[Line] = []
        while batch := await asyncio.to_thread(next, batches, None):
            for line in batch:
                if self._numbers is not None:
                    self._numbers.add(line.line_number)
                ended = index.ended(line.line_number, line.input_hash) if index.lines else None
                if ended is not None and not self._runs_again(ended):
                    self._take_as_it_is(ended)
                    continue
                if line.line_number in index.lines:
                    self._changed_lines.add(line.line_number)
                group.append(line)
                if len(group) == size:
                    yield group
                    group = []
        if group:
            yield group

    def _runs_again(self, ended: Receipt) -> bool:
        """Whether a line that ended in an earlier start is to be run: it failed, and with an error that is asked for."""
        if ended.error is None:
            return False
        return runs_again(self._options.rerun, ended.error)

    def _take_as_it_is(self, ended: Receipt) -> None:
        self._state.reused_lines += ended.error is None
        self._left_failed += ended.error is not None
        self._limits.add_earlier(ended)
        self._tally.add(ended)

    async def _watch(self, progress: ProgressArtifact, window: Window) -> None:
        """Tell how far the run is, and look whether somebody cancelled it in the UI, where Prefect does not tell us."""
        look_again = time.monotonic() + LOOK_FOR_CANCEL_EVERY_SEC
        began = time.monotonic()
        while True:
            progress.update(self._tally.ended_lines, self._tally.failed_lines)
            window.wake()
            self._tell(time.monotonic() - began)
            await asyncio.sleep(REPORT_EVERY_SEC)
            if self._state.flow_run.deployment_id is None and time.monotonic() >= look_again:
                look_again = time.monotonic() + LOOK_FOR_CANCEL_EVERY_SEC
                if await is_cancelled_in_prefect(self._state.flow_run.id):
                    self._live.cancel("Canceled in Prefect.")

    def _tell(self, elapsed_sec: float) -> None:
        """Tell the caller how far the run is; one who cannot hear it does not cost the run its result."""
        if self._live.listener is None:
            return
        try:
            self._live.listener(self._progress_report(elapsed_sec))
        except Exception as exc:  # noqa: BLE001 - the caller's code
            self._live.listener = None
            self._state.note(f"The listener raised ({type(exc).__name__}) {exc} and is told no more.")

    def _progress_report(self, elapsed_sec: float) -> ProgressReport:
        return ProgressReport(
            run_id=self._state.request.run_id,
            flow_name=self._prepared.flow.name,
            total_lines=self._total_lines,
            completed_lines=self._tally.completed_lines,
            failed_lines=self._tally.failed_lines,
            reused_lines=self._state.reused_lines,
            running_lines=0 if self._runner is None else self._runner.running(),
            elapsed_sec=elapsed_sec,
        )

    def _persisted(self, outcomes: Sequence[LineOutcome]) -> None:
        """Hand lines to the storage that the caller brought, if any."""
        if self._live.run_storage is not None:
            run_id = self._state.request.run_id
            persist_lines(self._live.run_storage, (line_result(outcome.parsed(), run_id) for outcome in outcomes))


def _chunk_size(granularity: Granularity, total_lines: int) -> int | None:
    """Lines a task run; `None` is a task run a line."""
    if granularity == "line" or (granularity == "auto" and total_lines <= LINE_GRANULARITY_UP_TO):
        return None
    return max(SMALLEST_CHUNK, math.ceil(total_lines / MOST_TASK_RUNS))


@contextlib.asynccontextmanager
async def _beside(work: Any) -> AsyncIterator[None]:
    """Run something in the background of a block; it is cancelled at its end."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
