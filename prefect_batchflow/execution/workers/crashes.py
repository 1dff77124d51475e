"""Why a process died."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import LineOutOfMemoryError, ProcessCrashError

if TYPE_CHECKING:
    from prefect_batchflow.execution.workers.memory import OomKills
    from prefect_batchflow.execution.workers.worker_process import WorkerProcess

# As an interpreter or an allocator says it on its way out; what a line prints about memory is no sign.
_OUT_OF_MEMORY = re.compile(
    r"^(MemoryError\b|.*\bstd::bad_alloc\b|memory allocation of \d+ bytes failed)", re.MULTILINE
)


def how_it_ended(returncode: int | None) -> str:
    """The end of a process, for messages."""
    if returncode is not None and returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:  # a real-time signal has a number only
            return f"was killed by signal {-returncode}"
    return f"exited with status {returncode}"


def crash_error(worker: WorkerProcess, what: str, oom_kills: OomKills) -> ProcessCrashError:
    """Why a worker died with a job in it, as far as its exit code, its last words and the system tell."""
    tail, how = worker.tail, how_it_ended(worker.returncode)
    details = {"exit_code": worker.returncode, "output": tail}
    if _OUT_OF_MEMORY.search(tail):
        return LineOutOfMemoryError(
            f"{what}: its process {how}, out of memory. Raise line_memory_mb, or make the line smaller.",
            target="Executor",
            additional_info={"ProcessCrashDetails": details},
        )
    hint = ""
    if worker.returncode == -signal.SIGKILL:
        if oom_kills.took_one():
            return LineOutOfMemoryError(
                f"{what}: the system's out-of-memory killer ended its process: the machine, or the container, had no memory "
                "left. Give it more, run fewer workers, or make the line smaller; line_memory_mb ends such a line alone.",
                target="Executor",
                additional_info={"ProcessCrashDetails": details},
            )
        hint = " Nobody here sent it, and no out-of-memory killer is known to have."
    output = tail.strip().splitlines()
    # faulthandler says the cause first and where it was after.
    last = next((text for text in output if text.startswith("Fatal Python error")), output[-1] if output else "")
    said = f" Its last output: {last[:300]}" if last else ""
    return ProcessCrashError(
        f"{what}: its process {how} while the line ran.{hint}{said}",
        target="Executor",
        additional_info={"ProcessCrashDetails": details},
    )
