"""Running one line without a run: no records, no Prefect, the same start, mapping and executor as a run.

Source: promptflow's `pf flow test`, `_sdk/_orchestrator/test_submitter.py`.
"""

from __future__ import annotations

import difflib
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.definition.flow import Prompt
from prefect_batchflow.exceptions import InvalidOptionError, InvalidUserData, listed
from prefect_batchflow.inputs.places import locate, located_image_roots
from prefect_batchflow.inputs.readers import RowsSource, open_source
from prefect_batchflow.lines import check, read_lines_of
from prefect_batchflow.run.starting import starting
from prefect_batchflow.tools.context import KEEP_CALLS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.results.records import LineRecord
    from prefect_batchflow.run.starting import FlowRequest

_CHAT_HISTORY: Final = "chat_history"
_JSON_SUFFIXES: Final = frozenset({".json", ".jsonl", ".ndjson"})
_LONGEST_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class GivenRow:
    """What the line is made of."""

    data: str = ""
    """The path or URL of data, whose first row is taken; empty for none."""
    inputs_mapping: Mapping[str, Any] = field(default_factory=dict)
    """Input name to `${data.column}` or a constant, as for a run."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Inputs by name, which replace those from the data."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """The same inputs as they were typed, for those of type string."""
    image_roots: Sequence[str] = ()
    """More folders where images can be, as for a run."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One line that ran."""

    flow: Flow
    record: LineRecord
    notes: tuple[str, ...]
    has_aggregation: bool
    duration_sec: float
    """From the load of the flow to the end of the line."""


async def try_line(request: FlowRequest, given: GivenRow) -> Trial:
    """Start a flow and run one line of it; its errors are in the record.

    Raises:
        BatchflowException: The flow does not load, or the inputs do not fit it.
    """
    begun = time.monotonic()
    image_roots = located_image_roots(given.image_roots)
    row, folder = first_row(given.data) if given.data else ({}, str(Path.cwd()))
    environment = {**request.environment_variables, KEEP_CALLS: "1"}
    async with starting(replace(request, environment_variables=environment)) as start:
        description = await start.start()
        flow = start.flow.described(description)
        values, mapping = _values(flow, row, given)
        source = RowsSource("data", [values], folder)
        inventory = check([source], flow.inputs, mapping, takes_any=flow.takes_any)
        lines = read_lines_of(flow, [source], mapping, inventory, image_roots)
        outcome = await start.executor.run_line(next(lines), attempt=1, timeout_sec=request.options.line_timeout_sec)
    notes = (*start.notes, *(note for note in inventory.notes))
    return Trial(flow, outcome.parsed(), notes, description.has_aggregation, time.monotonic() - begun)


def first_row(url: str) -> tuple[dict[str, Any], str | None]:
    """The first row of data, and the folder of its images. A file with one JSON object, also over many lines, is one row.

    Raises:
        InvalidUserData: There is no row, or it cannot be read.
    """
    source = open_source(url, name="data")
    place = Path("/dev/stdin" if url == "-" else locate(url)) if "://" not in url else None
    if place is not None and (url == "-" or (place.suffix.lower() in _JSON_SUFFIXES and place.is_file())):
        with place.open("rb") as file:
            text = file.read(_LONGEST_BYTES).decode("utf-8-sig", "replace")
        try:
            value, _ = json.JSONDecoder().raw_decode(text.lstrip())
        except (ValueError, RecursionError):
            value = None  # told by the source, with its line
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, dict):
            return value, str(Path.cwd()) if url == "-" else str(place.parent)
        if url == "-":
            raise InvalidUserData(
                'Standard input: expected a JSON object, or rows of them. Give one such as {"question": …}.'
            )
    row = next(source.rows(), None)
    if row is None:
        raise InvalidUserData(f"{url}: there is no row in it. Give a file with a row, or --input NAME=VALUE.")
    if row.error is not None:
        raise row.error
    return row.values, source.folder


def _values(flow: Flow, row: Mapping[str, Any], given: GivenRow) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of the line, and its mapping."""
    typed = {
        name: given.texts[name] if name in given.texts and name in flow.inputs and _is_text(flow, name) else value
        for name, value in given.inputs.items()
    }
    values = {**row, **typed}
    # By name, so that a column also reaches an input with a default.
    by_name = {name: f"${{data.{name}}}" for name in values if name in flow.inputs or name in typed}
    mapping = {**by_name, **given.inputs_mapping, **{name: by_name[name] for name in typed}}
    if not values and not mapping and isinstance(flow.program, Prompt) and flow.program.sample:
        values = dict(flow.program.sample)
    history = flow.inputs.get(_CHAT_HISTORY)
    if history is not None and history.required and _CHAT_HISTORY not in {**values, **mapping}:
        values[_CHAT_HISTORY] = []
    missing = [name for name, i in flow.inputs.items() if i.required and name not in {**values, **mapping}]
    if missing and not given.data:
        unknown = [name for name in typed if name not in flow.inputs]
        near = difflib.get_close_matches(missing[0], unknown, n=1)
        meant = f" Did you mean it by {near[0]!r}?" if near else ""
        raise InvalidOptionError(
            f"The flow {flow.name!r} needs {listed(missing)}. Give --input {missing[0]}=…, or a row with --data.{meant} Its "
            f"inputs: {', '.join(flow.inputs)}."
        )
    return values, mapping


def _is_text(flow: Flow, name: str) -> bool:
    """Whether the code gets a text, or reads the text itself: 1.10 for a `Decimal`."""
    return flow.inputs[name].type == "string" or not (
        flow.inputs[name].takes_empty_text or flow.inputs[name].type != "any"
    )
