"""Constants of a mapping that were probably meant as references, such as `{data.q}` without its `$`.

Every line would get the same text, and the run would be paid for. Values in, values out.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_REFERENCE = re.compile(r"\$\{([^{}]+)\}")
_BLANKS_AND_QUOTES = " \t\r\n'\"`"
_OPENING = "$%@#={([<.-" + _BLANKS_AND_QUOTES
_CLOSING = "})>%=,;.-" + _BLANKS_AND_QUOTES
_IN_BRACKETS = re.compile(r"(.+?)\s*\[\s*['\"]?(.+?)['\"]?\s*\]?")
_NAME = re.compile(r"[\w.\- ]+")
_LONGEST = 1_000
"""A longer text, in characters, is not a reference."""


def meant_reference(value: Any, columns: Mapping[str, Collection[str]]) -> str | None:
    """Give the reference that a constant was probably meant to be, such as `${data.q}`; `None` if it looks like a value.

    These count: a reference inside a longer text, a list or an object; one with missing or other brackets, with quotes or
    blanks around it (`{data.q}`, `$data.q`, `${data.q`, `'${data.q}'`); the bare name `data.q`; and the name of a column as a
    variable (`$q`, `{{q}}`), or behind the dot that a shell leaves of `$data.q`.

    Args:
        value: A constant of the mapping.
        columns: The columns of each source.
    """
    for text in _texts(value):
        if len(text) <= _LONGEST and (found := _meant(text, columns)):
            return found
    return None


def _texts(value: Any) -> Iterator[str]:
    """Give the texts in a value, at any depth; keys do not count."""
    level = [value]
    while level:
        yield from (part for part in level if isinstance(part, str))
        inner = [part for part in level if isinstance(part, dict | list)]
        level = [child for part in inner for child in (part.values() if isinstance(part, dict) else part)]


def _meant(text: str, columns: Mapping[str, Collection[str]]) -> str | None:
    for inside in _REFERENCE.findall(text):
        source, column = _split(inside, columns) or ("", "")
        if column in columns.get(source, ()):
            return f"${{{source}.{column}}}"
    plain = unicodedata.normalize("NFKC", text).replace("\\", "")
    name = plain.lstrip(_OPENING)
    opening = plain[: len(plain) - len(name)].strip(_BLANKS_AND_QUOTES)
    name = name.rstrip(_CLOSING if "[" in name else _CLOSING + "]")
    is_marked = any(mark in opening for mark in "${%")
    if found := _split(name, columns):
        source, column = found
        if column in columns[source] or (is_marked and _NAME.fullmatch(column)):
            return f"${{{source}.{column}}}"
    elif is_marked or opening == ".":
        for source, known in columns.items():
            if name in known:
                return f"${{{source}.{name}}}"
            # Behind other names: `{row.q}`, `$inputs.q`, `{run.outputs.q}`.
            if is_marked and (column := _behind_a_dot(name, known)):
                return f"${{{source}.{column}}}"
    return None


def _behind_a_dot(name: str, columns: Collection[str]) -> str:
    """Give the longest end of a dotted name that is a column; empty if there is none."""
    while name := name.partition(".")[2]:
        if name in columns:
            return name
    return ""


def _split(name: str, sources: Collection[str]) -> tuple[str, str] | None:
    """Split a name such as `data.q` or `data['q']` at the name of a source, whatever its case."""
    if in_brackets := _IN_BRACKETS.fullmatch(name):
        name = f"{in_brackets[1]}.{in_brackets[2]}"
    for source in sorted(sources, key=len, reverse=True):
        start = name[: len(source) + 1]
        if start.casefold() == f"{source}.".casefold() and (column := name[len(start) :]):
            return source, column
    return None
