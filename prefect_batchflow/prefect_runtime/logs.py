"""What lines print, in Prefect's log: where somebody looks who watches a run. The record of a line has more of it."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from prefect.logging import get_logger, get_run_logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from prefect_batchflow.execution.executor import LineOutcome

LINE_TASK = "run_line"

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


@contextlib.contextmanager
def completed_lines_unlogged(flow_run_id: UUID) -> Iterator[None]:
    """Keep Prefect's log record of each line that completed out of the log of a flow run.

    A record a line says nothing that the line's state does not, hides those of lines that failed, and took a fifth of the
    time of a run with a task run a line. Of the two records that Prefect writes of a line's last failure, one stays.
    """
    run = str(flow_run_id)

    def is_logged(record: logging.LogRecord) -> bool:
        if getattr(record, "task_name", None) != LINE_TASK or getattr(record, "flow_run_id", None) != run:
            return True
        text = record.getMessage()
        completed = record.levelno == logging.INFO and text.startswith("Finished in state")
        told_again = text.startswith("Task run failed with state") and " - Retry " not in text
        return not completed and not told_again

    logger = get_logger("prefect.task_runs")
    logger.addFilter(is_logged)
    try:
        yield
    finally:
        logger.removeFilter(is_logged)
