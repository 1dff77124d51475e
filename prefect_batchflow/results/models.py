"""The results of a run, a line and a node, as promptflow's result models.

Field names are promptflow's. Every datetime carries UTC; one without a zone counts as UTC, as in promptflow. The file is long
because the models list every field of promptflow's, also those that are not used here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from prefect_batchflow.exceptions import error_dict
from prefect_batchflow.results.records import NO_TOKENS, AggregationRun, LineRecord, NodeRecord, Receipt, Status, Tokens
from prefect_batchflow.results.tally import AggregationCounts, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable


# --- models ---------------------------------------------------------------------------------------------------------


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _encodable(value: Any) -> Any:
    r"""A JSON value with texts that UTF-8 can encode: a lone surrogate becomes its escape, `\ud800`."""
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
    """The base of the models here. `model_dump_json` writes NaN and infinity as null, because JSON does not have them."""

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Self:
        """Build one from its dictionary, such as the answer of another language's executor; unknown keys are dropped.

        Source: promptflow `contracts/run_info.py` and `executor/_result.py`, `deserialize`.
        """
        return cls.model_validate(data)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values; datetimes stay datetimes."""
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
    """`{run_id}_{node}_{line_number}`; for an aggregation node `{run_id}_{node}_reduce`."""
    status: Status
    """How it ended."""
    inputs: Any = None
    """The arguments of its call, by parameter."""
    output: Any = None
    """Its return value; `None` unless it completed."""
    metrics: dict[str, Any] | None = None
    """The metrics it logged with `log_metric`."""
    error: dict[str, Any] | None = None
    """Its error dictionary, if it failed."""
    parent_run_id: str | None = None
    """The line's id; for an aggregation node the batch run's."""
    start_time: UtcDatetime | None = None
    """When it began; `None` if it never did."""
    end_time: UtcDatetime | None = None
    """When it ended."""
    index: int | None = None
    """The line number; `None` for an aggregation node."""
    api_calls: list[dict[str, Any]] | None = None
    """promptflow's trace; not recorded here."""
    cached_run_id: str | None = None
    """promptflow's cache; promptflow does not use it either."""
    cached_flow_run_id: str | None = None
    """promptflow's cache; promptflow does not use it either."""
    logs: dict[str, str] | None = None
    """Printed output by stream; here a line's record has the output of the whole line."""
    system_metrics: dict[str, Any] | None = None
    """`duration` in seconds, and tokens if they were counted."""
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
    """Its error dictionary, unless it completed."""
    inputs: Any = None
    """The flow's inputs by name."""
    output: Any = None
    """The flow's outputs; `None` unless it completed."""
    metrics: dict[str, Any] | None = None
    """The metrics it logged with `log_metric`."""
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
    images: list[list[str | int]] | None = None
    """For each image in the output, the keys and indexes that lead to it; `None` if unknown. promptflow does not have it."""


class LineResult(ResultModel):
    """The result of one line; a failed line has one too.

    Source: promptflow `executor/_result.py`, `LineResult`.
    """

    output: Any = Field(default_factory=dict)
    """The flow's outputs by name; `{}` unless the line completed."""
    aggregation_inputs: dict[str, Any] = Field(default_factory=dict)
    """What aggregation needs of this line, by reference as written: `${node.output}`."""
    run_info: FlowRunInfo
    """The line."""
    node_run_infos: dict[str, RunInfo] = Field(default_factory=dict)
    """Its nodes by name; empty for a flow without nodes."""


class AggregationResult(ResultModel):
    """The result of the aggregation; all empty when there was none.

    Source: promptflow `executor/_result.py`, `AggregationResult`.
    """

    output: Any = Field(default_factory=dict)
    """The aggregation nodes' outputs by name."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """The metrics it logged with `log_metric`, or that `__aggregate__` returned."""
    node_run_infos: dict[str, RunInfo] = Field(default_factory=dict)
    """Its nodes by name."""
    error: dict[str, Any] | None = None
    """Not in promptflow, which only logs it: the error dictionary of an `__aggregate__` that raised."""

    def counts(self) -> AggregationCounts:
        """Its part in the tally of a run."""
        infos = self.node_run_infos
        errors: dict[str, Any] = {name: info.error for name, info in infos.items() if info.status is Status.Failed}
        if self.error is not None:
            errors["__aggregate__"] = self.error
        tokens = NO_TOKENS
        for info in infos.values():
            tokens = tokens.plus(Tokens.of(info.system_metrics))
        nodes = tuple((info.node, info.status) for info in infos.values())
        return AggregationCounts(nodes=nodes, tokens=tokens, metrics=self.metrics, errors=errors)


class SystemMetrics(ResultModel):
    """The cost of a batch run.

    Source: promptflow `batch/_result.py`, `SystemMetrics`.
    """

    model_config = ConfigDict(frozen=True)

    total_tokens: int = 0
    """Tokens of all lines and aggregation nodes."""
    prompt_tokens: int = 0
    """Tokens sent."""
    completion_tokens: int = 0
    """Tokens received."""
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
    """The first `MAX_ERROR_LIST` failed lines, by line number; canceled lines are not among them."""
    aggr_error_dict: JsonDict = Field(default_factory=dict)
    """Error dictionaries of failed aggregation nodes by name; for a class entry the name is `__aggregate__`."""
    batch_error_dict: JsonDict | None = None
    """The error dictionary of a run that failed as a whole, such as `BatchRunTimeoutError`."""


class BatchResult(ResultModel):
    """The result of a batch run; a run that timed out or was canceled has one too.

    Always `completed_lines + failed_lines + canceled_lines + not_started_lines == total_lines`. promptflow counts
    canceled lines as failed and leaves lines that never started out of the total.

    Source: promptflow `batch/_result.py`, `BatchResult`.
    """

    model_config = ConfigDict(frozen=True)

    status: Status
    """`Completed`, also when lines failed; `Failed` if a time limit or an error stopped the run; or `Canceled`."""
    total_lines: Count
    """Lines in the data."""
    completed_lines: Count
    """Lines with an output."""
    failed_lines: Count
    """Lines with an error."""
    node_status: dict[str, int] = Field(default_factory=dict)
    """`{node}.{completed|failed|canceled|bypassed}` to the number of lines; an aggregation node counts once."""
    start_time: UtcDatetime
    """When the run began."""
    end_time: UtcDatetime
    """When the run ended."""
    metrics: JsonDict = Field(default_factory=dict)
    """The metrics that the aggregation logged with `log_metric`, or that `__aggregate__` returned."""
    system_metrics: SystemMetrics = Field(default_factory=SystemMetrics)
    """Tokens and seconds."""
    error_summary: ErrorSummary = Field(default_factory=ErrorSummary)
    """Which lines failed, and why."""
    canceled_lines: Count = 0
    """Not in promptflow: lines that were running when the run was canceled."""
    not_started_lines: Count = 0
    """Not in promptflow: lines that never started."""

    @model_validator(mode="after")
    def _accounts_for_every_line(self) -> Self:
        counts = (self.completed_lines, self.failed_lines, self.canceled_lines, self.not_started_lines)
        if sum(counts) != self.total_lines:
            raise ValueError(
                f"completed, failed, canceled and not started lines are {' + '.join(map(str, counts))} = {sum(counts)} "
                f"but total_lines is {self.total_lines}: they must be equal, because every line is in exactly one of them"
            )
        return self

    @classmethod
    def of(
        cls,
        tally: Tally,
        total_lines: int,
        start_time: datetime,
        end_time: datetime,
        *,
        status: Status = Status.Completed,
        batch_error: dict[str, Any] | None = None,
    ) -> Self:
        """Give the result of a run from its tally. Lines of the data without a receipt have not started.

        A `batch_error`, the error dictionary of the error that stopped the run, makes it `Failed`.
        """
        if tally.ended_lines > total_lines:
            raise ValueError(
                f"{tally.ended_lines} lines have ended but total_lines is {total_lines}: "
                "a line was counted more than once. Give the tally only the last receipt of each line."
            )
        tokens = tally.tokens.plus(tally.aggregation.tokens)
        start_time, end_time = _in_utc(start_time), _in_utc(end_time)
        return cls(
            status=Status.Failed if batch_error else status,
            total_lines=total_lines,
            completed_lines=tally.completed_lines,
            failed_lines=tally.failed_lines,
            canceled_lines=tally.canceled_lines,
            not_started_lines=total_lines - tally.ended_lines,
            node_status=tally.node_status,
            start_time=start_time,
            end_time=end_time,
            metrics=tally.aggregation.metrics,
            system_metrics=SystemMetrics(duration=(end_time - start_time).total_seconds(), **tokens.metrics()),
            error_summary=ErrorSummary(
                failed_user_error_lines=tally.user_errors,
                failed_system_error_lines=tally.failed_lines - tally.user_errors,
                error_list=[LineError(line_number=r.line_number, error=r.error or {}) for r in tally.failures],
                aggr_error_dict=tally.aggregation.errors,
                batch_error_dict=batch_error,
            ),
        )

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
            line_results: One result per line; `total_lines` is their number.
            aggr_result: The aggregation's result; `None` without an aggregation.
            status: The run's; an exception makes it `Failed`.
            exception: The exception that stopped the run.
        Source: promptflow `batch/_result.py`, `BatchResult.create`, which counts canceled lines as failed.
        """
        tally = Tally()
        total_lines = 0
        for result in line_results:
            tally.add(_receipt_of(result))
            total_lines += 1
        if aggr_result is not None:
            tally.add_aggregation(aggr_result.counts())
        error = None if exception is None else error_dict(exception)
        return BatchResult.of(tally, total_lines, start_time, end_time, status=status, batch_error=error)


# --- records to models ----------------------------------------------------------------------------------------------


def line_result(record: LineRecord, run_id: str) -> LineResult:
    """Give promptflow's result of a line from its newest record. The line's id is `{run_id}_{line_number}`."""
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
        images=record["images"]["output"] if "images" in record else [],
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
    """Give promptflow's result of an aggregation from the executor's. A node's id is `{run_id}_{node}_reduce`."""
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
            f"The line result {info.run_id!r} has no line number: run_info.index is None. Set it to the line's number."
        )
    return Receipt(
        line_number=info.index,
        status=info.status,
        duration_sec=float((info.system_metrics or {}).get("duration") or 0.0),
        tokens=Tokens.of(info.system_metrics),
        nodes=tuple((node.node, node.status) for node in result.node_run_infos.values()),
        error=info.error,
    )


def summary_line(result: BatchResult) -> str:
    """Say in one line how the lines ended: `159 of 164 lines completed, 5 failed`; counts of 0 are left out."""
    text = (
        f"{result.completed_lines} of {result.total_lines} {'line' if result.total_lines == 1 else 'lines'} completed"
    )
    others = {"failed": result.failed_lines, "canceled": result.canceled_lines, "not started": result.not_started_lines}
    return ", ".join([text, *(f"{count} {name}" for name, count in others.items() if count)])
