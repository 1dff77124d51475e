"""Finds the records of lines by content, after the data has changed: by the hash of their inputs, wherever they stood.

Equal lines are told apart by their occurrence: the second of them gets the record of the second one. If there are fewer lines
than records, those that completed come before those that failed. A run numbers its lines anew when a row was inserted, removed
or moved. All sessions between two such times form an epoch, in which a number means the same line. Records of earlier epochs
still count by content, so a row that was removed and comes back is not paid again.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from prefect_batchflow.exceptions import RecordCorruptError
from prefect_batchflow.execution.executor import LineOutcome
from prefect_batchflow.execution.program.record import encode_record
from prefect_batchflow.results.records import Receipt, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence, Set

    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import LineRecord
    from prefect_batchflow.storage.index import Stored
    from prefect_batchflow.storage.manifest import Manifest
    from prefect_batchflow.storage.records import RunRecords
    from prefect_batchflow.storage.segments import Segment

_READ_AT_ONCE = 8


class _Known(NamedTuple):
    """The place of a record: its line's number in an epoch, and which of the line's records it is."""

    epoch: int
    number: int
    session: int
    attempt: int


@dataclass(frozen=True, slots=True)
class LineChanges:
    """What has become of the lines of an earlier start."""

    new: int
    changed: int
    """Lines with a number that was there before, but other inputs."""
    gone: int
    moved: int
    """Lines with the same inputs at another place."""

    def __str__(self) -> str:
        counts = {"new": self.new, "changed": self.changed, "gone": self.gone, "moved": self.moved}
        said = [f"{count} {word}" for word, count in counts.items() if count]
        if not said:
            return "the same lines"
        count, word = said[0].split()
        return ", ".join([f"{count} line{'s' * (count != '1')} {word}", *said[1:]])


@dataclass(frozen=True, slots=True)
class Matches:
    """The records that belong to the lines of today's data."""

    changes: LineChanges
    numbers: dict[_Known, int]
    """The place of each record that belongs to a line, to that line's number now."""
    are_in_place: bool
    """Whether each line finds its record by its number."""
    are_the_same: bool
    """Whether these are exactly the lines of the earlier start, and each of them has ended."""


class KnownLines:
    """The records of a run by content: where each of them is, without the records themselves."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._by_content: dict[str, list[_Known]] = defaultdict(list)
        self._newest: dict[int, tuple[int, int, int, str]] = {}
        """Number to the epoch, session, attempt and content of its newest record."""
        self._failed: set[_Known] = set()
        """Those of failed lines."""

    def add(self, stored: Stored) -> None:
        """Add a record."""
        receipt, epoch = stored.receipt, self._history.epoch(stored.session)
        if receipt.status not in (Status.Completed, Status.Failed):
            return
        number = receipt.line_number
        known = _Known(epoch, number, stored.session, receipt.attempt)
        self._by_content[stored.input_hash].append(known)
        if receipt.status is Status.Failed:
            self._failed.add(known)
        newest = (epoch, stored.session, receipt.attempt, stored.input_hash)
        if newest[:3] >= self._newest.get(number, (-1,))[:3]:
            self._newest[number] = newest

    def match(self, lines: Iterable[Line], total_before: int, *, own_numbers: bool = False) -> Matches:
        """Match today's lines with the records.

        Args:
            lines: The lines of the data, in order.
            total_before: How many lines there were before, with and without records.
            own_numbers: Whether a column of the data numbers the lines. Then a line with its old number and inputs is that
                line, whatever stands before it.
        """
        last = self._history.last_epoch
        newest = {number: known for number, known in self._newest.items() if known[0] == last}
        wanted: dict[str, list[int]] = defaultdict(list)
        unmatched: list[int] = []
        numbers: dict[_Known, int] = {}
        for line in lines:
            if line.error is None and line.input_hash in self._by_content:
                wanted[line.input_hash].append(line.line_number)
            elif line.error is not None and newest.get(line.line_number, ("",))[-1] == line.input_hash:
                _, session, attempt, _ = newest[line.line_number]
                numbers[_Known(last, line.line_number, session, attempt)] = line.line_number
            else:
                unmatched.append(line.line_number)
        # With a record of each line, the n-th of equal lines is known. Otherwise a number is the better guess.
        by_occurrence = not own_numbers and len(newest) >= total_before
        for content, places in wanted.items():
            found = _assigned(self._by_content[content], self._failed, places, last, by_occurrence=by_occurrence)
            unmatched += [number for number in places if number not in found]
            numbers |= {known: number for number, known in found.items()}
        taken = {known.number for known in numbers if known.epoch == last}
        left = newest.keys() - taken
        changed = len(left.intersection(unmatched))
        new, gone = len(unmatched) - changed, len(left) - changed
        never_ended = max(0, total_before - len(newest))
        moved = sum(known.number != number for known, number in numbers.items())
        changes = LineChanges(max(0, new - never_ended), changed, gone + max(0, never_ended - new), moved)
        are_in_place = all(
            known.number == number and newest.get(number, ())[:3] == (last, known.session, known.attempt)
            for known, number in numbers.items()
        )
        is_same = are_in_place and not unmatched and changes == LineChanges(0, 0, 0, 0)
        return Matches(changes, numbers, are_in_place, is_same)


def _assigned(
    known: Sequence[_Known], failed: Set[_Known], places: Sequence[int], last: int, *, by_occurrence: bool
) -> dict[int, _Known]:
    """Give equal lines their records. Each of them is used once; `failed` are those of failed lines."""
    epochs: dict[int, dict[int, _Known]] = defaultdict(dict)
    for one in known:
        before = epochs[one.epoch].get(one.number)
        if before is None or one[2:] >= before[2:]:
            epochs[one.epoch][one.number] = one
    found: dict[int, _Known] = {}
    current = epochs.get(last, {})
    if not by_occurrence:
        found = {number: current[number] for number in places if number in current}
    in_order = {epoch: [there[number] for number in sorted(there)] for epoch, there in epochs.items()}
    rest = [number for number in places if number not in found]
    used = set(found.values())
    available = [one for one in in_order.get(last, []) if one not in used]
    # The further ones are of lines that were removed: the newest epoch that had so many of them.
    for occurrence in range(len(current), max(map(len, in_order.values()))):
        epoch = max(epoch for epoch, there in in_order.items() if len(there) > occurrence)
        available.append(in_order[epoch][occurrence])
    found |= dict(zip(rest, available, strict=False))
    # A line must not run again while the result of an equal one is left over.
    completed = [one for one in available[len(rest) :] if one not in failed]
    for number, one in zip([number for number in places if found.get(number) in failed], completed, strict=False):
        found[number] = one
    return found


@dataclass(frozen=True, slots=True)
class History:
    """Which sessions of a run count by content, and at which of them its lines got other numbers."""

    since: int
    renumbered: tuple[int, ...]
    unfinished: frozenset[int]
    """Sessions that ended while they numbered the lines anew. They ran none."""

    @classmethod
    def of(cls, manifest: Manifest) -> History:
        """The history of a run."""
        marked = list(enumerate((session.renumbers for session in manifest.sessions), 1))
        return cls(
            manifest.records_since if manifest.contents_since is None else manifest.contents_since,
            tuple(number for number, mark in marked if mark == "done"),
            frozenset(number for number, mark in marked if mark == "begun"),
        )

    @property
    def last_epoch(self) -> int:
        """The epoch in which lines have their present numbers."""
        return len(self.renumbered)

    def epoch(self, session: int) -> int:
        """The epoch of a session."""
        return bisect_right(self.renumbered, session)


async def known_lines(
    records: RunRecords, history: History, on_damage: Callable[[str], object] = lambda _: None
) -> KnownLines:
    """Read what there is of a run, by content. Damaged segments are left out, because their lines run again."""
    known = KnownLines(history)
    async for segment in _segments(records, history, on_damage):
        for stored in segment.stored:
            known.add(stored)
    return known


async def copy_matches(
    records: RunRecords,
    history: History,
    numbers: Mapping[_Known, int],
    append: Callable[[Sequence[LineOutcome]], Awaitable[object]],
    *,
    wanted: Callable[[Receipt], bool] = lambda _: True,
    lines_a_segment: int = 500,
) -> int:
    """Copy records under the numbers that their lines have now, sorted, and return how many.

    Only the receipts are held in memory: the records wait in a temporary file. `append` writes one segment; `wanted` says
    which are copied.
    """
    missing = dict(numbers)
    places: list[tuple[int, int, int, Receipt, str]] = []
    with tempfile.TemporaryFile(prefix="batchflow-records-") as file:
        async for segment in _segments(records, history):
            epoch = history.epoch(segment.name.session)
            for stored, record in zip(segment.stored, segment.records, strict=True):
                receipt = stored.receipt
                key = _Known(epoch, receipt.line_number, stored.session, receipt.attempt)
                number = missing.get(key)
                if number is None or not wanted(receipt):
                    continue
                del missing[key]
                text = record if number == receipt.line_number else encode_record(_moved(json.loads(record), number))
                places.append((number, file.tell(), len(text), replace(receipt, line_number=number), stored.input_hash))
                file.write(text)
        places.sort(key=lambda place: place[:2])
        for start in range(0, len(places), lines_a_segment):
            outcomes = []
            for _, offset, length, receipt, content in places[start : start + lines_a_segment]:
                file.seek(offset)
                outcomes.append(LineOutcome(receipt, file.read(length), content))
            await append(outcomes)
    return len(places)


def _moved(record: LineRecord, number: int) -> LineRecord:
    """A record under another number. The messages of this package begin with it."""
    before, error = record["line_number"], record["error"]
    record["line_number"] = number
    if error is not None and str(error.get("message", "")).startswith(f"Line {before} "):
        error["message"] = f"Line {number} " + error["message"].removeprefix(f"Line {before} ")
    return record


async def _segments(
    records: RunRecords, history: History, on_damage: Callable[[str], object] = lambda _: None
) -> AsyncIterator[Segment]:
    names = [
        name
        for name in await records.segments()
        if name.session >= history.since and name.session not in history.unfinished
    ]
    for start in range(0, len(names), _READ_AT_ONCE):
        some = names[start : start + _READ_AT_ONCE]
        for segment in await asyncio.gather(*(records.read_or_damage(name) for name in some)):
            if isinstance(segment, RecordCorruptError):
                on_damage(str(segment))
            else:
                yield segment
