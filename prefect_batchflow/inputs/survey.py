"""One pass over a source before a run: its rows, columns, line numbers and faults."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs.mapping import parse_line_number

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from prefect_batchflow.inputs.formats import Row
    from prefect_batchflow.inputs.readers import Source

MAX_LISTED = 20
"""Faults listed in a message; the others are counted."""

_MAX_COLUMNS = 10_000


@dataclass(slots=True)
class Faults:
    """Descriptions of faults: the first ones are kept, all are counted."""

    texts: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, text: str) -> None:
        """Add one fault."""
        self.count += 1
        if len(self.texts) < MAX_LISTED:
            self.texts.append(text)

    def extend(self, other: Faults) -> None:
        """Add another list, including its count of unlisted faults."""
        self.texts = (self.texts + other.texts)[:MAX_LISTED]
        self.count += other.count

    def __str__(self) -> str:
        if self.count == 1:
            return self.texts[0]
        lines = [f"{self.count} problems:", *(f"- {text}" for text in self.texts)]
        if self.count > len(self.texts):
            lines.append(f"- and {self.count - len(self.texts)} more.")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """What a source contains."""

    name: str
    url: str
    """Where it is, for messages: without credentials."""
    rows: int
    """Rows read, without those that `max_lines_count` leaves out."""
    sha256: str
    """The hash of these rows' bytes, after decompression; `sha256sum` gives the same for a whole file."""
    columns: tuple[str, ...]
    """In order of appearance, at most 10,000."""
    number_column: str | None
    """The column that numbers the rows; rows without it are left out. `None`: rows are numbered by position."""
    rising: bool
    """Each number is higher than the one before."""
    cut: bool
    """`max_lines_count` leaves rows out."""

    @property
    def own_numbers(self) -> bool:
        """Whether a column numbers the rows."""
        return self.number_column is not None


class Survey:
    """One pass over a source, with one row in memory at a time; `read` makes it.

    Args:
        source: The source to read.
        columns: The columns whose absence matters.

    Attributes:
        summary: What the source contains.
        numbers: The line numbers of the rows that have one, in order.
        lacking: For each of the columns, the line numbers of the rows without it.
        unreadable: Rows that cannot be read.
        misnumbered: Rows whose line number is not a valid number.
        unnumbered: Rows left out because they have no line number and others do.
    """

    summary: SourceSummary
    numbers: Sequence[int]

    def __init__(self, source: Source, columns: Collection[str]) -> None:
        self.source = source
        self.unnumbered = 0
        self.lacking = {column: array("q") for column in columns}
        self.unreadable = Faults()
        self.misnumbered = Faults()
        self._met: dict[str, None] = {}
        self._given = array("q")
        self._number_column: str | None = None
        """The first row that has one of the source's number columns decides."""

    def read(self, max_rows: int | None = None, is_stopped: Callable[[], bool] = lambda: False) -> Survey:
        """Read the source.

        Args:
            max_rows: Rows to read; `None` is all. One more row is read, to see whether there are more.
            is_stopped: Asked every 1,000 rows; reading ends once it returns true.

        Raises:
            InvalidUserData: The source as a whole cannot be read, or reading was stopped.
        """
        digest = hashlib.sha256()
        rows = self.source.rows(digest.update)
        count = 0
        for count, row in enumerate(islice(rows, max_rows), 1):
            if count % 1_000 == 0 and is_stopped():
                raise InvalidUserData(f"Source '{self.source.name}': reading was stopped after {count} rows.")
            self._add(count - 1, row)
        sha256 = digest.hexdigest()
        cut = next(rows, None) is not None
        self.numbers = self._given if self._number_column is not None else range(count)
        self.summary = SourceSummary(
            name=self.source.name,
            url=self.source.url,
            rows=count,
            sha256=sha256 if cut else digest.hexdigest(),  # a whole file includes blank lines after the last row
            columns=tuple(islice(self._met, _MAX_COLUMNS)),
            number_column=self._number_column,
            rising=all(one < two for one, two in pairwise(self._given)),
            cut=cut,
        )
        return self

    def places(self, numbers: Collection[int]) -> dict[int, list[str]]:
        """Give the places of all rows with these numbers. This reads the source again, for messages only."""
        places: dict[int, list[str]] = {number: [] for number in numbers}
        column = self.summary.number_column
        for position, row in enumerate(islice(self.source.rows(), self.summary.rows)):
            number = position
            if column is not None:
                try:
                    number = parse_line_number(row.values.get(column))
                except InvalidUserData:
                    continue
            if number in places:
                places[number].append(row.place)
        return places

    def _add(self, position: int, row: Row) -> None:
        if row.error:
            self.unreadable.add(row.error.message)
            return
        number = self._number(position, row)
        if number is None:
            return
        for column, lacking in self.lacking.items():
            if column not in row.values:
                lacking.append(number)
        if not self._met.keys() >= row.values.keys() and len(self._met) < _MAX_COLUMNS:
            self._met.update(dict.fromkeys(row.values))

    def _number(self, position: int, row: Row) -> int | None:
        """Give a row's number; `None` if it is left out or its number is not valid."""
        column = self._number_column
        if column is None:
            column = next((name for name in self.source.number_columns if name in row.values), None)
            if column is None:
                return position
            self._number_column, self.unnumbered = column, position  # so the rows before this one are left out
            self.lacking = {lacked: array("q") for lacked in self.lacking}
        elif column not in row.values:
            self.unnumbered += 1
            return None
        try:
            number = parse_line_number(row.values[column], column)
        except InvalidUserData as exc:
            self.misnumbered.add(f"{row.place}: {exc}")
            return None
        self._given.append(number)
        return number
