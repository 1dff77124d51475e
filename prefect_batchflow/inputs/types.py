"""promptflow's input types: how a value of the data is converted for the flow.

Source: promptflow `contracts/tool.py`, `ValueType.parse`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from prefect_batchflow.inputs.formats import MAX_DEPTH, too_deep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONVERSION_ERRORS = (TypeError, ValueError, OverflowError, RecursionError)
"""What a converter raises for a value that does not fit; `json.JSONDecodeError` for text that is not JSON."""


def _to_bool(value: Any) -> bool:
    """Convert a boolean, or the text true or false in any case. 0, 1 and empty text do not fit."""
    if isinstance(value, bool):
        return value
    text = value.lower() if isinstance(value, str) else None
    if text not in ("true", "false"):
        raise ValueError("expected true or false")
    return text == "true"


def _to_list(value: Any) -> list[Any]:
    """Convert a list, or the JSON text of one."""
    value = _from_json(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return value


def _to_object(value: Any) -> Any:
    """Convert any value: text that is JSON is parsed, other text stays text."""
    if not isinstance(value, str):
        return value
    try:
        return _from_json(value)
    except (ValueError, RecursionError):
        return value


CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "int": int,
    "double": float,
    "bool": _to_bool,
    "string": str,
    "list": _to_list,
    "object": _to_object,
}
"""By type name; values of other types are not converted. `int` cuts 4.7 to 4, `string` turns null into "None".
Null for a nullable input is not converted."""


def _from_json(text: str) -> Any:
    value = json.loads(text)
    if too_deep(text, value):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value
