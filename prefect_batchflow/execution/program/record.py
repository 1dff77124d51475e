"""Encoding a record as JSON, whatever user code put into it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import (
    FlowOutputUnserializable,
    InputTypeError,
    LineOutOfMemoryError,
    LoadMultimediaDataError,
    UnexpectedError,
    error_dict,
)
from prefect_batchflow.execution.program.user_errors import exception_text
from prefect_batchflow.execution.program.values import has_other_keys, plain, to_json

if TYPE_CHECKING:
    from prefect_batchflow.results.records import LineRun


def encode_record(record: LineRun) -> bytes:
    """Encode a line's record as one JSON object in ASCII; NaN and infinity stay.

    Values that JSON does not know are written by the table in `values`. A value without a form becomes its `repr`. But if
    the output or a value for the aggregation has one, the line fails. `record` is then changed in place, so make its receipt
    afterwards. With `PF_SKIP_SERIALIZATION_CHECK=true` the line does not fail.
    """
    try:
        encoded = _STRICT.encode(record).encode("ascii")
        if not has_other_keys((record["output"], record["aggregation_inputs"])):
            return encoded
    except MemoryError as exc:
        fail_run(record, own_failure(exc))
        record["nodes"] = [{**node, "inputs": {}, "output": None} for node in record["nodes"]]
    except Exception:  # noqa: BLE001, S110 - objects of user code; checked one by one below
        pass
    output = record["output"] or {}
    parts = [
        *((f"'{name}' of the output", value) for name, value in output.items()),
        *((f"{name}, which the aggregation needs,", value) for name, value in record["aggregation_inputs"].items()),
        ("The output", output),
    ]
    for what, value in () if _takes_any_output() else parts:
        try:
            _encoded(value)
        except Exception as exc:  # noqa: BLE001 - objects of user code
            message = (
                f"{what} is not JSON: ({type(exc).__name__}) {exception_text(exc)}. Return text, numbers, booleans, "
                "None, lists and dicts of these, or another value that has a form in JSON, such as a dataclass."
            )
            fail_run(record, error_dict(FlowOutputUnserializable(message, target="Executor")))
            return lenient(record).encode("ascii")
    return lenient(record).encode("ascii")


def _takes_any_output() -> bool:
    """Whether a line may have an output that is not JSON; its repr is kept.

    Source: promptflow `_core/run_tracker.py`, `_skip_serialization_check`.
    """
    return os.environ.get("PF_SKIP_SERIALIZATION_CHECK", "").lower() == "true"


def fail_run(record: LineRun, error: dict[str, Any]) -> None:
    """Turn a run into a failed one, in place."""
    record.update({"status": "Failed", "output": None, "aggregation_inputs": {}, "error": error})


def own_failure(exc: BaseException) -> dict[str, Any]:
    """The error of a line that failed outside user code."""
    if isinstance(exc, LoadMultimediaDataError | InputTypeError):
        return error_dict(exc)
    text = f"({type(exc).__name__}) {exception_text(exc)}"
    if isinstance(exc, MemoryError):
        return error_dict(LineOutOfMemoryError(f"The line's record cannot be created: {text}", target="Executor"))
    return error_dict(UnexpectedError(f"The line cannot be run: {text}", target="Executor"))


def _to_json_or_repr(value: Any) -> Any:
    try:
        return to_json(value)
    except Exception:  # noqa: BLE001 - objects of user code
        return _repr(value)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as exc:  # noqa: BLE001 - objects of user code
        return f"<{type(value).__name__}, its repr raised {type(exc).__name__}>"


_STRICT = json.JSONEncoder(separators=(",", ":"), default=to_json)
_LENIENT = json.JSONEncoder(separators=(",", ":"), default=_to_json_or_repr)


def _encoded(value: Any) -> str:
    """JSON of a value. The encoder alone does not know keys that are not text."""
    try:
        encoded = _STRICT.encode(value)
        if not has_other_keys(value):
            return encoded
    except TypeError:
        pass
    return _STRICT.encode(plain(value))


def lenient(value: Any, depth: int = 4) -> str:
    """JSON of any value. A part without JSON (a circle, an unknown object) becomes its repr, down to a node's inputs."""
    try:
        return _STRICT.encode(value)
    except Exception:  # noqa: BLE001 - objects of user code
        if depth and type(value) is dict and all(isinstance(key, str) for key in value):
            parts = (f"{_STRICT.encode(key)}:{lenient(part, depth - 1)}" for key, part in value.items())
            return "{" + ",".join(parts) + "}"
        if depth and type(value) is list:
            return "[" + ",".join(lenient(part, depth - 1) for part in value) + "]"
    for encode in (_encoded, _LENIENT.encode):
        with suppress(Exception):  # objects of user code
            return encode(value)
    return _STRICT.encode(_repr(value))
