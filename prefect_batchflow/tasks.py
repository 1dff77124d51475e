"""Lines as Prefect task runs on this machine. `run_line` and `run_chunk` run lines, write their records and settle them.

A task is made for one run and closes over what it needs. A line is settled, that is counted, once its record was written
and read back, and no retry will follow.
"""

from __future__ import annotations

import asyncio
import contextlib
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from prefect import Task, task

from prefect_batchflow.exceptions import BatchflowException, UnexpectedError, innermost_code
from prefect_batchflow.execution.line_feed import STOP_GRACE_SEC
from prefect_batchflow.granularity import TaskRunSizes
from prefect_batchflow.line_runner import ChunkRun, LineRunner
from prefect_batchflow.prefect_runtime import states
from prefect_batchflow.prefect_runtime.logs import CHUNK_TASK, LINE_TASK
from prefect_batchflow.prefect_runtime.task_runs import (
    KEEPS_NOTHING,
    ended_task_runs,
    in_memory_result,
    tag_task_run,
    task_parameter,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence
    from uuid import UUID

    from prefect.client.schemas.objects import State, TaskRun

    from prefect_batchflow.execution.executor import Executor, LineOutcome
    from prefect_batchflow.execution.line_feed import LineEvents
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.settings import Granularity, LinePolicy
    from prefect_batchflow.storage.records import RunRecords

LINES_AHEAD = 100
"""Lines of the next chunk that begin before the current chunk ends: starting a task run takes longer than short lines."""
MOST_FAILED_LINES = 100
"""Failed lines of chunks that get a task run of their own. The others are in the messages of their chunks, as far as there is
room, and in the run's table of failed lines."""
NAMED_FAILURES = 10
"""Failed lines that the state of a chunk names."""
ASK_SERVER_SEC = 2.0
"""How long the server can take to say how many task runs it knows. After that it counts as behind."""
_MAX_RETRY_DELAYS = 50  # Prefect takes no more, and repeats the last one

_STATE_NAMES = {
    "LineExecutionTimeoutError": "TimedOut",
    "LineOutOfMemoryError": "OutOfMemory",
    "ProcessCrashError": "ProcessCrashed",
}


class LocalFeed(LineRunner):
    """Runs lines in task runs of this process: one per line, or one per chunk of lines. `run_id` is their tag.

    `total_lines` are about those that are left to run. `flow_run_id` is the Prefect flow run to which the task runs belong;
    `None` if they belong to none.
    """

    stop_grace_sec = STOP_GRACE_SEC

    def __init__(
        self,
        executor: Executor,
        records: RunRecords,
        policy: LinePolicy,
        events: LineEvents,
        *,
        run_id: str,
        granularity: Granularity,
        total_lines: int,
        flow_run_id: UUID | None = None,
    ) -> None:
        super().__init__(executor, records, policy, events)
        run_tag = f"run:{run_id}"
        self._failed_lines = FailedLines(run_tag)
        self._line_task: Any = _line_task(self, run_tag)
        self._chunk_task: Any = _chunk_task(self, run_tag, self._failed_lines)
        """`Any`: by Prefect's types, an async task that returns its state does not give an awaitable."""
        self._has_line_tasks = granularity != "chunk"
        self._sizes = TaskRunSizes(granularity, total_lines)
        self._flow_run_id = flow_run_id
        self._begun, self._ended = 0, 0
        """Task runs that run lines."""
        sizes = {"auto": "about a second of work", "line": "one line", "chunk": f"{self.group} lines"}
        at_first = " at first" if executor.most_slots > executor.slots else ""
        self.how = f"{sizes[granularity]} per task run, {executor.slots} lines at once{at_first}"
        self._begun_lines = 0
        executor.on_slots = lambda: self.on_room()
        executor.lines_left = lambda: max(0, total_lines - self._begun_lines) + self.open_lines

    @property
    def group(self) -> int:
        """Lines of the next task run."""
        return self._sizes.next

    @property
    def width(self) -> int:
        """The load at which no further task run is begun.

        It is more than the workers take, so that no worker waits while Prefect begins and ends task runs. Lines count, not
        task runs, so that a chunk whose last line hangs does not keep the next chunk from the other workers.
        """
        slots, group = self.executor.slots, self.group
        return slots + max(4, slots // 4, min(group, LINES_AHEAD) if group > 1 else 0)

    @property
    def task_runs(self) -> int:
        """The task runs that it has begun."""
        return self._begun + self._failed_lines.task_runs

    def load(self) -> int:
        """Lines that have begun, except those that wait for their next attempt."""
        return self.open_lines

    def run(self, lines: Sequence[Line]) -> Coroutine[Any, Any, None]:
        """Run a group of lines in one task run."""
        self.open_lines += len(lines)
        self._begun += 1
        self._begun_lines += len(lines)
        self._sizes.begun()
        return self._run_task(lines)

    async def look(self) -> None:
        """If it matters now, ask the server how far it is behind."""
        if self._flow_run_id is None or not self._sizes.asks_server:
            return
        ended = self._ended + self._failed_lines.task_runs
        known: int | None = None
        with contextlib.suppress(Exception):  # a server that does not answer is behind
            async with asyncio.timeout(ASK_SERVER_SEC):
                known = await ended_task_runs(self._flow_run_id)
        self._sizes.server_is_behind(None if known is None else ended - known)

    async def _run_task(self, lines: Sequence[Line]) -> None:
        """One task run. Its lines are counted as they end, so its state only shows whether all of them did."""
        task = self._line_task if self._has_line_tasks and len(lines) == 1 else self._chunk_task
        state = await task(Chunk(lines), return_state=True)
        self._ended += 1
        if _is_broken(state):
            self._events.failed(
                UnexpectedError(
                    f"The task run of {len(lines)} lines, starting with line {lines[0].line_number}, ended in {state.name}: "
                    f"{state.message}. The run stops. Resume it."
                )
            )

    def _attempt_ended(self, outcome: LineOutcome) -> None:
        super()._attempt_ended(outcome)
        self._sizes.took(outcome.receipt.duration_sec)


class FailedLines:
    """Gives failed lines of chunks a task run of their own, which runs nothing: so Prefect shows what failed in red."""

    def __init__(self, run_tag: str) -> None:
        self.task_runs = 0

        @task(
            name=LINE_TASK,
            task_run_name=lambda: f"line-{task_parameter('failed').receipt.line_number:06d}",
            **KEEPS_NOTHING,
        )
        async def show(failed: _Failed) -> State[Any]:
            tag_task_run(run_tag)
            return _state(failed.receipt)

        self._show: Any = show

    async def show(self, receipts: Iterable[Receipt]) -> None:
        """Show the lines, by their final receipts, as far as there is room."""
        for receipt in receipts:
            if self.task_runs >= MOST_FAILED_LINES:
                return
            self.task_runs += 1
            await self._show(_Failed(receipt), return_state=True)


class _Failed:
    """A failed line as the parameter of a task. Not a dataclass, because Prefect would search it for states."""

    __slots__ = ("receipt",)

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt


class Chunk:
    """The lines of one task run. Not a collection, so that Prefect does not search all rows for states to wait for."""

    __slots__ = ("lines",)

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines


def _line_task(runner: LineRunner, run_tag: str) -> Task[[Chunk], Any]:
    """The task of granularity `line`: one task run per line, which has the retries and the failure of the line as states."""
    policy = runner.policy

    # A plain function: for anything else, Prefect silently never retries.
    def is_retried(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
        return not runner.stopped and _note_of(state) == {"retried": True}

    @task(
        name=LINE_TASK,
        task_run_name=lambda: f"line-{task_parameter('chunk').lines[0].line_number:06d}",
        retries=policy.retries,
        retry_delay_seconds=list(islice(policy.delays(), _MAX_RETRY_DELAYS)) if policy.retry_delay_sec else None,
        retry_jitter_factor=policy.retry_jitter or None,
        retry_condition_fn=is_retried,
        **KEEPS_NOTHING,
    )
    async def run_line(chunk: Chunk) -> State[Any]:
        line = chunk.lines[0]
        task_run = tag_task_run(run_tag)
        if task_run.run_count > 1:
            # Prefect has waited for the policy's delay. Wait for the rest of the time that the service asked for.
            await runner.wait_turn(line)
        try:
            outcome = await runner.attempt(line, task_run.run_count)
            if outcome is None:
                return states.cancelled("The run was stopped before the line ended.")
            await runner.writer.keep([outcome])
        except BatchflowException as exc:  # the run has it, and stops; raised here, Prefect would log it for each line
            return states.failed(str(exc))
        state = _state(outcome.receipt)
        state.data = in_memory_result({"retried": not runner.is_final(outcome.receipt)})
        return state

    return run_line


def _chunk_task(runner: LineRunner, run_tag: str, failed_lines: FailedLines) -> Task[[Chunk], Any]:
    """The task of granularity `chunk`: one task run for many lines, each with its own time limit, retries and record."""

    @task(
        name=CHUNK_TASK,
        task_run_name=lambda: chunk_name(task_parameter("chunk").lines),
        **KEEPS_NOTHING,
    )
    async def run_chunk(chunk: Chunk) -> State[Any]:
        tag_task_run(run_tag)
        run = ChunkRun(runner, failed_lines.show)
        failure = None
        try:
            await run.run(chunk.lines)
        except BatchflowException as exc:  # the run has it, and stops
            failure = exc
        return chunk_state(len(chunk.lines), run.completed, run.failures, failure)

    return run_chunk


def _is_broken(state: State[Any]) -> bool:
    """Whether a task run ended in a way that its task never does, so that its lines are unaccounted for."""
    return (state.is_failed() and _note_of(state) is None) or state.is_crashed()


def _note_of(state: State[Any]) -> dict[str, bool] | None:
    """The note that `run_line` put on the state of a line; `None` for any other state."""
    note = getattr(state.data, "result", None)
    return note if isinstance(note, dict) and "retried" in note else None


def _state(receipt: Receipt) -> State[Any]:
    """The state of a line's task run, final or before a retry."""
    if receipt.error is None:
        return states.completed(f"Line {receipt.line_number} completed")
    code = innermost_code(receipt.error)
    return states.failed(str(receipt.error.get("message", code))[:1000], name=_STATE_NAMES.get(code, "Failed"))


def chunk_state(
    lines: int, completed: int, failures: Sequence[Receipt], failure: BatchflowException | None = None
) -> State[Any]:
    """The final state of a chunk's task run, which names failed lines.

    Args:
        lines: The lines of the chunk.
        completed: Those that completed.
        failures: The final receipts of those that failed.
        failure: An error that is not the fault of a line and ends the run.
    """
    message = f"{completed} of {lines} lines completed" + (f", {len(failures)} failed" if failures else "")
    if failure is not None:
        return states.failed(f"{message}; {failure}")
    named = ", ".join(_named(receipt) for receipt in sorted(failures, key=attrgetter("line_number"))[:NAMED_FAILURES])
    message += f": {named}" if named else ""
    message += f" and {more} more" if (more := len(failures) - NAMED_FAILURES) > 0 else ""
    if completed + len(failures) < lines:
        return states.cancelled(f"{message}; the others were stopped before they finished.")
    return states.completed(message, name="CompletedWithFailures" if failures else None)


def _named(receipt: Receipt) -> str:
    error = receipt.error or {}
    code = innermost_code(error)
    return f"line {receipt.line_number} {_STATE_NAMES.get(code, code)}"


def chunk_name(lines: Sequence[Line]) -> str:
    """The name of a chunk's task run, from its line numbers."""
    return f"lines-{lines[0].line_number:06d}-{lines[-1].line_number:06d}"
