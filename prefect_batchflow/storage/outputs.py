"""The files that people take away from a run: `outputs.jsonl`, `failed.jsonl` and `batch_result.json`.

They are merged from the records. Each is written under a temporary name and moved, so it is either absent or complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_batchflow.errors.classes import class_of_error
from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.images.forms import BASIC
from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.strict_json import StrictRows, broken_numbers
from prefect_batchflow.storage.files import storage_errors, write_beside
from prefect_batchflow.storage.images import RECORDS_ARE_KEPT, ImageFiles, ImageInputs
from prefect_batchflow.storage.keys import IMAGES
from prefect_batchflow.storage.manifest import read_model
from prefect_batchflow.storage.private_files import remove_unfinished
from prefect_batchflow.storage.retries import looks

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable

    from prefect_batchflow.images.forms import ImageForm
    from prefect_batchflow.results.records import LineRecord
    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys
    from prefect_batchflow.storage.manifest import Manifest

OUTPUT_FILE = "output.jsonl"
"""promptflow's name for the outputs in an output folder."""
OUTPUT_FILES = (OUTPUT_FILE, "failed.jsonl", "batch_result.json")
"""What an output folder gets, besides images."""
ABANDONED_SEC = 3600.0
"""An unfinished file in an output folder this old is of a process that was killed: no file takes that long to write."""
WRITES = 2
"""How often a file is written, until it reads back as it was written."""


def output_row(record: LineRecord) -> dict[str, Any]:
    """A completed line as a row of the outputs file. The number comes first; an output that is not a dictionary is wrapped.

    Source: promptflow `batch/_batch_engine.py`, `_persist_outputs`.
    """
    output = record["output"]
    values = output if isinstance(output, dict) else {"output": output}
    # The line's number wins over an output of that name: the next run joins by it.
    row = {"line_number": 0, **values}
    row["line_number"] = record["line_number"]
    return row


def failed_row(record: LineRecord) -> dict[str, Any]:
    """A failed line as data for a new run: its number and inputs, its error and class, and the number of attempts."""
    return {
        **record["inputs"],
        "line_number": record["line_number"],
        "_error": record["error"],
        "_error_class": str(class_of_error(record["error"] or {})),
        "_attempts": record["attempt"],
    }


class Written(NamedTuple):
    """What a person should know about output files that were written."""

    images_left: int
    """How many input images were not copied because time had run out."""
    notes: tuple[str, ...]
    """Where numbers were replaced that JSON does not have."""


async def read_result(files: RunFiles, keys: RunKeys, manifest: Manifest) -> BatchResult | None:
    """The result of a run's last start; `None` if there is none yet.

    Raises:
        StorageError: The result cannot be read, or is damaged.
    """
    result = await read_model(files, keys.batch_result, BatchResult, "result")
    # Not by order: the clock can have been set back since the start before.
    return result if result is not None and result.start_time == manifest.last_started_at else None


async def write_outputs(
    files: RunFiles,
    keys: RunKeys,
    records: AsyncIterable[LineRecord],
    result: BatchResult,
    output_dir: Path | None,
    image_form: ImageForm = BASIC,
    image_inputs: ImageInputs | None = None,
    may_write: Callable[[], Awaitable[None]] | None = None,
) -> Written:
    """Write all three files to the run's folder, and to `output_dir` if there is one.

    `records` has the newest record of each line of the data, by line_number. `output_dir` is on this machine, and is created.
    Images in outputs, and image files named by inputs of failed lines, become files in `images/` before the rows that name
    them are written. Without `image_inputs`, the paths in inputs stay unchanged. `may_write` is called before each file in
    `output_dir`, and can refuse it. `files` has its own such check.

    Raises:
        StorageError: A file cannot be written.
    """
    images = ImageFiles(files, keys, output_dir, image_form, image_inputs or ImageInputs())
    rows, failed_rows = StrictRows("outputs.jsonl"), StrictRows("failed.jsonl", keeps_halves=True)
    with tempfile.TemporaryDirectory(prefix="batchflow-outputs-") as folder:
        outputs, failed, summary = (Path(folder, name) for name in ("outputs", "failed", "batch_result"))
        try:
            with outputs.open("wb") as out, failed.open("wb") as bad:
                async for record in records:
                    if record["status"] == "Completed":
                        out.write(rows.line(output_row(await images.with_outputs(record))))
                    elif record["status"] == "Failed":
                        bad.write(failed_rows.line(failed_row(await images.with_inputs(record))))
            summary.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8", newline="\n")
        except OSError as exc:
            raise StorageError(
                f"Cannot merge the outputs in {folder}: {exc}. The line records are kept. Free some space there, or set "
                "TMPDIR, then resume the run."
            ) from exc
        for key, source in ((keys.outputs, outputs), (keys.failed, failed), (keys.batch_result, summary)):
            await _put_and_read_back(files, key, source)
        if output_dir is not None:
            for name, source in zip(OUTPUT_FILES, (outputs, failed, summary), strict=True):
                if may_write is not None:
                    await may_write()
                await asyncio.to_thread(write_beside, output_dir, name, partial(shutil.copyfile, source))
                if await asyncio.to_thread(_digest, output_dir / name) != await asyncio.to_thread(_digest, source):
                    raise _reads_otherwise(str(output_dir / name))
            for place in (output_dir, output_dir / IMAGES):
                await asyncio.to_thread(
                    remove_unfinished, place, output_dir / OUTPUT_FILE, older_by_sec=ABANDONED_SEC, in_folders=False
                )
    notes = [rows.note(), failed_rows.note()]
    if metrics := broken_numbers(result.metrics or {}):
        notes.append(
            f"batch_result.json: NaN and infinity are written as null, because JSON has no such numbers. "
            f"Metrics: {', '.join(map(repr, metrics))}."
        )
    return Written(images.left, tuple(note for note in notes if note))


async def _put_and_read_back(files: RunFiles, key: str, source: Path) -> None:
    """Write a file of the run and read it, a second time if it is not there or not the same."""
    digest, back = await asyncio.to_thread(_digest, source), source.with_suffix(".back")
    for _ in range(WRITES):
        with storage_errors(files, "write", key, RECORDS_ARE_KEPT):
            await files.put_file(key, source)
        for look in looks():
            await look
            with storage_errors(files, "read", key, RECORDS_ARE_KEPT), contextlib.suppress(FileNotFoundError):
                await files.get_file(key, back)
                if await asyncio.to_thread(_digest, back) == digest:
                    return
    raise _reads_otherwise(files.location(key))


def _digest(path: Path) -> bytes | None:
    """The checksum of a file; `None` if there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        return None


def _reads_otherwise(place: str) -> StorageError:
    return StorageError(
        f"The file {place} does not read back as it was written: something else changes the folder, or the storage loses "
        f"data. Do not use the file. {RECORDS_ARE_KEPT}"
    )
