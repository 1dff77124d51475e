"""An index of the newest record of each line, kept in memory without the records themselves."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from prefect_batchflow.lines import INPUT_HASH_DIGITS
from prefect_batchflow.results.records import Receipt, Status, Tokens, shortest_receipt
from prefect_batchflow.results.tally import FULL_ERRORS


@dataclass(frozen=True, slots=True)
class Stored:
    """One line's entry in the index: its receipt, without its record."""

    receipt: Receipt
    session: int
    input_hash: str

    @property
    def order(self) -> tuple[int, int]:
        """Sorts the records of one line; the newest is the largest."""
        return (self.session, self.receipt.attempt)


class RecordIndex:
    """The newest record of each line that has one. Takes about 200 bytes per completed line: a run can have a million."""

    def __init__(self) -> None:
        self.lines = _Lines()

    def add(self, stored: Stored) -> None:
        """Add a record, unless the index has a newer one."""
        known = self.lines.order(stored.receipt.line_number)
        if known is None or stored.order >= known:
            self.lines.keep(stored)

    def completed(self, line_number: int, input_hash: str) -> Receipt | None:
        """The receipt of a line that completed with exactly these inputs; otherwise `None`."""
        ended = self.ended(line_number, input_hash)
        return ended if ended is not None and ended.status == "Completed" else None

    def completed_count(self) -> int:
        """How many lines have completed, whatever their inputs were; a few unusual records are not counted."""
        return self.lines.packed_count()

    def ended(self, line_number: int, input_hash: str) -> Receipt | None:
        """The receipt of a line that completed or failed with exactly these inputs; otherwise `None`."""
        stored = self.lines.get(line_number)
        if stored is None or stored.receipt.status not in ("Completed", "Failed") or stored.input_hash != input_hash:
            return None
        return stored.receipt


class _Lines(Mapping[int, Stored]):
    """Entries by line_number. Those of completed lines are packed, because there are many and they are alike."""

    _PACKED = struct.Struct("<IIdQQQI8s")
    """Session, attempt, seconds, three token counts, index into `_nodes`, input hash."""

    def __init__(self) -> None:
        self._packed: dict[int, bytes] = {}
        self._whole: dict[int, Stored] = {}
        self._nodes: list[tuple[tuple[str, Status], ...]] = []
        self._place: dict[tuple[tuple[str, Status], ...], int] = {}
        """Position of each in `_nodes`."""

    def keep(self, stored: Stored) -> None:
        """Replace the line's entry."""
        number = stored.receipt.line_number
        packed = self._pack(stored)
        if packed is None:
            if len(self._whole) >= FULL_ERRORS and stored.receipt.error is not None:
                short = shortest_receipt(stored.receipt)
                stored = replace(stored, receipt=replace(short, nodes=stored.receipt.nodes))
            self._whole[number] = stored
            self._packed.pop(number, None)
        else:
            self._packed[number] = packed
            self._whole.pop(number, None)

    def order(self, number: int) -> tuple[int, int] | None:
        """The `Stored.order` of a line's entry."""
        if (packed := self._packed.get(number)) is not None:
            session, attempt, *_ = self._PACKED.unpack(packed)
            return session, attempt
        return None if (stored := self._whole.get(number)) is None else stored.order

    def packed_count(self) -> int:
        """How many entries are packed."""
        return len(self._packed)

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
        except (struct.error, ValueError):  # a record taken over from elsewhere can have other counts or hashes
            return None
