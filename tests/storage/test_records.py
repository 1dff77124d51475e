"""Segments of line records, byte by byte; what holds on every file system is in the storage contract."""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import outcome_of

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from prefect_batchflow.storage.index import RecordIndex, Stored

KEYS = RunKeys("run-1")


@functools.cache
def written() -> tuple[RunStorageBlock, str, bytes, Mapping[int, Stored]]:
    """A storage with one segment: its key, its bytes, and what it says."""
    files = RunStorageBlock(url=f"memory://{uuid.uuid4().hex}")

    async def write() -> tuple[str, bytes, Mapping[int, Stored]]:
        records = RunRecords(files, KEYS, session=3)
        await records.append([outcome_of(1), outcome_of(12, attempt=2, error="no"), outcome_of(30, output={"a": "b"})])
        [name] = await records.segments()
        key = KEYS.segment(name.name)
        index, _ = await records.scan()
        return key, await files.read_path(key), index.lines

    return files, *asyncio.run(write())


def scan_of(content: bytes) -> tuple[RecordIndex, list[str]]:
    """What a scan says when the one segment holds this."""
    files, key, _, _ = written()

    async def scan() -> tuple[RecordIndex, list[str]]:
        await files.write_path(key, content)
        return await RunRecords(files, KEYS, session=4).scan()

    return asyncio.run(scan())


@given(place=st.floats(0, 1, exclude_max=True), flips=st.integers(1, 255))
def test_a_flipped_byte_is_found_or_says_nothing_of_lines(place: float, flips: int) -> None:
    _, _, content, lines = written()
    spoilt = bytearray(content)
    spoilt[int(place * len(content))] ^= flips

    index, damaged = scan_of(bytes(spoilt))

    assert (dict(index.lines), damaged) == (lines, []) or (dict(index.lines), len(damaged)) == ({}, 1)


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_lost_tail_is_found(share: float) -> None:
    _, _, content, _ = written()

    index, damaged = scan_of(content[: int(share * len(content))])

    assert (dict(index.lines), len(damaged)) == ({}, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["receipts"][0].__setitem__(0, 2),
        lambda header: header["receipts"][0].__setitem__(1, "0" * 16),
        lambda header: header["receipts"][1].__setitem__(2, "Completed"),
        lambda header: header["receipts"][1].__setitem__(3, 9),
        lambda header: header["receipts"].pop(),
        lambda header: header.update(session=9),
        lambda header: header.update(bytes=header["bytes"] - 1),
        lambda header: header.pop("sha256"),
        lambda header: header.clear(),
    ],
    ids=[
        "line number",
        "input hash",
        "status",
        "attempt",
        "a receipt gone",
        "session",
        "length",
        "no checksum",
        "empty",
    ],
)
def test_the_header_is_under_the_checksum_too(change: Callable[[dict[str, Any]], Any]) -> None:
    _, _, content, _ = written()
    envelope = json.loads(content)
    head, _, body = envelope["result"].partition("\n")
    header = json.loads(head)
    change(header)
    envelope["result"] = f"{json.dumps(header, separators=(',', ':'))}\n{body}"

    index, damaged = scan_of(json.dumps(envelope).encode())

    assert (dict(index.lines), len(damaged)) == ({}, 1)


@pytest.mark.anyio
async def test_records_of_sessions_before_a_rerun_do_not_count(local: RunStorageBlock) -> None:
    for session in (1, 2):
        await RunRecords(local, KEYS, session).append([outcome_of(session, output={"session": session})])

    rerun = RunRecords(local, KEYS, session=3, since=2)

    index, _ = await rerun.scan()
    assert set(index.lines) == {2}
    assert [stored.receipt.line_number async for stored, _ in rerun.newest()] == [2]


@pytest.mark.anyio
async def test_local_records_are_plain_files_that_show_no_half_write(local: RunStorageBlock, tmp_path: Path) -> None:
    await RunRecords(local, KEYS, session=1).append([outcome_of(1), outcome_of(4)])

    [file] = (tmp_path / "runs" / KEYS.records).iterdir()

    assert file.name.startswith("000000000001-000000000004-0001-")
    assert json.loads(file.read_text())["metadata"]["serializer"]["type"] == "batchflow-segment"


def test_long_errors_are_whole_in_the_record_and_cut_in_the_receipt() -> None:
    async def written_and_read() -> tuple[Stored, Any]:
        files = RunStorageBlock(url=f"memory://{uuid.uuid4().hex}")
        records = RunRecords(files, KEYS, session=1)
        await records.append([outcome_of(0, error="x" * 10_000)])
        [found] = [found async for found in records.newest()]
        return found

    stored, record = asyncio.run(written_and_read())

    assert stored.receipt.error is not None
    assert len(stored.receipt.error["message"]) < 3_000
    assert record["error"]["message"] == "x" * 10_000
