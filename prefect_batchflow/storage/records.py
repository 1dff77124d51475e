"""The records of a run: append-only segments through Prefect's `ResultStore`, each checked by reading it back.

A segment is one result of Prefect's: `{"metadata": …, "result": "<text>"}`. The text is JSON lines: a header (format,
session, length of what follows, a receipt a line, sha256 of all of it), then one line record a line, by line_number::

    jq -r .result records/*.json | jq -c 'select(.line_number)'

Nothing is overwritten. Of several records of one line the one of the newest session and attempt counts.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import heapq
import itertools
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prefect.results import ResultStore
from prefect.serializers import Serializer
from pydantic import Field

from prefect_batchflow.exceptions import RecordCorruptError, StorageError, told
from prefect_batchflow.lines import INPUT_HASH_DIGITS
from prefect_batchflow.results.records import Receipt, Status, Tokens, receipt_error
from prefect_batchflow.storage.keys import RunKeys, SegmentName

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
    from pathlib import Path

    from prefect.filesystems import WritableFileSystem

    from prefect_batchflow.execution.executor import LineOutcome

FORMAT = 1
READ_AHEAD = 8
"""Segments read at once, where all are read."""
SEGMENT_TYPE = "batchflow-segment"
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class RunFiles(Protocol):
    """What the storage needs of a file system; `blocks.RunStorageBlock` is one, over fsspec."""

    async def read_path(self, path: str) -> bytes:
        """A key's bytes; `FileNotFoundError` when there is none, any other error when that cannot be told."""
        ...

    async def write_path(self, path: str, content: bytes) -> None:
        """Write a key whole."""
        ...

    async def create_path(self, path: str, content: bytes) -> None:
        """Write a key whole; `FileExistsError` when there is one already."""
        ...

    async def put_file(self, path: str, source: Path) -> None:
        """Copy a local file to a key, whole."""
        ...

    async def get_file(self, path: str, target: Path) -> None:
        """Copy a key to a local file."""
        ...

    async def list_names(self, folder: str) -> list[str]:
        """The names below a folder, sorted."""
        ...

    def local_path(self, key: str) -> Path | None:
        """The file of a key on this machine, if it is one."""
        ...

    def location(self, key: str = "") -> str:
        """Where a key lies, for people."""
        ...


class SegmentSerializer(Serializer):  # subscripted, `Serializer[bytes]`, it would not register with Prefect
    """Passes a segment's text through as it is; data never decides how it is read."""

    type: str = Field(default=SEGMENT_TYPE, frozen=True)

    def dumps(self, obj: bytes) -> bytes:
        """The segment's text."""
        return obj

    def loads(self, blob: bytes) -> bytes:
        """The segment's text."""
        return blob


@dataclass(frozen=True, slots=True)
class Stored:
    """What the storage knows of one line without reading its record."""

    receipt: Receipt
    session: int
    input_hash: str

    @property
    def order(self) -> tuple[int, int]:
        """Which of two records of a line is newer."""
        return (self.session, self.receipt.attempt)


class RecordIndex:
    """The newest record of each line that has one; some 200 bytes a completed line, since a run may have a million."""

    def __init__(self) -> None:
        self.lines = _Lines()

    def add(self, stored: Stored) -> None:
        """Count a record in, if it is newer than what is known."""
        known = self.lines.order(stored.receipt.line_number)
        if known is None or stored.order >= known:
            self.lines.keep(stored)

    def completed(self, line_number: int, input_hash: str) -> Receipt | None:
        """The receipt of a line that is done, with just these inputs; else `None`."""
        ended = self.ended(line_number, input_hash)
        return ended if ended is not None and ended.status == "Completed" else None

    def ended(self, line_number: int, input_hash: str) -> Receipt | None:
        """The receipt of a line that completed or failed, with just these inputs; else `None`."""
        stored = self.lines.get(line_number)
        if stored is None or stored.receipt.status not in ("Completed", "Failed") or stored.input_hash != input_hash:
            return None
        return stored.receipt


class _Lines(Mapping[int, Stored]):
    """What is known of lines, by line_number: completed ones packed, for they are many and alike."""

    _PACKED = struct.Struct("<IIdQQQI8s")
    """Session, attempt, seconds, tokens, which nodes, input hash."""

    def __init__(self) -> None:
        self._packed: dict[int, bytes] = {}
        self._whole: dict[int, Stored] = {}
        self._nodes: list[tuple[tuple[str, Status], ...]] = []
        self._place: dict[tuple[tuple[str, Status], ...], int] = {}
        """Of each, in `_nodes`."""

    def keep(self, stored: Stored) -> None:
        """Know this of its line, and nothing that was known before."""
        number = stored.receipt.line_number
        packed = self._pack(stored)
        if packed is None:
            self._whole[number] = stored
            self._packed.pop(number, None)
        else:
            self._packed[number] = packed
            self._whole.pop(number, None)

    def order(self, number: int) -> tuple[int, int] | None:
        """The `Stored.order` of what is known of a line."""
        if (packed := self._packed.get(number)) is not None:
            session, attempt, *_ = self._PACKED.unpack(packed)
            return session, attempt
        return None if (stored := self._whole.get(number)) is None else stored.order

    def __getitem__(self, number: int) -> Stored:
        if (packed := self._packed.get(number)) is None:
            return self._whole[number]
        session, attempt, duration_sec, total, prompt, completion, nodes, input_hash = self._PACKED.unpack(packed)
        receipt = Receipt(
            line_number=number,
            status=Status.Completed,
            attempt=attempt,
            duration_sec=duration_sec,
            tokens=Tokens(total, prompt, completion),
            nodes=self._nodes[nodes],
        )
        return Stored(receipt, session, input_hash.hex())

    def __iter__(self) -> Iterator[int]:
        yield from self._packed
        yield from self._whole

    def __len__(self) -> int:
        return len(self._packed) + len(self._whole)

    def __contains__(self, number: object) -> bool:
        return number in self._packed or number in self._whole

    def _pack(self, stored: Stored) -> bytes | None:
        receipt = stored.receipt
        if receipt.status is not Status.Completed or len(stored.input_hash) != INPUT_HASH_DIGITS:
            return None
        place = self._place.setdefault(receipt.nodes, len(self._nodes))
        if place == len(self._nodes):
            self._nodes.append(receipt.nodes)
        try:
            return self._PACKED.pack(
                stored.session,
                receipt.attempt,
                receipt.duration_sec,
                *receipt.tokens,
                place,
                bytes.fromhex(stored.input_hash),
            )
        except (struct.error, ValueError):  # what was taken over from elsewhere may count or hash otherwise
            return None


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as read: its receipts, and its records as bytes in the same order."""

    name: SegmentName
    stored: list[Stored]
    records: list[bytes]


class RunRecords:
    """Reads and appends the line records of one run.

    Args:
        files: The storage's file system.
        keys: The run's keys.
        session: How many times the run was started, this time included; 0 for records taken over from another run.
        since: The first session whose records count; those before it are of a run that was told to run all again.
    """

    def __init__(self, files: RunFiles, keys: RunKeys, session: int, since: int = 0) -> None:
        self._files = files
        self._keys = keys
        self._session = session
        self._since = since
        storage: WritableFileSystem = files  # type: ignore[assignment] # a block, which Prefect's store asks for
        self._store = ResultStore(
            result_storage=storage, serializer=SegmentSerializer(), cache_result_in_memory=False, metadata_storage=None
        )

    async def append(self, outcomes: Sequence[LineOutcome]) -> SegmentName:
        """Write one segment and read it back; when this returns, the lines are done.

        Raises:
            StorageError: It was not written, or reads back otherwise; the lines are not done.
        """
        ordered = sorted(outcomes, key=lambda outcome: (outcome.receipt.line_number, outcome.receipt.attempt))
        first, last = ordered[0].receipt.line_number, ordered[-1].receipt.line_number
        name = SegmentName.new(first, last, self._session)
        key = self._keys.segment(name.name)
        text = _encode(ordered, self._session)
        try:
            await self._store.awrite(text, key=key)
            written = await self._files.read_path(key)
        except Exception as exc:
            raise self._failed("write", key, exc) from exc
        if _text(written, self._files.location(key)) != text:
            raise StorageError(
                f"The records at {self._files.location(key)} read back otherwise than they were written. The run stops; "
                "resume it once the storage is sound."
            )
        return name

    def in_memory(self, value: Any) -> Any:
        """A Prefect result that is not written: what a task run hands to Prefect besides its records."""
        return self._store.create_result_record(value, key=self._keys.records)

    async def segments(self) -> list[SegmentName]:
        """The names of all segments, by first line."""
        try:
            names = await self._files.list_names(self._keys.records)
        except Exception as exc:
            raise self._failed("list", self._keys.records, exc) from exc
        # A dot file is a write that never became a segment: its process was killed.
        segments = [SegmentName.parse(name) for name in names if not name.startswith(".")]
        return [segment for segment in segments if segment.session >= self._since]

    async def read(self, name: SegmentName) -> Segment:
        """Read one segment whole.

        Raises:
            RecordCorruptError: Its form or its checksum is wrong.
            StorageError: It cannot be told what it holds, or it is of another format.
        """
        key = self._keys.segment(name.name)
        try:
            content = await self._files.read_path(key)
        except Exception as exc:
            raise self._failed("read", key, exc) from exc
        return _decode(_text(content, self._files.location(key)), name, self._files.location(key))

    async def scan(self) -> tuple[RecordIndex, list[str]]:
        """The newest record of each line, and a note for each segment that is damaged: its lines count as not done."""
        index, damaged = RecordIndex(), []
        async with contextlib.aclosing(self._read_ahead(await self.segments())) as segments:
            async for segment in segments:
                if isinstance(segment, RecordCorruptError):
                    damaged.append(str(segment))
                    continue
                for stored in segment.stored:
                    index.add(stored)
        return index, damaged

    async def scan_between(self, first: int, last: int) -> tuple[RecordIndex, list[SegmentName]]:
        """The newest record of each line that has one, and the segments, of those that overlap a range of lines.

        A damaged segment counts as not there: its lines are run again.
        """
        index, names = RecordIndex(), []
        overlapping = [name for name in await self.segments() if name.first <= last and name.last >= first]
        async with contextlib.aclosing(self._read_ahead(overlapping)) as segments:
            async for segment in segments:
                if isinstance(segment, RecordCorruptError):
                    continue
                names.append(segment.name)
                for stored in segment.stored:
                    index.add(stored)
        return index, names

    async def _read_ahead(self, names: Iterable[SegmentName]) -> AsyncGenerator[Segment | RecordCorruptError]:
        """Segments in order, or how they are damaged; some are read at once, since a storage far away answers late."""
        waiting = iter(names)
        ahead: collections.deque[asyncio.Task[Segment | RecordCorruptError]] = collections.deque()
        try:
            while True:
                for name in itertools.islice(waiting, READ_AHEAD - len(ahead)):
                    ahead.append(asyncio.ensure_future(self._read_or_damage(name)))
                if not ahead:
                    return
                yield await ahead.popleft()
        finally:
            for reading in ahead:
                reading.cancel()

    async def _read_or_damage(self, name: SegmentName) -> Segment | RecordCorruptError:
        try:
            return await self.read(name)
        except RecordCorruptError as exc:
            return exc

    async def newest(self) -> AsyncIterator[tuple[Stored, dict[str, Any]]]:
        """Each line's newest record, by line_number; holds only the segments that overlap."""
        waiting = await self.segments()
        waiting.reverse()
        heap: list[tuple[int, int, int, int, Stored, bytes]] = []
        unique = 0
        while waiting or heap:
            while waiting and (not heap or waiting[-1].first <= heap[0][0]):
                try:
                    segment = await self.read(waiting.pop())
                except RecordCorruptError:
                    continue
                for stored, record in zip(segment.stored, segment.records, strict=True):
                    unique += 1
                    heapq.heappush(heap, (stored.receipt.line_number, *stored.order, unique, stored, record))
            if not heap:
                break
            number = heap[0][0]
            while heap and heap[0][0] == number:
                *_, stored, record = heapq.heappop(heap)
            yield stored, json.loads(record)

    def _failed(self, verb: str, key: str, exc: Exception) -> StorageError:
        return StorageError(
            f"Cannot {verb} the run storage at {self._files.location(key)}: {told(exc)}. The run stops, "
            "so that no line is run whose result cannot be kept; resume it once the storage answers.",
            key=key,
        )


def _encode(outcomes: Iterable[LineOutcome], session: int) -> bytes:
    outcomes = list(outcomes)
    body = b"".join(outcome.record + b"\n" for outcome in outcomes)
    header = {
        "format": FORMAT,
        "session": session,
        "bytes": len(body),
        "receipts": [_header_entry(outcome) for outcome in outcomes],
    }
    return _compact({**header, "sha256": _checksum(header, body)}) + b"\n" + body


def _checksum(header: dict[str, Any], body: bytes) -> str:
    """Of all there is, for a receipt with a flipped digit would be another line's."""
    digest = hashlib.sha256(_compact(header))
    digest.update(body)
    return digest.hexdigest()


def _compact(header: dict[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _header_entry(outcome: LineOutcome) -> list[Any]:
    r = outcome.receipt
    return [r.line_number, outcome.input_hash, r.status, r.attempt, round(r.duration_sec, 6), r.tokens, r.nodes]


def _text(content: bytes, place: str) -> bytes:
    """A segment's text out of Prefect's record; the record's own word on how to read it is checked, never followed."""
    try:
        envelope = json.loads(content)
        kind, result = envelope["metadata"]["serializer"]["type"], envelope["result"]
    except _MALFORMED as exc:
        raise RecordCorruptError(f"The file {place} is no whole Prefect result: {exc}.") from exc
    if kind != SEGMENT_TYPE or not isinstance(result, str):
        raise RecordCorruptError(
            f"The file {place} says that it is of type {kind!r}; only {SEGMENT_TYPE!r} is read here."
        )
    return result.encode("utf-8", "surrogatepass")


def _decode(text: bytes, name: SegmentName, place: str) -> Segment:
    head, _, body = text.partition(b"\n")
    try:
        header = json.loads(head)
        checksum = header.pop("sha256")
        if len(body) != header["bytes"] or _checksum(header, body) != checksum:
            raise RecordCorruptError(f"The records at {place} are damaged: length or checksum do not fit.")
        if header["format"] != FORMAT:
            # Whole, and somebody's work: not to be done again for want of a reader.
            raise StorageError(
                f"The records at {place} are of format {header['format']}, this version reads {FORMAT}. Go on with the "
                "version of prefect-batchflow that wrote them; the run's manifest.json names it."
            )
        numbers = [entry[0] for entry in header["receipts"]]
        if (header["session"], min(numbers), max(numbers)) != (name.session, name.first, name.last):
            raise RecordCorruptError(f"The records at {place} are not those that its name tells. Was it renamed?")
        records = body.split(b"\n")[:-1]
        stored = []
        alike: dict[str, tuple[tuple[str, Status], ...]] = {}
        for entry, record in zip(header["receipts"], records, strict=True):
            number, input_hash, status, attempt, duration_sec, tokens, nodes = entry
            error = json.loads(record)["error"] if status != "Completed" else None
            receipt = Receipt(
                line_number=number,
                status=Status(status),
                attempt=attempt,
                duration_sec=duration_sec,
                tokens=Tokens(*tokens),
                nodes=_nodes_of(nodes, alike),
                error=None if error is None else receipt_error(error),
            )
            stored.append(Stored(receipt, header["session"], input_hash))
    except _MALFORMED as exc:
        raise RecordCorruptError(f"The records at {place} have not the form of a segment: {exc}.") from exc
    return Segment(name, stored, records)


def _nodes_of(
    nodes: list[list[str]], alike: dict[str, tuple[tuple[str, Status], ...]]
) -> tuple[tuple[str, Status], ...]:
    """The nodes of a receipt, one object for all lines whose nodes ended alike, as nearly all of a segment do."""
    text = repr(nodes)
    if (known := alike.get(text)) is None:
        known = alike[text] = tuple((node, Status(status)) for node, status in nodes)
    return known
