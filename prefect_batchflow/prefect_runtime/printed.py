"""What lines print, in Prefect's log: where somebody looks who watches a run. The record of a line has more of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

if TYPE_CHECKING:
    from prefect_batchflow.execution.executor import LineOutcome

MOST_LINES = 1_000
"""Lines of a run whose output is in the log, of those that completed and of those that failed each: the log waits in memory
until a server has it, and a server takes in some hundred records a second."""


class PrintedLog:
    """Writes what lines have printed to the log of the task run that they belong to, of the first lines of a run."""

    def __init__(self) -> None:
        self._left = {"completed": MOST_LINES, "failed": MOST_LINES}

    def add(self, outcome: LineOutcome) -> None:
        """Log what an attempt has printed, secrets taken out; to be called inside a task run."""
        if not outcome.printed:
            return
        receipt = outcome.receipt
        kind = "completed" if receipt.error is None else "failed"
        if not self._left[kind]:
            return
        self._left[kind] -= 1
        attempt = f", attempt {receipt.attempt}," if receipt.attempt > 1 else ""
        logger = get_run_logger()
        logger.info("Line %d%s printed:\n%s", receipt.line_number, attempt, outcome.printed.rstrip("\n"))
        if not self._left[kind]:
            logger.info("What further lines that %s print is in their records only, not in this log.", kind)
