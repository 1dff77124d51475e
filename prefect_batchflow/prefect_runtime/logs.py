"""The log of a run in Prefect: shows what lines print, and leaves out lines that completed. Records have all output."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from prefect.logging import get_logger, get_run_logger

from prefect_batchflow.errors.groups import shortened
from prefect_batchflow.results.texts import encodable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from prefect_batchflow.execution.executor import LineOutcome

LINE_TASK = "run_line"
CHUNK_TASK = "run_chunk"

MOST_LINES = 1_000
"""How many completed lines, and how many failed lines, have their output in the log. The log waits in memory for the server,
and a server takes in a few hundred records per second."""

MOST_FAILED_LINES = 5
"""How many failed lines, and how many failed attempts, the log tells about."""
MOST_CHUNKS = 10
"""How many ended chunks the log tells about."""
MOST_CHARS = 300
"""The length of such a record."""


def _make_encodable(record: logging.LogRecord) -> bool:
    """Replace characters that the server does not take. Prefect would lose all records that it sends together."""
    text = record.getMessage()
    if (clean := encodable(text)) != text:
        record.msg, record.args = clean, ()
    if record.exc_info and not record.exc_text:
        # Handlers show this text instead of the traceback that they would make.
        record.exc_text = encodable(logging.Formatter().formatException(record.exc_info))
    return True


for _logger in ("prefect.flow_runs", "prefect.task_runs"):
    get_logger(_logger).addFilter(_make_encodable)


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


class TaskRunLog(logging.Filter):
    """Keeps most of Prefect's log records about task runs of lines out of the log of a flow run.

    Records about completed lines repeat the state of the line, hide records about failed lines, and took a fifth of the time
    of a run with one task run per line. Records about failed lines repeat the message of the line. The first ones are enough:
    the run has a table of failed lines. Prefect writes two records about the last failure of a line; one of them stays.
    """

    def __init__(self, flow_run_id: UUID) -> None:
        super().__init__()
        self._flow_run_id = str(flow_run_id)
        self._left = {
            "failed lines": MOST_FAILED_LINES,
            "lines that are retried": MOST_FAILED_LINES,
            "chunks": MOST_CHUNKS,
        }

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged; shortens it."""
        task_name = getattr(record, "task_name", None)
        if task_name not in (LINE_TASK, CHUNK_TASK) or getattr(record, "flow_run_id", None) != self._flow_run_id:
            return True
        text = record.getMessage()
        is_retry = text.startswith("Task run failed with state") and " - Retry " in text
        if not is_retry and not text.startswith("Finished in state"):
            return not text.startswith("Task run failed with state")
        if task_name == LINE_TASK and not is_retry and record.levelno == logging.INFO:
            return False
        kind = "chunks" if task_name == CHUNK_TASK else "lines that are retried" if is_retry else "failed lines"
        if not self._left[kind]:
            return False
        self._left[kind] -= 1
        text, retry, when = " ".join(text.split()).partition(" - Retry ") if is_retry else (text, "", "")
        text = shortened(" ".join(text.split()), MOST_CHARS) + retry + when
        record.msg, record.args = text if self._left[kind] else f"{text} (further {kind} are not in this log)", ()
        return True


@contextlib.contextmanager
def few_task_runs_logged(flow_run_id: UUID) -> Iterator[None]:
    """Keep most records about lines out of the log of a flow run while lines run."""
    logger, kept_out = get_logger("prefect.task_runs"), TaskRunLog(flow_run_id)
    logger.addFilter(kept_out)
    try:
        yield
    finally:
        logger.removeFilter(kept_out)
