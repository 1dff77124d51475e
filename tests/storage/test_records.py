"""Segments of line records, byte by byte; what holds on every file system is in the storage contract."""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import outcome_of
from prefect.results import ResultStore

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import RecordCorruptError, StorageError
from prefect_batchflow.storage import retries
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.records import RunRecords, SegmentMetadata, SegmentSerializer
from prefect_batchflow.storage.reserve import Reserve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prefect_batchflow.storage.index import RecordIndex, Stored

KEYS = RunKeys("run-1")


@pytest.fixture(autouse=True, scope="module")
def _no_pauses() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(retries, "LOOK_AGAIN_SEC", (0.0, 0.0, 0.0))
        yield


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
    head, _, body = content.partition(b"\n")
    header = json.loads(head)
    change(header)

    index, damaged = scan_of(json.dumps(header, separators=(",", ":")).encode() + b"\n" + body)

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
    header, *records = map(json.loads, file.read_text().splitlines())
    assert (header["format"], header["session"]) == (2, 1)
    assert [record["line_number"] for record in records] == [1, 4]


@pytest.mark.anyio
async def test_prefects_own_store_reads_a_segment(local: RunStorageBlock) -> None:
    name = await RunRecords(local, KEYS, session=1).append([outcome_of(1)])
    key = KEYS.segment(name.name)
    store = ResultStore(
        result_storage=local,
        serializer=SegmentSerializer(),
        metadata_storage=SegmentMetadata(),
        cache_result_in_memory=False,
    )

    assert (await store.aread(key)).result == await local.read_path(key)


OF_VERSIONS = Path(__file__).parent / "segments_of_versions"


@pytest.mark.anyio
@pytest.mark.parametrize(("version", "run"), [("format_1", ""), ("format_1_with_run", "run-1/0123456789ab")])
async def test_segments_of_earlier_versions_are_read(local: RunStorageBlock, version: str, run: str) -> None:
    """The files were written by those versions."""
    for path in (OF_VERSIONS / version).iterdir():
        await local.write_path(KEYS.segment(path.name), path.read_bytes())
    records = RunRecords(local, KEYS, session=3, run=run or "run-1/new", unnamed_until=0 if run else 2)
    await records.append([outcome_of(3)])

    index, damaged = await records.scan()

    awkward = {"text": "\ud800 \u2028 ü", "number": 2**70, "nul": None, "line_break": "a\nb"}
    expected = [
        outcome_of(0),
        outcome_of(1, attempt=2, output={"answer": "again"}),
        outcome_of(2, inputs=awkward, output=awkward),
        outcome_of(3),
    ]
    assert damaged == []
    assert [index.completed(n, one.input_hash) for n, one in enumerate(expected)] == [one.receipt for one in expected]
    assert [record async for _, record in records.newest()] == [one.parsed() for one in expected]


@pytest.mark.anyio
async def test_damage_of_an_earlier_version_is_found_too(local: RunStorageBlock) -> None:
    for path in (OF_VERSIONS / "format_1").iterdir():
        await local.write_path(KEYS.segment(path.name), path.read_bytes().replace(b"again", b"later"))

    index, damaged = await RunRecords(local, KEYS, session=3).scan()

    assert (set(index.lines), len(damaged)) == ({0, 1, 2}, 1)
    assert index.lines[1].receipt.status == "Failed"


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


async def spoilt_content(files: RunStorageBlock, how: str) -> None:
    """Harm the segments that a run has: `cut`, `empty`, `flip` or `gone` changes one, `all gone` each."""
    names = await files.list_names(KEYS.records)
    for name in names if how == "all gone" else names[1:2]:
        key = KEYS.segment(name)
        content = bytearray(await files.read_path(key))
        if how in ("gone", "all gone"):
            await files.delete_path(key)
            continue
        content[-3] ^= 1
        cut = {"cut": content[: len(content) // 2], "empty": b"", "flip": content}[how]
        await files.write_path(key, bytes(cut))


async def appended(files: RunStorageBlock) -> RunRecords:
    records = RunRecords(files, KEYS, session=1)
    for number in range(3):
        await records.append([outcome_of(number)])
    return records


async def numbers_of(records: RunRecords) -> list[int]:
    return [stored.receipt.line_number async for stored, _ in records.newest()]


@pytest.mark.anyio
@pytest.mark.parametrize("known", ["written", "scanned", "named"])
@pytest.mark.parametrize("how", ["cut", "empty", "flip", "gone", "all gone"])
async def test_records_that_were_there_must_be_there_at_the_end(remote: RunStorageBlock, how: str, known: str) -> None:
    records = await appended(remote)
    if known != "written":
        names = await records.segments()
        records = RunRecords(remote, KEYS, session=2)
        if known == "scanned":
            await records.scan()
        else:
            records.expect(names)
    await spoilt_content(remote, how)

    lines = "line 0" if how == "all gone" else "line 1"
    with pytest.raises(
        StorageError, match=rf"The results of {lines} are lost, and no outputs were written.*resume the run"
    ):
        await numbers_of(records)


@pytest.mark.anyio
async def test_a_file_in_place_of_the_records_is_named(local: RunStorageBlock) -> None:
    keys = RunKeys("r")
    await local.write_path(keys.records, b"mine")
    async with Reserve(local, keys):  # a run takes it first
        with pytest.raises(StorageError, match=r"records is a file, where the folder .* was. Move it away"):
            await RunRecords(local, keys, 1).scan()


@pytest.mark.anyio
async def test_a_folder_in_place_of_a_segment_is_damage(local: RunStorageBlock) -> None:
    records = RunRecords(local, keys := RunKeys("r"), 1)
    name = await records.append([outcome_of(0)])
    await local.delete_path(keys.segment(name.name))
    await local.write_path(f"{keys.segment(name.name)}/inner", b"mine")
    index, damage = await RunRecords(local, keys, 2).scan()
    assert index.lines == {}
    assert "is a folder, where a record file was" in damage[0]


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["cut", "empty", "flip"])
async def test_damage_that_no_line_counts_on_is_left_out_and_told(local: RunStorageBlock, how: str) -> None:
    await appended(local)
    await spoilt_content(local, how)
    records = RunRecords(local, KEYS, session=2)

    index, damage = await records.scan()
    assert (set(index.lines), len(damage)) == ({0, 2}, 1)
    assert await numbers_of(records) == [0, 2]
    assert records.damage == damage


class Unsteady:
    """Makes the first reads, or the first listings, of a storage wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, how: str, times: int) -> None:
        self.left = times
        really_read, really_list = RunStorageBlock.read_path, RunStorageBlock.list_names

        async def read_path(block: RunStorageBlock, path: str) -> bytes:
            content = await really_read(block, path)
            if how in ("listing", "short listing") or not self._takes():
                return content
            if how == "absent":
                raise FileNotFoundError(path)
            return {"short": content[:40], "empty": b"", "stale": b"{}"}[how]

        async def list_names(block: RunStorageBlock, folder: str) -> list[str]:
            names = await really_list(block, folder)
            if how in ("listing", "short listing") and self._takes():
                return names[:1] if how == "short listing" else []
            return names

        monkeypatch.setattr(RunStorageBlock, "read_path", read_path)
        monkeypatch.setattr(RunStorageBlock, "list_names", list_names)

    def _takes(self) -> bool:
        self.left -= 1
        return self.left >= 0


@pytest.mark.anyio
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("how", ["short", "empty", "absent", "stale", "listing", "short listing"])
async def test_a_few_wrong_answers_of_the_storage_lose_no_line(
    remote: RunStorageBlock, monkeypatch: pytest.MonkeyPatch, how: str, times: int
) -> None:
    records = await appended(remote)
    Unsteady(monkeypatch, how, times)

    assert await numbers_of(records) == [0, 1, 2]


@pytest.mark.anyio
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("how", ["short", "empty", "absent", "stale"])
async def test_a_few_wrong_reads_of_a_resume_run_no_line_again(
    remote: RunStorageBlock, monkeypatch: pytest.MonkeyPatch, how: str, times: int
) -> None:
    await appended(remote)
    Unsteady(monkeypatch, how, times)

    index, damaged = await RunRecords(remote, KEYS, session=2).scan()

    assert (set(index.lines), damaged) == ({0, 1, 2}, [])


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["local", "remote"])
async def test_damaged_segments_are_set_aside_and_kept(where: str, request: pytest.FixtureRequest) -> None:
    files: RunStorageBlock = request.getfixturevalue(where)
    await appended(files)
    name = (await files.list_names(KEYS.records))[1]
    await spoilt_content(files, "cut")
    damaged = await files.read_path(KEYS.segment(name))
    records = RunRecords(files, KEYS, session=2)
    await records.scan()

    [note] = await records.set_damaged_aside()

    assert files.location(KEYS.segment(name)) in note
    assert files.location(f"run-1/records/damaged/{name}") in note
    assert await files.read_path(f"run-1/records/damaged/{name}") == damaged
    assert name not in await files.list_names(KEYS.records)
    assert await records.set_damaged_aside() == []
    assert (await RunRecords(files, KEYS, session=3).scan())[1] == []


@pytest.mark.anyio
async def test_a_storage_that_forbids_deleting_keeps_damaged_segments_in_their_place(
    local: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forbidden(*_: Any) -> None:
        raise PermissionError("no deletes here")

    await appended(local)
    await spoilt_content(local, "cut")
    monkeypatch.setattr(RunStorageBlock, "move", forbidden)
    records = RunRecords(local, KEYS, session=2)
    await records.scan()

    [note] = await records.set_damaged_aside()

    assert "no deletes here" in note
    assert await numbers_of(records) == [0, 2]


@pytest.mark.anyio
async def test_a_segment_of_which_each_read_gives_a_part_is_not_damaged(
    remote: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines would be paid again, although the storage has them."""
    await appended(remote)
    really_read = RunStorageBlock.read_path

    async def part(block: RunStorageBlock, path: str) -> bytes:
        return (await really_read(block, path))[:60]

    monkeypatch.setattr(RunStorageBlock, "read_path", part)

    with pytest.raises(StorageError, match="gives 60 of its") as caught:
        await RunRecords(remote, KEYS, session=2).scan()
    assert not isinstance(caught.value, RecordCorruptError)


@pytest.mark.anyio
@pytest.mark.parametrize(("since", "lines"), [(0, {0, 1, 2}), (1, {0, 1, 2}), (2, set())])
async def test_segments_of_an_earlier_look_count_though_the_next_listing_lacks_them(
    remote: RunStorageBlock, monkeypatch: pytest.MonkeyPatch, since: int, lines: set[int]
) -> None:
    listed = await (await appended(remote)).segments()

    async def none(*_: Any) -> list[str]:
        return []

    monkeypatch.setattr(RunStorageBlock, "list_names", none)

    index, damage = await RunRecords(remote, KEYS, session=2, since=since).scan(listed)

    assert (set(index.lines), damage) == (lines, [])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("run", "session", "unnamed_until", "counts"),
    [
        ("run-1/own", 1, 0, True),
        ("run-2/other", 1, 0, False),
        ("run-1/other", 1, 0, False),
        ("", 1, 0, False),
        ("", 1, 1, True),
        ("", 2, 1, False),
        ("run-2/other", 1, 1, False),
    ],
    ids=[
        "its own", "of another run", "of another run of this id", "without a name", "of an older version",
        "newer than that version", "of another run, in the time of an older version",
    ],
)  # fmt: skip
async def test_only_segments_of_the_run_itself_count(
    remote: RunStorageBlock, run: str, session: int, unnamed_until: int, counts: bool
) -> None:
    await RunRecords(remote, KEYS, session, run=run).append([outcome_of(0)])
    own = RunRecords(remote, KEYS, 3, run="run-1/own", unnamed_until=unnamed_until)
    await own.append([outcome_of(1)])

    index, damage = await own.scan()

    assert set(index.lines) == ({0, 1} if counts else {1})
    assert [("belong to another run" in text) for text in damage] == ([] if counts else [True])
    assert await numbers_of(own) == sorted(index.lines)
