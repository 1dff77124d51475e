"""Lines: rows joined, mapped and typed, each with a number that identifies it.

A run reads its data twice and keeps none of it in memory: `check` counts the lines and finds all errors before the first line
runs, `read_lines` gives the lines.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.flow import NO_DEFAULT
from prefect_batchflow.exceptions import (
    InputMappingError,
    InputNotFound,
    InputParseError,
    InputTypeError,
    InvalidUserData,
    UserErrorException,
    error_dict,
    innermost_code,
)
from prefect_batchflow.images.forms import BASIC, form_of
from prefect_batchflow.images.places import folders_of
from prefect_batchflow.inputs import mapping as maps
from prefect_batchflow.inputs.check import Checker, Inventory
from prefect_batchflow.inputs.formats import shorten
from prefect_batchflow.inputs.types import CONVERSION_ERRORS, CONVERTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prefect_batchflow.definition.flow import Flow, FlowInput
    from prefect_batchflow.images.forms import ImageForm
    from prefect_batchflow.inputs.formats import Row
    from prefect_batchflow.inputs.readers import Source
    from prefect_batchflow.inputs.survey import SourceSummary
    from prefect_batchflow.results.records import ImageFolders, Origins
    from prefect_batchflow.settings import BadRows, InputsWithDefault

    _Fault = tuple[type[UserErrorException], str]

__all__ = ["Inventory", "Line", "check", "chunks", "input_hash", "read_lines", "read_lines_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a batch."""

    line_number: int
    """0-based place in the data, or the data's own `line_number`; identifies the line everywhere."""
    inputs: dict[str, Any]
    """The flow's inputs: JSON values, defaults and types applied."""
    error: dict[str, Any] | None = None
    """The error dictionary of a row that does not fit the flow: the line fails without running."""
    images: Origins | None = None
    """The origins of inputs that are images or contain images; `None` without images."""
    input_hash: str = field(init=False)
    """Shows a resume whether the inputs are still the same."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_hash", input_hash(self.inputs))


def check(
    sources: Sequence[Source],
    flow_inputs: Mapping[str, FlowInput],
    inputs_mapping: Mapping[str, Any] | None = None,
    max_lines_count: int | None = None,
    *,
    bad_rows: BadRows = "refuse",
    inputs_with_default: InputsWithDefault = "column",
    takes_any: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Inventory:
    """Read all data once and find all errors, before a line runs and costs money.

    Args:
        sources: The sources that mappings refer to, each with its own name; the first one gives the order of the lines.
        flow_inputs: The flow's inputs by name.
        inputs_mapping: Input name to `${source.column}` or a constant.
        max_lines_count: Rows read from each source; `None` is all.
        bad_rows: Whether a row that cannot be read, or lacks a column that other rows have, stops the run or becomes a
            failed line. An unreadable row in a source with its own line numbers always stops the run.
        inputs_with_default: Whether an unmapped input with a default is read from the column of its name, if there is one.
        takes_any: Whether the flow takes inputs of any name.
        is_stopped: Called from time to time; reading ends when it returns true.

    Raises:
        InvalidUserData: Data cannot be read; the message also lists the errors of the mapping.
        EmptyInputsData: No source has a row.
        InputMappingError: The mapping does not fit the data.
    """
    required = _required(flow_inputs)
    optional = [name for name in flow_inputs if name not in required]
    checker = Checker(
        sources,
        required,
        optional,
        inputs_mapping or {},
        bad_rows=bad_rows,
        inputs_with_default=inputs_with_default,
        takes_any=takes_any,
        is_stopped=is_stopped,
    )
    return checker.run(max_lines_count)


def read_lines_of(
    flow: Flow,
    sources: Sequence[Source],
    inputs_mapping: Mapping[str, Any] | None,
    inventory: Inventory,
    image_roots: Sequence[str] = (),
) -> Iterator[Line]:
    """The lines of a flow, as `read_lines` gives them."""
    return read_lines(
        sources,
        flow.inputs,
        inputs_mapping,
        inventory,
        flow_folder=str(flow.working_dir),
        image_roots=image_roots,
        image_form=form_of(flow.message_format),
        takes_any=flow.takes_any,
    )


def read_lines(
    sources: Sequence[Source],
    flow_inputs: Mapping[str, FlowInput],
    inputs_mapping: Mapping[str, Any] | None,
    inventory: Inventory,
    *,
    flow_folder: str | None = None,
    image_roots: Sequence[str] = (),
    image_form: ImageForm = BASIC,
    takes_any: bool = False,
) -> Iterator[Line]:
    """Read the data again and give the lines that `check` counted.

    A row that does not fit becomes a line with an error. The inputs are those of the flow and all others in the mapping; the
    line number is an input only if the flow declares `line_number`.

    Args:
        sources: As for `check`, like `flow_inputs` and `inputs_mapping`.
        flow_inputs: The flow's inputs by name.
        inputs_mapping: Input name to `${source.column}` or a constant.
        inventory: The result of `check`.
        flow_folder: The folder of images in the flow's defaults and the mapping's constants.
        image_roots: More folders where images can be, absolute paths or URLs.
        image_form: How the flow writes images.
        takes_any: Whether the flow takes inputs of any name. If it has no others, and there is no mapping, it gets the
            columns of the first source.

    Raises:
        InvalidUserData: The data changed after the check. Appended rows are left out with a warning.
    """
    own = {"": flow_folder, **{source.name: source.folder for source in sources}}
    folders = {name: folders_of(folder, image_roots) for name, folder in own.items()}
    takes_row = takes_any and not flow_inputs and not inputs_mapping
    unmapped = inventory.unmapped
    preparation = _Preparation(folders, flow_inputs, inputs_mapping, unmapped, image_form, takes_row=takes_row)
    numbered = [
        maps.number_rows(_unchanged(source, summary), summary.number_column)
        for source, summary in zip(sources, inventory.sources, strict=True)
    ]
    for number, rows in maps.join_rows(numbered, rising=all(summary.rising for summary in inventory.sources)):
        yield preparation.line(number, rows)
    for rest in numbered:
        for _ in rest:
            pass  # the remaining rows are part of the hash, too


def chunks(lines: Iterable[Line], size: int) -> Iterator[list[Line]]:
    """Give lines in lists of `size`, at least 1; the last list can be shorter."""
    if size < 1:
        raise ValueError(f"chunks of {size} lines: expected at least 1")
    lines = iter(lines)
    while chunk := list(islice(lines, size)):
        yield chunk


INPUT_HASH_DIGITS = 16
FAILED_COLUMNS = frozenset({maps.LINE_NUMBER, "_error", "_error_class", "_attempts"})
"""The columns of failed lines beside their inputs."""

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def input_hash(inputs: Mapping[str, Any]) -> str:
    """Give 16 hexadecimal digits that are the same for the same inputs in any order."""
    return hashlib.sha256(_canonical(inputs).encode()).hexdigest()[:INPUT_HASH_DIGITS]


def _unchanged(source: Source, summary: SourceSummary) -> Iterator[Row]:
    """The rows that were checked; raises after the last one if they changed."""
    digest = hashlib.sha256()
    rows = source.rows(digest.update)
    yield from islice(rows, summary.rows)
    if not summary.cut and next(rows, None) is not None:
        logger.warning("Source '%s' has grown since it was checked: only %d rows are run.", source.name, summary.rows)
    elif digest.hexdigest() != summary.sha256:
        raise InvalidUserData(
            f"Source '{source.name}' ({source.url}) has changed since this run checked it, so its lines are no longer "
            "the lines that were counted. Run again on data that nobody writes to."
        )


def _former_error(values: Mapping[str, Any]) -> InvalidUserData | None:
    """The error of a row of failed lines that has no inputs because an earlier run could not read it."""
    error = values.get("_error")
    if values.keys() != FAILED_COLUMNS or not isinstance(error, dict):
        return None
    if innermost_code(error) != InvalidUserData.__name__:
        return None  # a flow can have no inputs
    return InvalidUserData(str(error.get("message")))


class _Preparation:
    """Makes the inputs of a line from its rows."""

    def __init__(
        self,
        folders: Mapping[str, ImageFolders],
        flow_inputs: Mapping[str, FlowInput],
        inputs_mapping: Mapping[str, Any] | None,
        unmapped: Sequence[str],
        image_form: ImageForm,
        *,
        takes_row: bool = False,
    ) -> None:
        sources = [name for name in folders if name]
        mapping = maps.complete_mapping(inputs_mapping, unmapped)
        self._sources = sources
        self._mapping = {name: maps.parse_expression(value, sources) for name, value in mapping.items()}
        # Lines of one chunk are pickled together: if two of them shared a list, they would still share it in the worker.
        self._shared = [
            n for n, e in self._mapping.items() if isinstance(e, maps.FixedValue) and not _is_scalar(e.value)
        ]
        self._flow_inputs = flow_inputs
        self._defaults = {name: i.default for name, i in flow_inputs.items() if i.default is not NO_DEFAULT}
        self._folders = folders
        self._image_form = image_form
        self._takes_row = takes_row
        self._typed = [(name, i.type, CONVERTERS[i.type]) for name, i in flow_inputs.items() if i.type in CONVERTERS]
        self._nullable = {name for name, i in flow_inputs.items() if i.nullable}
        # Nobody asked for these columns, so a null there is no reason to fail the line, or to write "None" into a text.
        unasked = [name for name in unmapped if name in flow_inputs and not flow_inputs[name].required]
        typed = {name: type_name for name, type_name, _ in self._typed}
        self._null_gives_default = [
            name for name in unasked if typed.get(name, "object") != "object" and name not in self._nullable
        ]
        # An empty cell of a csv is no number, for example.
        is_empty = [name for name, i in flow_inputs.items() if not i.takes_empty_text]
        self._empty_is_null = [name for name in is_empty if flow_inputs[name].allows_none]
        self._empty_gives_default = [name for name in unasked if name in is_empty and not flow_inputs[name].allows_none]

    def line(self, number: int, rows: Sequence[Row]) -> Line:
        """The line of these rows, one row per source."""
        for row in rows:
            if unreadable := row.error or _former_error(row.values):
                return Line(number, {}, error_dict(unreadable))
        values = {name: row.values for name, row in zip(self._sources, rows, strict=True)}
        inputs, unresolved = maps.map_inputs(values, self._mapping)
        for name in self._shared:
            inputs[name] = copy.deepcopy(inputs[name])
        for name in self._null_gives_default:
            if inputs.get(name, "") is None:
                del inputs[name]
        for name in self._empty_gives_default:
            if inputs.get(name) == "":
                del inputs[name]
        if self._takes_row:
            inputs = _columns(rows[0].values)
        if maps.LINE_NUMBER in self._flow_inputs:
            inputs[maps.LINE_NUMBER] = number
        fault = self._missing(unresolved) or self._complete(inputs)
        error = None
        if fault is not None:
            kind, text = fault
            message = f"Line {number} ({rows[0].place}): {text}"
            error = error_dict(kind(message, target="Executor", line_number=number))
        return Line(number, inputs, error, images=self._images(inputs, values))

    def _images(self, inputs: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> Origins | None:
        found: dict[str, tuple[str, ImageFolders]] = {}
        for name, declared in self._flow_inputs.items():
            value = inputs.get(name)
            if declared.type != "image":
                if type(value) not in (dict, list) or not self._image_form.holds_images(value):
                    continue
            elif value is None:
                continue
            expression = self._mapping.get(name)
            columns = expression.columns if isinstance(expression, maps.ColumnReference) else ()
            source = next((source for source, column in columns if column in values[source]), "")
            found[name] = (source, self._folders[source])
        return found or None

    def _missing(self, unresolved: Sequence[str]) -> _Fault | None:
        for name in unresolved:
            expression = self._mapping[name]
            text = expression.text if isinstance(expression, maps.ColumnReference) else ""
            if name not in self._flow_inputs:
                return (
                    InputMappingError,
                    f"'{name}' is mapped to {text}, which this row does not have. Add it; null is a valid value.",
                )
            if self._flow_inputs[name].required:
                return (
                    InputNotFound,
                    f"input '{name}' has no value, because this row has no {text}. Add the column; null is a valid value.",
                )
        return None

    def _complete(self, inputs: dict[str, Any]) -> _Fault | None:
        """Add defaults to these inputs and convert them."""
        left_null = set()
        for name, default in self._defaults.items():
            if name not in inputs:
                inputs[name] = default if _is_scalar(default) else copy.deepcopy(default)
                if default is None:
                    left_null.add(name)
        for name in self._empty_is_null:
            if inputs.get(name) == "":
                inputs[name] = None
        for name, type_name, convert in self._typed:
            if name not in inputs:  # the code has a default
                continue
            value = inputs[name]
            if value is None and (name in left_null or name in self._nullable):
                continue
            kind: type[UserErrorException]
            try:
                inputs[name] = convert(value)
                continue
            except json.JSONDecodeError as exc:
                kind, found = InputParseError, f"text that is not JSON: {shorten(value)} ({exc})"
            except CONVERSION_ERRORS as exc:
                kind, found = InputTypeError, f"{type(value).__name__} {shorten(value)} ({exc})"
            return kind, f"input '{name}' is of type {type_name}, found {found}. Change the input's type or the value."
        return None


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row as inputs, without those that say what became of a failed line."""
    left_out = FAILED_COLUMNS if row.keys() >= FAILED_COLUMNS else {maps.LINE_NUMBER}
    return {column: value for column, value in row.items() if column not in left_out}


def _required(flow_inputs: Mapping[str, FlowInput]) -> list[str]:
    return [name for name, flow_input in flow_inputs.items() if flow_input.required]


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))
