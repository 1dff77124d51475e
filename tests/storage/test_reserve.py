"""A disk that is full: what is paid for is kept, the run stops, and the next try pays for nothing before there is room."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from outcomes import outcome_of

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.records import RunRecords
from prefect_batchflow.storage.reserve import CHUNK_BYTES, LOCAL_CHUNKS, Reserve
from prefect_batchflow.storage.writer import RecordWriter

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_batchflow.exceptions import BatchflowException

KEYS = RunKeys("run-1")
RESERVE = CHUNK_BYTES * LOCAL_CHUNKS

pytestmark = pytest.mark.anyio


class SmallDisk:
    """A disk with room for so many bytes of segments, besides the reserved space."""

    def __init__(self, root: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size = size
        self.files = RunStorageBlock(url=str(root))
        self._reserve = root / KEYS.reserve
        self._used: dict[str, int] = {}
        really_write, really_allocate, disk = RunStorageBlock.write_path, os.posix_fallocate, self

        async def write(self: RunStorageBlock, path: str, content: bytes) -> None:
            if disk.used + len(content) > disk.size:
                raise OSError(errno.ENOSPC, "No space left on device")
            disk._used[path] = len(content)
            await really_write(self, path, content)

        def allocate(fd: int, offset: int, length: int) -> None:
            if disk.used - disk.reserved + length > disk.size:
                raise OSError(errno.ENOSPC, "No space left on device")
            really_allocate(fd, offset, length)

        monkeypatch.setattr(RunStorageBlock, "write_path", write)
        monkeypatch.setattr(os, "posix_fallocate", allocate)

    @property
    def reserved(self) -> int:
        return self._reserve.stat().st_size if self._reserve.exists() else 0

    @property
    def used(self) -> int:
        return sum(self._used.values()) + self.reserved


class Start:
    """One start of a run that writes 100 KB for each line."""

    def __init__(self, disk: SmallDisk, session: int) -> None:
        self.records = RunRecords(disk.files, KEYS, session)
        self.kept: list[int] = []
        self.failures: list[BatchflowException] = []
        self.writer = RecordWriter(
            self.records, lambda done: self.kept.extend(o.receipt.line_number for o in done), self.failures.append
        )
        self._disk = disk

    async def run(self, *groups: range) -> None:
        async with Reserve(self._disk.files, KEYS) as reserve:
            self.records.reserve = reserve
            for group in groups:
                await self.writer.keep([outcome_of(n, output={"text": "x" * 100_000}) for n in group])


async def test_results_that_are_paid_for_fit_into_the_reserved_space_and_the_run_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SmallDisk(tmp_path, RESERVE + 550_000, monkeypatch)
    start = Start(disk, 1)

    with pytest.raises(StorageError, match="The results of all lines that have ended are kept"):
        await start.run(range(5), range(5, 10), range(10, 15))

    assert start.kept == list(range(10)), "the second group is kept, and the third one never begins"
    assert len(start.failures) == 1
    assert not (tmp_path / KEYS.reserve).exists()


async def test_the_next_try_is_refused_before_a_line_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SmallDisk(tmp_path, RESERVE + 550_000, monkeypatch)
    with pytest.raises(StorageError):
        await Start(disk, 1).run(range(5), range(5, 10))

    for session in (2, 3):
        again = Start(disk, session)
        with pytest.raises(StorageError, match=r"is full: .* MB are free.*No line was run\. Free some space"):
            await again.run(range(10, 15))
        assert again.kept == []
    disk.size *= 10
    last = Start(disk, 4)
    await last.run(range(10, 15))

    assert last.kept == list(range(10, 15))
    index, damaged = await RunRecords(disk.files, KEYS, 5).scan()
    assert (sorted(index.lines), damaged) == (list(range(15)), [])


async def test_a_group_too_large_for_the_space_keeps_the_lines_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SmallDisk(tmp_path, RESERVE + 100_000, monkeypatch)
    start = Start(disk, 1)

    with pytest.raises(StorageError):
        await start.run(range(16))

    assert start.kept == list(range(11)), "as many as there is room for"


async def test_larger_segments_reserve_more_for_the_next_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SmallDisk(tmp_path, 100_000_000, monkeypatch)
    reserved: list[int] = []
    start = Start(disk, 1)
    async with Reserve(disk.files, KEYS) as reserve:
        start.records.reserve = reserve
        for lines in (1, 20, 2):
            await start.writer.keep([outcome_of(n, output={"text": "x" * 100_000}) for n in range(lines)])
            reserved.append(disk.reserved)
    async with Reserve(disk.files, KEYS):
        reserved.append(disk.reserved)

    assert reserved[0] == RESERVE
    assert reserved[1] == reserved[2] > 4_000_000
    assert reserved[3] >= reserved[2], "a later start knows the segments that there are"


async def test_a_limit_for_the_size_of_a_file_makes_smaller_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_write = RunStorageBlock.write_path

    async def write(self: RunStorageBlock, path: str, content: bytes) -> None:
        if len(content) > 250_000:
            raise OSError(errno.EFBIG, "File too large")
        await really_write(self, path, content)

    monkeypatch.setattr(RunStorageBlock, "write_path", write)
    files: Any = RunStorageBlock(url=str(tmp_path))
    kept: list[int] = []
    failures: list[BatchflowException] = []
    records = RunRecords(files, KEYS, 1)
    async with Reserve(files, KEYS) as reserve:
        records.reserve = reserve
        writer = RecordWriter(records, lambda done: kept.extend(o.receipt.line_number for o in done), failures.append)
        await writer.keep([outcome_of(n, output={"text": "x" * 100_000}) for n in range(7)])

    assert (kept, failures) == (list(range(7)), [])


async def test_nothing_is_reserved_where_the_storage_is_no_local_disk() -> None:
    files = RunStorageBlock(url="memory://reserve-test/runs")
    async with Reserve(files, KEYS) as reserve:
        assert not reserve.use()
    assert await files.list_names("run-1") == []


@pytest.mark.parametrize(("chunks", "reserved"), [(0, LOCAL_CHUNKS), (1, LOCAL_CHUNKS), (10, 10)])
async def test_a_cluster_gets_space_for_all_the_chunks_that_it_runs_at_once(
    tmp_path: Path, chunks: int, reserved: int
) -> None:
    files = RunStorageBlock(url=str(tmp_path))
    async with Reserve(files, KEYS, chunks):
        assert (tmp_path / KEYS.reserve).stat().st_size == reserved * CHUNK_BYTES


async def test_a_task_on_a_cluster_uses_what_the_run_has_reserved_on_the_disk_that_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SmallDisk(tmp_path, RESERVE, monkeypatch)
    async with Reserve(disk.files, KEYS):
        task = RunRecords(disk.files, KEYS, session=1)
        task.reserve = Reserve(disk.files, KEYS)
        await task.append([outcome_of(0, output={"text": "x" * 100_000})])
        with pytest.raises(StorageError, match="is full"):
            task.check_space()


async def test_a_task_on_a_machine_without_the_reserve_says_that_its_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SmallDisk(tmp_path, 1000, monkeypatch)
    task = RunRecords(disk.files, KEYS, session=1)
    task.reserve = Reserve(disk.files, KEYS)
    with pytest.raises(StorageError, match="No space left"):
        await task.append([outcome_of(0, output={"text": "x" * 100_000})])
