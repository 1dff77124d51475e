"""Find all faults in data and mapping before the first line runs and costs money."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

from prefect_batchflow.exceptions import EmptyInputsData, InputMappingError, InvalidUserData
from prefect_batchflow.inputs import mapping as maps
from prefect_batchflow.inputs.formats import shorten
from prefect_batchflow.inputs.lookalikes import meant_reference
from prefect_batchflow.inputs.survey import Faults, SourceSummary, Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from prefect_batchflow.inputs.readers import Source
    from prefect_batchflow.settings import BadRows, InputsWithDefault

_MAX_NAMED = 30
_FEW = 2
"""So many rows that cannot be read are listed, even if a source has no others."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The data that a run will read."""

    total_lines: int
    """The lines of the run, including lines that fail because of their row."""
    sources: tuple[SourceSummary, ...]
    """In the order given."""
    unmapped: tuple[str, ...]
    """The inputs that nothing maps and that are read from the column of their own name."""
    notes: tuple[str, ...]
    """Not faults, but perhaps not intended: rows left out, columns that are not read."""


@dataclass
class Checker:
    """One check of data and mapping; its steps collect faults and notes.

    Args:
        sources: The sources that the mapping can refer to.
        required: The flow's inputs without a default.
        optional: The flow's inputs with a default.
        given: `inputs_mapping` as the user wrote it.
        bad_rows: What to do about a row that cannot be read, or lacks a column that others have.
        inputs_with_default: Whether an unmapped input with a default is read from the column of its name, if there is one.
        takes_any: Whether the flow takes inputs of any name.
        is_stopped: Whether the result is no longer needed.
    """

    sources: Sequence[Source]
    required: Collection[str]
    optional: Collection[str]
    given: Mapping[str, Any]
    bad_rows: BadRows = "refuse"
    inputs_with_default: InputsWithDefault = "column"
    takes_any: bool = False
    is_stopped: Callable[[], bool] = lambda: False
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        complete = maps.complete_mapping(self.given, self.required)
        self.mapping = {name: maps.parse_expression(value, names) for name, value in complete.items()}
        self.surveys: dict[str, Survey] = {}
        self._bad_data = Faults()
        self._bad_mapping = Faults()
        self._may_fail = False
        """Whether `bad_rows='fail'` would accept some of the faults."""

    def run(self, max_rows: int | None) -> Inventory:
        """Check everything, reading each source once.

        Raises:
            InvalidUserData: The data cannot be read; the message also lists faults of the mapping.
            EmptyInputsData: No source has a row.
            InputMappingError: The mapping does not match the data.
        """
        self._check_mapping()
        self._read_sources(max_rows)
        self._check_rows()
        self._check_constants()
        numbers = self._join()
        self._check_columns(numbers)
        with_column = self._unmapped_with_default()
        if self._bad_data.count or self._bad_mapping.count:
            self._refuse()
        summaries = tuple(survey.summary for survey in self.surveys.values())
        return Inventory(len(numbers), summaries, (*self.required, *with_column), tuple(self.notes))

    def _refuse(self) -> NoReturn:
        error = InvalidUserData if self._bad_data.count else InputMappingError
        what = "The data cannot be read" if self._bad_data.count else "inputs_mapping does not match the data"
        problems = self._bad_data
        problems.extend(self._bad_mapping)
        text = f"{what}: {problems}"
        if self._may_fail:
            gap = "\n" if problems.count > 1 else " "
            text += f"{gap}Or set bad_rows='fail' to turn such rows into failed lines."
        raise error(text, problems=problems.texts, problem_count=problems.count)

    def _check_mapping(self) -> None:
        for name, expression in self.mapping.items():
            if isinstance(expression, maps.FixedValue):
                self._check_constant(name, expression.value)
            elif not expression.columns:
                self._bad_mapping.add(f"{self._told(name)}: {self._no_source(expression.text)}")
        for name in self.given:
            if name == maps.LINE_NUMBER:
                self.notes.append(
                    "inputs_mapping: 'line_number' is ignored, because this input always gets the number of its line."
                )
            elif not self.takes_any and name not in self.required and name not in self.optional:
                known = _listed([*self.required, *self.optional])
                near = _same_but_for_case(name, [*self.required, *self.optional])
                meant = f" Did you mean '{near[0]}'?" if near else ""
                self.notes.append(
                    f"inputs_mapping: '{name}' is not an input of the flow; its inputs are {known}.{meant}"
                )

    def _check_constants(self) -> None:
        """Refuse constants that look like references, and note the others: every line gets them."""
        columns = {name: survey.summary.columns for name, survey in self.surveys.items()}
        constants = {name: found.value for name, found in self.mapping.items() if isinstance(found, maps.FixedValue)}
        fine = {name: value for name, value in constants.items() if self._is_meant(name, value, columns)}
        if not fine:
            return
        told = ", ".join(f"{name} = {shorten(value)}" for name, value in list(fine.items())[:_MAX_NAMED])
        more = f" and {len(fine) - _MAX_NAMED} more" if len(fine) > _MAX_NAMED else ""
        self.notes.append(
            f"inputs_mapping: every line gets the same value: {told}{more}.{self._read_instead(fine, columns)}"
        )

    def _read_instead(self, constants: Mapping[str, Any], columns: Mapping[str, Collection[str]]) -> str:
        """Give the advice for a constant that can be a slip: it is empty, as a shell leaves it, or names a column."""
        for name, value in constants.items():
            for source, known in columns.items():
                column = value if isinstance(value, str) and value in known else name if value == "" else None
                if column is not None and column in known:
                    return (
                        f" To read a column, write a reference, on the command line in single quotes: "
                        f"--map '{name}=${{{source}.{column}}}'."
                    )
        return ""

    def _check_constant(self, name: str, value: Any) -> None:
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as exc:
            self._bad_mapping.add(f"input '{name}': the value {shorten(value)} is not JSON ({exc}). Write it as text.")

    def _is_meant(self, name: str, value: Any, columns: Mapping[str, Collection[str]]) -> bool:
        """Whether a constant looks like a value. If it does not, this refuses it, or notes it by itself."""
        if meant := meant_reference(value, columns):
            self._bad_mapping.add(
                f"input '{name}' = {shorten(value)}: this looks like a reference, but every line would get this text. A "
                f"reference is the whole value, written exactly {meant} (on the command line in single quotes: "
                f"--map '{name}={meant}'). To put a column into a longer text, give the flow an input for the column."
            )
            return False
        if isinstance(value, str) and "${" in value:
            self.notes.append(
                f"inputs_mapping: '{name}' gets the text {shorten(value)} as it is. "
                "A reference must be exactly ${source.column}, with nothing before or after it."
            )
            return False
        return True

    def _no_source(self, reference: str) -> str:
        names = [source.name for source in self.sources]
        source, dot, column = reference[2:-1].rpartition(".")
        if not dot:
            return f"the reference has no column; expected ${{source.column}}. The sources are {_listed(names)}."
        meant = _meant(source, names, behind=f".{column}")
        return f"there is no source '{source}'; the sources are {_listed(names)}.{meant}"

    def _read_sources(self, max_rows: int | None) -> None:
        references = (found for found in self.mapping.values() if isinstance(found, maps.ColumnReference))
        wanted = {pair for reference in references for pair in reference.columns}
        for source in self.sources:
            columns = {column for name, column in wanted if name == source.name}
            try:
                self.surveys[source.name] = Survey(source, columns).read(max_rows, self.is_stopped)
            except InvalidUserData as exc:
                self._bad_data.add(exc.message)
            for note in source.notes:
                self._note(source.name, note)
        if self._bad_data.count:
            self._refuse()

    def _check_rows(self) -> None:
        if not any(survey.summary.rows for survey in self.surveys.values()):
            looked = "; ".join(f"'{source.name}': {source.url}" for source in self.sources) or "no source was given"
            piped = any(source.url == "-" for source in self.sources)
            again = " Nothing came on standard input (-): pipe the rows into the command, also into a resume." * piped
            raise EmptyInputsData(f"There is no data: expected at least one row in the sources ({looked}).{again}")
        for survey in self.surveys.values():
            self._check_source(survey)
        self._check_number_columns()

    def _check_source(self, survey: Survey) -> None:
        summary = survey.summary
        name = summary.name
        if not summary.rows:
            self._bad_mapping.add(f"source '{name}' is empty ({summary.url}), so no line is complete. Add rows to it.")
        if self.bad_rows == "refuse" or summary.own_numbers:
            self._bad_data.extend(
                _all_alike(survey) if _FEW < survey.unreadable.count == summary.rows else survey.unreadable
            )
            self._may_fail |= bool(survey.unreadable.count) and not summary.own_numbers
        elif survey.unreadable.count:
            self._note(name, f"rows that cannot be read become failed lines: {survey.unreadable}")
        if survey.misnumbered.count:
            more = f" {survey.misnumbered.count} rows are like this." if survey.misnumbered.count > 1 else ""
            self._bad_data.add(f"{survey.misnumbered.texts[0]}{more} {maps.NOT_A_NUMBERING}")
        if not summary.rising:
            self._check_repeats(survey)
        if summary.cut:
            self._note(name, f"only the first {summary.rows} rows are read (max_lines_count).")
        if survey.unnumbered:
            left_out = f"{survey.unnumbered} of {summary.rows} rows are left out"
            self._note(name, f"{left_out}, because they have no {summary.number_column}.")

    def _check_number_columns(self) -> None:
        """Refuse a `line_number_column` that no source has."""
        wanted = {source.number_columns[0] for source in self.sources if source.number_columns} - {maps.LINE_NUMBER}
        if not wanted or any(survey.summary.own_numbers for survey in self.surveys.values()):
            return
        columns = list(dict.fromkeys(chain.from_iterable(s.summary.columns for s in self.surveys.values())))
        for column in sorted(wanted):
            close = difflib.get_close_matches(column, columns[:1000], n=1)
            self._bad_mapping.add(
                f"line_number_column={column!r}: no source has this column; the columns are {_listed(columns)}."
                + (f" Did you mean {close[0]!r}?" if close else "")
            )

    def _check_repeats(self, survey: Survey) -> None:
        repeated = {number: times for number, times in Counter(survey.numbers).items() if times > 1}
        if not repeated:
            return
        column = survey.summary.number_column
        number = next(iter(repeated))
        where = " and ".join(survey.places([number])[number][:2])
        more = f" {len(repeated)} numbers are repeated." if len(repeated) > 1 else ""
        self._bad_data.add(
            f"source '{survey.source.name}': {column} {number} is not unique: {where}.{more} A number identifies its line. "
            f"Make it unique. {maps.NOT_A_NUMBERING}"
        )

    def _join(self) -> Collection[int]:
        """Give the numbers of the run's lines."""
        self._check_lengths()
        first, *others = (survey.numbers for survey in self.surveys.values())
        if not others:
            return first
        joined = set(first).intersection(*others)
        if not joined and all((first, *others)):
            self._bad_mapping.add(
                f"the sources have no line_number in common ({_listed(self.surveys)}), so no line is complete."
            )
        for name, survey in self.surveys.items():
            numbers = survey.numbers
            if 0 < len(joined) < len(numbers):
                lost = next(number for number in numbers if number not in joined)
                dropped = f"{len(numbers) - len(joined)} of {len(numbers)} rows are left out"
                self._note(name, f"{dropped}, because other sources do not have their line_number (first: {lost}).")
        return joined

    def _check_lengths(self) -> None:
        by_position = {name: s.summary.rows for name, s in self.surveys.items() if not s.summary.own_numbers}
        if len(set(by_position.values())) > 1:
            told = ", ".join(f"{name} has {rows}" for name, rows in by_position.items())
            self._bad_mapping.add(
                f"sources without line_number must have the same number of rows, but {told}. Add or remove rows, or "
                "give each row a line_number."
            )

    def _check_columns(self, numbers: Collection[int]) -> None:
        for name, expression in self.mapping.items():
            if isinstance(expression, maps.ColumnReference) and (lacking := self._lacking(expression, numbers)):
                self._check_column(name, expression, lacking, len(numbers))

    def _check_column(self, name: str, expression: maps.ColumnReference, lacking: list[int], lines: int) -> None:
        source_name, column = expression.columns[-1]
        survey = self.surveys[source_name]
        readable = lines - survey.unreadable.count
        if len(lacking) >= readable:
            columns = survey.summary.columns
            self._bad_mapping.add(
                f"{self._told(name)}: no row of '{source_name}' has a column '{column}'; its columns are "
                f"{_listed(columns)}.{_meant(column, columns, before=f'{source_name}.')}{_separated(columns)}"
            )
            return
        first = survey.places([lacking[0]])[lacking[0]]
        found = f"{len(lacking)} of {readable} lines have no column '{column}' (first: {' '.join(first)})"
        if name in self.optional:
            self.notes.append(f"{self._told(name)}: {found}; they get the input's default.")
        elif self.bad_rows == "fail":
            self.notes.append(f"{self._told(name)}: {found}; they fail.")
        else:
            self._bad_mapping.add(f"{self._told(name)}: {found}. Add the column to these rows; null is a valid value.")
            self._may_fail = True

    def _lacking(self, expression: maps.ColumnReference, numbers: Collection[int]) -> list[int]:
        """Give the lines that have none of the columns that a reference can mean; no lines if it can mean none."""
        lists: list[Sequence[int]] = [self.surveys[source].lacking[column] for source, column in expression.columns]
        lacking = sorted(set(lists[0]).intersection(*lists[1:])) if len(lists) > 1 else [*chain(*lists)]
        return lacking if len(self.surveys) == 1 else [number for number in lacking if number in numbers]

    def _unmapped_with_default(self) -> list[str]:
        """Give the unmapped inputs that have a default and a column of their name, if the column wins; else note them."""
        columns = self.surveys["data"].summary.columns if "data" in self.surveys else ()
        found = [
            name for name in self.optional if name in columns and name not in self.mapping and name != maps.LINE_NUMBER
        ]
        for name in self.optional:
            if name not in columns and name not in self.mapping and (near := _same_but_for_case(name, columns)):
                self.notes.append(
                    f"source 'data': column {near[0]!r} is not read, and input '{name}' gets its default in every line. To "
                    f"read the column, map the input: --map '{name}=${{data.{near[0]}}}'."
                )
        if self.inputs_with_default == "column":
            return found
        self.notes.extend(
            f"source 'data': column '{name}' is not read, because input '{name}' has a default, which wins as in promptflow. "
            f"To read the column, map the input to ${{data.{name}}}, or set inputs_with_default='column'."
            for name in found
        )
        return []

    def _note(self, source: str, text: str) -> None:
        self.notes.append(f"source '{source}': {text}")

    def _told(self, name: str) -> str:
        """Give an input and its mapping."""
        expression = self.mapping[name]
        text = expression.text if isinstance(expression, maps.ColumnReference) else shorten(expression.value)
        return f"input '{name}' = {text}" if name in self.given else f"input '{name}' (not mapped, so {text})"


def _all_alike(survey: Survey) -> Faults:
    """Give one fault for a source that has no row that can be read: it is of another format, or of another encoding."""
    rows = survey.summary.rows
    found = Faults()
    found.add(f"{survey.unreadable.texts[0]} None of its {rows} rows can be read, so check the format of the data.")
    return found


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:_MAX_NAMED]) or "none"
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED} more"


def _separated(columns: Collection[str]) -> str:
    """Give the advice for a csv that another character separates: its header is one column."""
    [header, *others] = columns or [""]
    found = next((mark for mark in (";", "\t", "|") if mark in header), "")
    if others or not found:
        return ""
    how = "Rename the file to .tsv" if found == "\t" else "Save the file with commas"
    return f" The header is separated by {found!r}. {how}."


def _same_but_for_case(name: str, known: Collection[str]) -> list[str]:
    """Give the names that differ only in case, in blanks around them, or in `_` and `-`."""
    return [other for other in known if _without_case(other) == _without_case(name)]


def _without_case(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _meant(name: str, known: Collection[str], *, before: str = "", behind: str = "") -> str:
    close = _same_but_for_case(name, known) or difflib.get_close_matches(name, list(known)[:1000], n=1)
    return f" Did you mean ${{{before}{close[0]}{behind}}}?" if close else ""
