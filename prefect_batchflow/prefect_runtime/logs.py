"""The log of a run in Prefect: shows what lines print, and leaves out lines that completed. Records have all output."""

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
"""How many completed lines, and how many failed lines, have their output in the log. The log waits in memory for the server,
and a server takes in a few hundred records per second."""


class PrintedLog:
    """Writes the output of the first lines of a run to the logs of their task runs."""

    def __init__(self) -> None:
        self._left = {"completed": MOST_LINES, "failed": MOST_LINES}

    def add(self, outcome: LineOutcome) -> None:
        """Log the output of an attempt, without secrets. Call it inside a task run."""
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
            logger.info("The output of further lines that %s is in their records only, not in this log.", kind)


@contextlib.contextmanager
def completed_lines_unlogged(flow_run_id: UUID) -> Iterator[None]:
    """Keep Prefect's log records about completed lines out of the log of a flow run.

    They repeat the state of the line, hide records about failed lines, and took a fifth of the time of a run with one task
    run per line. Prefect writes two records about the last failure of a line; one of them stays.
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
