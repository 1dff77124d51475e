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
from prefect_batchflow.execution.scrubbing import Scrubber
from prefect_batchflow.results.records import Receipt, in_log, line_record, line_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.definition.flow import FlowDescription
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import AggregationRun, CompletedLine, LineRun

_NO_SECRETS = Scrubber({}, {}, {})


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

    async def aggregate(self, lines: Sequence[CompletedLine], *, timeout_sec: float) -> AggregationRun:
        """Run the flow's aggregation over completed lines, sorted by line_number."""
        ...

    def running(self) -> set[int]:
        """The numbers of the lines that have a slot now."""
        ...

    async def close(self) -> None:
        """End everything that runs; after it no process of this executor is alive."""
        ...


def outcome_of(line: Line, attempt: int, run: LineRun, scrubber: Scrubber = _NO_SECRETS) -> LineOutcome:
    """The outcome of a line that no worker has recorded."""
    record, encoded = scrubber.encode(line_record(run, line.line_number, attempt, line.input_hash))
    return LineOutcome(Receipt.of(record), encoded, line.input_hash, in_log(record["logs"]))


def failed_outcome(
    line: Line, *, attempt: int, error: dict[str, Any], duration_sec: float, logs: str = ""
) -> LineOutcome:
    """The outcome of a line whose process could not tell it itself."""
    ended = datetime.now(UTC)
    started = datetime.fromtimestamp(ended.timestamp() - duration_sec, UTC)
    run = line_run(line.inputs, (started.isoformat(), ended.isoformat(), duration_sec), error=error, logs=logs)
    if line.images is not None:
        run["images"] = {"inputs": {name: source for name, (source, _) in line.images.items()}, "output": []}
    return outcome_of(line, attempt, run)


def timed_out(line: Line, timeout_sec: float) -> dict[str, Any]:
    """The error of a line that met its limit. Source: promptflow `executor/_errors.py`, `LineExecutionTimeoutError`."""
    return error_dict(
        LineExecutionTimeoutError(
            f"Line {line.line_number} execution timeout for exceeding {timeout_sec:g} seconds", target="Executor"
        )
    )


def failed_aggregation(exc: BatchflowException) -> AggregationRun:
    """What an aggregation gave that came to no end of its own."""
    return {"output": {}, "metrics": {}, "nodes": [], "error": error_dict(exc)}


def aggregation_timed_out(timeout_sec: float) -> LineExecutionTimeoutError:
    """The error of an aggregation that met its limit, which is the line's."""
    return LineExecutionTimeoutError(
        f"The aggregation did not end within {timeout_sec:g} seconds. Raise the line timeout, or see what it waits for.",
        target="Executor",
    )
