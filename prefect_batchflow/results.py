"""What a run, a line and a node gave: promptflow's result models, the records they come from, and their tally.

Field names are promptflow's. Every datetime carries UTC; one without a zone is taken as UTC, as promptflow means them.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, NamedTuple, NotRequired, Self, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from prefect_batchflow.error_groups import ErrorGroups
from prefect_batchflow.exceptions import error_dict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_ERROR_LIST: Final = 10_000
"""Failed lines that `error_summary.error_list` names, those with the smallest line numbers; the counts are exact."""
MAX_RECEIPT_TEXT: Final = 2_000
"""Characters of one text of a receipt's error; the line's record has the whole."""


class Status(StrEnum):
    """Where a run, a line or a node stands; promptflow's members and spelling."""

    Running = "Running"
    Preparing = "Preparing"
    Completed = "Completed"
    Failed = "Failed"
    Bypassed = "Bypassed"
    Canceled = "Canceled"
    NotStarted = "NotStarted"
    CancelRequested = "CancelRequested"


# --- records: what a worker makes, the storage keeps and the parent counts ------------------------------------------


class NodeRecord(TypedDict):
    """What one node of one line did, in a line's record or an aggregation."""

    node: str
    status: str
    """`Completed`, `Failed`, `Canceled` or `Bypassed`."""
    inputs: dict[str, Any]
    output: Any
    error: dict[str, Any] | None
    start_time: str
    """ISO 8601 with UTC."""
    end_time: str
    duration_sec: float
    metrics: dict[str, Any]
    tokens: NotRequired[dict[str, int]]
    """Keys as in `LineRecord`; absent where nobody counted a node's own."""


class LineRecord(TypedDict):
    """What one attempt of one line did: plain JSON, made by a worker, kept by the run storage."""

    line_number: int
    attempt: int
    """1 is the first."""
    status: str
    """`Completed`, `Failed` or `Canceled`."""
    input_hash: str
    """Tells whether a resumed run still has the same inputs for this line."""
    inputs: dict[str, Any]
    output: dict[str, Any] | None
    aggregation_inputs: dict[str, Any]
    """What aggregation needs of this line, by reference as written: `${node.output}`."""
    error: dict[str, Any] | None
    start_time: str
    """ISO 8601 with UTC."""
    end_time: str
    duration_sec: float
    metrics: dict[str, Any]
    tokens: dict[str, int]
    """`total_tokens`, `prompt_tokens`, `completion_tokens`."""
    logs: str
    """What the line printed, shortened; `""` if nothing."""
    nodes: list[NodeRecord]
    images: NotRequired[ImagesRecord]
    """Where there are images; of a line without there is nothing."""


class ImagesRecord(TypedDict):
    """Where a line has images."""

    inputs: dict[str, str]
    """Inputs with images, to the source they came from; `""` is the flow itself."""
    output: list[list[str | int]]
    """Keys and indexes that lead to each image whose bytes are in the output."""


class AggregationRun(TypedDict):
    """What the aggregation did, as the executor tells it."""

    output: dict[str, Any]
    metrics: dict[str, Any]
    nodes: list[NodeRecord]
    error: dict[str, Any] | None
    """Why `__aggregate__` of a class entry failed; nodes have their own errors."""


class Tokens(NamedTuple):
    """Tokens that model calls took."""

    total: int = 0
    prompt: int = 0
    completion: int = 0

    @classmethod
    def of(cls, counts: Mapping[str, Any] | None) -> Self:
        """Read promptflow's keys `total_tokens`, `prompt_tokens`, `completion_tokens`; what is absent is 0."""
        counts = counts or {}
        return cls(*(int(counts.get(f"{kind}_tokens") or 0) for kind in cls._fields))

    def plus(self, other: Tokens) -> Tokens:
        """The sum of both."""
        return Tokens(*map(sum, zip(self, other, strict=True)))

    def metrics(self) -> dict[str, int]:
        """Promptflow's keys again."""
        return {f"{kind}_tokens": count for kind, count in self._asdict().items()}


NO_TOKENS: Final = Tokens()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the parent needs of a finished line; its record stays in the storage."""

    line_number: int
    status: Status
    attempt: int = 1
    """1 is the first."""
    duration_sec: float = 0.0
    """Seconds of this attempt; 0 for a line that failed without running."""
    tokens: Tokens = NO_TOKENS
    nodes: tuple[tuple[str, Status], ...] = ()
    """Each node of the line and how it ended."""
    error: dict[str, Any] | None = None
    """The error dictionary of a line that is not completed."""


def receipt(record: LineRecord) -> Receipt:
    """Give the receipt of a record; long texts of its error are cut in their middle, `debugInfo` stays behind."""
    error = record["error"]
    return Receipt(
        line_number=record["line_number"],
        status=Status(record["status"]),
        attempt=record["attempt"],
        duration_sec=record["duration_sec"],
        tokens=Tokens.of(record["tokens"]),
        nodes=tuple((node["node"], Status(node["status"])) for node in record["nodes"]),
        error=None if error is None else receipt_error(error),
    )


def receipt_error(error: dict[str, Any]) -> dict[str, Any]:
    """What a receipt keeps of an error: long texts are cut in their middle, `debugInfo` stays behind."""
    short: dict[str, Any] = _cut_texts({key: value for key, value in error.items() if key != "debugInfo"})
    return short


def _cut_texts(value: Any) -> Any:
    """A JSON value with texts of at most `MAX_RECEIPT_TEXT`: head and tail, for a traceback tells most at its end."""
    if isinstance(value, str) and len(value) > MAX_RECEIPT_TEXT:
        keep = MAX_RECEIPT_TEXT // 2 - 40
        return f"{value[:keep]} … {len(value) - 2 * keep} more characters in the line's record … {value[-keep:]}"
    if isinstance(value, dict):
        return {key: _cut_texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut_texts(item) for item in value]
    return value


# --- models ---------------------------------------------------------------------------------------------------------


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _encodable(value: Any) -> Any:
    r"""A JSON value whose texts can be written as UTF-8: a lone surrogate becomes its escape, `\ud800`."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value


UtcDatetime = Annotated[datetime, AfterValidator(_in_utc)]
JsonDict = Annotated[dict[str, Any], AfterValidator(_encodable)]
Count = Annotated[int, Field(ge=0)]


class ResultModel(BaseModel):
    """The base of the models here.

    `model_dump_json` writes NaN and infinity as `NaN` and `Infinity`, which Python's `json` and `model_validate_json`
    read again and strict JSON readers do not. promptflow writes them so too; `null` would say that nothing is there.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Self:
        """Build one from its dictionary, as another language's executor answers it; unknown keys are dropped.

        Source: promptflow `contracts/run_info.py` and `executor/_result.py`, `deserialize`.
        """
        return cls.model_validate(data)

    def to_dict(self) -> dict[str, Any]:
        """The same as a dictionary of plain values; datetimes stay datetimes."""
        return self.model_dump()


class RunInfo(ResultModel):
    """One node of one line, or one aggregation node.

    Source: promptflow `contracts/run_info.py`, `RunInfo`.
    """

    node: str
    """The node's name."""
    flow_run_id: str = ""
    """The batch run's id."""
    run_id: str
    """`{run_id}_{node}_{line_number}`, of an aggregation node `{run_id}_{node}_reduce`."""
    status: Status
    """How it ended."""
    inputs: Any = None
    """What it was called with, by parameter."""
    output: Any = None
    """What it returned; `None` unless it is completed."""
    metrics: dict[str, Any] | None = None
    """What it logged by `log_metric`."""
    error: dict[str, Any] | None = None
    """Its error dictionary, if it failed."""
    parent_run_id: str | None = None
    """The line's id, of an aggregation node the batch run's."""
    start_time: UtcDatetime | None = None
    """When it began; `None` if it never did."""
    end_time: UtcDatetime | None = None
    """When it ended."""
    index: int | None = None
    """The line number; `None` for an aggregation node."""
    api_calls: list[dict[str, Any]] | None = None
    """promptflow's trace; not recorded here."""
    cached_run_id: str | None = None
    """promptflow's cache; not used, there as here."""
    cached_flow_run_id: str | None = None
    """promptflow's cache; not used, there as here."""
    logs: dict[str, str] | None = None
    """What it printed, by stream; here a line's record has the line's."""
    system_metrics: dict[str, Any] | None = None
    """`duration` in seconds, and tokens where they were counted."""
    result: Any = None
    """promptflow's copy of the output; not used here."""
    message_format: str = "basic"
    """How images are written in messages."""


class FlowRunInfo(ResultModel):
    """One line.

    Source: promptflow `contracts/run_info.py`, `FlowRunInfo`.
    """

    run_id: str
    """`{run_id}_{line_number}`."""
    status: Status
    """How it ended."""
    error: dict[str, Any] | None = None
    """Its error dictionary, unless it is completed."""
    inputs: Any = None
    """What the flow was called with, by input."""
    output: Any = None
    """What the flow gave; `None` unless it is completed."""
    metrics: dict[str, Any] | None = None
    """What the line logged by `log_metric`."""
    request: Any = None
    """promptflow's; not used here."""
    parent_run_id: str | None = None
    """The batch run's id."""
    root_run_id: str | None = None
    """The batch run's id."""
    source_run_id: str | None = None
    """promptflow's; not used here."""
    flow_id: str = "default_flow_id"
    """promptflow's name for a flow without an id."""
    start_time: UtcDatetime | None = None
    """When it began; `None` if it never did."""
    end_time: UtcDatetime | None = None
    """When it ended."""
    index: int | None = None
    """The line number."""
    api_calls: list[dict[str, Any]] | None = None
    """promptflow's trace; not recorded here."""
    name: str = ""
    """promptflow's; not used here."""
    description: str = ""
    """promptflow's; not used here."""
    tags: dict[str, str] | None = None
    """promptflow's; not used here."""
    system_metrics: dict[str, Any] | None = None
    """`duration` in seconds, `total_tokens`, `prompt_tokens`, `completion_tokens`."""
    result: Any = None
    """promptflow's copy of the output; not used here."""
    upload_metrics: bool = False
    """promptflow's; not used here."""
    otel_trace_id: str | None = ""
    """promptflow's trace; not recorded here."""
    message_format: str = "basic"
    """How images are written in messages."""


class LineResult(ResultModel):
    """What one line gave; a failed line has one too.

    Source: promptflow `executor/_result.py`, `LineResult`.
    """

    output: Any = Field(default_factory=dict)
    """The flow's outputs by name; `{}` unless the line is completed."""
    aggregation_inputs: dict[str, Any] = Field(default_factory=dict)
    """What aggregation needs of this line, by reference as written: `${node.output}`."""
    run_info: FlowRunInfo
    """The line."""
    node_run_infos: dict[str, RunInfo] = Field(default_factory=dict)
    """Its nodes by name; empty for a flow without nodes."""


class AggregationResult(ResultModel):
    """What the aggregation gave; all empty when there was none.

    Source: promptflow `executor/_result.py`, `AggregationResult`.
    """

    output: Any = Field(default_factory=dict)
    """The aggregation nodes' outputs by name."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """What it logged by `log_metric`, or `__aggregate__` returned."""
    node_run_infos: dict[str, RunInfo] = Field(default_factory=dict)
    """Its nodes by name."""
    error: dict[str, Any] | None = None
    """Ours: the error dictionary of an `__aggregate__` that raised; promptflow only logs it."""


class SystemMetrics(ResultModel):
    """What a batch run cost.

    Source: promptflow `batch/_result.py`, `SystemMetrics`.
    """

    model_config = ConfigDict(frozen=True)

    total_tokens: int = 0
    """Of all lines and aggregation nodes."""
    prompt_tokens: int = 0
    """Those sent."""
    completion_tokens: int = 0
    """Those received."""
    duration: float = 0.0
    """Seconds from the run's start to its end."""


class LineError(ResultModel):
    """Why one line failed."""

    model_config = ConfigDict(frozen=True)

    line_number: int
    """The line's number."""
    error: JsonDict
    """Its error dictionary."""


class ErrorSummary(ResultModel):
    """Why lines, aggregation or the run failed.

    Source: promptflow `batch/_result.py`, `ErrorSummary`.
    """

    model_config = ConfigDict(frozen=True)

    failed_user_error_lines: Count = 0
    """Failed lines whose error's root code is `UserError`."""
    failed_system_error_lines: Count = 0
    """Failed lines with any other error."""
    error_list: list[LineError] = Field(default_factory=list)
    """Failed lines, not canceled ones, by line number; at most `MAX_ERROR_LIST`, the first ones."""
    aggr_error_dict: JsonDict = Field(default_factory=dict)
    """Error dictionaries of failed aggregation nodes by name; ours: `__aggregate__` for that of a class entry."""
    batch_error_dict: JsonDict | None = None
    """The error dictionary of a run that failed as a whole, as `BatchRunTimeoutError`."""


class BatchResult(ResultModel):
    """What a batch run gave; a run that timed out or was canceled has one too.

    Always `completed_lines + failed_lines + canceled_lines + not_started_lines == total_lines`. promptflow counts
    canceled lines as failed and drops lines that never started from the total; here both are counted apart.

    Source: promptflow `batch/_result.py`, `BatchResult`.
    """

    model_config = ConfigDict(frozen=True)

    status: Status
    """`Completed` also when lines failed; `Failed` for a run stopped by its time limit or an error; or `Canceled`."""
    total_lines: Count
    """Lines of the data."""
    completed_lines: Count
    """Lines with an output."""
    failed_lines: Count
    """Lines with an error."""
    node_status: dict[str, int] = Field(default_factory=dict)
    """`{node}.{completed|failed|canceled|bypassed}` to the number of lines; aggregation nodes count once."""
    start_time: UtcDatetime
    """When the run began."""
    end_time: UtcDatetime
    """When the run ended."""
    metrics: JsonDict = Field(default_factory=dict)
    """What the aggregation logged by `log_metric`, or `__aggregate__` returned."""
    system_metrics: SystemMetrics = Field(default_factory=SystemMetrics)
    """Tokens and seconds."""
    error_summary: ErrorSummary = Field(default_factory=ErrorSummary)
    """What failed, and why."""
    canceled_lines: Count = 0
    """Ours: lines that ran when the run was canceled."""
    not_started_lines: Count = 0
    """Ours: lines the run did not come to."""

    @model_validator(mode="after")
    def _accounts_for_every_line(self) -> Self:
        counts = (self.completed_lines, self.failed_lines, self.canceled_lines, self.not_started_lines)
        if sum(counts) != self.total_lines:
            raise ValueError(
                f"completed, failed, canceled and not started lines are {' + '.join(map(str, counts))} = {sum(counts)} "
                f"but total_lines is {self.total_lines}: they must be equal, every line is in exactly one of them"
            )
        return self

    @staticmethod
    def create(
        start_time: datetime,
        end_time: datetime,
        line_results: Iterable[LineResult],
        aggr_result: AggregationResult | None,
        status: Status = Status.Completed,
        exception: BaseException | None = None,
    ) -> BatchResult:
        """Sum up the results of all lines.

        Args:
            start_time: When the run began.
            end_time: When the run ended.
            line_results: One result a line; `total_lines` is their number.
            aggr_result: What the aggregation gave; `None` for none.
            status: The run's; an exception makes it `Failed`.
            exception: What stopped the run.
        Source: promptflow `batch/_result.py`, `BatchResult.create`; canceled lines are failed ones there.
        """
        tally = Tally()
        total_lines = 0
        for result in line_results:
            tally.add(_receipt_of(result))
            total_lines += 1
        if aggr_result is not None:
            tally.add_aggregation(aggr_result)
        error = None if exception is None else error_dict(exception)
        return tally.batch_result(total_lines, start_time, end_time, status=status, batch_error=error)


# --- records to models ----------------------------------------------------------------------------------------------


def line_result(record: LineRecord, run_id: str) -> LineResult:
    """Give promptflow's result of a line from its record.

    Args:
        record: The line's newest record.
        run_id: The batch run's id; the line's is `{run_id}_{line_number}`.
    """
    line_number = record["line_number"]
    line_run_id = f"{run_id}_{line_number}"
    info = FlowRunInfo(
        run_id=line_run_id,
        status=Status(record["status"]),
        error=record["error"],
        inputs=record["inputs"],
        output=record["output"],
        metrics=record["metrics"],
        parent_run_id=run_id,
        root_run_id=run_id,
        start_time=datetime.fromisoformat(record["start_time"]),
        end_time=datetime.fromisoformat(record["end_time"]),
        index=line_number,
        system_metrics={"duration": record["duration_sec"], **Tokens.of(record["tokens"]).metrics()},
    )
    nodes = {
        node["node"]: _node_run_info(
            node, run_id, suffix=str(line_number), parent_run_id=line_run_id, index=line_number
        )
        for node in record["nodes"]
    }
    return LineResult(
        output={} if record["output"] is None else record["output"],
        aggregation_inputs=record["aggregation_inputs"],
        run_info=info,
        node_run_infos=nodes,
    )


def aggregation_result(run: AggregationRun, run_id: str) -> AggregationResult:
    """Give promptflow's result of an aggregation from what the executor tells.

    Args:
        run: The aggregation's output, metrics, nodes and error.
        run_id: The batch run's id; a node's is `{run_id}_{node}_reduce`.
    """
    nodes = {
        node["node"]: _node_run_info(node, run_id, suffix="reduce", parent_run_id=run_id, index=None)
        for node in run["nodes"]
    }
    return AggregationResult(output=run["output"], metrics=run["metrics"], node_run_infos=nodes, error=run["error"])


def _node_run_info(node: NodeRecord, run_id: str, *, suffix: str, parent_run_id: str, index: int | None) -> RunInfo:
    return RunInfo(
        node=node["node"],
        flow_run_id=run_id,
        run_id=f"{run_id}_{node['node']}_{suffix}",
        status=Status(node["status"]),
        inputs=node["inputs"],
        output=node["output"],
        metrics=node["metrics"],
        error=node["error"],
        parent_run_id=parent_run_id,
        start_time=datetime.fromisoformat(node["start_time"]),
        end_time=datetime.fromisoformat(node["end_time"]),
        index=index,
        system_metrics={"duration": node["duration_sec"], **node.get("tokens", {})},
    )


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
