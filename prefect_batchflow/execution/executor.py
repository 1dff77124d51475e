"""The seam between a run and whatever runs its lines: the `Executor` protocol and the outcome of a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from prefect_batchflow.exceptions import (
    BatchflowException,
    LineExecutionTimeoutError,
    error_dict,
)
from prefect_batchflow.execution.program.nodes import encode_record
from prefect_batchflow.lines import input_hash
from prefect_batchflow.results.records import NO_TOKENS, Receipt, in_log, receipt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_batchflow.definition.flow import FlowDescription
    from prefect_batchflow.lines import Line


@dataclass(frozen=True, slots=True)
class LineOutcome:
    """One attempt of one line: what the run counts, and what the storage keeps."""

    receipt: Receipt
    record: bytes
    """The line record as JSON."""
    input_hash: str
    """Of the inputs it ran with; a resume takes a record over only where it fits."""
    printed: str = ""
    """Of what it printed, what the log of the run has."""

    def parsed(self) -> Any:
        """The record as values."""
        return json.loads(self.record)


class Executor(Protocol):
    """Runs the lines of one flow. One contract test runs for every implementation."""

    slots: int
    """How many lines run at once; the window of task runs is made a little wider."""

    async def start(self) -> FlowDescription:
        """Load the flow and say what it is; whatever keeps it from loading is raised here, before any data is read."""
        ...

    async def run_line(self, line: Line, *, attempt: int, timeout_sec: float) -> LineOutcome:
        """Run one attempt of one line once a slot is free. What the line does wrong is in the outcome, never raised."""
        ...

    async def aggregate(self, lines: Sequence[Mapping[str, Any]], *, timeout_sec: float) -> dict[str, Any]:
        """Run the flow's aggregation over completed lines, sorted by line_number."""
        ...

    def running(self) -> set[int]:
        """The numbers of the lines that have a slot now."""
        ...

    async def close(self) -> None:
        """End everything that runs; after it no process of this executor is alive."""
        ...


def failed_outcome(
    line: Line, *, attempt: int, error: dict[str, Any], duration_sec: float, logs: str = ""
) -> LineOutcome:
    """The outcome of a line whose process could not tell it itself."""
    ended = datetime.now(UTC)
    record: dict[str, Any] = {
        "line_number": line.line_number,
        "attempt": attempt,
        "status": "Failed",
        "input_hash": input_hash(line.inputs),
        "inputs": line.inputs,
        "output": None,
        "aggregation_inputs": {},
        "error": error,
        "start_time": datetime.fromtimestamp(ended.timestamp() - duration_sec, UTC).isoformat(),
        "end_time": ended.isoformat(),
        "duration_sec": duration_sec,
        "metrics": {},
        "tokens": NO_TOKENS.metrics(),
        "logs": logs,
        "nodes": [],
    }
    if line.images is not None:
        record["images"] = {"inputs": {name: source for name, (source, _) in line.images.items()}, "output": []}
    encoded = encode_record(record)
    return LineOutcome(receipt(record), encoded, record["input_hash"], in_log(logs))  # type: ignore[arg-type]


def timed_out(line: Line, timeout_sec: float) -> dict[str, Any]:
    """The error of a line that met its limit. Source: promptflow `executor/_errors.py`, `LineExecutionTimeoutError`."""
    return error_dict(
        LineExecutionTimeoutError(
            f"Line {line.line_number} execution timeout for exceeding {timeout_sec:g} seconds", target="Executor"
        )
    )


def failed_aggregation(exc: BatchflowException) -> dict[str, Any]:
    """What an aggregation gave that came to no end of its own."""
    return {"output": {}, "metrics": {}, "nodes": [], "error": error_dict(exc)}


def aggregation_timed_out(timeout_sec: float) -> LineExecutionTimeoutError:
    """The error of an aggregation that met its limit, which is the line's."""
    return LineExecutionTimeoutError(
        f"The aggregation did not end within {timeout_sec:g} seconds. Raise the line timeout, or see what it waits for.",
        target="Executor",
    )
