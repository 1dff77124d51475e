"""Care for stored runs: each fault in one is found and named, and copies, deletions and merges leave nothing half."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from outcomes import outcome_of
from stored_run import stored_run

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import InvalidOptionError, RunInUseError, StorageError
from prefect_batchflow.execution.executor import LineOutcome
from prefect_batchflow.storage import care
from prefect_batchflow.storage.care import compact_run, copy_run, delete_run, names_of, verify_run
from prefect_batchflow.storage.earlier import require_manifest
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.lease import Lease
from prefect_batchflow.storage.manifest import read_manifest, run_names
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio
KEYS = RunKeys("r")


@pytest.fixture(params=["local", "remote"])
def files(request: pytest.FixtureRequest) -> RunStorageBlock:
    block: RunStorageBlock = request.getfixturevalue(request.param)
    return block


@pytest.fixture
def target() -> RunStorageBlock:
    return RunStorageBlock(url=f"memory://{uuid.uuid4().hex}/copies")


async def contents(files: RunStorageBlock) -> dict[str, bytes]:
    return {name: await files.read_path(f"r/{name}") for name in await names_of(files, KEYS)}


def without_line(text: bytes, number: int) -> bytes:
    return b"".join(line for line in text.splitlines(keepends=True) if json.loads(line)["line_number"] != number)


FAULTS: dict[str, tuple[str, Callable[[bytes], bytes | None], str]] = {
    "a flipped digit in an output": (KEYS.outputs, lambda t: t.replace(b'"n": 2', b'"n": 3'), "line 2 is not as in"),
    "a row that is gone": (KEYS.outputs, lambda t: without_line(t, 1), "has 3 lines, but the result counts 4"),
    "half a row": (KEYS.outputs, lambda t: t[:-4], "row 4 is cut off"),
    "a row twice": (KEYS.outputs, lambda t: t + t.splitlines(keepends=True)[0], "is not sorted, or has a line twice"),
    "no outputs": (KEYS.outputs, lambda _: None, "FileNotFoundError"),
    "a failed line among the outputs": (
        KEYS.outputs, lambda t: t + b'{"line_number": 4}\n', "line 4 is among the outputs and the failed lines",
    ),
    "a failed line that is gone": (KEYS.failed, lambda _: b"", "has 0 lines, but the result counts 1"),
    "a number that is a text": (
        KEYS.outputs, lambda t: t.replace(b'"line_number": 2', b'"line_number": "2"'),
        "row 3 has the line_number '2', which is no whole number",
    ),
    "a number that is a list": (
        KEYS.outputs, lambda t: t.replace(b'"line_number": 2', b'"line_number": [2]'),
        "row 3 has the line_number [2], which is no whole number",
    ),
    "a changed input of a failed line": (
        KEYS.failed, lambda t: t.replace(b'"n": 4', b'"n": 5'), "line 4 is not as in the records",
    ),
    "a failed line twice": (KEYS.failed, lambda t: t + t, "is not sorted, or has a line twice"),
    "a row of a line that is not there": (
        KEYS.outputs, lambda t: t + b'{"line_number": 9}\n', "line 9 has no sound record",
    ),
    "a damaged result": (KEYS.batch_result, lambda t: t[:40], "The result at"),
    "a wrong count": (
        KEYS.batch_result,
        lambda t: t.replace(b'"completed_lines": 4', b'"completed_lines": 3').replace(b'd_lines": 1', b'd_lines": 2'),
        "has 4 lines, but the result counts 3",
    ),
}  # fmt: skip


class TestVerify:
    async def test_a_whole_run(self, files: RunStorageBlock) -> None:
        found = await verify_run(files, await stored_run(files))

        assert (found.wrong, found.notes, found.is_finished) == ([], [], True)
        assert (found.completed, found.failed, found.not_started, found.segments) == (4, 1, 0, 3)

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_each_fault_is_named_with_what_to_do(self, files: RunStorageBlock, fault: str) -> None:
        manifest = await stored_run(files)
        key, damage, said = FAULTS[fault]
        damaged = damage(await files.read_path(key))
        await files.delete_path(key)
        if damaged is not None:
            await files.write_path(key, damaged)

        found = await verify_run(files, manifest)

        assert said in " ".join(found.wrong)
        assert all("esume" in text for text in found.wrong)

    async def test_damaged_and_lost_segments(self, files: RunStorageBlock) -> None:
        manifest = await stored_run(files)
        first, second, _ = await RunRecords(files, KEYS, session=0).segments()
        await files.write_path(KEYS.segment(first.name), (await files.read_path(KEYS.segment(first.name)))[:-9])
        await files.delete_path(KEYS.segment(second.name))

        found = await verify_run(files, manifest)

        assert first.name in found.wrong[0]
        assert (
            "lines 0, 1, 2, 3 have no sound record. `batchflow resume r` runs lines without a record" in found.wrong[1]
        )
        assert (found.completed, found.failed, found.not_started) == (0, 1, 4)

    async def test_other_files_among_the_records(self, files: RunStorageBlock) -> None:
        manifest = await stored_run(files)
        await files.write_path("r/records/notes.txt", b"mine")
        found = await verify_run(files, manifest)
        assert (found.completed, len(found.wrong)) == (4, 1)
        assert (
            f"{files.location(KEYS.records)} has files that are not record files: 'notes.txt'. Move it"
            in found.wrong[0]
        )

    @pytest.mark.parametrize("key", [KEYS.outputs, KEYS.failed])
    async def test_lost_outputs_take_no_record_from_the_counts(self, files: RunStorageBlock, key: str) -> None:
        manifest = await stored_run(files)
        await files.write_path(key, b"")
        found = await verify_run(files, manifest)
        assert (found.completed, found.failed, found.not_started, found.notes) == (4, 1, 0, [])
        assert len(found.wrong) == 1

    async def test_a_run_that_has_not_finished_is_no_fault(self, files: RunStorageBlock) -> None:
        manifest = await stored_run(files)
        for key in (KEYS.batch_result, KEYS.outputs, KEYS.failed):
            await files.delete_path(key)
        found = await verify_run(files, manifest)
        assert (found.wrong, found.is_finished, found.completed) == ([], False, 4)

    async def test_records_of_a_start_that_the_manifest_does_not_know(self, files: RunStorageBlock) -> None:
        manifest = await stored_run(files)
        await RunRecords(files, KEYS, session=2).append([outcome_of(4)])
        assert (
            "was written by start 2 of the run, but the manifest knows 1 start."
            in (await verify_run(files, manifest)).wrong[0]
        )

    @pytest.mark.parametrize(
        "other",
        [
            outcome_of(3),
            outcome_of(1, inputs={"n": "other"}),
            outcome_of(1, attempt=2),
            outcome_of(1, error="no"),
        ],
        ids=["of another line", "of other inputs", "of another attempt", "of a failure"],
    )
    async def test_a_record_that_is_not_the_one_of_its_header_is_named(
        self, files: RunStorageBlock, other: LineOutcome
    ) -> None:
        """The checksum is right: whatever wrote the file mixed up two lines."""
        manifest = await stored_run(files)
        own = outcome_of(1)
        mixed = LineOutcome(own.receipt, other.record, own.input_hash)
        name = await RunRecords(files, KEYS, session=1).append([mixed])

        found = (await verify_run(files, manifest)).wrong

        assert [text for text in found if name.name in text and text.startswith("Line 1: its record")] == found


async def test_a_run_that_is_running_is_left_alone(files: RunStorageBlock, target: RunStorageBlock) -> None:
    manifest = await stored_run(files)
    async with Lease(files, KEYS):
        for what, work in (
            ("verified", verify_run(files, manifest)),
            ("copied", copy_run(files, manifest, target)),
            ("deleted", delete_run(files, "r")),
            ("compacted", compact_run(files, manifest)),
        ):
            with pytest.raises(RunInUseError, match=f"The run 'r' in .* is running, so it cannot be {what} now"):
                await work
    assert await run_names(target) == []
    assert (await verify_run(files, manifest)).wrong == []


class TestCopy:
    async def test_it_is_the_same_run(self, files: RunStorageBlock, target: RunStorageBlock) -> None:
        manifest = await stored_run(files)

        assert await copy_run(files, manifest, target) == len(await contents(target))

        assert await require_manifest(target, KEYS) == manifest
        assert (await verify_run(target, manifest)).wrong == []
        copied = await contents(target)
        assert copied.items() <= (await contents(files)).items()
        assert not any(name.startswith(("leases", "lock")) for name in copied)

    @pytest.mark.parametrize("lost", ["records/", "outputs.jsonl", "manifest.json"])
    async def test_a_file_that_does_not_read_back_is_an_error_by_name(
        self, files: RunStorageBlock, target: RunStorageBlock, monkeypatch: pytest.MonkeyPatch, lost: str
    ) -> None:
        manifest = await stored_run(files)
        put = RunStorageBlock.put_file

        async def torn(self: RunStorageBlock, path: str, source: Path) -> None:
            if lost in path:
                source = shutil.copyfile(source, source.with_name("torn"))
                os.truncate(source, 9)
            await put(self, path, source)

        monkeypatch.setattr(RunStorageBlock, "put_file", torn)
        with pytest.raises(
            StorageError, match=rf"The copy at memory://\S+/{lost}\S* does not read back.*Copy the run again"
        ):
            await copy_run(files, manifest, target)

    async def test_a_place_that_has_such_a_run_is_refused(
        self, files: RunStorageBlock, target: RunStorageBlock
    ) -> None:
        manifest = await stored_run(files)
        await stored_run(target)
        with pytest.raises(InvalidOptionError, match="batchflow delete r --storage memory://"):
            await copy_run(files, manifest, target)
        with pytest.raises(InvalidOptionError, match=r"is in .* already"):
            await copy_run(files, manifest, files)

    @pytest.mark.parametrize("place", ["link", "up", "inside"])
    async def test_a_place_that_is_the_run_itself_is_refused(
        self, local: RunStorageBlock, tmp_path: Path, place: str
    ) -> None:
        manifest = await stored_run(local)
        before = await contents(local)
        (tmp_path / "link").symlink_to(local.location())
        places = {"link": f"{tmp_path}/link", "up": f"{local.location()}/../runs", "inside": local.location("r")}
        with pytest.raises(InvalidOptionError, match=r"is in .* already|is in the folder of the run itself"):
            await copy_run(local, manifest, RunStorageBlock(url=places[place]))
        assert await contents(local) == before

    async def test_a_copy_that_was_cut_short_is_no_run_and_can_be_finished(
        self, files: RunStorageBlock, target: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = await stored_run(files)
        put, left = RunStorageBlock.put_file, [2]

        async def fails(self: RunStorageBlock, path: str, source: object) -> None:
            if not left[0]:
                raise OSError("no space left")
            left[0] -= 1
            await put(self, path, source)  # type: ignore[arg-type]

        with monkeypatch.context() as full:
            full.setattr(RunStorageBlock, "put_file", fails)
            with pytest.raises(StorageError, match="no space left"):
                await copy_run(files, manifest, target)
        assert await read_manifest(target, KEYS) is None
        await target.write_path("r/records/.writing-0123456789abcdef", b"of a process that was killed")
        await copy_run(files, manifest, target)
        assert (await verify_run(target, manifest)).wrong == []


async def test_folders_of_somebodys_own_are_copied_and_deleted(
    local: RunStorageBlock, target: RunStorageBlock, tmp_path: Path
) -> None:
    manifest = await stored_run(local)
    for name in ("mine/deep/notes.txt", "records/old/notes.txt"):
        await local.write_path(f"r/{name}", b"mine")
    assert await copy_run(local, manifest, target) == len(await names_of(local, KEYS))
    assert await target.read_path("r/mine/deep/notes.txt") == b"mine"
    await delete_run(local, "r")
    assert not (tmp_path / "runs" / "r").exists()


async def test_a_deleted_run_leaves_nothing(files: RunStorageBlock) -> None:
    await stored_run(files)
    await stored_run(files, "other")
    await files.write_path(KEYS.image("a.png"), b"x")

    await delete_run(files, "r")

    assert await run_names(files) == ["other"]
    assert await names_of(files, KEYS) == []


async def test_a_run_that_begins_while_its_older_one_is_deleted_keeps_its_files(
    files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stored_run(files)
    later = Lease(files, KEYS)

    class FollowedLease(Lease):
        async def __aexit__(self, *exc_info: Any) -> None:
            await super().__aexit__(*exc_info)
            await later.__aenter__()
            await stored_run(files)

    monkeypatch.setattr(care, "Lease", FollowedLease)
    try:
        with pytest.raises(RunInUseError, match="is running, so it cannot be deleted now"):
            await delete_run(files, "r")
        assert await run_names(files) == ["r"]
    finally:
        await later.__aexit__(None, None, None)
    assert (await verify_run(files, await require_manifest(files, KEYS))).wrong == []


class TestCompact:
    async def test_all_records_stay(self, files: RunStorageBlock) -> None:
        manifest = await stored_run(files, lines=9)
        again = manifest.model_copy(update={"sessions": manifest.sessions * 2})
        for number in (3, 8):
            await RunRecords(files, KEYS, session=2).append([outcome_of(number, attempt=2, output={"again": number})])
        before = [(s, r) async for s, r in RunRecords(files, KEYS, session=0).newest()]

        assert await compact_run(files, again) == (7, 2)

        assert [(s, r) async for s, r in RunRecords(files, KEYS, session=0).newest()] == before
        names = await RunRecords(files, KEYS, session=0).segments()
        assert [(name.first, name.last, name.session) for name in names] == [(0, 8, 1), (3, 8, 2)]
        assert await compact_run(files, again) == (2, 2)

    async def test_merged_segments_keep_the_name_of_the_run(self, files: RunStorageBlock) -> None:
        manifest = (await stored_run(files)).model_copy(update={"identity": "r/0123456789ab"})
        for name in await RunRecords(files, KEYS, session=0).segments():
            await files.delete_path(KEYS.segment(name.name))
        own = RunRecords(files, KEYS, 1, run=manifest.identity)
        for number in range(3):
            await own.append([outcome_of(number)])

        assert await compact_run(files, manifest) == (3, 1)

        index, damage = await RunRecords(files, KEYS, 2, run=manifest.identity).scan()
        assert (set(index.lines), damage) == ({0, 1, 2}, [])

    async def test_merged_segments_have_a_bounded_size(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(care, "SEGMENT_BYTES", 1_500)
        manifest = await stored_run(files, lines=20)
        assert (await compact_run(files, manifest))[1] > 2
        assert (await verify_run(files, manifest)).wrong == []

    async def test_a_merge_that_is_cut_short_loses_nothing(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = await stored_run(files)

        async def fails(*_: object) -> None:
            raise OSError("gone")

        with monkeypatch.context() as broken:
            broken.setattr(RunStorageBlock, "delete_path", fails)
            with pytest.raises(StorageError, match="gone"):
                await compact_run(files, manifest)
        assert (await verify_run(files, manifest)).wrong == []

    @pytest.mark.parametrize("how", ["refused", "lost"])
    async def test_a_merge_that_cannot_be_written_deletes_nothing(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        manifest = await stored_run(files)
        before = await files.list_names(KEYS.records)
        write = RunStorageBlock.write_path

        async def fails(self: RunStorageBlock, path: str, content: bytes) -> None:
            if "/records/" not in path:
                await write(self, path, content)
            elif how == "refused":
                raise OSError("no space left")

        with monkeypatch.context() as full:
            full.setattr(RunStorageBlock, "write_path", fails)
            with pytest.raises(StorageError):
                await compact_run(files, manifest)
        assert await files.list_names(KEYS.records) == before

    async def test_damage_is_not_merged_away(self, files: RunStorageBlock) -> None:
        manifest = await stored_run(files)
        name = (await RunRecords(files, KEYS, session=0).segments())[0]
        await files.write_path(KEYS.segment(name.name), b"{}")
        with pytest.raises(StorageError, match=rf"{name.name} .* Resume the run, which sets the file aside"):
            await compact_run(files, manifest)
        assert len(await RunRecords(files, KEYS, session=0).segments()) == 3
