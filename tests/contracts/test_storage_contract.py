"""What the records of a run promise, on every kind of file system."""

from __future__ import annotations

import base64
import json
import pickle
import random
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from outcomes import outcome_of, record_of

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import RecordCorruptError, StorageError
from prefect_batchflow.lines import input_hash
from prefect_batchflow.storage import retries, segments
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from prefect_batchflow.results.records import Receipt

KEYS = RunKeys("run-1")
RECORDS = KEYS.records


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "LOOK_AGAIN_SEC", (0.0, 0.0, 0.0))


def records_of(files: RunStorageBlock, session: int = 1) -> RunRecords:
    return RunRecords(files, KEYS, session)


async def newest(files: RunStorageBlock) -> list[tuple[Receipt, Any]]:
    return [(stored.receipt, record) async for stored, record in records_of(files).newest()]


async def only_segment(files: RunStorageBlock) -> str:
    [name] = await files.list_names(RECORDS)
    return f"{RECORDS}/{name}"


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.anyio
class TestStorageContract:
    @pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.s3)])
    def files(self, request: pytest.FixtureRequest, tmp_path: Path) -> RunStorageBlock:
        if request.param == "file":
            return RunStorageBlock(url=(tmp_path / "runs").as_uri())
        if request.param == "s3":
            return RunStorageBlock(url=f"{request.getfixturevalue('bucket').url}/runs")
        return RunStorageBlock(url=f"memory://{uuid.uuid4().hex}/runs")

    async def test_a_run_without_records_has_no_lines(self, files: RunStorageBlock) -> None:
        index, damaged = await records_of(files).scan()

        assert (dict(index.lines), damaged) == ({}, [])
        assert await newest(files) == []

    async def test_what_was_appended_is_read_back(self, files: RunStorageBlock) -> None:
        awkward = {"text": "\ud800 \x00 \u2028 ü", "number": 2**70, "__class__": "x", "__exc_type__": "y", "nul": None}
        outcomes = [outcome_of(2, inputs=awkward, output=awkward), outcome_of(0, error="\udfff no"), outcome_of(1)]

        await records_of(files).append(outcomes)

        index, damaged = await records_of(files).scan()
        assert damaged == []
        assert {number: stored.receipt for number, stored in index.lines.items()} == {
            outcome.receipt.line_number: outcome.receipt for outcome in outcomes
        }
        assert [record for _, record in await newest(files)] == [
            record_of(0, error="\udfff no"),
            record_of(1),
            record_of(2, inputs=awkward, output=awkward),
        ]

    async def test_nan_and_infinity_stay(self, files: RunStorageBlock) -> None:
        await records_of(files).append([outcome_of(0, output={"nan": float("nan"), "inf": float("-inf")})])

        [(_, record)] = await newest(files)
        assert repr(record["output"]) == "{'nan': nan, 'inf': -inf}"

    async def test_a_line_is_done_only_with_the_inputs_it_had(self, files: RunStorageBlock) -> None:
        await records_of(files).append([outcome_of(0, inputs={"n": 1}), outcome_of(1, inputs={"n": 2}, error="no")])

        index, _ = await records_of(files).scan()

        assert index.completed(0, input_hash({"n": 1})) is not None
        assert index.completed(0, input_hash({"n": 2})) is None
        assert index.completed(1, input_hash({"n": 2})) is None, "a failed line is not done"
        assert index.completed(2, input_hash({"n": 1})) is None

    @pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]], ids=str)
    async def test_the_newest_session_then_the_newest_attempt_wins(
        self, files: RunStorageBlock, order: list[int]
    ) -> None:
        written = [
            (1, outcome_of(7, attempt=1, error="first")),
            (1, outcome_of(7, attempt=3, output={"which": "third"})),
            (2, outcome_of(7, attempt=1, error="again")),
            (2, outcome_of(7, attempt=2, output={"which": "newest"})),
        ]
        for at in order:
            session, outcome = written[at]
            await records_of(files, session).append([outcome])

        index, _ = await records_of(files).scan()
        [(receipt, record)] = await newest(files)

        assert (index.lines[7].session, index.lines[7].receipt.attempt) == (2, 2)
        assert receipt == index.lines[7].receipt
        assert record["output"] == {"which": "newest"}

    async def test_several_attempts_of_a_line_fit_into_one_segment(self, files: RunStorageBlock) -> None:
        await records_of(files).append([outcome_of(5), outcome_of(4, attempt=2), outcome_of(4, attempt=1, error="no")])

        assert [(record["line_number"], record["status"]) for _, record in await newest(files)] == [
            (4, "Completed"),
            (5, "Completed"),
        ]

    async def test_lines_come_sorted_out_of_segments_that_overlap(self, files: RunStorageBlock) -> None:
        shuffled = random.Random(4)
        numbers = list(range(120))
        shuffled.shuffle(numbers)
        numbers += shuffled.sample(numbers, 40)
        for session, at in enumerate(range(0, len(numbers), 16), start=1):
            await records_of(files, session).append([outcome_of(number) for number in set(numbers[at : at + 16])])

        found = await newest(files)

        assert [receipt.line_number for receipt, _ in found] == list(range(120))
        assert [record["line_number"] for _, record in found] == list(range(120))

    async def test_only_segments_that_overlap_are_held(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for first in range(0, 100, 10):
            await records_of(files).append([outcome_of(number) for number in range(first, first + 12)])
        records, read = records_of(files), []
        really_read = records.read

        async def counted(name: Any) -> Any:
            read.append(name)
            return await really_read(name)

        monkeypatch.setattr(records, "read", counted)
        async for stored, _ in records.newest():
            line_number = stored.receipt.line_number
            held = [name for name in read if name.last >= line_number]
            assert len(held) <= 3, f"at line {line_number} these are held: {held}"

        assert len(read) == 10

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda content: content[:-20],
            lambda content: content[: len(content) // 2],
            lambda content: b"",
            lambda content: content.replace(b'"n":4', b'"n":5'),
            lambda content: content.replace(b"[4,", b"[5,"),
            lambda content: b"\xff" + content,
            lambda content: b"[]",
            lambda content: json.dumps({"metadata": {}, "result": content.decode()}).encode(),
            lambda content: b"{}\n" + content.partition(b"\n")[2],
            lambda content: content.partition(b"\n")[2],
            lambda content: b"[" * 100_000,
        ],
        ids=[
            "tail lost",
            "half lost",
            "empty",
            "a record's digit",
            "a receipt's digit",
            "no UTF-8",
            "other JSON",
            "in an envelope",
            "an empty header",
            "no header",
            "deep nesting",
        ],
    )
    async def test_a_damaged_segment_is_told_and_its_lines_are_not_done(
        self, files: RunStorageBlock, spoil: Any
    ) -> None:
        await records_of(files).append([outcome_of(4), outcome_of(6)])
        damaged_key = await only_segment(files)
        await records_of(files).append([outcome_of(8)])
        content = await files.read_path(damaged_key)
        assert spoil(content) != content
        await files.write_path(damaged_key, spoil(content))

        index, damaged = await records_of(files).scan()

        assert set(index.lines) == {8}
        assert len(damaged) == 1
        assert files.location(damaged_key) in damaged[0]
        assert [receipt.line_number for receipt, _ in await newest(files)] == [8]

    @pytest.mark.parametrize("suffix", [".json", ".jsonl"])
    async def test_a_planted_pickle_is_damage_and_never_runs(
        self, files: RunStorageBlock, tmp_path: Path, suffix: str
    ) -> None:
        await records_of(files).append([outcome_of(0)])
        key = await only_segment(files)
        if suffix == ".json":
            await files.delete_path(key)
            key = key.removesuffix("l")
        canary = tmp_path / "ran"
        envelope = {
            "metadata": {"serializer": {"type": "pickle", "picklelib": "cloudpickle"}},
            "result": base64.encodebytes(pickle.dumps(Canary(canary))).decode(),
        }
        await files.write_path(key, json.dumps(envelope).encode())

        index, damaged = await records_of(files).scan()

        assert index.lines == {}
        assert ("'pickle'" if suffix == ".json" else "not a valid record file") in damaged[0]
        assert await newest(files) == []
        assert not canary.exists()

    async def test_a_segment_under_another_name_is_damage(self, files: RunStorageBlock) -> None:
        await records_of(files, session=1).append([outcome_of(0)])
        content = await files.read_path(await only_segment(files))
        await files.write_path(f"{RECORDS}/000000000000-000000000000-0002-0123456789ab.jsonl", content)

        index, damaged = await records_of(files).scan()

        assert index.lines[0].session == 1
        assert "renamed" in damaged[0]

    async def test_whole_records_of_another_version_stop_the_run(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as newer:
            newer.setattr(segments, "FORMAT", 3)
            await records_of(files).append([outcome_of(0)])

        with pytest.raises(StorageError, match="format 3; this version reads format 2") as caught:
            await records_of(files).scan()
        assert not isinstance(caught.value, RecordCorruptError)

    async def test_a_write_that_was_killed_is_no_segment(self, files: RunStorageBlock) -> None:
        await records_of(files).append([outcome_of(0)])
        await files.write_path(f"{RECORDS}/.writing-x1y2", b'{"metadata": {"ser')

        index, damaged = await records_of(files).scan()

        assert (set(index.lines), damaged) == ({0}, [])

    async def test_a_foreign_file_among_the_records_is_named(self, files: RunStorageBlock) -> None:
        await files.write_path(f"{RECORDS}/notes.txt", b"mine")

        with pytest.raises(RecordCorruptError, match=r"'notes\.txt'.*Move it away"):
            await records_of(files).scan()

    @pytest.mark.parametrize(
        "error",
        [
            PermissionError("403"),
            TimeoutError("no answer"),
            OSError(5, "Input/output error"),
            FileNotFoundError("gone"),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_cannot_tell_never_becomes_absent(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch, error: OSError
    ) -> None:
        await records_of(files).append([outcome_of(0)])
        key = await only_segment(files)

        async def fail(self: RunStorageBlock, path: str) -> Any:
            raise error

        with monkeypatch.context() as broken:
            broken.setattr(RunStorageBlock, "read_path", fail)
            for reading in (records_of(files).scan(), newest(files)):
                with pytest.raises(StorageError, match="Cannot read the run storage") as caught:
                    await reading
                assert files.location(key) in str(caught.value)
                assert type(error).__name__ in str(caught.value)
        if not isinstance(error, FileNotFoundError):
            with monkeypatch.context() as broken:
                broken.setattr(RunStorageBlock, "list_names", fail)
                with pytest.raises(StorageError, match="Cannot list the run storage"):
                    await records_of(files).scan()

    async def test_a_failed_write_is_an_error_that_names_the_place(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(self: RunStorageBlock, path: str, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(RunStorageBlock, "write_path", fail)

        with pytest.raises(
            StorageError, match=r"No space left on device.*results of further lines could not be kept"
        ) as caught:
            await records_of(files).append([outcome_of(0)])
        assert files.location(RECORDS) in str(caught.value)
        assert caught.value.key.startswith(RECORDS)  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        "lose",
        [lambda content: content[:100], lambda content: content.replace(b'\\"n\\":3', b'\\"n\\":4')],
        ids=["torn", "other content"],
    )
    async def test_what_reads_back_otherwise_is_not_done(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch, lose: Any
    ) -> None:
        really_write = RunStorageBlock.write_path

        async def write(self: RunStorageBlock, path: str, content: bytes) -> None:
            assert lose(content) != content
            await really_write(self, path, lose(content))

        monkeypatch.setattr(RunStorageBlock, "write_path", write)

        with pytest.raises(StorageError) as caught:
            await records_of(files).append([outcome_of(3)])
        assert files.location(RECORDS) in str(caught.value)

    async def test_a_write_that_never_arrived_is_not_done(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def lose(self: RunStorageBlock, path: str, content: bytes) -> None:
            pass

        monkeypatch.setattr(RunStorageBlock, "write_path", lose)

        with pytest.raises(StorageError, match="FileNotFoundError"):
            await records_of(files).append([outcome_of(3)])

    async def test_nothing_is_overwritten(self, files: RunStorageBlock) -> None:
        for _ in range(3):
            await records_of(files).append([outcome_of(3)])

        assert len(await files.list_names(RECORDS)) == 3

    async def test_the_documented_way_to_read_it_by_hand_works(self, files: RunStorageBlock) -> None:
        await records_of(files).append([outcome_of(3), outcome_of(4)])

        text = (await files.read_path(await only_segment(files))).decode()

        header, *lines = map(json.loads, text.splitlines())
        assert lines == [record_of(3), record_of(4)]
        assert "line_number" not in header
        assert header["bytes"] == len(text.partition("\n")[2].encode())
