"""Records: what a worker makes, the storage keeps and the parent counts. No pydantic: workers import this."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NotRequired, Self, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_RECEIPT_TEXT: Final = 2_000
"""Characters of one text of a receipt's error; the line's record has the whole."""
PRINTED_LIMIT: Final = 2_000
"""Characters of what a line printed that reach the log of the run."""


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


def in_log(logs: str) -> str:
    """Of what a line printed, what the log of the run has: its beginning and its end."""
    if len(logs) <= PRINTED_LIMIT:
        return logs
    half = PRINTED_LIMIT // 2
    return f"{logs[:half]}\n… {len(logs) - 2 * half} more characters in the line's record …\n{logs[-half:]}"
