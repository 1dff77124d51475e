"""The tally of a run: counts, durations, error groups, folded from receipts as they come. No pydantic."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

from prefect_batchflow.errors.groups import ErrorGroups
from prefect_batchflow.results.records import NO_TOKENS, Receipt, Status, Tokens


class Durations:
    """Seconds in buckets that grow by 2 %: any quantile within 1 %, in memory that does not grow with their number.

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
        """Add one; 0 and NaN tell of nothing that ran and are left out."""
        if seconds > 0:
            bounded = min(max(seconds, self._LEAST), self._MOST)
            self._buckets[math.ceil(math.log(bounded, self._GROWTH))] += 1
            self.count += 1

    def quantile(self, share: float) -> float | None:
        """The seconds that this share of the durations does not exceed (nearest rank); `None` when there are none."""
        rank = max(1, math.ceil(share * self.count))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return 2 * self._GROWTH**bucket / (self._GROWTH + 1)
        return None


MAX_ERROR_LIST: Final = 10_000
"""Failed lines that `error_summary.error_list` names, those with the smallest line numbers; the counts are exact."""
_COUNTED_AS: dict[Status, Status] = {
    Status.Completed: Status.Completed,
    Status.Canceled: Status.Canceled,
    Status.CancelRequested: Status.Canceled,
    Status.NotStarted: Status.NotStarted,
    Status.Preparing: Status.NotStarted,
}
"""Each line status as one of the four that are counted; any other is `Failed`, as in promptflow."""


@dataclass(frozen=True, slots=True)
class AggregationCounts:
    """What the aggregation of a run adds to its lines."""

    nodes: tuple[tuple[str, Status], ...] = ()
    """Each aggregation node and how it ended."""
    tokens: Tokens = NO_TOKENS
    metrics: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, Any] = field(default_factory=dict)
    """Error dictionaries by node; `__aggregate__` for that of a class entry."""


class Tally:
    """Folds the receipts of a run into counts as they come, in memory that does not grow with the lines.

    Only the errors of failed lines are kept, `MAX_ERROR_LIST` of them. A line counts once: give `add` each line's last
    receipt, not those of attempts that are retried.
    """

    def __init__(self) -> None:
        self.durations = Durations()
        """Seconds of the lines that completed or failed, their last attempts."""
        self.error_groups = ErrorGroups()
        """The failed lines by what went wrong."""
        self.tokens = NO_TOKENS
        """Tokens of the lines."""
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
        """`{node}.{status}` to how often, aggregation nodes included."""
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
        """Receipts of failed lines, without their nodes, by line number; at most `MAX_ERROR_LIST`, the first ones."""
        return [self._failures[line_number] for line_number in sorted(self._failures)]

    def add(self, receipt: Receipt) -> None:
        """Count one line, by its last receipt."""
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
        """Take what the aggregation adds; a second call replaces the first."""
        self.aggregation = aggregation

    def _add_failure(self, receipt: Receipt) -> None:
        error = receipt.error or {}
        self.user_errors += error.get("code") == "UserError"
        self.error_groups.add(receipt.line_number, error)
        self._failures[receipt.line_number] = replace(receipt, nodes=())
        heapq.heappush(self._largest_first, -receipt.line_number)
        while len(self._failures) > MAX_ERROR_LIST:
            self._failures.pop(-heapq.heappop(self._largest_first), None)


def _node_key(node: str, status: Status) -> str:
    return f"{node}.{status.lower()}"
