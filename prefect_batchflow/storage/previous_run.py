"""A run of the same storage whose outputs, and whose data, another run is built on.

Source: promptflow-devkit `_sdk/_orchestrator/run_submitter.py`, `_resolve_input_dirs`: `run.outputs` are the lines that
completed, `run.inputs` are the rows of its source `data`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import InvalidOptionError, InvalidUserData, RunNotReadyError, StorageError, told
from prefect_batchflow.inputs.mapping import ColumnReference, parse_expression
from prefect_batchflow.inputs.readers import RowsSource, open_source
from prefect_batchflow.inputs.survey import Surveyor
from prefect_batchflow.results.records import Status
from prefect_batchflow.storage.keys import IMAGES, RunKeys
from prefect_batchflow.storage.manifest import require_manifest
from prefect_batchflow.storage.outputs import read_result

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prefect_batchflow.inputs.readers import Source
    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.manifest import Manifest

OUTPUTS, INPUTS = "run.outputs", "run.inputs"


@dataclass(frozen=True, slots=True)
class PreviousRun:
    """What another run can be built on."""

    manifest: Manifest
    outputs: Source
    """Its completed lines, each with its line_number; a copy, which a rerun of it does not change."""
    notes: tuple[str, ...]
    """What of it is not there."""


async def open_previous_run(files: RunFiles, run_id: str) -> PreviousRun:
    """The outputs of a run that came to its end.

    Raises:
        RunNotFoundError: There is no such run.
        RunNotReadyError: It has not come to its end, or no line of it completed.
        StorageError: It cannot be told.
    """
    keys = RunKeys(run_id)
    manifest = await require_manifest(files, keys)
    result = await read_result(files, keys, manifest)
    if result is None or result.status is not Status.Completed:
        found = "has no result yet" if result is None else f"ended as {result.status.value}"
        raise RunNotReadyError(
            f"The run {run_id!r} {found}, expected one that came to its end. Wait for it, or run `batchflow resume {run_id}`, "
            "then build on it.",
            run_id=run_id,
        )
    if not result.completed_lines:
        raise RunNotReadyError(
            f"The run {run_id!r} has no outputs: none of its {result.total_lines} lines completed. `batchflow show {run_id}` "
            "tells why; `batchflow resume` runs them again.",
            run_id=run_id,
        )
    notes = []
    if missing := result.total_lines - result.completed_lines:
        notes.append(
            f"source '{OUTPUTS}': {missing} of {result.total_lines} lines of run {run_id} have no output, as they failed; "
            "they are left out."
        )
    return PreviousRun(manifest, await _outputs(files, keys), tuple(notes))


def refers_to_inputs(inputs_mapping: Mapping[str, Any]) -> bool:
    """Whether some input is mapped to the data of the previous run, which is read for nothing else."""
    expressions = [parse_expression(value, [INPUTS]) for value in inputs_mapping.values()]
    return any(isinstance(e, ColumnReference) and e.columns for e in expressions)


def previous_inputs_url(manifest: Manifest) -> str:
    """Where the data of a run is.

    Raises:
        InvalidOptionError: It had none that can be read again.
    """
    url = manifest.data.get("data", "-")
    if url == "-":
        why = "came from standard input and was not kept" if "data" in manifest.data else "is not one of its sources"
        raise InvalidOptionError(
            f"The mapping refers to ${{{INPUTS}.…}}, but the data of run {manifest.run_id!r} {why}. Give the rows as --data, "
            "and map ${data.…}."
        )
    return url


def open_previous_inputs(manifest: Manifest) -> Source:
    """The data of a run, as it was when it ran.

    Raises:
        InvalidOptionError: It had none that can be read again.
        InvalidUserData: It cannot be read, or is not what it was: its rows would not be those of the outputs.
    """
    source = open_source(previous_inputs_url(manifest), name=INPUTS)
    now = Surveyor(source, ()).survey(manifest.options.max_lines_count or None).summary.sha256[:32]
    if now != manifest.fingerprints.get("data:data"):
        raise InvalidUserData(
            f"Source '{INPUTS}': {source.url} has changed since run {manifest.run_id!r} read it, so its rows are not those of "
            "the outputs. Run that one again on it, or give the rows that belong to the outputs as --data."
        )
    return source


async def _outputs(files: RunFiles, keys: RunKeys) -> Source:
    folder = Path(tempfile.mkdtemp(prefix="batchflow-"))
    copy = folder / "outputs.jsonl"
    rows = _JsonLines(copy, files.location(keys.outputs))
    weakref.finalize(rows, shutil.rmtree, folder, ignore_errors=True)
    try:
        await files.get_file(keys.outputs, copy)
        here = files.local_path(keys.outputs)
        if here is None:
            # Workers read images as files, and have no access to the storage.
            for name in await files.list_names(keys.images):
                (folder / IMAGES).mkdir(exist_ok=True)
                await files.get_file(keys.image(name), folder / IMAGES / name)
    except Exception as exc:
        raise StorageError(
            f"Cannot read the outputs at {files.location(keys.outputs)}: {told(exc)}. `batchflow resume "
            f"{keys.run_id}` writes them again."
        ) from exc
    return RowsSource(OUTPUTS, rows, str(folder if here is None else here.parent))


class _JsonLines:
    """The rows of an outputs file, read anew by each loop over it."""

    def __init__(self, path: Path, place: str) -> None:
        self._path = path
        self._place = place

    def __iter__(self) -> Iterator[Any]:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as exc:
                    raise StorageError(f"The outputs at {self._place}, row {number}, are damaged: {exc}.") from exc
