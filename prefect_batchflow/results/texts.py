r"""Texts for places that take UTF-8 only: Prefect's server and its database, and terminals.

Rows, errors and names of files can have characters that UTF-8 has not: half a surrogate pair, and the bytes of a file name in
another encoding, which Python keeps as halves of pairs. PostgreSQL also refuses NUL. One such character in a log record loses
all records that are sent with it; in the message of a state, it loses the state.
"""

from __future__ import annotations

import re
from typing import Any

_REFUSED = re.compile("[\x00\ud800-\udfff]")
_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF
"""Python's surrogates for the bytes 0x80 to 0xff of a name that is not UTF-8."""


def encodable(text: str) -> str:
    r"""The text with escapes for characters that UTF-8 or a database refuses: `\xe9` for a byte, `\ud800`, `\x00`."""
    return _REFUSED.sub(_escape, text)


def encodable_value(value: Any) -> Any:
    """A value of JSON's types with `encodable` texts and keys. The same object if nothing changes."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        made = {encodable_value(key): encodable_value(part) for key, part in value.items()}
        return value if made == value else made
    if isinstance(value, list | tuple):
        parts = [encodable_value(part) for part in value]
        return value if parts == list(value) else parts
    return value


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    if _FIRST_BYTE <= number <= _LAST_BYTE:
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
