"""Line records and outcomes as an executor makes them, in a word."""

from __future__ import annotations

from typing import Any

from prefect_batchflow.exceptions import ToolExecutionError, error_dict
from prefect_batchflow.execution.executor import LineOutcome
from prefect_batchflow.execution.program.record import encode_record
from prefect_batchflow.lines import input_hash
from prefect_batchflow.results.records import LineRecord, Receipt

BEGAN = "2026-01-02T03:04:05+00:00"


def record_of(
    number: int, *, attempt: int = 1, inputs: dict[str, Any] | None = None, output: Any = None, error: str | None = None
) -> LineRecord:
    """The record of a line: completed, or failed with this error."""
    inputs = {"n": number} if inputs is None else inputs
    failed = error is not None
    return {
        "line_number": number,
        "attempt": attempt,
        "status": "Failed" if failed else "Completed",
        "input_hash": input_hash(inputs),
        "inputs": inputs,
        "output": None if failed else {"n": number} if output is None else output,
        "aggregation_inputs": {},
        "error": None if error is None else error_dict(ToolExecutionError(error)),
        "start_time": BEGAN,
        "end_time": BEGAN,
        "duration_sec": 0.25,
        "metrics": {},
        "tokens": {"total_tokens": 3, "prompt_tokens": 2, "completion_tokens": 1},
        "logs": "",
        "nodes": [
            {
                "node": "grade",
                "status": "Failed" if failed else "Completed",
                "inputs": {},
                "output": None,
                "error": None,
                "start_time": BEGAN,
                "end_time": BEGAN,
                "duration_sec": 0.25,
                "metrics": {},
            }
        ],
    }


def outcome_of(number: int, **facts: Any) -> LineOutcome:
    """The outcome of a line; `facts` as `record_of` takes them."""
    record = record_of(number, **facts)
    return LineOutcome(Receipt.of(record), encode_record(record), record["input_hash"])
