"""A run that a new run is built on (`run=`): its outputs and its data are sources of rows.

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
from prefect_batchflow.inputs.survey import Survey
from prefect_batchflow.results.records import Status
from prefect_batchflow.storage.earlier import require_manifest
from prefect_batchflow.storage.keys import IMAGES, RunKeys
from prefect_batchflow.storage.outputs import read_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prefect_batchflow.inputs.readers import Source
    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.manifest import Manifest

OUTPUTS, INPUTS = "run.outputs", "run.inputs"


@dataclass(frozen=True, slots=True)
class PreviousRun:
    """A finished run that another run can be built on."""

    manifest: Manifest
    outputs: Source
    """Its completed lines, each with its line_number. A copy, which a rerun does not change."""
    notes: tuple[str, ...]
    """Remarks about lines that are missing."""


async def open_previous_run(files: RunFiles, run_id: str) -> PreviousRun:
    """Open the outputs of a finished run.

    Raises:
        RunNotFoundError: There is no such run.
        RunNotReadyError: The run has not finished, or none of its lines completed.
        StorageError: The storage cannot be read.
    """
    keys = RunKeys(run_id)
    manifest = await require_manifest(files, keys)
    result = await read_result(files, keys, manifest)
    if result is None or result.status is not Status.Completed:
        found = "has no result yet" if result is None else f"ended as {result.status.value}"
        raise RunNotReadyError(
            f"The run {run_id!r} {found}; expected a finished run. Wait for it, or run `batchflow resume {run_id}`, "
            "then build on it.",
            run_id=run_id,
        )
    if not result.completed_lines:
        raise RunNotReadyError(
            f"The run {run_id!r} has no outputs: none of its {result.total_lines} lines completed. `batchflow show {run_id}` "
            "shows why; `batchflow resume` runs them again.",
            run_id=run_id,
        )
    notes = []
    if missing := result.total_lines - result.completed_lines:
        notes.append(
            f"source '{OUTPUTS}': {missing} of {result.total_lines} lines of run {run_id} are left out because they "
            "failed and have no output."
        )
    return PreviousRun(manifest, await _outputs(files, keys), tuple(notes))


def refers_to_inputs(inputs_mapping: Mapping[str, Any]) -> bool:
    """Whether an input is mapped to the previous run's data. Only then is that data read."""
    expressions = [parse_expression(value, [INPUTS]) for value in inputs_mapping.values()]
    return any(isinstance(e, ColumnReference) and e.columns for e in expressions)


def previous_inputs_url(manifest: Manifest) -> str:
    """The URL of a run's data.

    Raises:
        InvalidOptionError: The run has no data that can be read again.
    """
    url = manifest.data.get("data", "-")
    if url == "-":
        why = "came from standard input and was not kept" if "data" in manifest.data else "is not one of its sources"
        raise InvalidOptionError(
            f"The mapping refers to ${{{INPUTS}.…}}, but the data of run {manifest.run_id!r} {why}. Give the rows with --data, "
            "and map ${data.…}."
        )
    return url


def open_previous_inputs(manifest: Manifest, may_read: Callable[[str], bool] | None = None) -> Source:
    """Open the data of a run, unchanged since it ran. `may_read` is as in `open_source`.

    Raises:
        InvalidOptionError: The run has no data that can be read again.
        InvalidUserData: The data cannot be read, or has changed, so its rows would not match the outputs.
    """
    options = manifest.options
    source = open_source(
        previous_inputs_url(manifest), name=INPUTS, line_number_column=options.line_number_column, may_read=may_read
    )
    now = Survey(source, ()).read(options.max_lines_count or None).summary.sha256[:32]
    if now != manifest.fingerprints.get("data:data"):
        raise InvalidUserData(
            f"Source '{INPUTS}': {source.url} has changed since run {manifest.run_id!r} read it, so its rows no longer match "
            "the outputs. Run that run again, or give the original rows with --data."
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
            # Workers read images as files; they cannot reach the storage.
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
    """The rows of an outputs file; each loop reads it again."""

    def __init__(self, path: Path, place: str) -> None:
        self._path = path
        self._place = place

    def __iter__(self) -> Iterator[Any]:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as exc:
                    raise StorageError(f"The outputs at {self._place} are damaged in row {number}: {exc}.") from exc
