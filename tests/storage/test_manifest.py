"""What a run ran: kept, read back, and compared in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import stored_run
from outcomes import outcome_of

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import RunNotFoundError, StorageError
from prefect_batchflow.settings import RunOptions
from prefect_batchflow.storage import retries
from prefect_batchflow.storage.earlier import require_manifest
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.manifest import (
    Manifest,
    Session,
    changes,
    fingerprint,
    keep_manifest,
    look_for_manifest,
    read_manifest,
    write_manifest,
)
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=["local", "remote"])
def files(request: pytest.FixtureRequest) -> RunStorageBlock:
    block: RunStorageBlock = request.getfixturevalue(request.param)
    return block


def manifest_of(run_id: str = "run-1", **facts: Any) -> Manifest:
    telling: dict[str, Any] = {
        "flow_name": "grade",
        "total_lines": 3,
        "data": {"data": "s3://rows/day.jsonl"},
        "inputs_mapping": {"q": "${data.q}", "deep": {"ü": [1, None]}},
        "init_names": ["model"],
        "init_kwargs": {"model": "small"},
        "options": RunOptions(line_timeout_sec=3.5, retry_on="LineExecutionTimeoutError"),
        "fingerprints": {"flow": "f"},
    }
    return stored_run.manifest_of(run_id, **{**telling, **facts})


@pytest.mark.anyio
class TestKeeping:
    async def test_it_is_read_back_as_it_was(self, files: RunStorageBlock, keys: RunKeys) -> None:
        await write_manifest(files, keys, manifest_of())

        assert await read_manifest(files, keys) == manifest_of()
        assert await require_manifest(files, keys) == manifest_of()
        assert json.loads(await files.read_path(keys.manifest))["flow_name"] == "grade", "and by hand"

    async def test_no_manifest_is_none(self, files: RunStorageBlock, keys: RunKeys) -> None:
        assert await read_manifest(files, keys) is None

    async def test_a_missing_run_is_told_with_runs_that_are_there(self, files: RunStorageBlock, keys: RunKeys) -> None:
        with pytest.raises(RunNotFoundError, match="The storage has no runs") as caught:
            await require_manifest(files, keys)
        assert files.location() in str(caught.value)

        for run_id in ("monday", "tuesday"):
            await write_manifest(files, RunKeys(run_id), manifest_of(run_id))
        with pytest.raises(RunNotFoundError, match=r"no run 'run-1'.*2 runs, such as monday, tuesday.*batchflow list"):
            await require_manifest(files, keys)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "damaged"),
            (b'{"run_id": "run-1"', "damaged"),
            (b"[]", "damaged"),
            (b"\xff", "damaged"),
            (
                b'{"format": 2, "run_id": "run-1"}',
                "damaged, or another version .* wrote it: flow_name is missing; flow is missing",
            ),
        ],
        ids=["empty", "torn", "no object", "no UTF-8", "keys are missing"],
    )
    async def test_a_damaged_manifest_stops_the_run_by_place(
        self, files: RunStorageBlock, keys: RunKeys, content: bytes, said: str
    ) -> None:
        await files.write_path(keys.manifest, content)

        with pytest.raises(StorageError, match=said) as caught:
            await read_manifest(files, keys)
        assert files.location(keys.manifest) in str(caught.value)

    async def test_an_unknown_option_is_named_with_a_cure(self, files: RunStorageBlock, keys: RunKeys) -> None:
        content = json.loads(manifest_of().model_dump_json())
        content["options"]["new_limit"] = 3
        await files.write_path(keys.manifest, json.dumps(content).encode())

        with pytest.raises(StorageError) as caught:
            await read_manifest(files, keys)
        assert str(caught.value) == (
            f"The manifest at {files.location(keys.manifest)} is damaged, or another version of prefect-batchflow wrote it: "
            "options.new_limit is unknown to this version. Use the version that started the run, or start a new run. To keep "
            "its completed lines, run its flow and data again under its run id with on_change='reuse'; on_change='rerun' "
            "runs all lines again."
        )

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (
                manifest_of(
                    format=9,
                    sessions=[Session(started_at="2", prefect_flow_run_id=None, versions={"prefect-batchflow": "7.1"})],
                )
                .model_dump_json()
                .encode(),
                9,
            ),
            (b'{"format": 1, "options": {"max_failed_lines": 2}}', 1),
        ],
        ids=["newer", "older, with other options"],
    )
    async def test_a_manifest_of_another_format_is_not_read_as_this_one(
        self, files: RunStorageBlock, keys: RunKeys, content: bytes, found: int
    ) -> None:
        await files.write_path(keys.manifest, content)

        with pytest.raises(StorageError) as caught:
            await read_manifest(files, keys)
        assert str(caught.value).startswith(
            f"The manifest at {files.location(keys.manifest)} has format {found}; this version reads format 2. It was written "
        )
        assert ("prefect-batchflow 7.1" in str(caught.value)) == (found == 9)
        assert "Use the version that started the run, or start a new run. To keep its completed lines" in str(
            caught.value
        )

    @pytest.mark.parametrize(
        ("options", "limit"),
        [
            (
                {
                    "policy": {
                        "timeout_sec": 30.0, "retries": 2, "retry_delay_sec": 1.5, "backoff": 3.0, "max_retry_delay_sec": 300.0,
                        "jitter": 0.2, "retry_on": ["rate_limit", "TimeoutError"],
                    },
                    "failures": {
                        "fail_fast": False, "max_failed_lines": 4, "max_failed_percent": None, "max_same_errors": 7,
                    },
                    "batch_timeout_sec": None, "worker_count": 4, "max_concurrency": 64, "line_memory_mb": None,
                    "granularity": "auto", "task_runner": "local", "task_runner_address": "", "max_lines_count": None,
                    "bad_rows": "fail", "on_change": "refuse", "rerun": ["timed_out"],
                },
                "5",
            ),
            ({"policy": {}, "failures": {"fail_fast": True}}, "1"),
            ({"failures": {"max_failed_percent": 2.5}}, "2.5%"),
            ({"retries": 2, "max_failures": "9"}, "9"),
            ({}, ""),
        ],
        ids=["all of its options", "fail_fast", "a share", "the last of format 1", "none"],
    )  # fmt: skip
    async def test_a_manifest_of_format_1_is_read(
        self, files: RunStorageBlock, keys: RunKeys, options: dict[str, Any], limit: str
    ) -> None:
        now = json.loads(manifest_of().model_dump_json())
        gone = ("identity", "unnamed_until", "contents_since", "packages", "flow_parts", "surroundings", "image_roots")
        then = {name: value for name, value in now.items() if name not in gone}
        await files.write_path(keys.manifest, json.dumps({**then, "format": 1, "options": options}).encode())

        manifest = await read_manifest(files, keys)

        assert manifest is not None
        assert (manifest.format, manifest.run_id, manifest.options.max_failures) == (2, "run-1", limit)
        if limit == "5":
            read = manifest.options
            assert (read.line_timeout_sec, read.retries, read.retry_backoff, read.retry_jitter) == (30.0, 2, 3.0, 0.2)
            assert (read.retry_on, read.rerun, read.bad_rows, read.max_same_errors, read.line_memory_mb) == (
                "rate_limit,TimeoutError", "timed_out", "fail", 7, 0,
            )  # fmt: skip

    async def test_cannot_tell_is_never_absent(
        self, files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*_: Any) -> Any:
            raise PermissionError("403")

        for method, doing in (
            ("list_names", require_manifest(files, keys)),
            ("read_path", read_manifest(files, keys)),
            ("read_path", require_manifest(files, keys)),
            ("write_path", write_manifest(files, keys, manifest_of())),
        ):
            with monkeypatch.context() as broken:
                broken.setattr(RunStorageBlock, method, fail)
                with pytest.raises(StorageError, match=r"\(PermissionError\) 403"):
                    await doing


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "torn": lambda content: content[: len(content) // 2],
    "one character": lambda content: content.replace(b'"total_lines": 3', b'"total_lines": 8'),
    "edited by hand": lambda content: json.dumps(json.loads(content) | {"records_since": 5}).encode(),
    "nothing": lambda content: b"\0" * len(content),
    "a list": lambda content: b"[]",
}


@pytest.mark.anyio
class TestDamage:
    @pytest.fixture(autouse=True)
    def _no_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retries, "LOOK_AGAIN_SEC", (0.0, 0.0))

    @pytest.mark.parametrize("how", [*DAMAGE, "gone"])
    async def test_the_copy_of_the_newest_session_takes_its_place(
        self, files: RunStorageBlock, keys: RunKeys, how: str
    ) -> None:
        first = manifest_of()
        newest = manifest_of(sessions=[*first.sessions, *first.sessions], total_lines=3, flow_name="newer")
        await write_manifest(files, keys, first)
        await write_manifest(files, keys, newest)
        content = await files.read_path(keys.manifest)
        await (
            files.delete_path(keys.manifest) if how == "gone" else files.write_path(keys.manifest, DAMAGE[how](content))
        )

        kept = await look_for_manifest(files, keys)

        assert kept.manifest == newest
        assert files.location(keys.manifest) in kept.problem
        assert files.location(keys.kept_manifest(2)) in kept.problem
        assert await read_manifest(files, keys) == newest

        await files.write_path(keys.kept_manifest(2), b"{")
        assert await read_manifest(files, keys) == first

    @pytest.mark.parametrize("how", DAMAGE)
    async def test_without_a_copy_the_error_says_what_to_do(
        self, files: RunStorageBlock, keys: RunKeys, how: str
    ) -> None:
        await write_manifest(files, keys, manifest_of())
        content = await files.read_path(keys.manifest)
        await files.write_path(keys.manifest, DAMAGE[how](content))
        await files.delete_path(keys.kept_manifest(1))

        with pytest.raises(StorageError, match=r"is damaged, .*run its flow and data again .* on_change='reuse'"):
            await require_manifest(files, keys)

    async def test_records_without_a_manifest_are_a_lost_manifest_and_not_a_missing_run(
        self, files: RunStorageBlock, keys: RunKeys
    ) -> None:
        await RunRecords(files, keys, session=1).append([outcome_of(0)])

        with pytest.raises(StorageError, match=r"manifest.json is gone. To keep its completed lines, run its flow"):
            await require_manifest(files, keys)

    @pytest.mark.parametrize("how", ["short", "empty", "other"])
    async def test_one_wrong_read_is_looked_at_again(
        self, files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        await write_manifest(files, keys, manifest_of())
        really_read, reads = RunStorageBlock.read_path, list[str]()

        async def read_path(block: RunStorageBlock, path: str) -> bytes:
            content = await really_read(block, path)
            reads.append(path)
            return {"short": content[:99], "empty": b"", "other": b"{}"}[how] if len(reads) == 1 else content

        monkeypatch.setattr(RunStorageBlock, "read_path", read_path)

        assert await look_for_manifest(files, keys) == (manifest_of(), "")

    @pytest.mark.parametrize("which", ["manifest.json", "0001.json"])
    async def test_a_manifest_that_does_not_read_back_stops_the_run(
        self, files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch, which: str
    ) -> None:
        really_write = RunStorageBlock.write_path

        async def write_path(block: RunStorageBlock, path: str, content: bytes) -> None:
            await really_write(block, path, content[:-5] if path.endswith(which) else content)

        monkeypatch.setattr(RunStorageBlock, "write_path", write_path)

        with pytest.raises(StorageError, match=rf"{which} does not read back as it was written"):
            await write_manifest(files, keys, manifest_of())

    @pytest.mark.parametrize("how", ["gone", "torn", "as it was"])
    async def test_it_is_there_at_the_end_of_a_run(self, files: RunStorageBlock, keys: RunKeys, how: str) -> None:
        await write_manifest(files, keys, manifest_of())
        if how == "gone":
            await files.delete_path(keys.manifest)
        elif how == "torn":
            await files.write_path(keys.manifest, b"{")

        assert await keep_manifest(files, keys, manifest_of()) == (how != "as it was")
        assert await look_for_manifest(files, keys) == (manifest_of(), "")


class TestChanges:
    @pytest.mark.parametrize(
        ("before", "now", "said"),
        [
            ({"flow": "a"}, {"flow": "a"}, []),
            (
                {"flow": "a", "init": "b"},
                {"flow": "x", "init": "y"},
                ["the flow's files changed", "the init arguments changed"],
            ),
            ({"inputs_mapping": "a"}, {"inputs_mapping": "b"}, ["the inputs_mapping changed"]),
            ({"data:data": "a"}, {"data:data": "b"}, ["the data of source 'data' changed"]),
            ({}, {"data:run.outputs": "b"}, ["the data of source 'run.outputs' is new"]),
            ({"data:data": "a"}, {}, ["the data of source 'data' is gone"]),
        ],
        ids=["nothing", "flow and init", "mapping", "data", "a new source", "a lost source"],
    )
    def test_what_changed_is_said_in_words(self, before: dict[str, str], now: dict[str, str], said: list[str]) -> None:
        assert list(changes(before, now).values()) == said


class TestFingerprints:
    def test_equal_values_have_equal_fingerprints_whatever_their_order(self) -> None:
        assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
        assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
        assert fingerprint([1, 2]) != fingerprint([2, 1])

    def test_an_object_counts_by_what_it_is_and_not_by_where_it_lies(self) -> None:
        class Client:
            pass

        class Other:
            pass

        assert fingerprint({"client": Client()}) == fingerprint({"client": Client()})
        assert fingerprint({"client": Client()}) != fingerprint({"client": Other()})
