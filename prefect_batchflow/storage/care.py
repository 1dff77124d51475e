"""Care for a stored run: prove that it is whole, copy it, delete it, and merge its many segments into few.

None of these runs a line. A run that a process is working on is refused by name. The file is long because all four share what
counts as a file of a run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import InvalidOptionError, RecordCorruptError, RunInUseError, StorageError
from prefect_batchflow.execution.executor import LineOutcome
from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.records import Status
from prefect_batchflow.results.strict_json import StrictRows
from prefect_batchflow.storage.earlier import earlier_starts
from prefect_batchflow.storage.files import RunFiles, storage_errors
from prefect_batchflow.storage.keys import DAMAGED, IMAGES, RunKeys
from prefect_batchflow.storage.lease import Lease, is_held
from prefect_batchflow.storage.manifest import read_manifest, read_model
from prefect_batchflow.storage.outputs import failed_row, output_row
from prefect_batchflow.storage.private_files import WRITING
from prefect_batchflow.storage.records import RunRecords, records_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Sized

    from prefect_batchflow.storage.keys import SegmentName
    from prefect_batchflow.storage.manifest import Manifest
    from prefect_batchflow.storage.segments import Segment

MOST_NAMED = 10
"""Lines or files that one finding names."""
SEGMENT_BYTES = 8 << 20
"""About how large merged segments become."""
_FOLDERS = frozenset({"records", DAMAGED, "leases", IMAGES, "manifests"})
_FILES = frozenset({"manifest.json", "outputs.jsonl", "failed.jsonl", "batch_result.json"})
_NOT_COPIED = frozenset({"lock", "leases", "control.json", ".reserve"})
"""What tells who writes a run, and is of no use elsewhere."""


async def refuse_running(files: RunFiles, keys: RunKeys, what: str) -> None:
    """Refuse a run that a process is working on."""
    if await is_held(files, keys):
        raise RunInUseError(
            f"The run {keys.run_id!r} in {files.location()} is running, so it cannot be {what} now. Wait until it has "
            "ended, or stop it.",
            run_id=keys.run_id,
        )


# --- verify ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Findings:
    """What a check of a run has found."""

    run_id: str
    total_lines: int
    completed: int = 0
    """Lines whose newest sound record is that of a completed line,"""
    failed: int = 0
    """and of a failed one."""
    not_started: int = 0
    """Lines without a record."""
    segments: int = 0
    compared: int = 0
    """Lines whose record has the inputs that the data has now."""
    is_finished: bool = False
    """Whether its last start has a result."""
    wrong: list[str] = field(default_factory=list)
    """Each fault: what is wrong, where, and what to do."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DataNow:
    """The lines of a run as its data has them now."""

    hashes: Mapping[int, str] = field(default_factory=dict)
    """Line number to input hash."""
    changed: Sequence[str] = ()
    """The sources with another content than the run has read."""
    problem: str = ""
    """Why the lines are not known; empty if they are."""


async def verify_run(files: RunFiles, manifest: Manifest, data: DataNow | None = None) -> Findings:
    """Prove that each line counts once, and that each completed line has one sound record.

    With `data`, the records are compared with it, too. Nothing is written, and Prefect is not asked.

    Raises:
        RunInUseError: The run is running, so its files change.
        StorageError: The storage cannot be read.
    """
    keys = RunKeys(manifest.run_id)
    await refuse_running(files, keys, "verified")
    found = Findings(manifest.run_id, manifest.total_lines)
    if problem := (await earlier_starts(files, keys)).problem:
        found.wrong.append(f"{problem} Resume the run: it writes the manifest again.")
    result = None
    try:
        result = await read_model(files, keys.batch_result, BatchResult, "result")
    except StorageError as exc:
        found.wrong.append(f"{exc} Resume the run: it writes a new one.")
    if result is not None and result.start_time < manifest.last_started_at:
        found.notes.append(
            "The result belongs to an earlier start, because the last one has not ended. Resume the run."
        )
        result = None
    found.is_finished = result is not None
    rows = await _newest_rows(files, keys, manifest, found)
    if result is not None:
        await _verify_files(files, keys, result, rows, found)
    if data is not None:
        _verify_inputs(data, rows, found)
    leftovers = [name for name in await files.list_names(keys.run_id) if name.startswith(WRITING)]
    if leftovers:
        found.notes.append(
            f"{len(leftovers)} unfinished files of killed processes ({leftovers[0]}). You can delete them."
        )
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    status: str
    input_hash: str
    digest: bytes | None
    """Of its row in the outputs or the failed lines; `None` if the row names image files."""


async def _newest_rows(files: RunFiles, keys: RunKeys, manifest: Manifest, found: Findings) -> dict[int, _Row]:
    """The newest sound record of each line, without the record."""
    records = records_of(files, keys, manifest)
    rows: dict[int, _Row] = {}
    order: dict[int, tuple[int, int]] = {}
    texts = {
        Status.Completed: StrictRows("outputs.jsonl"),
        Status.Failed: StrictRows("failed.jsonl", keeps_halves=True),
    }
    segments, strangers = await records.listed()
    if strangers:
        found.wrong.append(f"{strangers} Then resume the run.")
    for name in segments:
        found.segments += 1
        if name.session > len(manifest.sessions):
            found.wrong.append(
                f"{files.location(keys.segment(name.name))} was written by start {name.session} of the run, but the manifest "
                f"knows {_count(len(manifest.sessions), 'start')}. Is it an old manifest? Put the newest one back."
            )
        try:
            segment = await records.read(name)
        except StorageError as exc:
            found.wrong.append(f"{exc} Resume the run: its lines run again, unless another record has them.")
            continue
        for stored, text in zip(segment.stored, segment.records, strict=True):
            receipt, record = stored.receipt, json.loads(text)
            number = receipt.line_number
            facts = (record.get("line_number"), record.get("input_hash"), record.get("status"), record.get("attempt"))
            if facts != (number, stored.input_hash, receipt.status, receipt.attempt):
                found.wrong.append(
                    f"Line {number}: its record in {files.location(keys.segment(name.name))} is not the one that the header "
                    "of the file names. Move the file away, and resume the run."
                )
                continue
            if stored.order >= order.get(number, (-1, -1)):
                order[number] = stored.order
                is_completed = receipt.status is Status.Completed
                has_images = (record.get("images") or {}).get("output" if is_completed else "inputs")
                digest = None
                if receipt.status in texts and not has_images:
                    row = output_row(record) if is_completed else failed_row(record)
                    digest = hashlib.sha256(texts[receipt.status].line(row)).digest()
                rows[number] = _Row(receipt.status, stored.input_hash, digest)
    found.completed = sum(row.status == "Completed" for row in rows.values())
    found.failed = sum(row.status == "Failed" for row in rows.values())
    found.not_started = max(0, manifest.total_lines - found.completed - found.failed)
    return rows


async def _verify_files(
    files: RunFiles, keys: RunKeys, result: BatchResult, rows: dict[int, _Row], found: Findings
) -> None:
    """Compare the outputs and failed lines with the records and the result."""
    again = f"`batchflow resume {keys.run_id}` writes the file again"
    listed: dict[str, list[int]] = {}
    for key, status, counted in (
        (keys.outputs, "Completed", result.completed_lines),
        (keys.failed, "Failed", result.failed_lines),
    ):
        place, numbers = files.location(key), list[int]()
        listed[status] = numbers
        with tempfile.TemporaryDirectory(prefix="batchflow-verify-") as folder:
            copy = Path(folder, "rows")
            try:
                with storage_errors(files, "read", key):
                    await files.get_file(key, copy)
            except StorageError as exc:
                found.wrong.append(f"{exc} {again}.")
                continue
            others = await asyncio.to_thread(_read_rows, copy, status, rows, numbers)
        if isinstance(others, str):
            found.wrong.append(f"{place}: {others}. {again}.")
            continue
        if lost := [number for number in others if number not in rows]:
            found.wrong.append(
                f"{place}: {_lines(lost)} {_has(lost)} no sound record. `batchflow resume {keys.run_id}` runs lines without a "
                "record again, if the data has them."
            )
        if differ := [number for number in others if number in rows]:
            found.wrong.append(f"{place}: {_lines(differ)} {_is(differ)} not as in the records. {again}.")
        if sorted(set(numbers)) != numbers:
            found.wrong.append(f"{place} is not sorted, or has a line twice. {again}.")
        if len(numbers) != counted:
            found.wrong.append(f"{place} has {_count(len(numbers), 'line')}, but the result counts {counted}. {again}.")
    both = set(listed["Completed"]) & set(listed["Failed"])
    if both:
        found.wrong.append(f"{_lines(sorted(both))} {_is(both)} among the outputs and the failed lines. {again}.")
    accounted = result.completed_lines + result.failed_lines
    if accounted > result.total_lines or result.total_lines != found.total_lines:
        found.wrong.append(
            f"{files.location(keys.batch_result)} counts {accounted} of {result.total_lines} lines, but the manifest has "
            f"{found.total_lines}. {again}."
        )
    elif result.status is Status.Completed and accounted != result.total_lines:
        found.wrong.append(
            f"{files.location(keys.batch_result)} says Completed, but {result.total_lines - accounted} of "
            f"{result.total_lines} lines have neither completed nor failed. Resume the run."
        )
    ended = {number: row for number, row in rows.items() if row.status in ("Completed", "Failed")}
    of_result = {*listed["Completed"], *listed["Failed"]}
    # As many records as the result counts, or fewer: then it is the files that lack lines.
    more = [number for number in ended if number not in of_result] if len(ended) > accounted else []
    if more:
        found.notes.append(
            f"{_lines(sorted(more))} {_has(more)} records that the last start did not count: they are no longer in the data, "
            "or it was stopped first."
        )
    found.completed -= sum(rows[number].status == "Completed" for number in more)
    found.failed -= sum(rows[number].status == "Failed" for number in more)
    found.not_started = max(0, found.total_lines - found.completed - found.failed)


def _verify_inputs(data: DataNow, rows: dict[int, _Row], found: Findings) -> None:
    """Compare the inputs of the records with those of the data, if it is the data that the run has read."""
    if data.problem:
        found.notes.append(f"The records were not compared with the data: {data.problem}")
        return
    if data.changed:
        found.notes.append(
            f"The records were not compared with the data, because it has changed since the run: source "
            f"{', '.join(data.changed)}. `batchflow resume {found.run_id}` says what has changed."
        )
        return
    ended = {number: row for number, row in rows.items() if row.status in ("Completed", "Failed")}
    others = [number for number, row in ended.items() if data.hashes.get(number, row.input_hash) != row.input_hash]
    if others:
        found.wrong.append(
            f"The records of {_lines(sorted(others))} are of other inputs than the data has. Has the flow changed since? "
            f"`batchflow resume {found.run_id}` says so, and runs these lines again."
        )
    found.compared = len(ended.keys() & data.hashes.keys()) - len(others)


def _read_rows(path: Path, status: str, rows: dict[int, _Row], numbers: list[int]) -> list[int] | str:
    """The lines whose rows are not those of their records; or what is wrong with the file as a whole."""
    others = []
    with path.open("rb") as file:
        for place, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return f"row {place} is cut off"
            try:
                number = json.loads(line)["line_number"]
            except (ValueError, LookupError, TypeError, RecursionError):
                return f"row {place} is damaged"
            if type(number) is not int:
                return f"row {place} has the line_number {number!r}, which is no whole number"
            numbers.append(number)
            row = rows.get(number)
            is_other = row is None or row.status != status
            if row is not None and row.digest is not None:
                is_other = is_other or row.digest != hashlib.sha256(line).digest()
            if is_other:
                others.append(number)
    return others


def _is(many: Sized) -> str:
    return "is" if len(many) == 1 else "are"


def _has(many: Sized) -> str:
    return "has" if len(many) == 1 else "have"


def _count(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def _lines(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:MOST_NAMED]))}{more}"


# --- copy and delete -------------------------------------------------------------------------------------------------


async def names_of(files: RunFiles, keys: RunKeys) -> list[str]:
    """All files of a run, relative to its folder, sorted; the manifest is the last one."""
    found: list[str] = []

    def is_folder(path: str) -> bool:
        """Whether it is a folder of somebody's own, which only a local disk can tell."""
        local = files.local_path(f"{keys.run_id}/{path}")
        return local is not None and local.is_dir() and not local.is_symlink()

    async def look(folder: str) -> None:
        for name in await files.list_names(f"{keys.run_id}/{folder}".rstrip("/")):
            path = f"{folder}/{name}".lstrip("/")
            await look(path) if name in _FOLDERS or is_folder(path) else found.append(path)

    with storage_errors(files, "list", keys.run_id):
        await look("")
    return sorted(found, key=lambda path: (path == "manifest.json", path))


async def copy_run(files: RunFiles, manifest: Manifest, target: RunFiles) -> int:
    """Copy a run to another storage, and return how many files it has. Each file is read back; the manifest comes last.

    Raises:
        RunInUseError: The run is running, or began meanwhile.
        InvalidOptionError: The other storage has a run of this name, or is the same storage.
        StorageError: A storage cannot be read or written.
    """
    keys = RunKeys(manifest.run_id)
    here, there = _place(files, keys), _place(target, keys)
    if here == there:
        raise InvalidOptionError(
            f"The run {keys.run_id!r} is in {files.location()} already. Give another storage to copy to."
        )
    if there.startswith(f"{here}/"):
        raise InvalidOptionError(
            f"{target.location()} is in the folder of the run itself. Give another storage to copy to."
        )
    await refuse_running(files, keys, "copied")
    wanted = [name for name in await names_of(files, keys) if _is_copied(name)]
    found = [name for name in await names_of(target, keys) if not _is_unfinished(name)]
    if "manifest.json" in found or not set(found) <= set(wanted):
        raise InvalidOptionError(
            f"{target.location(keys.run_id)} exists and is not an unfinished copy of this run. Give another storage, or delete "
            f"it first: batchflow delete {keys.run_id} --storage {target.location()}."
        )
    with tempfile.TemporaryDirectory(prefix="batchflow-copy-") as folder:
        for name in wanted:
            if name == "manifest.json":
                await refuse_running(files, keys, "copied")
                if await read_manifest(files, keys) != manifest:
                    raise RunInUseError(
                        f"The run {keys.run_id!r} was started while it was copied. Copy it again once it has ended.",
                        run_id=keys.run_id,
                    )
            await _copy_file(files, target, f"{keys.run_id}/{name}", Path(folder))
    return len(wanted)


def _place(files: RunFiles, keys: RunKeys) -> str:
    """Where a run is, whatever links lead there."""
    return os.path.realpath(files.location(keys.run_id)) if files.is_local else files.location(keys.run_id)


def _is_copied(name: str) -> bool:
    return name.partition("/")[0] not in _NOT_COPIED and not _is_unfinished(name)


def _is_unfinished(name: str) -> bool:
    return name.rpartition("/")[2].startswith(WRITING)


async def _copy_file(files: RunFiles, target: RunFiles, key: str, folder: Path) -> None:
    here, back = folder / "here", folder / "back"
    with storage_errors(files, "read", key):
        await files.get_file(key, here)
    with storage_errors(target, "write", key, "The copy is not complete. Copy the run again."):
        await target.put_file(key, here)
        await target.get_file(key, back)
    if await asyncio.to_thread(_sha256, here) != await asyncio.to_thread(_sha256, back):
        raise StorageError(
            f"The copy at {target.location(key)} does not read back as it was written. It is not complete. Copy the run again."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def is_rest_of_run(files: RunFiles, keys: RunKeys) -> bool:
    """Whether a folder without a manifest is a run: one that lost it, or what a delete or copy that was cut short has left."""
    with storage_errors(files, "list", keys.run_id):
        names = {name for name in await files.list_names(keys.run_id) if not name.startswith(WRITING)}
    return bool(names & _FOLDERS) and names <= _FOLDERS | _NOT_COPIED | _FILES


async def delete_run(files: RunFiles, run_id: str) -> int:
    """Delete a run, and return how many files it had. If this is cut short, the rest can be deleted again.

    Raises:
        RunInUseError: The run is running.
        StorageError: A file cannot be deleted.
    """
    keys = RunKeys(run_id)
    await refuse_running(files, keys, "deleted")
    async with Lease(files, keys) as lease:
        fenced, names = files.fenced(lease.check), await names_of(files, keys)
        for name in names:
            if name.partition("/")[0] not in ("lock", "leases"):
                with storage_errors(files, "write", f"{run_id}/{name}", f"Delete the run {run_id!r} again."):
                    await fenced.delete_path(f"{run_id}/{name}")
    # A new run of this name can have begun since the lease was given back.
    await refuse_running(files, keys, "deleted")
    with storage_errors(files, "write", run_id, f"Delete the run {run_id!r} again."):
        await files.delete_folder(run_id)
    return len(names)


# --- compact ---------------------------------------------------------------------------------------------------------


async def compact_run(files: RunFiles, manifest: Manifest) -> tuple[int, int]:
    """Merge the segments of a run, and return how many there were and are. All records stay, also of earlier attempts.

    A merged segment is written and read back before those that it replaces are deleted. If this is cut short, some records
    are there twice, which changes nothing.

    Raises:
        RunInUseError: The run is running.
        StorageError: A segment is damaged, or the storage cannot be read or written.
    """
    keys = RunKeys(manifest.run_id)
    await refuse_running(files, keys, "compacted")
    async with Lease(files, keys) as lease:
        fenced = files.fenced(lease.check)
        names = await RunRecords(fenced, keys, session=0).segments()
        by_session: dict[int, list[SegmentName]] = {}
        for name in names:
            by_session.setdefault(name.session, []).append(name)
        for session, there in by_session.items():
            records = RunRecords(fenced, keys, session, 0, manifest.identity, manifest.unnamed_until)
            size = 0
            group: list[Segment] = []
            for name in there:
                try:
                    segment = await records.read(name)
                except RecordCorruptError as exc:
                    raise RecordCorruptError(
                        f"{exc} Resume the run, which sets the file aside and runs its lines again. Then compact it."
                    ) from exc
                group.append(segment)
                size += sum(map(len, segment.records))
                if size >= SEGMENT_BYTES:
                    await _merge(fenced, keys, records, group)
                    group, size = [], 0
            await _merge(fenced, keys, records, group)
        return len(names), len(await RunRecords(fenced, keys, session=0).segments())


async def _merge(files: RunFiles, keys: RunKeys, records: RunRecords, group: Sequence[Segment]) -> None:
    if len(group) < 2:
        return
    outcomes = [
        LineOutcome(stored.receipt, record, stored.input_hash)
        for segment in group
        for stored, record in zip(segment.stored, segment.records, strict=True)
    ]
    await records.append(outcomes)
    for segment in group:
        key = keys.segment(segment.name.name)
        with storage_errors(files, "write", key, "Compact the run again."):
            await files.delete_path(key)
