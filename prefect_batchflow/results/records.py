"""Records and receipts of lines: workers make them, the storage keeps them, the run counts them.

No pydantic, because workers import this.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NotRequired, Self, TypeAlias, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_RECEIPT_TEXT: Final = 2_000
"""Characters of one text in a receipt's error; the line's record has the whole text."""
MAX_SHORT_TEXT: Final = 400
"""The same where very many receipts are kept,"""
MAX_SHORT_ERROR: Final = 4_000
"""and about the characters of such an error as JSON."""
PRINTED_LIMIT: Final = 2_000
"""Characters of a line's printed output that reach the log of the run."""


class Status(StrEnum):
    """Where a run, a line or a node stands; names and spelling are promptflow's."""

    Running = "Running"
    Preparing = "Preparing"
    Completed = "Completed"
    Failed = "Failed"
    Bypassed = "Bypassed"
    Canceled = "Canceled"
    NotStarted = "NotStarted"
    CancelRequested = "CancelRequested"


class NodeRecord(TypedDict):
    """One node of a line or of the aggregation."""

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
    """Keys as in `LineRun`; absent where a node's own tokens are not counted."""


class LineRun(TypedDict):
    """One run of a flow with the inputs of one line."""

    status: str
    """`Completed`, `Failed` or `Canceled`."""
    inputs: dict[str, Any]
    output: dict[str, Any] | None
    aggregation_inputs: dict[str, Any]
    """Values of this line that the aggregation needs, by reference as written: `${node.output}`."""
    error: dict[str, Any] | None
    start_time: str
    """ISO 8601 with UTC."""
    end_time: str
    duration_sec: float
    metrics: dict[str, Any]
    tokens: dict[str, int]
    """`total_tokens`, `prompt_tokens`, `completion_tokens`."""
    logs: str
    """Printed output, shortened."""
    nodes: list[NodeRecord]
    images: NotRequired[ImagesRecord]
    """Absent in a line without images."""
    model_calls: NotRequired[list[ModelCall]]
    """Only where it was asked for, as `batchflow test` does."""


class ModelCall(TypedDict):
    """What a line sent to a model."""

    api: str
    """Such as `chat/completions`."""
    sent: dict[str, Any]
    """The request's body."""
    time: str
    """When, ISO 8601 with UTC."""


class LineRecord(LineRun):
    """One attempt of one line: plain JSON, made by a worker, kept by the run storage."""

    line_number: int
    attempt: int
    """1 is the first."""
    input_hash: str
    """Shows a resumed run whether the line still has the same inputs."""


class ImagesRecord(TypedDict):
    """Where the images of a line are."""

    inputs: dict[str, str]
    """Inputs with images, to the source that they came from; `""` is the flow itself."""
    output: list[list[str | int]]
    """For each image whose bytes are in the output, the keys and indexes that lead to it."""


ImageFolders: TypeAlias = "str | tuple[str, ...] | None"
"""Where images can be, each a local folder or a URL: the folder that paths are relative to, then the run's image roots."""
Origins: TypeAlias = "Mapping[str, tuple[str, ImageFolders]]"
"""Inputs with images, to their source (`""` is the flow itself) and the folders where they can be."""


class CompletedLine(TypedDict):
    """A completed line as the aggregation gets it; keys as in `LineRecord`."""

    line_number: int
    inputs: dict[str, Any]
    output: dict[str, Any] | None
    aggregation_inputs: dict[str, Any]
    images: NotRequired[Origins]


class AggregationRun(TypedDict):
    """The result of the aggregation, as the executor gives it."""

    output: dict[str, Any]
    metrics: dict[str, Any]
    nodes: list[NodeRecord]
    error: dict[str, Any] | None
    """The error of a class entry's `__aggregate__`; nodes have their own errors."""


Span: TypeAlias = tuple[str, str, float]
"""Start and end, ISO 8601 with UTC, and the duration in seconds."""


class Clock:
    """Starts when it is made. The wall clock is asked once, because it can jump: the end is the start plus the duration."""

    __slots__ = ("_begun", "_started", "start_time")

    def __init__(self) -> None:
        self._started = datetime.now(UTC)
        self.start_time = self._started.isoformat()
        self._begun = perf_counter()

    def span(self) -> Span:
        """The time from its start until now, to the microsecond."""
        duration_sec = round(perf_counter() - self._begun, 6)
        return self.start_time, (self._started + timedelta(seconds=duration_sec)).isoformat(), duration_sec


class Tokens(NamedTuple):
    """Tokens that model calls took."""

    total: int = 0
    prompt: int = 0
    completion: int = 0

    @classmethod
    def of(cls, counts: Mapping[str, Any] | None) -> Self:
        """Read promptflow's keys `total_tokens`, `prompt_tokens`, `completion_tokens`; a missing key is 0."""
        counts = counts or {}
        return cls(
            int(counts.get("total_tokens") or 0),
            int(counts.get("prompt_tokens") or 0),
            int(counts.get("completion_tokens") or 0),
        )

    def plus(self, other: Tokens) -> Tokens:
        """The sum of both."""
        return Tokens(*map(sum, zip(self, other, strict=True)))

    def metrics(self) -> dict[str, int]:
        """A dictionary with promptflow's keys."""
        return {f"{kind}_tokens": count for kind, count in self._asdict().items()}


NO_TOKENS: Final = Tokens()


def node_record(
    node: str,
    span: Span,
    *,
    status: str | None = None,
    inputs: dict[str, Any],
    output: Any = None,
    error: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
) -> NodeRecord:
    """Make a node's record; without a status, it failed if there is an error."""
    return {
        "node": node,
        "status": status or ("Completed" if error is None else "Failed"),
        "inputs": inputs,
        "output": output,
        "error": error,
        "start_time": span[0],
        "end_time": span[1],
        "duration_sec": span[2],
        "metrics": metrics or {},
    }


def line_run(
    inputs: dict[str, Any],
    span: Span,
    *,
    status: str | None = None,
    output: dict[str, Any] | None = None,
    aggregation_inputs: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    tokens: dict[str, int] | None = None,
    logs: str = "",
    nodes: list[NodeRecord] | None = None,
) -> LineRun:
    """Make a line's record without its number; without a status, it failed if there is an error."""
    return {
        "status": status or ("Completed" if error is None else "Failed"),
        "inputs": inputs,
        "output": output,
        "aggregation_inputs": aggregation_inputs or {},
        "error": error,
        "start_time": span[0],
        "end_time": span[1],
        "duration_sec": span[2],
        "metrics": metrics or {},
        "tokens": NO_TOKENS.metrics() if tokens is None else tokens,
        "logs": logs,
        "nodes": nodes or [],
    }


def line_record(run: LineRun, line_number: int, attempt: int, input_hash: str) -> LineRecord:
    """Make a line's record."""
    return {"line_number": line_number, "attempt": attempt, "input_hash": input_hash, **run}


NodeStates: TypeAlias = tuple[tuple[str, Status], ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """The facts about a finished line that the run counts; the record stays in the storage."""

    line_number: int
    status: Status
    attempt: int = 1
    """1 is the first."""
    duration_sec: float = 0.0
    """Seconds of this attempt; 0 for a line that failed without running."""
    tokens: Tokens = NO_TOKENS
    nodes: NodeStates = ()
    """Each node of the line, and how it ended."""
    error: dict[str, Any] | None = None
    """The error dictionary of a line that did not complete, without `debugInfo`, long texts cut in the middle."""

    @classmethod
    def of(cls, record: LineRecord) -> Self:
        """The receipt of a record."""
        return cls.from_row(receipt_row(record), record["error"])

    def to_row(self, input_hash: str) -> list[Any]:
        """A list for messages and segments: the receipt without its error, and the hash of the line's inputs."""
        return [self.line_number, input_hash, self.status, self.attempt, self.duration_sec, self.tokens, self.nodes]

    @classmethod
    def from_row(
        cls, row: Sequence[Any], error: dict[str, Any] | None, alike: dict[str, NodeStates] | None = None
    ) -> Self:
        """The receipt of a row.

        Args:
            row: From `to_row`, also if it went through JSON.
            error: From the record.
            alike: Node states of other receipts; equal ones share one object, because most lines of a run have equal ones.
        """
        number, _, status, attempt, duration_sec, tokens, nodes = row
        states = None if alike is None else alike.get(repr(nodes))
        if states is None:
            states = tuple([(node, Status(status)) for node, status in nodes])
            if alike is not None:
                alike[repr(nodes)] = states
        return cls(number, Status(status), attempt, duration_sec, Tokens(*tokens), states, _receipt_error(error))


def receipt_row(record: LineRecord) -> list[Any]:
    """The row of a record's receipt, for `Receipt.from_row`."""
    tokens = Tokens.of(record["tokens"])
    nodes = [(node["node"], node["status"]) for node in record["nodes"]]
    number, attempt, seconds = record["line_number"], record["attempt"], record["duration_sec"]
    return [number, record["input_hash"], record["status"], attempt, seconds, tokens, nodes]


def _receipt_error(error: dict[str, Any] | None) -> dict[str, Any] | None:
    if error is None:
        return None
    short: dict[str, Any] = _cut_texts(
        {key: value for key, value in error.items() if key != "debugInfo"}, MAX_RECEIPT_TEXT
    )
    return short


def shortest_receipt(receipt: Receipt) -> Receipt:
    """A receipt without nodes, for a place that keeps very many: texts in its error have at most `MAX_SHORT_TEXT` characters.

    If the error is still large, its additional information has only names of types.
    """
    if receipt.error is None:
        return replace(receipt, nodes=())
    error = _cut_texts(receipt.error, MAX_SHORT_TEXT)
    if len(json.dumps(error, default=str)) > MAX_SHORT_ERROR:
        infos = error.get("additionalInfo")
        types = [_types_in(info) for info in infos[:5]] if isinstance(infos, list) else []
        kept = {key: value for key, value in error.items() if key == "innerError" or isinstance(value, str)}
        error = {**kept, "messageParameters": {}, "additionalInfo": types}
    return replace(receipt, nodes=(), error=error)


def _types_in(info: Any) -> Any:
    """An entry of `additionalInfo` with the names of its type and of the exception's."""
    found = info.get("info") if isinstance(info, dict) else None
    return {
        "type": info.get("type") if isinstance(info, dict) else None,
        "info": {"type": found.get("type")} if isinstance(found, dict) else {},
    }


def _cut_texts(value: Any, limit: int) -> Any:
    """A JSON value with texts of at most `limit`. The tail stays, because a traceback says most at its end.

    The marks are ASCII: a text with one other character takes twice the memory.
    """
    if isinstance(value, str) and len(value) > limit:
        keep = limit // 2 - 40
        return f"{value[:keep]} ... {len(value) - 2 * keep} more characters in the line's record ... {value[-keep:]}"
    if isinstance(value, dict):
        return {key: _cut_texts(item, limit) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut_texts(item, limit) for item in value]
    return value


def in_log(logs: str) -> str:
    """The beginning and the end of a line's printed output, for the log of the run."""
    if len(logs) <= PRINTED_LIMIT:
        return logs
    half = PRINTED_LIMIT // 2
    return f"{logs[:half]}\n… {len(logs) - 2 * half} more characters in the line's record …\n{logs[-half:]}"
