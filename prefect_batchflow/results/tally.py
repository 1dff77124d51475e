"""The tally of a run: counts, durations, error groups, folded from receipts as they come."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from prefect_batchflow.errors.groups import ErrorGroups
from prefect_batchflow.results.models import (
    MAX_ERROR_LIST,
    AggregationResult,
    BatchResult,
    ErrorSummary,
    LineError,
    LineResult,
    SystemMetrics,
    _in_utc,
)
from prefect_batchflow.results.records import NO_TOKENS, Receipt, Status, Tokens

if TYPE_CHECKING:
    from datetime import datetime


def _receipt_of(result: LineResult) -> Receipt:
    info = result.run_info
    if info.index is None:
        raise ValueError(
            f"the line result {info.run_id!r} has no line number: run_info.index is None, expected the line's number"
        )
    return Receipt(
        line_number=info.index,
        status=info.status,
        duration_sec=float((info.system_metrics or {}).get("duration") or 0.0),
        tokens=Tokens.of(info.system_metrics),
        nodes=tuple((node.node, node.status) for node in result.node_run_infos.values()),
        error=info.error,
    )


# --- the tally ------------------------------------------------------------------------------------------------------


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


_COUNTED_AS: dict[Status, Status] = {
    Status.Completed: Status.Completed,
    Status.Canceled: Status.Canceled,
    Status.CancelRequested: Status.Canceled,
    Status.NotStarted: Status.NotStarted,
    Status.Preparing: Status.NotStarted,
}
"""Each line status as one of the four that are counted; any other is `Failed`, as in promptflow."""


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
        self._user_errors = 0
        self._aggregation = AggregationResult()
        self._failures: dict[int, Receipt] = {}
        self._largest_first: list[int] = []  # a heap of the negative line numbers of `_failures`

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

    def add_aggregation(self, result: AggregationResult) -> None:
        """Take the aggregation's metrics, nodes, tokens and errors; a second call replaces the first."""
        self._aggregation = result

    def batch_result(
        self,
        total_lines: int,
        start_time: datetime,
        end_time: datetime,
        *,
        status: Status = Status.Completed,
        batch_error: dict[str, Any] | None = None,
    ) -> BatchResult:
        """Give the result of the run as far as it is counted.

        Args:
            total_lines: Lines of the data; those without a receipt are not started.
            start_time: When the run began.
            end_time: When the run ended.
            status: The run's; a batch error makes it `Failed`.
            batch_error: The error dictionary of what stopped the run.
        """
        if self.ended_lines > total_lines:
            raise ValueError(
                f"{self.ended_lines} lines have ended but total_lines is {total_lines}: "
                "a line was counted more than once, give the tally each line's last receipt only"
            )
        nodes, tokens = self._nodes.copy(), self.tokens
        for info in self._aggregation.node_run_infos.values():
            nodes[_node_key(info.node, info.status)] += 1
            tokens = tokens.plus(Tokens.of(info.system_metrics))
        start_time, end_time = _in_utc(start_time), _in_utc(end_time)
        return BatchResult(
            status=Status.Failed if batch_error else status,
            total_lines=total_lines,
            completed_lines=self.completed_lines,
            failed_lines=self.failed_lines,
            canceled_lines=self.canceled_lines,
            not_started_lines=total_lines - self.ended_lines,
            node_status=dict(nodes),
            start_time=start_time,
            end_time=end_time,
            metrics=self._aggregation.metrics,
            system_metrics=SystemMetrics(duration=(end_time - start_time).total_seconds(), **tokens.metrics()),
            error_summary=ErrorSummary(
                failed_user_error_lines=self._user_errors,
                failed_system_error_lines=self.failed_lines - self._user_errors,
                error_list=[LineError(line_number=r.line_number, error=r.error or {}) for r in self.failures],
                aggr_error_dict=self._aggregation_errors(),
                batch_error_dict=batch_error,
            ),
        )

    def _add_failure(self, receipt: Receipt) -> None:
        error = receipt.error or {}
        self._user_errors += error.get("code") == "UserError"
        self.error_groups.add(receipt.line_number, error)
        self._failures[receipt.line_number] = replace(receipt, nodes=())
        heapq.heappush(self._largest_first, -receipt.line_number)
        while len(self._failures) > MAX_ERROR_LIST:
            self._failures.pop(-heapq.heappop(self._largest_first), None)

    def _aggregation_errors(self) -> dict[str, Any]:
        errors: dict[str, Any] = {
            name: info.error for name, info in self._aggregation.node_run_infos.items() if info.status is Status.Failed
        }
        if self._aggregation.error is not None:
            errors["__aggregate__"] = self._aggregation.error
        return errors


def _node_key(node: str, status: Status) -> str:
    return f"{node}.{status.lower()}"


def summary_line(result: BatchResult) -> str:
    """Say in one line how the lines ended: `159 of 164 lines completed, 5 failed`; what is 0 is not said."""
    text = (
        f"{result.completed_lines} of {result.total_lines} {'line' if result.total_lines == 1 else 'lines'} completed"
    )
    others = {"failed": result.failed_lines, "canceled": result.canceled_lines, "not started": result.not_started_lines}
    return ", ".join([text, *(f"{count} {name}" for name, count in others.items() if count)])
