"""When a run gives up: too many lines failed, or too many in a row with the same error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_batchflow.errors.groups import message_template, shortened
from prefect_batchflow.exceptions import BatchFailureLimitError, innermost_code

if TYPE_CHECKING:
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.settings import RunOptions

PERCENT_FROM_LINES = 20
"""A percentage counts once this many lines have ended, or all of them."""
MESSAGE_CHARS = 500
"""The length to which the run's message shortens the message of a line, in characters."""


class FailureLimits:
    """Looks at each line that ended and decides when the run should stop."""

    def __init__(self, options: RunOptions, total_lines: int) -> None:
        most = options.max_failures
        self._max_percent = float(most.removesuffix("%")) if most.endswith("%") else None
        self._max_lines = int(most) if most and self._max_percent is None else None
        self._max_same = options.max_same_errors
        self._total_lines = total_lines
        self._ended = 0
        self._failed = 0
        self._last: tuple[str, str] | None = None
        self._same = 0

    def add_earlier(self, receipt: Receipt) -> None:
        """Count a line that ended in an earlier start and does not run again. It does not stop the run by itself."""
        self._ended += 1
        self._failed += receipt.error is not None

    def add(self, receipt: Receipt) -> BatchFailureLimitError | None:
        """Count a line that ended, by its final receipt; returns the run's error if a limit is exceeded."""
        self._ended += 1
        if receipt.error is None:
            self._last, self._same = None, 0
            return self._exceeded_share()
        self._failed += 1
        code, message = innermost_code(receipt.error), str(receipt.error.get("message"))
        if self._max_same:
            kind = (code, message_template(message))
            self._same = self._same + 1 if kind == self._last else 1
            self._last = kind
        if self._max_lines is not None and self._failed >= self._max_lines:
            said = "a line failed" if self._failed == 1 else f"{self._failed} lines failed"
            said += f", max_failures={self._max_lines} was reached"
        elif self._max_same and self._same >= self._max_same:
            said = (
                f"{self._same} lines in a row failed with the same error, max_same_errors={self._max_same} was reached"
            )
        else:
            return self._exceeded_share()
        return BatchFailureLimitError(
            f"The run gave up: {said}; line {receipt.line_number}: {code}, {shortened(message, MESSAGE_CHARS).rstrip('.')}. "
            "Fix this and resume the run."
        )

    def _exceeded_share(self) -> BatchFailureLimitError | None:
        most = self._max_percent
        if most is None or self._ended < min(PERCENT_FROM_LINES, self._total_lines):
            return None
        share = 100 * self._failed / self._ended
        if share <= most:
            return None
        return BatchFailureLimitError(
            f"The run gave up: {self._failed} of {self._ended} lines failed ({share:.1f} %), more than max_failures={most:g}% "
            "allows. Fix the cause and resume the run, or raise max_failures."
        )
