"""Turns segments into text and back.

The text is JSON lines. The first is a header: format, run, session, length of the rest, one receipt per record, and a sha256
of all of it. One record per line follows, sorted by line_number.

Format 1 had names in `.json`. Prefect kept the same text as `{"metadata": …, "result": "<text>"}`. Format 2 is the text itself,
in `.jsonl`: all that Prefect's metadata says is in the header. Both are read. `docs/run-storage.md` describes them to users.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import RecordCorruptError, StorageError
from prefect_batchflow.results.records import Receipt
from prefect_batchflow.storage.index import Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.results.records import NodeStates
    from prefect_batchflow.storage.keys import SegmentName

FORMAT = 2
_FORMATS = {".json": 1, ".jsonl": FORMAT}
"""The formats that can be read, by the suffix of a segment's name."""
SEGMENT_TYPE = "batchflow-segment"
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that was read: index entries and records, as bytes, in the same order."""

    name: SegmentName
    stored: list[Stored]
    records: list[bytes]
    run: str
    """The run that wrote it, a manifest's `identity`; empty if its header has none, as those of older versions."""


def encode_segment(outcomes: Sequence[LineOutcome], session: int, run: str = "") -> bytes:
    """Make the text of one segment. The outcomes are sorted by line_number; `run` is the manifest's `identity`."""
    body = b"".join(outcome.record + b"\n" for outcome in outcomes)
    header = {
        "format": FORMAT,
        **({"run": run} if run else {}),
        "session": session,
        "bytes": len(body),
        "receipts": [outcome.receipt.to_row(outcome.input_hash) for outcome in outcomes],
    }
    return _compact({**header, "sha256": _checksum(header, body)}) + b"\n" + body


def _checksum(header: dict[str, Any], body: bytes) -> str:
    """Covers the header too: a receipt with a flipped digit would belong to another line."""
    digest = hashlib.sha256(_compact(header))
    digest.update(body)
    return digest.hexdigest()


def _compact(header: dict[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def segment_text(content: bytes, name: SegmentName, place: str) -> bytes:
    """Take a segment's text out of its file. In format 1 it is in Prefect's record, whatever serializer the record names.

    Raises:
        RecordCorruptError: The file is damaged, or names a serializer other than ours.
    """
    if name.suffix == ".jsonl":
        return content
    try:
        envelope = json.loads(content)
        kind, result = envelope["metadata"]["serializer"]["type"], envelope["result"]
    except _MALFORMED as exc:
        raise RecordCorruptError(f"The file {place} is not a complete Prefect result: {exc}.") from exc
    if kind != SEGMENT_TYPE or not isinstance(result, str):
        raise RecordCorruptError(f"The file {place} has the serializer type {kind!r}; expected {SEGMENT_TYPE!r}.")
    return result.encode("utf-8", "surrogatepass")


def decode_segment(text: bytes, name: SegmentName, place: str) -> Segment:
    """Read a segment's text.

    Raises:
        RecordCorruptError: The segment is damaged.
        StorageError: It has another format version.
    """
    head, _, body = text.partition(b"\n")
    try:
        header = json.loads(head.decode())
    except (ValueError, RecursionError) as exc:
        found = "not a valid record file" if text.strip(b"\0\n ") else "empty"
        raise RecordCorruptError(f"The records at {place} are damaged: the file is {found}.") from exc
    try:
        checksum = header.pop("sha256")
        if len(body) != header["bytes"] or _checksum(header, body) != checksum:
            raise RecordCorruptError(f"The records at {place} are damaged: the length or the checksum is wrong.")
        if header["format"] != _FORMATS[name.suffix]:
            # The segment is intact: its lines must not run again only because this version cannot read it.
            raise StorageError(
                f"The records at {place} have format {header['format']}; this version reads format {_FORMATS[name.suffix]} "
                f"in a file of this name. Continue the run "
                "with the version of prefect-batchflow that wrote them; the run's manifest.json names it."
            )
        numbers = [entry[0] for entry in header["receipts"]]
        if (header["session"], min(numbers), max(numbers)) != (name.session, name.first, name.last):
            raise RecordCorruptError(f"The records at {place} do not match the file's name. Was the file renamed?")
        records = body.split(b"\n")[:-1]
        stored = []
        alike: dict[str, NodeStates] = {}
        for row, record in zip(header["receipts"], records, strict=True):
            _, input_hash, status, *_ = row
            error = json.loads(record)["error"] if status != "Completed" else None
            stored.append(Stored(Receipt.from_row(row, error, alike), header["session"], input_hash))
    except _MALFORMED as exc:
        raise RecordCorruptError(f"The records at {place} are not a valid record file: {exc}.") from exc
    return Segment(name, stored, records, str(header.get("run", "")))
