"""The seam between a run and whatever runs its lines: the `Executor` protocol and the outcome of a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prefect_batchflow.exceptions import BatchflowException, LineExecutionTimeoutError, error_dict
from prefect_batchflow.execution.scrubbing import Scrubber
from prefect_batchflow.results.records import Receipt, in_log, line_record, line_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prefect_batchflow.definition.flow import FlowDescription
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import AggregationRun, CompletedLine, LineRun

_NO_SECRETS = Scrubber()


@dataclass(frozen=True, slots=True)
class LineOutcome:
    """One attempt of one line: a receipt for the run, a record for the storage."""

    receipt: Receipt
    record: bytes
    """The line's record as JSON."""
    input_hash: str
    """The hash of its inputs; a resume keeps the record only if the hash is still the same."""
    printed: str = ""
    """The part of its output that goes to the log of the run."""

    def parsed(self) -> Any:
        """The record as values."""
        return json.loads(self.record)


class Wait(NamedTuple):
    """A line that waits because a service has asked for it, or has refused a call."""

    until: float
    """On the monotonic clock."""
    status: int | None
    """The service's HTTP status, such as 429."""


@dataclass(frozen=True, slots=True, repr=False)
class Given:
    """What a flow is called with, in a form for pools in other processes: they keep the caller's objects pickled.

    Its `repr` shows no values, because they can be secret.
    """

    packed: bytes
    """`init_kwargs` and `connections`. Only worker processes unpickle them."""
    environment: Mapping[str, str]
    """The run's environment variables over those of the flow."""
    sys_path: Sequence[str]
    scrubber: Scrubber


class Executor(Protocol):
    """Runs the lines of one flow. One contract test runs for every implementation."""

    slots: int
    """How many lines run at once; the window of task runs is a little larger. It can change while lines run."""
    most_slots: int
    """The most that it can become."""
    on_slots: Callable[[], None]
    """Called when it has changed."""
    lines_left: Callable[[], int | None]
    """Tells the executor how many lines of the run have not ended; `None` if that is not known."""

    async def start(self) -> FlowDescription:
        """Load the flow and describe it. If it does not load, this raises, before any data is read."""

    async def run_line(self, line: Line, *, attempt: int, timeout_sec: float) -> LineOutcome:
        """Run one attempt of one line once a slot is free. The line's own errors are in the outcome, never raised."""

    async def aggregate(self, lines: Sequence[CompletedLine], *, timeout_sec: float) -> AggregationRun:
        """Run the flow's aggregation over completed lines, sorted by line_number."""

    def given(self) -> Given | None:
        """What pools in other processes need to run the same lines; `None` if the lines can run here only.

        Raises:
            InvalidOptionError: It contains objects that cannot be pickled.
        """

    def told(self) -> str:
        """How many processes it used and why, for people; empty if their number was given."""

    def running(self) -> set[int]:
        """The numbers of the lines that have a slot now."""

    def waits(self) -> dict[int, Wait]:
        """The running lines that wait for a service, as far as is known, by number."""

    async def close(self) -> None:
        """End everything that runs. No process of this executor is alive afterwards."""


def outcome_of(line: Line, attempt: int, run: LineRun, scrubber: Scrubber = _NO_SECRETS) -> LineOutcome:
    """The outcome of a line that has no record from a worker."""
    record, encoded = scrubber.encode(line_record(run, line.line_number, attempt, line.input_hash))
    return LineOutcome(Receipt.of(record), encoded, line.input_hash, in_log(record["logs"]))


def failed_outcome(
    line: Line, *, attempt: int, error: dict[str, Any], duration_sec: float = 0.0, logs: str = ""
) -> LineOutcome:
    """The outcome of a line whose process could not report it."""
    ended = datetime.now(UTC)
    started = datetime.fromtimestamp(ended.timestamp() - duration_sec, UTC)
    run = line_run(line.inputs, (started.isoformat(), ended.isoformat(), duration_sec), error=error, logs=logs)
    if line.images is not None:
        run["images"] = {"inputs": {name: source for name, (source, _) in line.images.items()}, "output": []}
    return outcome_of(line, attempt, run)


def timed_out(line: Line, timeout_sec: float) -> dict[str, Any]:
    """The error of a line that met its limit. Source: promptflow `executor/_errors.py`, `LineExecutionTimeoutError`."""
    message = f"Line {line.line_number} execution timeout for exceeding {timeout_sec:g} seconds"
    return error_dict(LineExecutionTimeoutError(message, target="Executor"))


def failed_aggregation(exc: BatchflowException) -> AggregationRun:
    """The result of an aggregation that was ended before it was done."""
    return {"output": {}, "metrics": {}, "nodes": [], "error": error_dict(exc)}


def aggregation_timed_out(timeout_sec: float) -> LineExecutionTimeoutError:
    """The error of an aggregation that met its limit, which is the line timeout."""
    message = f"The aggregation did not end within {timeout_sec:g} seconds. Raise the line timeout, or find out why it is slow."
    return LineExecutionTimeoutError(message, target="Executor")
