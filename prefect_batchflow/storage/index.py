"""The newest record of each line of a run, known without reading the records."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prefect_batchflow.lines import INPUT_HASH_DIGITS
from prefect_batchflow.results.records import Receipt, Status, Tokens


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
