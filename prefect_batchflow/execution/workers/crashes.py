"""Why a process died."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import LineOutOfMemoryError, ProcessCrashError

if TYPE_CHECKING:
    from prefect_batchflow.execution.workers.memory import OomKills
    from prefect_batchflow.execution.workers.worker_process import WorkerProcess

# The last words of an interpreter or allocator. A line that merely prints "out of memory" must not match.
_OUT_OF_MEMORY = re.compile(
    r"^(MemoryError\b|.*\bstd::bad_alloc\b|memory allocation of \d+ bytes failed)", re.MULTILINE
)


def how_it_ended(returncode: int | None) -> str:
    """How a process ended, for messages."""
    if returncode is not None and returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:  # a real-time signal has no name
            return f"was killed by signal {-returncode}"
    return f"exited with status {returncode}"


def crash_error(worker: WorkerProcess, what: str, oom_kills: OomKills) -> ProcessCrashError:
    """Why a worker died while it ran a job, from its exit code, its last output and the system's counts."""
    tail, how = worker.tail, how_it_ended(worker.returncode)
    cls: type[ProcessCrashError] = LineOutOfMemoryError
    is_killed = worker.returncode == -signal.SIGKILL
    if _OUT_OF_MEMORY.search(tail):
        message = f"its process ran out of memory and {how}. Raise line_memory_mb, or make the line smaller."
    elif is_killed and oom_kills.took_one():
        message = (
            "the system's out-of-memory killer ended its process, because the machine or container had no memory left. "
            "Give it more memory, run fewer workers, or make the line smaller. With line_memory_mb such a line fails "
            "before it harms others."
        )
    else:
        cls, output = ProcessCrashError, tail.strip().splitlines()
        # faulthandler prints the cause first, then the place.
        last = next((text for text in output if text.startswith("Fatal Python error")), output[-1] if output else "")
        message = f"its process {how} while the line ran."
        if is_killed:
            message += " The run did not send this signal, and the out-of-memory killer is not known to have."
        if last:
            message += f" Its last output: {last[:300]}"
    details = {"exit_code": worker.returncode, "output": tail}
    return cls(f"{what}: {message}", target="Executor", additional_info={"ProcessCrashDetails": details})
