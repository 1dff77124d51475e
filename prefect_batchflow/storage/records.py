"""The records of a run, kept in segments: files that are written once, through Prefect's `ResultStore`, and read back.

Each segment is one Prefect result; `segments` describes its text. To read them by hand::

    jq -r .result records/*.json | jq -c 'select(.line_number)'

Nothing is overwritten. If a line has several records, the one with the newest session and attempt counts.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import heapq
import itertools
import json
from typing import TYPE_CHECKING

from prefect.filesystems import WritableFileSystem
from prefect.results import ResultStore
from prefect.serializers import Serializer
from pydantic import Field

from prefect_batchflow.exceptions import RecordCorruptError, StorageError
from prefect_batchflow.storage.files import storage_errors
from prefect_batchflow.storage.index import RecordIndex, Stored
from prefect_batchflow.storage.keys import RunKeys, SegmentName
from prefect_batchflow.storage.segments import SEGMENT_TYPE, Segment, decode_segment, encode_segment, segment_text

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence

    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.results.records import LineRecord
    from prefect_batchflow.storage.files import RunFiles

READ_AHEAD = 8
"""Segments read concurrently during a scan."""


class SegmentSerializer(Serializer):  # `Serializer[bytes]` would not register with Prefect
    """Passes a segment's text through unchanged, so that stored data never decides how it is read."""

    type: str = Field(default=SEGMENT_TYPE, frozen=True)

    def dumps(self, obj: bytes) -> bytes:
        """Give the text back."""
        return obj

    def loads(self, blob: bytes) -> bytes:
        """Give the text back."""
        return blob


class RunRecords:
    """Reads and appends the line records of one run.

    `session` counts starts, from 1; it is 0 for records taken over from another run. `since` is the first session whose
    records count: a full rerun ignores earlier ones.
    """

    def __init__(self, files: RunFiles, keys: RunKeys, session: int, since: int = 0) -> None:
        self._files = files
        self._keys = keys
        self._session = session
        self._since = since
        assert isinstance(files, WritableFileSystem)  # it is a block; Prefect's store accepts nothing else
        self._store = ResultStore(
            result_storage=files, serializer=SegmentSerializer(), cache_result_in_memory=False, metadata_storage=None
        )

    async def append(self, outcomes: Sequence[LineOutcome]) -> SegmentName:
        """Write one segment and read it back. Once this returns, the lines are done.

        Raises:
            StorageError: The segment was not written, or reads back differently; the lines are not done.
        """
        ordered = sorted(outcomes, key=lambda outcome: (outcome.receipt.line_number, outcome.receipt.attempt))
        first, last = ordered[0].receipt.line_number, ordered[-1].receipt.line_number
        name = SegmentName.new(first, last, self._session)
        key = self._keys.segment(name.name)
        text = encode_segment(ordered, self._session)
        with self._errors("write", key):
            await self._store.awrite(text, key=key)
            written = await self._files.read_path(key)
        if segment_text(written, self._files.location(key)) != text:
            raise StorageError(
                f"The records at {self._files.location(key)} do not read back as they were written. The run stops. Resume it "
                "once the storage works."
            )
        return name

    async def segments(self) -> list[SegmentName]:
        """The names of all segments, sorted by first line."""
        with self._errors("list", self._keys.records):
            names = await self._files.list_names(self._keys.records)
        # A dot file is an unfinished write whose process was killed.
        segments = [SegmentName.parse(name) for name in names if not name.startswith(".")]
        return [segment for segment in segments if segment.session >= self._since]

    async def read(self, name: SegmentName) -> Segment:
        """Read one segment whole.

        Raises:
            RecordCorruptError: The segment is damaged.
            StorageError: It cannot be read, or has another format version.
        """
        key = self._keys.segment(name.name)
        with self._errors("read", key):
            content = await self._files.read_path(key)
        return decode_segment(segment_text(content, self._files.location(key)), name, self._files.location(key))

    async def scan(self) -> tuple[RecordIndex, list[str]]:
        """An index of the newest record of each line, and a note for each damaged segment, whose lines count as not done."""
        index, _, damaged = await self._scan(await self.segments())
        return index, damaged

    async def scan_between(self, first: int, last: int) -> tuple[RecordIndex, list[SegmentName]]:
        """An index of the segments that overlap a range of lines, and their names.

        Damaged segments are left out: their lines run again.
        """
        overlapping = [name for name in await self.segments() if name.first <= last and name.last >= first]
        index, sound, _ = await self._scan(overlapping)
        return index, sound

    async def _scan(self, names: Iterable[SegmentName]) -> tuple[RecordIndex, list[SegmentName], list[str]]:
        index, sound, damaged = RecordIndex(), [], []
        async with contextlib.aclosing(self._read_ahead(names)) as segments:
            async for segment in segments:
                if isinstance(segment, RecordCorruptError):
                    damaged.append(str(segment))
                    continue
                sound.append(segment.name)
                for stored in segment.stored:
                    index.add(stored)
        return index, sound, damaged

    async def _read_ahead(self, names: Iterable[SegmentName]) -> AsyncGenerator[Segment | RecordCorruptError]:
        """Segments in order, or the errors of damaged ones. Reads several at once, because a remote storage answers slowly."""
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

    async def newest(self) -> AsyncIterator[tuple[Stored, LineRecord]]:
        """Each line's newest record, sorted by line_number. Only segments that overlap are in memory together."""
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

    def _errors(self, verb: str, key: str) -> contextlib.AbstractContextManager[None]:
        cure = "The run stops, because results of further lines could not be kept. Resume it once the storage works."
        return storage_errors(self._files, verb, key, cure)
