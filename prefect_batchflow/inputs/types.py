"""promptflow's input types: what a value of the data becomes before the flow gets it.

Source: promptflow `contracts/tool.py`, `ValueType.parse`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from prefect_batchflow.inputs.formats import MAX_DEPTH, too_deep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONVERSION_ERRORS = (TypeError, ValueError, OverflowError, RecursionError)
"""What a converter raises for a value that does not fit; `json.JSONDecodeError` for a text that is no JSON."""


def to_bool(value: Any) -> bool:
    """A boolean, or the text true or false in any case; 0, 1 and the empty text are none."""
    if isinstance(value, bool):
        return value
    text = value.lower() if isinstance(value, str) else None
    if text not in ("true", "false"):
        raise ValueError("expected true or false")
    return text == "true"


def to_list(value: Any) -> list[Any]:
    """A list, or a text that is the JSON of one."""
    value = _from_json(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return value


def to_object(value: Any) -> Any:
    """Any value; a text that is JSON becomes what it says, any other text stays text."""
    if not isinstance(value, str):
        return value
    try:
        return _from_json(value)
    except (ValueError, RecursionError):
        return value


CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "int": int,
    "double": float,
    "bool": to_bool,
    "string": str,
    "list": to_list,
    "object": to_object,
}
"""By type name; values of other types pass as they are. `int` cuts 4.7 to 4, `string` makes "None" of null.
Null of a nullable input is not brought here."""


def _from_json(text: str) -> Any:
    value = json.loads(text)
    if too_deep(text, value):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value
