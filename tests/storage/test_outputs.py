"""What people take away from a run: exact bytes, whole or not at all."""

from __future__ import annotations

import asyncio
import json
import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from outcomes import record_of

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.definition.flow import FlowInput
from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.inputs.readers import open_source
from prefect_batchflow.lines import FAILED_COLUMNS, check, read_lines
from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.records import Status
from prefect_batchflow.storage import outputs as outputs_module
from prefect_batchflow.storage import retries
from prefect_batchflow.storage.outputs import output_row, read_result, write_outputs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from prefect_batchflow.results.records import LineRecord
    from prefect_batchflow.storage.keys import RunKeys
    from prefect_batchflow.storage.manifest import Manifest

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(params=["local", "remote"])
def files(request: pytest.FixtureRequest) -> RunStorageBlock:
    block: RunStorageBlock = request.getfixturevalue(request.param)
    return block


def result_of(completed: int, failed: int) -> BatchResult:
    return BatchResult(
        status=Status.Completed,
        total_lines=completed + failed,
        completed_lines=completed,
        failed_lines=failed,
        start_time=NOW,
        end_time=NOW,
        metrics={"score": math.nan, "text": "\ud800"},
    )


async def each(*records: LineRecord) -> AsyncIterator[LineRecord]:
    for record in records:
        yield record


async def write(
    files: RunStorageBlock, keys: RunKeys, *records: LineRecord, output_dir: Path | None = None
) -> BatchResult:
    failed = sum(record["status"] == "Failed" for record in records)
    result = result_of(len(records) - failed, failed)
    await write_outputs(files, keys, each(*records), result, output_dir)
    return result


@pytest.mark.parametrize("written", [0, 1, 2])
async def test_a_writer_that_lost_the_run_leaves_the_output_folder_to_the_next_one(
    local: RunStorageBlock, keys: RunKeys, tmp_path: Path, written: int
) -> None:
    out, looks = tmp_path / "out", iter(range(3))

    async def may_write() -> None:
        if next(looks) == written:
            raise StorageError("another process has taken the run over")

    with pytest.raises(StorageError, match="taken the run over"):
        await write_outputs(local, keys, each(record_of(0)), result_of(1, 0), out, may_write=may_write)

    there = [path.name for path in out.iterdir()] if out.exists() else []
    assert len(there) == written


async def test_the_outputs_are_these_bytes(files: RunStorageBlock, keys: RunKeys, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"

    result = await write(
        files,
        keys,
        record_of(0, output={"answer": "Grüße \u2028 \U0001f600", "score": math.nan}),
        record_of(1, error="no"),
        record_of(4, output={"broken": "\ud800", "nested": {"a": [None, True, 1.0]}}),
        output_dir=out,
    )

    expected = (
        '{"line_number": 0, "answer": "Grüße \u2028 \U0001f600", "score": null}\n'
        '{"line_number": 4, "broken": "\\\\ud800", "nested": {"a": [null, true, 1.0]}}\n'
    ).encode()
    assert await files.read_path(keys.outputs) == expected
    assert (out / "output.jsonl").read_bytes() == expected
    assert (out / "failed.jsonl").read_bytes() == await files.read_path(keys.failed)
    assert (out / "batch_result.json").read_bytes() == await files.read_path(keys.batch_result)
    read_back = BatchResult.model_validate_json(await files.read_path(keys.batch_result))
    assert read_back.metrics == {"score": None, "text": r"\ud800"}
    assert (read_back.total_lines, read_back.failed_lines) == (result.total_lines, result.failed_lines) == (3, 1)
    assert sorted(path.name for path in out.iterdir()) == ["batch_result.json", "failed.jsonl", "output.jsonl"]


async def test_every_file_is_json_for_any_parser_and_a_note_names_the_columns(
    files: RunStorageBlock, keys: RunKeys
) -> None:
    infinite = {"deep": [{"x": math.inf}], "\ud800": 1, "fine": 0.5}
    records = [record_of(0, output=infinite), record_of(1, output={"score": math.nan}), record_of(2, output=infinite)]
    lost = record_of(3, inputs={"q": -math.inf, "text": "\udc80"}, error="no")

    written = await write_outputs(files, keys, each(*records, lost), result_of(3, 1), None)

    names = keys.outputs, keys.failed, keys.batch_result
    parts = [part for name in names for part in (await files.read_path(name)).decode().splitlines() if part[0] == "{"]
    whole = (await files.read_path(keys.batch_result)).decode()
    for text in (*[part for part in parts if part != "{"], whole):
        json.loads(text, parse_constant=pytest.fail)
    rows = [json.loads(line) for line in (await files.read_path(keys.outputs)).decode().splitlines()]
    assert rows[0] == {"line_number": 0, "deep": [{"x": None}], r"\ud800": 1, "fine": 0.5}
    assert json.loads(await files.read_path(keys.failed))["q"] is None
    assert written.notes == (
        "outputs.jsonl: NaN and infinity are written as null, because JSON has no such numbers. Columns: 'deep' (2 lines), "
        "'score' (1 line). The line records keep the numbers.",
        "failed.jsonl: NaN and infinity are written as null, because JSON has no such numbers. Column: 'q' (1 line). The line "
        "records keep the numbers.",
        "batch_result.json: NaN and infinity are written as null, because JSON has no such numbers. Metrics: 'score'.",
    )


@pytest.mark.parametrize("output", [7, "text", None, [1], 1.5], ids=repr)
async def test_an_output_that_is_no_dictionary_is_wrapped(output: Any) -> None:
    record: Any = {"line_number": 3, "output": output}
    assert output_row(record) == {"line_number": 3, "output": output}


async def test_a_run_without_lines_of_a_kind_has_empty_files(files: RunStorageBlock, keys: RunKeys) -> None:
    await write(files, keys)

    assert await files.read_path(keys.outputs) == await files.read_path(keys.failed) == b""


async def test_canceled_lines_are_in_neither_file(files: RunStorageBlock, keys: RunKeys) -> None:
    await write_outputs(files, keys, each({**record_of(0), "status": "Canceled"}), result_of(0, 0), None)

    assert await files.read_path(keys.outputs) == await files.read_path(keys.failed) == b""


async def test_failed_lines_are_data_of_a_new_run(local: RunStorageBlock, keys: RunKeys, tmp_path: Path) -> None:
    awkward = {"q": "\ud800 ü \u2028 {{x}}", "deep": {"a": [1, None]}, "number": 2**60}
    await write(
        local, keys, record_of(3, inputs=awkward, error="first"), record_of(5, inputs={"q": "b"}, attempt=2, error="no")
    )

    source = open_source(tmp_path / "runs" / keys.failed, name="data")
    flow_inputs = {"q": FlowInput("q", "string")}
    rows = [json.loads(line) for line in (tmp_path / "runs" / keys.failed).read_text().splitlines()]
    lines = list(read_lines([source], flow_inputs, {}, check([source], flow_inputs, {})))

    assert [line.line_number for line in lines] == [3, 5]
    assert [line.inputs["q"] for line in lines] == [awkward["q"], "b"]
    assert [row["_attempts"] for row in rows] == [1, 2]
    assert {row["_error_class"] for row in rows} == {"user_code"}
    assert rows[0]["_error"]["message"] == "first"
    assert {name: rows[0][name] for name in awkward} == awkward
    assert rows[1].keys() - {"q"} == FAILED_COLUMNS


async def test_a_records_line_number_wins_over_an_input_of_that_name(files: RunStorageBlock, keys: RunKeys) -> None:
    await write(files, keys, record_of(3, inputs={"line_number": 99}, error="no"))

    assert json.loads(await files.read_path(keys.failed))["line_number"] == 3


async def test_what_was_there_stays_until_the_new_is_whole(
    files: RunStorageBlock, keys: RunKeys, tmp_path: Path
) -> None:
    await write(files, keys, record_of(0), output_dir=tmp_path / "out")
    before = await files.read_path(keys.outputs)

    async def breaks() -> AsyncIterator[LineRecord]:
        yield record_of(0)
        yield record_of(1)
        raise StorageError("the records cannot be read")

    with pytest.raises(StorageError, match="the records cannot be read"):
        await write_outputs(files, keys, breaks(), result_of(2, 0), tmp_path / "out")

    assert await files.read_path(keys.outputs) == before
    assert (tmp_path / "out" / "output.jsonl").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "batch_result.json",
        "failed.jsonl",
        "output.jsonl",
    ]


async def test_a_storage_that_does_not_take_them_is_named(
    files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunStorageBlock, "put_file", fail)

    with pytest.raises(StorageError, match=r"No space left.*records are kept") as caught:
        await write(files, keys, record_of(0))
    assert files.location(keys.outputs) in str(caught.value)


async def test_an_output_folder_that_cannot_be_made_is_named(
    local: RunStorageBlock, keys: RunKeys, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file is in the way")

    with pytest.raises(StorageError, match="The outputs are in the run's own folder too") as caught:
        await write(local, keys, record_of(0), output_dir=tmp_path / "out")

    assert str(tmp_path / "out") in str(caught.value)
    assert await local.read_path(keys.outputs) == b'{"line_number": 0, "n": 0}\n'


async def test_no_room_to_merge_them_is_a_storage_error(local: RunStorageBlock, keys: RunKeys) -> None:
    async def full() -> AsyncIterator[LineRecord]:
        yield record_of(0)
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"Cannot merge the outputs in .*No space left.*TMPDIR"):
        await write_outputs(local, keys, full(), result_of(1, 0), None)


OUTPUT_NAMES = ("outputs.jsonl", "failed.jsonl", "batch_result.json")


@pytest.mark.parametrize("times", [1, 2], ids=["once", "always"])
@pytest.mark.parametrize("how", ["gone", "halved", "empty", "other bytes"])
@pytest.mark.parametrize("name", OUTPUT_NAMES)
async def test_a_file_that_was_not_kept_as_written_is_written_again_or_ends_the_run(
    files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch, name: str, how: str, times: int
) -> None:
    really_put = RunStorageBlock.put_file
    puts: list[str] = []

    async def put_file(block: RunStorageBlock, path: str, source: Path) -> None:
        await really_put(block, path, source)
        puts.append(path)
        if path.endswith(name) and puts.count(path) <= times:
            content = await block.read_path(path)
            changed = {"halved": content[: len(content) // 2], "empty": b"", "other bytes": content[:-1] + b" "}
            await (block.delete_path(path) if how == "gone" else block.write_path(path, changed[how]))

    monkeypatch.setattr(RunStorageBlock, "put_file", put_file)
    monkeypatch.setattr(retries, "LOOK_AGAIN_SEC", (0.0,))
    written = write(files, keys, record_of(0), record_of(1, error="no"))

    if times == 1:
        await written
        assert len((await files.read_path(keys.outputs)).splitlines()) == 1
        assert len((await files.read_path(keys.failed)).splitlines()) == 1
    else:
        with pytest.raises(StorageError, match=rf"{name} does not read back as it was written.*resume the run"):
            await written
        if name != "batch_result.json":
            assert keys.batch_result not in puts, "a result would look like success"


@pytest.mark.parametrize("how", ["short", "absent"])
async def test_one_wrong_read_of_the_outputs_is_looked_at_again(
    files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    really_get = RunStorageBlock.get_file
    gets: list[str] = []

    async def get_file(block: RunStorageBlock, path: str, target: Path) -> None:
        gets.append(path)
        if len(gets) == 1:
            if how == "absent":
                raise FileNotFoundError(path)
            await asyncio.to_thread(target.write_bytes, b"{")
        else:
            await really_get(block, path, target)

    monkeypatch.setattr(RunStorageBlock, "get_file", get_file)
    monkeypatch.setattr(retries, "LOOK_AGAIN_SEC", (0.0,))

    await write(files, keys, record_of(0))

    assert gets[:2] == [keys.outputs, keys.outputs]


@pytest.mark.parametrize("name", ["output.jsonl", "failed.jsonl", "batch_result.json"])
async def test_the_output_folder_is_read_back_too(
    files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    def torn(folder: Path, file: str, make: Any) -> None:
        make(folder / file)
        if file == name:
            (folder / file).write_bytes((folder / file).read_bytes()[:-1])

    monkeypatch.setattr(outputs_module, "write_beside", torn)

    with pytest.raises(StorageError, match=rf"{name} does not read back as it was written"):
        await write(files, keys, record_of(0), record_of(1, error="no"), output_dir=tmp_path)


@pytest.mark.parametrize("days", [-1, 0, 1], ids=lambda days: f"started {days} days after the result")
async def test_the_result_of_an_earlier_start_is_not_the_newest_whatever_the_clock_says(
    files: RunStorageBlock, keys: RunKeys, days: int
) -> None:
    result = await write(files, keys, record_of(0))
    started_at = NOW + timedelta(days=days)
    manifest = SimpleNamespace(last_started_at=started_at)

    assert (await read_result(files, keys, cast("Manifest", manifest)) is not None) == (result.start_time == started_at)
