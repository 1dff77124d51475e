"""The table of what becomes what in JSON, for every value of user code: outputs, nodes, metrics. docs/values.md shows it.

JSON's own values are encoded without asking here. Libraries are known by the names of their types, so that nothing is
imported for flows that do not use them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from base64 import b64encode
from collections import UserString
from collections.abc import Callable, Mapping, Sequence, Set, ValuesView
from datetime import date, datetime, time, timedelta
from enum import Enum
from os import PathLike, fspath
from typing import Any

ARRAY_LIMIT = 100_000
"""Values of an array or table that are written, at most."""


def to_json(value: Any) -> Any:
    """Convert one object that JSON does not know; its parts can again be such objects.

    Raises:
        TypeError: There is no form for it.
    Source: promptflow `tracing/_utils.py`, `serialize`, for datetimes, enum members, dataclasses and pydantic models.
    """
    kind = type(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes) and hasattr(value, "_mime_type"):
        # An image inside an object that is not JSON; all other images are dictionaries by now.
        return {f"data:{value._mime_type};base64": value.to_base64()}  # type: ignore[attr-defined]
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode()
    if isinstance(value, date | time | timedelta):
        return _moment(value)
    if isinstance(value, type):
        raise TypeError(f"the class {value.__name__} is not JSON")
    if hasattr(kind, "__dataclass_fields__"):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(kind, "model_dump") and hasattr(value, "model_fields_set"):
        return _of_model(value)
    for base in kind.__mro__:
        if (convert := _BY_LIBRARY.get(base.__module__.partition(".")[0])) is not None:
            return convert(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Set):
        return in_order(value)
    if isinstance(value, UserString):
        return str(value)
    if isinstance(value, Sequence | ValuesView):
        return list(value)
    if isinstance(value, PathLike):
        path = fspath(value)
        return path if isinstance(path, str) else _file_name(path)
    fields = getattr(kind, "__struct_fields__", None) or [a.name for a in getattr(kind, "__attrs_attrs__", ())]
    if fields:
        return {name: getattr(value, name) for name in fields}
    raise TypeError(f"a {kind.__name__} is not JSON")


def plain(value: Any) -> Any:
    """Convert a value completely; unlike `to_json` as an encoder's hook, it also makes texts of keys that are not text.

    Raises:
        TypeError: A part has no form.
        ValueError: Two keys of a dictionary become the same text.
    """
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, Enum)):
        return value
    if isinstance(value, dict):
        written: dict[str, Any] = {}
        for key, part in value.items():
            text = _key(key)
            if text in written:
                raise ValueError(f"two keys of a dict would both be written as {text!r}")
            written[text] = plain(part)
        return written
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return plain(to_json(value))


def has_other_keys(value: Any) -> bool:
    """Whether a dictionary at any depth has both keys that are text and others: JSON can write two of them as one.

    The value must not contain itself; the encoder finds that out.
    """
    level = [value]
    while level:
        found = level.pop()
        if isinstance(found, dict):
            texts = sum(1 for key in found if isinstance(key, str))
            if 0 < texts < len(found):
                return True
            found = found.values()
        level += [part for part in found if isinstance(part, dict | list | tuple)]
    return False


def in_order(values: Set[Any]) -> list[Any]:
    """A set as a list that is the same in each run: sorted, by what its members look like if they cannot be compared."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


def _key(key: Any) -> str:
    """A key as text: numbers and None as JSON writes them, others by the table, and as JSON if they are not text then."""
    found = plain(key)
    return str(found) if isinstance(found, str) else json.dumps(found)


def _moment(value: date | time | timedelta) -> str | float | None:
    if value != value:
        return None
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value.isoformat() + "Z" * (isinstance(value, datetime) and value.tzinfo is None)


def _of_model(value: Any) -> Any:
    try:
        return value.model_dump(mode="json")
    except Exception:  # noqa: BLE001 - fields of types that pydantic does not know; the table may know them
        return dict(value)


def _of_old_model(value: Any) -> Any:
    if hasattr(value, "__fields_set__"):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _file_name(path: bytes) -> str:
    return path.decode(sys.getfilesystemencoding(), "replace")


def _as_text(value: Any) -> str:
    return str(value)


def _of_decimal(value: Any) -> str:
    if hasattr(value, "as_tuple"):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _of_numpy(value: Any) -> Any:
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind not in tuple("biufMmUO"):
        of = f" of {value.dtype}" if getattr(value, "ndim", 0) and kind else ""
        raise TypeError(f"a {type(value).__name__}{of} is not JSON")
    if getattr(value, "ndim", 0):
        _refuse_large(value)
        return list(value) if kind in ("M", "m") else value.tolist()
    if kind in ("M", "m"):
        if value != value:
            return None
        return str(value) if kind == "M" else float(value.astype("timedelta64[ns]").astype("int64")) / 1e9
    # `item` of a longdouble is a longdouble again.
    return float(value) if kind == "f" else value.item()


def _of_pandas(value: Any) -> Any:
    if type(value).__name__ == "NAType":
        return None
    if getattr(value, "ndim", 0) == 2:
        _refuse_large(value)
        return value.to_dict("records")
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        _refuse_large(value)
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _refuse_large(value: Any) -> None:
    if value.size > ARRAY_LIMIT:
        raise TypeError(
            f"a {type(value).__name__} of {value.size:,} values is too large to be written as JSON, which takes up to "
            f"{ARRAY_LIMIT:,}. Return less of it, or save it and return its path"
        )


_BY_LIBRARY: Mapping[str, Callable[[Any], Any]] = {
    "decimal": _of_decimal,
    "ipaddress": _as_text,
    "numpy": _of_numpy,
    "pandas": _of_pandas,
    "pydantic": _of_old_model,
    "uuid": _as_text,
}
"""By the first name of a type's module."""
