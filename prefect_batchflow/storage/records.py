"""The records of a run, kept in segments: files that are written once, through Prefect's `ResultStore`, and read back.

Each segment is one Prefect result; `segments` describes its text. Prefect would keep its own metadata around the text, as JSON
in JSON. All of it is in the segment's first line, so a metadata storage of ours makes it from there. To read them by hand::

    jq -c 'select(.line_number)' records/*.jsonl

Nothing is overwritten. If a line has several records, the one with the newest session and attempt counts. The file is long
because writing, reading and damage share one format.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import heapq
import itertools
import json
from typing import TYPE_CHECKING, Any

from prefect.filesystems import NullFileSystem, WritableFileSystem
from prefect.results import ResultStore
from prefect.serializers import Serializer
from pydantic import Field

from prefect_batchflow.exceptions import RecordCorruptError, StorageError, told
from prefect_batchflow.storage.files import ANOTHER_STORAGE, ShortReadError, storage_errors
from prefect_batchflow.storage.index import RecordIndex, Stored
from prefect_batchflow.storage.keys import DAMAGED, RunKeys, SegmentName
from prefect_batchflow.storage.reserve import Reserve, is_full
from prefect_batchflow.storage.retries import looks, read_sound
from prefect_batchflow.storage.segments import SEGMENT_TYPE, Segment, decode_segment, encode_segment, segment_text

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence

    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.results.records import LineRecord
    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.manifest import Manifest

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


def records_of(files: RunFiles, keys: RunKeys, manifest: Manifest) -> RunRecords:
    """The records of a run, to be read."""
    return RunRecords(files, keys, 0, manifest.records_since, manifest.identity, manifest.unnamed_until)


def is_of_run(segment: Segment, run: str, unnamed_until: int) -> bool:
    """Whether a segment is of the run with this `identity`. Those without a name are, up to a session."""
    return segment.run == run or (not segment.run and segment.name.session <= unnamed_until)


class SegmentMetadata(NullFileSystem):
    """The metadata of segments, for Prefect's `ResultStore`. It is equal for all but for the key, so none is kept."""

    async def read_path(self, path: str) -> Any:
        """The metadata of the segment with this key."""
        return json.dumps({"storage_key": path, "serializer": {"type": SEGMENT_TYPE}}).encode()


class RunRecords:
    """Reads and appends the line records of one run.

    `session` counts starts, from 1; it is 0 for records taken over from another run. `since` is the first session whose
    records count: a full rerun ignores earlier ones.

    `run` is the manifest's `identity`, which new segments carry. Segments of another run are damaged. Those without a name
    count up to the session `unnamed_until`. Without `run`, all segments count.

    It remembers each segment that it wrote, or read whole. `newest` must find all of these again, whatever a listing says.
    """

    def __init__(
        self, files: RunFiles, keys: RunKeys, session: int, since: int = 0, run: str = "", unnamed_until: int = 0
    ) -> None:
        self._files = files
        self._run = run
        self._unnamed_until = unnamed_until
        self._keys = keys
        self._session = session
        self._since = since
        self._known: dict[str, SegmentName] = {}
        self.damage: list[str] = []
        """A sentence for each segment that the last `scan` or `newest` left out, because it is damaged."""
        self._damaged: list[SegmentName] = []
        self.reserve: Reserve | None = None
        """Space for the next segments, if the run has reserved any."""
        assert isinstance(files, WritableFileSystem)  # it is a block; Prefect's store accepts nothing else
        self._store = ResultStore(
            result_storage=files,
            serializer=SegmentSerializer(),
            cache_result_in_memory=False,
            metadata_storage=SegmentMetadata(),
        )

    def when_failing(self, call: Callable[[bool], None]) -> None:
        """Call this method when the storage begins to fail, and when it works or has failed for good; kept weakly."""
        self._files.when_failing(call)

    async def append(self, outcomes: Sequence[LineOutcome]) -> SegmentName:
        """Write one segment and read it back. Once this returns, the lines are done.

        Raises:
            StorageError: The segment was not written, or reads back differently; the lines are not done.
        """
        ordered = sorted(outcomes, key=lambda outcome: (outcome.receipt.line_number, outcome.receipt.attempt))
        first, last = ordered[0].receipt.line_number, ordered[-1].receipt.line_number
        name = SegmentName.new(first, last, self._session)
        key = self._keys.segment(name.name)
        text = encode_segment(ordered, self._session, self._run)

        def check(written: bytes) -> None:
            if segment_text(written, name, self._files.location(key)) != text:
                raise StorageError(
                    f"The records at {self._files.location(key)} do not read back as they were written. The run stops. Resume "
                    "it once the storage works."
                )

        with self._errors("write", key):
            try:
                await self._store.awrite(text, key=key)
            except Exception as exc:
                if self.reserve is None or not is_full(exc) or not self.reserve.use():
                    raise
                await self._store.awrite(text, key=key)
            await read_sound(self._files, key, check)
        self.expect([name])
        if self.reserve is not None:
            self.reserve.wrote(len(text))
        return name

    def check_space(self) -> None:
        """Refuse further lines once the reserved space was needed.

        Raises:
            StorageError: The disk is full.
        """
        if self.reserve is not None and self.reserve.is_used:
            raise StorageError(
                f"The disk of the run storage at {self._files.location(self._keys.run_id)} is full. The results of all lines "
                "that have ended are kept, and no further line begins. Free some space, then start the run again.",
                key=self._keys.records,
            )

    def expect(self, names: Iterable[SegmentName]) -> None:
        """Remember segments with lines that are done, such as those that a task on another machine wrote."""
        self._known.update((name.name, name) for name in names)

    async def segments(self) -> list[SegmentName]:
        """The names of all segments, sorted by first line.

        Raises:
            RecordCorruptError: There are other files. One of them can be a segment that somebody renamed.
            StorageError: The storage cannot be listed.
        """
        segments, strangers = await self.listed()
        if strangers:
            raise RecordCorruptError(strangers)
        return segments

    async def listed(self) -> tuple[list[SegmentName], str]:
        """The names of all segments, sorted by first line, and a text about other files, empty if there are none."""
        with storage_errors(self._files, "list", self._keys.records, ANOTHER_STORAGE):
            try:
                names = await self._files.list_names(self._keys.records)
            except NotADirectoryError as exc:
                raise StorageError(
                    f"{self._files.location(self._keys.records)} is a file, where the folder of the run's records was. Move it "
                    "away, and put the folder back if you have it. Then start the run again: lines without a record run again."
                ) from exc
        segments, strangers = list[SegmentName](), list[str]()
        # A dot file is an unfinished write whose process was killed.
        for name in (name for name in names if not name.startswith(".") and name != DAMAGED):
            try:
                segments.append(SegmentName.parse(name))
            except RecordCorruptError:
                strangers.append(name)
        shown = ", ".join(map(repr, strangers[:3])) + " and others" * (len(strangers) > 3)
        text = (
            f"{self._files.location(self._keys.records)} has files that are not record files: {shown}. "
            f"Move {'them' if len(strangers) > 1 else 'it'} away. If somebody has renamed a record file, give it its old name "
            "back."
        )
        return [segment for segment in segments if segment.session >= self._since], text if strangers else ""

    async def read(self, name: SegmentName) -> Segment:
        """Read one segment whole.

        Raises:
            RecordCorruptError: The segment is damaged.
            StorageError: It is gone, cannot be read, or has another format version.
        """
        key = self._keys.segment(name.name)
        with self._errors("read", key):
            try:
                content = await self._files.read_path(key)
            except FileNotFoundError as exc:
                place = self._files.location(key)
                raise StorageError(
                    f"Cannot read the run storage at {place}: the file is gone (FileNotFoundError).", key=key
                ) from exc
            except IsADirectoryError as exc:
                raise RecordCorruptError(f"{self._files.location(key)} is a folder, where a record file was.") from exc
        place = self._files.location(key)
        segment = decode_segment(segment_text(content, name, place), name, place)
        if self._run and not is_of_run(segment, self._run, self._unnamed_until):
            raise RecordCorruptError(
                f"The records at {place} belong to another run: {segment.run or 'one without a name'}. This one is {self._run}."
            )
        return segment

    async def scan(self, listed: Iterable[SegmentName] = ()) -> tuple[RecordIndex, list[str]]:
        """An index of the newest record of each line, and a note for each damaged segment, whose lines count as not done.

        `listed` are segments of an earlier look, because one listing can be stale.
        """
        names = {name.name: name for name in (*listed, *await self.segments()) if name.session >= self._since}
        index, sound = await self._scan(list(names.values()))
        self.expect(sound)
        return index, self.damage

    async def read_or_damage(self, name: SegmentName) -> Segment | RecordCorruptError:
        """Read one segment, several times if it looks damaged or is missing.

        Raises:
            StorageError: It is gone, cannot be read, or has another format version.
        """
        segment = await self._read_again(name)
        if isinstance(segment, Segment | RecordCorruptError):
            return segment
        raise segment

    async def scan_between(self, first: int, last: int) -> tuple[RecordIndex, list[SegmentName]]:
        """An index of the segments that overlap a range of lines, and their names.

        Damaged segments are left out: their lines run again.
        """
        overlapping = [name for name in await self.segments() if name.first <= last and name.last >= first]
        index, sound = await self._scan(overlapping)
        self.expect(sound)
        return index, sound

    async def set_damaged_aside(self) -> list[str]:
        """Move the segments that the last scan found damaged to `records/damaged/`. Gives a sentence for each one.

        A storage that forbids deleting keeps them where they are. They do not count, wherever they are.
        """
        notes = []
        for name, damage in zip(self._damaged, self.damage, strict=True):
            key, aside = self._keys.segment(name.name), self._keys.damaged_segment(name.name)
            try:
                await self._files.move(key, aside)
                notes.append(f"{damage} It is kept as {self._files.location(aside)}.")
            except Exception as exc:  # noqa: BLE001 - the run continues without the file, wherever it is
                notes.append(
                    f"{damage} It cannot be moved to {self._files.location(aside)}: {self._files.scrubbed(told(exc))}."
                )
        self._damaged, self.damage = [], []
        return notes

    async def _scan(self, names: Sequence[SegmentName]) -> tuple[RecordIndex, list[SegmentName]]:
        index, sound = RecordIndex(), list[SegmentName]()
        unread: dict[SegmentName, StorageError] = dict.fromkeys(names, StorageError(""))
        for look in looks():
            await look
            looking, unread = list(unread), {}
            async with contextlib.aclosing(self._read_ahead(looking)) as segments:
                async for name, segment in segments:
                    if isinstance(segment, StorageError):
                        unread[name] = segment
                        continue
                    sound.append(name)
                    for stored in segment.stored:
                        index.add(stored)
            if not unread:
                break
        for name, error in unread.items():
            if not isinstance(error, RecordCorruptError):
                raise error
            await self._check_read_whole(name)
        self._damaged, self.damage = list(unread), list(map(str, unread.values()))
        return index, sound

    async def _check_read_whole(self, name: SegmentName) -> None:
        """Look whether a segment that seems damaged is damaged, or was read in part each time.

        Raises:
            StorageError: The storage gives only a part of it, so nobody can tell.
        """
        key = self._keys.segment(name.name)
        with self._errors("read", key):
            for look in looks():
                await look
                try:
                    size, found = await self._files.size_of(key), len(await self._files.read_path(key))
                except IsADirectoryError:
                    return
                if size is None or found == size:
                    return
            raise ShortReadError(f"each time, the storage gives {found} of its {size} bytes")

    async def _read_ahead(
        self, names: Iterable[SegmentName]
    ) -> AsyncGenerator[tuple[SegmentName, Segment | StorageError]]:
        """Segments in order, or their errors. Reads several at once, because a remote storage answers slowly."""
        waiting = iter(names)
        ahead: collections.deque[tuple[SegmentName, asyncio.Task[Segment | StorageError]]] = collections.deque()
        try:
            while True:
                for name in itertools.islice(waiting, READ_AHEAD - len(ahead)):
                    ahead.append((name, asyncio.ensure_future(self._read_or_error(name))))
                if not ahead:
                    return
                name, reading = ahead[0]
                yield name, await reading
                ahead.popleft()
        finally:
            for _, reading in ahead:
                reading.cancel()

    async def _read_again(self, name: SegmentName) -> Segment | StorageError:
        """Read a segment, several times if it is missing or looks damaged."""
        for look in looks():
            await look
            segment = await self._read_or_error(name)
            if isinstance(segment, Segment):
                break
        return segment

    async def _read_or_error(self, name: SegmentName) -> Segment | StorageError:
        """Any other error than that the segment is missing or damaged is raised."""
        try:
            return await self.read(name)
        except StorageError as exc:
            if isinstance(exc, RecordCorruptError) or isinstance(exc.__cause__, FileNotFoundError):
                return exc
            raise

    async def newest(self) -> AsyncIterator[tuple[Stored, LineRecord]]:
        """Each line's newest record, sorted by line_number. Only segments that overlap are in memory together.

        Damaged segments that this object does not know are left out, and are then in `damage`.

        Raises:
            StorageError: A segment with lines that are done is gone or damaged, even after some reads.
        """
        known = {segment.name: segment for segment in await self.segments()} | self._known
        waiting = sorted(known.values(), key=lambda segment: segment.name, reverse=True)
        self._damaged, self.damage = [], []
        heap: list[tuple[int, int, int, int, Stored, bytes]] = []
        unique = 0
        while waiting or heap:
            while waiting and (not heap or waiting[-1].first <= heap[0][0]):
                if (segment := await self._read_for_sure(waiting.pop())) is None:
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

    async def _read_for_sure(self, name: SegmentName) -> Segment | None:
        """Read a segment, several times if necessary. `None` if it is damaged and no line counts on it."""
        segment = await self._read_again(name)
        if isinstance(segment, Segment):
            return segment
        if name.name in self._known:
            lines = f"line {name.first}" if name.first == name.last else f"lines {name.first} to {name.last}"
            raise StorageError(
                f"{segment} It was whole when the run read it before, so something else changes the run's folder, or the "
                f"storage loses data. The results of {lines} are lost, and no outputs were written. Find out the cause, then "
                "resume the run: lines without a sound record run again, and no others."
            ) from segment
        if not isinstance(segment, RecordCorruptError):
            raise segment
        self._damaged.append(name)
        self.damage.append(str(segment))
        return None

    def _errors(self, verb: str, key: str) -> contextlib.AbstractContextManager[None]:
        cure = "The run stops, because results of further lines could not be kept. Resume it once the storage works."
        return storage_errors(self._files, verb, key, cure)
