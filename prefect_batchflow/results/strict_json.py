r"""JSON for other programs: every parser must take it.

Python writes NaN, infinity and halves of a surrogate pair, which many parsers refuse. Here the numbers become null, and half
a pair the text of its escape, `\ud800`. The records of a run keep the values.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_encode_ascii = json.JSONEncoder(allow_nan=False).encode
_MAX_NAMED = 5


def strict(value: Any) -> Any:
    """A JSON value without NaN, infinity and lone surrogates."""
    return _without(value, halves=True)


def broken_numbers(values: dict[str, Any]) -> list[str]:
    """The names of values that are or contain NaN or infinity."""
    return [name for name, value in values.items() if _without(value, halves=False) != value]


class StrictRows:
    """Writes rows as lines of JSON, and remembers the columns whose NaN or infinity became null."""

    def __init__(self, file: str, *, keeps_halves: bool = False) -> None:
        """Take the file's name, for the note; `keeps_halves` writes half a pair as JSON's escape, because it is data again."""
        self._file = file
        self._keeps_halves = keeps_halves
        self._columns: Counter[str] = Counter()

    def line(self, row: dict[str, Any]) -> bytes:
        """One line of UTF-8."""
        try:
            return (_encode(row) + "\n").encode()
        except ValueError:  # also a UnicodeEncodeError
            pass
        self._columns.update(broken_numbers(row))
        written = _without(row, halves=not self._keeps_halves)
        encode = _encode_ascii if self._keeps_halves else _encode
        return (encode(written) + "\n").encode()

    def note(self) -> str | None:
        """Name the columns with their numbers of lines, for a person; `None` if there are none."""
        if not self._columns:
            return None
        named = [f"'{column}' ({lines} line{'s' * (lines > 1)})" for column, lines in self._columns.items()]
        more = f" and {len(named) - _MAX_NAMED} more" * (len(named) > _MAX_NAMED)
        return (
            f"{self._file}: NaN and infinity are written as null, because JSON has no such numbers. Column"
            f"{'s' * (len(named) > 1)}: {', '.join(named[:_MAX_NAMED])}{more}. The line records keep the numbers."
        )


def _without(value: Any, *, halves: bool) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode() if halves and not value.isascii() else value
    if isinstance(value, dict):
        return {_without(key, halves=halves): _without(part, halves=halves) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without(part, halves=halves) for part in value]
    return value
