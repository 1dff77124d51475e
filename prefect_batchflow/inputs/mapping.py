"""`inputs_mapping`, which gives each input a column or a constant; and how sources are joined.

Values in, values out. Source: promptflow `_utils/inputs_mapping_utils.py`, `batch/_batch_inputs_processor.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs.formats import Row, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

LINE_NUMBER = "line_number"
"""The column that numbers a source's rows, and the input that gets the line's number."""

BY_POSITION = "none"
"""The value of the option `line_number_column` that numbers rows by their position."""

NOT_A_NUMBERING = (
    "If this column does not number the rows, set line_number_column='none' (--line-number-column none), or name the column "
    "that does."
)

MAX_LINE_NUMBER = 10**12 - 1
"""Twelve digits, because the names of stored records have no room for more."""

_REFERENCE = re.compile(r"\$\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class FixedValue:
    """A constant: a value that every line gets."""

    value: Any


@dataclass(frozen=True, slots=True)
class ColumnReference:
    """`${source.column}`, resolved as far as the names of the sources allow."""

    text: str
    """As written, braces included."""
    columns: tuple[tuple[str, str], ...]
    """`(source, column)` pairs in the order they are tried; empty if no source matches."""


Expression = FixedValue | ColumnReference


def complete_mapping(inputs_mapping: Mapping[str, Any] | None, unmapped: Iterable[str]) -> dict[str, Any]:
    """Map inputs to the column of their own name, unless the given mapping says otherwise.

    Args:
        inputs_mapping: Input name to `${source.column}` or a constant; `None` is empty. Its `line_number` is ignored.
        unmapped: The inputs that are read from the data without being mapped: all without a default, and those that have a
            default and a column.
    """
    mapping: dict[str, Any] = {name: f"${{data.{name}}}" for name in unmapped}
    mapping.update(inputs_mapping or {})
    mapping.pop(LINE_NUMBER, None)
    return mapping


def parse_expression(value: Any, sources: Collection[str]) -> Expression:
    """Parse a reference or a constant.

    A reference is exactly `${…}`, not empty, without braces or anything around it, blanks included. It is split at a dot
    into a source name and a column name. If several splits match, the shorter source name is tried first.
    """
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return FixedValue(value)
    parts = match[1].split(".")
    cuts = ((".".join(parts[:n]), ".".join(parts[n:])) for n in range(1, len(parts)))
    return ColumnReference(match[0], tuple((source, column) for source, column in cuts if source in sources))


def map_inputs(
    rows: Mapping[str, Mapping[str, Any]], mapping: Mapping[str, Expression]
) -> tuple[dict[str, Any], list[str]]:
    """Give one line its inputs.

    Args:
        rows: One row's values per source, keyed `data`, `run.outputs`, `run.inputs`.
        mapping: Input name to parsed expression.

    Returns:
        The inputs, and the names of inputs whose reference matches no column of this line. Unmapped inputs are absent.
    """
    inputs: dict[str, Any] = {}
    unresolved: list[str] = []
    for name, expression in mapping.items():
        if isinstance(expression, FixedValue):
            inputs[name] = expression.value
            continue
        for source, column in expression.columns:
            if column in rows[source]:
                inputs[name] = rows[source][column]
                break
        else:
            unresolved.append(name)
    return inputs, unresolved


def parse_line_number(value: Any, column: str = LINE_NUMBER) -> int:
    """Parse a row's own line number: a whole number from 0 to `MAX_LINE_NUMBER`, or its digits as text, as in csv.

    Raises:
        InvalidUserData: It is neither. The message names the column, not the row.
    """
    digits = isinstance(value, str) and len(value) < 20 and value.isascii() and value.isdigit()
    number = int(value) if digits or (isinstance(value, float) and value.is_integer()) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_LINE_NUMBER:
        raise InvalidUserData(f"{column} is {shorten(value)}, expected a whole number from 0 to {MAX_LINE_NUMBER}.")
    return number


def number_columns(line_number_column: str) -> tuple[str, ...]:
    """Give the columns that can number a source's rows, the first choice first, for the option `line_number_column`.

    Without the named column, a source is still numbered by `line_number`: so the outputs and failed lines of a run can be
    joined with the data that another column numbered.
    """
    return () if line_number_column == BY_POSITION else tuple(dict.fromkeys((line_number_column, LINE_NUMBER)))


def number_rows(rows: Iterable[Row], column: str | None) -> Iterator[tuple[int, Row]]:
    """Number rows by a column, leaving out rows without it; `None` numbers them by their 0-based position."""
    if column is None:
        return enumerate(rows)
    return ((parse_line_number(row.values[column], column), row) for row in rows if column in row.values)


def join_rows(numbered: Sequence[Iterator[tuple[int, Row]]], *, rising: bool) -> Iterator[tuple[int, tuple[Row, ...]]]:
    """Join sources by number: give the numbers that all sources have, in the first source's order.

    Args:
        numbered: The rows of each source with their numbers, which are unique per source.
        rising: The numbers of every source are in rising order. Then the sources are read side by side, with one row of
            each in memory. Otherwise the first source is streamed and the others are held in memory.
    """
    first, *others = numbered
    if not others:
        yield from ((number, (row,)) for number, row in first)
        return
    finders = [_find_ahead(other) if rising else dict(other).get for other in others]
    for number, row in first:
        found = [find(number) for find in finders]
        if None not in found:
            yield number, (row, *(other for other in found if other is not None))


def _find_ahead(rows: Iterator[tuple[int, Row]]) -> Callable[[int], Row | None]:
    """Give a lookup for numbers in rising order."""
    ahead = next(rows, None)

    def find(number: int) -> Row | None:
        nonlocal ahead
        while ahead is not None and ahead[0] < number:
            ahead = next(rows, None)
        return ahead[1] if ahead is not None and ahead[0] == number else None

    return find
