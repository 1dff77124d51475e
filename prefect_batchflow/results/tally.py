"""The tally of a run: counts, durations and error groups, added up from receipts. No pydantic."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

from prefect_batchflow.errors.groups import ErrorGroups
from prefect_batchflow.results.records import NO_TOKENS, Receipt, Status, Tokens, shortest_receipt


class Durations:
    """Durations in buckets that grow by 2 %: quantiles are exact to 1 %, memory does not grow with the count.

    Source: Masson, Rim, Lee: DDSketch (VLDB 2019), the logarithmic bucket mapping.
    """

    _ERROR: ClassVar[float] = 0.01
    _GROWTH: ClassVar[float] = (1 + _ERROR) / (1 - _ERROR)
    _LEAST, _MOST = 1e-6, 1e9

    def __init__(self) -> None:
        self.count = 0
        """Durations added."""
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Add one; 0 and NaN are left out, because nothing ran."""
        if seconds > 0:
            bounded = min(max(seconds, self._LEAST), self._MOST)
            self._buckets[math.ceil(math.log(bounded, self._GROWTH))] += 1
            self.count += 1

    def quantile(self, share: float) -> float | None:
        """The seconds that this share of the durations does not exceed (nearest rank); `None` without durations."""
        rank = max(1, math.ceil(share * self.count))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return 2 * self._GROWTH**bucket / (self._GROWTH + 1)
        return None


MAX_ERROR_LIST: Final = 10_000
"""Failed lines in `error_summary.error_list`, those with the smallest line numbers; counts include all lines."""
FULL_ERRORS: Final = 200
"""Failed lines that are kept with texts of up to `MAX_RECEIPT_TEXT`; those of further ones are shorter."""
_COUNTED_AS: dict[Status, Status] = {
    Status.Completed: Status.Completed,
    Status.Canceled: Status.Canceled,
    Status.CancelRequested: Status.Canceled,
    Status.NotStarted: Status.NotStarted,
    Status.Preparing: Status.NotStarted,
}
"""The four counts, by line status; any other status counts as `Failed`, as in promptflow."""


@dataclass(frozen=True, slots=True)
class AggregationCounts:
    """The part of the aggregation in a run's tally."""

    nodes: tuple[tuple[str, Status], ...] = ()
    """Each aggregation node and how it ended."""
    tokens: Tokens = NO_TOKENS
    metrics: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, Any] = field(default_factory=dict)
    """Error dictionaries by node; for a class entry the name is `__aggregate__`."""


class Tally:
    """Adds receipts up to counts, in memory that does not grow with the number of lines.

    It keeps the errors of `MAX_ERROR_LIST` failed lines. Each line counts once: give `add` only the last receipt of a line,
    not those of attempts that are retried.
    """

    def __init__(self) -> None:
        self.durations = Durations()
        """Durations of completed and failed lines, last attempts only."""
        self.error_groups = ErrorGroups()
        """Failed lines, grouped by their errors."""
        self.tokens = NO_TOKENS
        """Tokens of all lines."""
        self.retried_lines = 0
        """Lines that took more than one attempt."""
        self._lines: Counter[Status] = Counter()
        self._nodes: Counter[str] = Counter()
        self.user_errors = 0
        """Failed lines whose error's root code is `UserError`."""
        self.aggregation = AggregationCounts()
        self._failures: dict[int, Receipt] = {}
        self._largest_first: list[int] = []  # a heap of the negative line numbers of `_failures`

    @property
    def node_status(self) -> dict[str, int]:
        """`{node}.{status}` to a count, aggregation nodes included."""
        counts = self._nodes.copy()
        counts.update(_node_key(node, status) for node, status in self.aggregation.nodes)
        return dict(counts)

    @property
    def completed_lines(self) -> int:
        """Lines completed so far."""
        return self._lines[Status.Completed]

    @property
    def failed_lines(self) -> int:
        """Lines failed so far."""
        return self._lines[Status.Failed]

    @property
    def canceled_lines(self) -> int:
        """Lines canceled so far."""
        return self._lines[Status.Canceled]

    @property
    def ended_lines(self) -> int:
        """Lines completed, failed or canceled so far."""
        return self.completed_lines + self.failed_lines + self.canceled_lines

    @property
    def failures(self) -> list[Receipt]:
        """Receipts of the first `MAX_ERROR_LIST` failed lines, by line number, without their nodes."""
        return [self._failures[line_number] for line_number in sorted(self._failures)]

    def add(self, receipt: Receipt) -> None:
        """Count a line by its last receipt."""
        counted_as = _COUNTED_AS.get(receipt.status, Status.Failed)
        self._lines[counted_as] += 1
        self._nodes.update(_node_key(node, status) for node, status in receipt.nodes)
        self.tokens = self.tokens.plus(receipt.tokens)
        self.retried_lines += receipt.attempt > 1
        if counted_as in (Status.Completed, Status.Failed):
            self.durations.add(receipt.duration_sec)
        if counted_as is Status.Failed:
            self._add_failure(receipt)

    def add_aggregation(self, aggregation: AggregationCounts) -> None:
        """Count the aggregation; a second call replaces the first."""
        self.aggregation = aggregation

    def _add_failure(self, receipt: Receipt) -> None:
        error = receipt.error or {}
        self.user_errors += error.get("code") == "UserError"
        self.error_groups.add(receipt.line_number, error)
        # The texts of very many errors would fill the memory, and the result. They are in the records.
        is_among_first = len(self._failures) < FULL_ERRORS
        self._failures[receipt.line_number] = (
            replace(receipt, nodes=()) if is_among_first else shortest_receipt(receipt)
        )
        heapq.heappush(self._largest_first, -receipt.line_number)
        while len(self._failures) > MAX_ERROR_LIST:
            self._failures.pop(-heapq.heappop(self._largest_first), None)


def _node_key(node: str, status: Status) -> str:
    return f"{node}.{status.lower()}"
