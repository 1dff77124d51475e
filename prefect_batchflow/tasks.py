"""Lines as Prefect task runs on this machine. `run_line` and `run_chunk` run lines, write their records and settle them.

A task is made for one run and closes over what it needs. A line is settled, that is counted, once its record was written
and read back, and no retry will follow.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

from prefect import Task, task
from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Completed, Failed

from prefect_batchflow.exceptions import UnexpectedError, innermost_code
from prefect_batchflow.execution.line_feed import STOP_GRACE_SEC
from prefect_batchflow.line_runner import ChunkRun, LineRunner
from prefect_batchflow.prefect_runtime.logs import LINE_TASK
from prefect_batchflow.prefect_runtime.task_runs import KEEPS_NOTHING, in_memory_result, tag_task_run, task_parameter

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from prefect.client.schemas.objects import TaskRun

    from prefect_batchflow.exceptions import BatchflowException
    from prefect_batchflow.execution.executor import Executor
    from prefect_batchflow.execution.line_feed import LineEvents
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.settings import Granularity, LinePolicy
    from prefect_batchflow.storage.records import RunRecords

LINE_GRANULARITY_UP_TO = 1_000
"""Up to this many lines, `auto` makes one task run per line."""
SMALLEST_CHUNK = 50
MOST_TASK_RUNS = 200
"""Chunks grow to stay below this limit: a person can look through these, and a server takes them in within seconds."""
LINES_AHEAD = 100
"""Lines of the next chunk that begin before the current chunk ends: starting a task run takes longer than short lines."""
_MAX_RETRY_DELAYS = 50  # Prefect takes no more, and repeats the last one

_STATE_NAMES = {
    "LineExecutionTimeoutError": "TimedOut",
    "LineOutOfMemoryError": "OutOfMemory",
    "ProcessCrashError": "ProcessCrashed",
}


class LocalFeed(LineRunner):
    """Runs lines in task runs of this process: one per line, or one per chunk of lines. `run_id` is their tag."""

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
    ) -> None:
        super().__init__(executor, records, policy, events)
        chunk_size = _chunk_size(granularity, total_lines)
        make_task = _line_task if chunk_size is None else _chunk_task
        self._task: Any = make_task(self, f"run:{run_id}")
        """`Any`: by Prefect's types, an async task that returns its state does not give an awaitable."""
        self.group = chunk_size or 1
        slots = executor.slots
        # More lines than workers, so that no worker waits while Prefect begins and ends task runs. Lines count, not task
        # runs, so that a chunk whose last line hangs does not keep the next chunk from the other workers.
        self.width = slots + max(4, slots // 4, min(chunk_size or 0, LINES_AHEAD))
        how = "a task run each" if chunk_size is None else f"{chunk_size} a task run"
        self.how = f"{how}, {slots} at once"

    def load(self) -> int:
        """Lines that have begun, except those that wait for their next attempt."""
        return self.open_lines

    def run(self, lines: Sequence[Line]) -> Coroutine[Any, Any, None]:
        """Run a group of lines in one task run."""
        self.open_lines += len(lines)
        return self._run_task(lines)

    async def _run_task(self, lines: Sequence[Line]) -> None:
        """One task run. Its lines are counted as they end, so its state only shows whether all of them did."""
        state = await self._task(Chunk(lines), return_state=True)
        if _is_broken(state):
            self._events.failed(
                UnexpectedError(
                    f"The task run of {len(lines)} lines, starting with line {lines[0].line_number}, ended in {state.name}: "
                    f"{state.message}. The run stops. Resume it."
                )
            )


def _chunk_size(granularity: Granularity, total_lines: int) -> int | None:
    """Lines per task run of a chunk; `None` means one task run per line."""
    if granularity == "line" or (granularity == "auto" and total_lines <= LINE_GRANULARITY_UP_TO):
        return None
    return max(SMALLEST_CHUNK, math.ceil(total_lines / MOST_TASK_RUNS))


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
        outcome = await runner.attempt(line, task_run.run_count)
        if outcome is None:
            return Cancelled(message="The run was stopped before the line ended.")
        await runner.writer.keep([outcome])
        state = _state(outcome.receipt)
        state.data = in_memory_result({"retried": not runner.is_final(outcome.receipt)})
        return state

    return run_line


def _chunk_task(runner: LineRunner, run_tag: str) -> Task[[Chunk], Any]:
    """The task of granularity `chunk`: one task run for many lines, each with its own time limit, retries and record."""

    @task(
        name="run_chunk",
        task_run_name=lambda: chunk_name(task_parameter("chunk").lines),
        **KEEPS_NOTHING,
    )
    async def run_chunk(chunk: Chunk) -> State[Any]:
        tag_task_run(run_tag)
        run = ChunkRun(runner)
        await run.run(chunk.lines)
        return chunk_state(len(chunk.lines), run.completed, run.failed)

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
        return Completed(message=f"Line {receipt.line_number} completed")
    code = innermost_code(receipt.error)
    return State(
        type=StateType.FAILED,
        name=_STATE_NAMES.get(code, "Failed"),
        message=str(receipt.error.get("message", code))[:1000],
    )


def chunk_state(lines: int, completed: int, failed: int, failure: BatchflowException | None = None) -> State[Any]:
    """The final state of a chunk's task run. `failure` is not the fault of a line and ends the run."""
    message = f"{completed} of {lines} lines completed" + (f", {failed} failed" if failed else "")
    if failure is not None:
        return Failed(message=f"{message}; {failure}")
    if completed + failed < lines:
        return Cancelled(message=f"{message}; the others were stopped before they finished.")
    return Completed(message=message)


def chunk_name(lines: Sequence[Line]) -> str:
    """The name of a chunk's task run, from its line numbers."""
    return f"lines-{lines[0].line_number:06d}-{lines[-1].line_number:06d}"
