"""promptflow's run file (`pf run create --file run.yaml`), read as if typed on the command line.

Source: promptflow-devkit `_sdk/schemas/_run.py`, `RunSchema`.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.document import environment_texts, read_document, says_nothing
from prefect_batchflow.definition.load import NAMED_CALLABLE
from prefect_batchflow.definition.node_connections import check_node_connections
from prefect_batchflow.exceptions import InvalidOptionError, UnsupportedFeatureError
from prefect_batchflow.inputs.places import absolute
from prefect_batchflow.settings import PARAMETERS, RUN_FILE_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WITHOUT_MEANING = ("display_name", "description", "tags", "properties", "resources", "identity", "runtime")
"""Keys for people, and for Azure."""
_SILENT = ("$schema",)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """The content of a run file; keys that are not there are empty."""

    flow: str = ""
    """As for `load_flow`, with paths absolute."""
    working_dir: str = ""
    """The file's folder, for a flow that is a module."""
    data: dict[str, str] = field(default_factory=dict)
    """The source `data`, if given."""
    inputs_mapping: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""
    run: str = ""
    """The run to build on."""
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    node_connections: dict[str, dict[str, str]] = field(default_factory=dict)
    """The key `connections`."""
    environment_variables: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Keys of the file that have no effect."""


def read_run_file(text: str) -> RunFile:
    """Read a run file; its relative paths are relative to its folder.

    Args:
        text: Path of the file, as typed.

    Raises:
        InvalidOptionError: There is no such file, or a key has a wrong value.
        UnsupportedFeatureError: It names data or a flow in Azure.
        FlowDefinitionError: It is not a YAML mapping.
    """
    file = Path(absolute(text))
    if not file.is_file():
        found = "a folder" if file.is_dir() else "nothing"
        raise InvalidOptionError(
            f"--file {text}: expected a run file of promptflow (yaml), found {found}. Check the path."
        )
    document = read_document(file, "run", "`flow`, `data`, `column_mapping`")
    read = {name: _READERS[key](file, key, document.get(key)) for key, name in RUN_FILE_KEYS.items()}
    flow, working_dir = read.pop("flow")
    return RunFile(flow=flow, working_dir=working_dir, notes=tuple(_notes(file, document)), **read)


def _notes(file: Path, document: dict[str, Any]) -> list[str]:
    notes = []
    known = (*RUN_FILE_KEYS, *WITHOUT_MEANING)
    if idle := [name for name in WITHOUT_MEANING if not says_nothing(document.get(name))]:
        notes.append(f"{file.name}: these keys have no effect here: {', '.join(idle)}.")
    for name in document:
        if name not in (*known, *_SILENT):
            near = difflib.get_close_matches(str(name), known, n=1)
            meant = f" Did you mean '{near[0]}'?" if near else ""
            meant = f" Use {PARAMETERS[name].flags[0]}." if name in PARAMETERS else meant
            notes.append(f"{file.name}: '{name}' is not a key of a run file and has no effect.{meant}")
    return notes


def _text(file: Path, name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and name in ("name", "run"):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise InvalidOptionError(f"{file}: '{name}' is {value!r}, expected a text. Write it as {name}: <text>.")
    return value


def _place(file: Path, name: str, text: str) -> str:
    """Make a path absolute; a URL stays as it is."""
    if text.startswith("azureml:"):
        raise UnsupportedFeatureError(
            f"{file}: '{name}' is {text!r}, but nothing is fetched from Azure. Download it and give the path."
        )
    return absolute(text, file.parent)


def _data(file: Path, name: str, value: Any) -> dict[str, str]:
    text = _text(file, name, value)
    return {"data": _place(file, name, text)} if text else {}


def _flow(file: Path, name: str, value: Any) -> tuple[str, str]:
    """The flow and, for a module, the folder to import it from."""
    text = _text(file, name, value)
    if not text:
        return "", ""
    place = _place(file, name, text)
    named = NAMED_CALLABLE.fullmatch(text)
    if named and named["module"] and not Path(place).exists():
        return text, str(file.parent)
    return place, ""


def _named_values(file: Path, name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidOptionError(f"{file}: '{name}' is {value!r}, expected a yaml mapping of names to values.")
    return value


def _connections(file: Path, name: str, value: Any) -> dict[str, dict[str, str]]:
    return check_node_connections(value or {}, f"{file}: '{name}'")


def _environment(file: Path, name: str, value: Any) -> dict[str, str]:
    """Variables from a mapping or a .env file. The workers resolve `${connection.key}`."""
    if not isinstance(value, str):
        values = _named_values(file, name, value)
        if wrong := [key for key, part in values.items() if isinstance(part, dict | list)]:
            raise InvalidOptionError(f"{file}: '{name}': expected a text or number for {', '.join(wrong)}.")
        return environment_texts(values)
    path = Path(_place(file, name, value))
    if not path.is_file():
        raise InvalidOptionError(
            f"{file}: '{name}' names {path}, which is not a file. Expected a .env file, or "
            "a mapping of names to values."
        )
    from dotenv import dotenv_values

    try:
        found = dotenv_values(path, interpolate=False, encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidOptionError(f"{path}: not UTF-8 at byte {exc.start}. Save the file as UTF-8.") from exc
    return {name: text for name, text in found.items() if text is not None}


def _init(file: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        return _named_values(file, name, value)
    path = Path(_place(file, name, value))
    try:
        text = path.read_text(encoding="utf-8-sig")
        # promptflow takes the first row of a jsonl file.
        return _named_values(path, name, json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text))
    except (OSError, ValueError, IndexError) as exc:
        raise InvalidOptionError(
            f"{file}: '{name}' names {path}, expected a json file with the constructor's arguments: {exc}."
        ) from exc


_READERS: Mapping[str, Callable[[Path, str, Any], Any]] = {
    **dict.fromkeys(RUN_FILE_KEYS, _text),
    "flow": _flow,
    "data": _data,
    "column_mapping": _named_values,
    "init": _init,
    "connections": _connections,
    "environment_variables": _environment,
}
"""How each key of a run file is read."""
