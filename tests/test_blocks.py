"""The block under a run storage: whole writes, safe keys, secrets kept, and what Prefect asks of a block."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec.core
import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite

from prefect_batchflow import blocks
from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.storage.private_files import ACCESS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "s3cr3t-canary"


@pytest.fixture
def anyio_backend() -> str:
    """What async tests here run on, by anyio's own plugin."""
    return "asyncio"


@pytest.fixture(params=["path", "file", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> RunStorageBlock:
    folder = tmp_path / "runs"
    urls = {"path": str(folder), "file": folder.as_uri(), "memory": f"memory://{uuid.uuid4().hex}/runs"}
    return RunStorageBlock(url=urls[request.param])


class TestStandard(BlockStandardTestSuite):
    @pytest.fixture
    def block(self) -> type[Block]:
        return RunStorageBlock

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        assert block._logo_url is None, "with one, the UI would ask another host for it, as the suite's own test does"


class TestUrl:
    def test_a_path_is_made_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))

        assert RunStorageBlock(url="runs").url == str(tmp_path / "runs")
        assert RunStorageBlock(url="~/runs").location("r") == str(tmp_path / "home" / "runs" / "r")

    @pytest.mark.parametrize(
        ("url", "location"),
        [
            ("memory://", "memory:///run-1/x"),
            ("memory://a/", "memory://a/run-1/x"),
            ("memory://a/b//", "memory://a/b/run-1/x"),
            ("file:///", "/run-1/x"),
        ],
    )
    def test_a_slash_at_its_end_says_nothing(self, url: str, location: str) -> None:
        files = RunStorageBlock(url=url)

        assert files.location("run-1/x") == location
        assert (files.local_path("x") is not None) is url.startswith("file")

    def test_a_place_is_told_as_people_write_it(self, tmp_path: Path) -> None:
        assert RunStorageBlock(url=tmp_path.as_uri()).location("r/x") == f"{tmp_path}/r/x"
        assert RunStorageBlock(url=tmp_path.as_uri()).location() == str(tmp_path)
        assert RunStorageBlock(url="memory://bucket").location("r/x") == "memory://bucket/r/x"
        assert RunStorageBlock(url="memory://bucket").location() == "memory://bucket"

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("", "is not a single folder"),
            ("simplecache::s3://bucket", "chained URLs"),
            ("zip://x::file:///tmp/a.zip", "chained URLs"),
            ("nosuch://bucket", "cannot be opened"),
        ],
    )
    def test_what_is_no_single_folder_is_refused(self, url: str, said: str) -> None:
        with pytest.raises(InvalidOptionError, match=said) as caught:
            RunStorageBlock(url=url)
        assert repr(url) in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "extra"),
        [
            ("s3://b/runs", "s3"),
            ("s3a://b/runs", "s3"),
            ("gs://b/runs", "gcs"),
            ("az://b/runs", "azure"),
            ("abfs://b", "azure"),
            ("sftp://host/runs", "sftp"),
            ("ssh://host/runs", "sftp"),
        ],
    )
    def test_a_missing_package_is_told_with_the_line_that_installs_it(
        self, url: str, extra: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(*_: Any, **__: Any) -> Any:
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
        monkeypatch.setattr(fsspec, "get_filesystem_class", missing)

        with pytest.raises(InvalidOptionError, match=re.escape(f"pip install 'prefect-batchflow[{extra}]'")):
            RunStorageBlock(url=url)

    def test_a_package_that_no_extra_brings_is_named_as_fsspec_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*_: Any, **__: Any) -> Any:
            raise ImportError("SMBFileSystem requires smbprotocol")

        monkeypatch.setattr(fsspec.core, "url_to_fs", missing)

        with pytest.raises(
            InvalidOptionError, match="Install the package that fsspec names: SMBFileSystem requires smbprotocol"
        ):
            RunStorageBlock(url="smb://x")


class TestSecrets:
    def test_options_are_in_neither_repr_nor_json_and_reach_the_file_system(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: dict[str, Any] = {}
        really_open = fsspec.core.url_to_fs

        def noted(url: str, **options: Any) -> Any:
            given.update(options)
            return really_open(url)

        monkeypatch.setattr(fsspec.core, "url_to_fs", noted)
        block = RunStorageBlock(url="memory://x", storage_options={"key": CANARY})  # type: ignore[dict-item]

        assert given == {"key": CANARY}
        for shown in (repr(block), str(block), block.model_dump_json(), str(block.model_dump())):
            assert CANARY not in shown

    @pytest.mark.anyio
    @pytest.mark.usefixtures("prefect_server")
    async def test_a_saved_block_is_loaded_ready_to_use(self, tmp_path: Path) -> None:
        saved = RunStorageBlock(url=str(tmp_path), storage_options={"auto_mkdir": CANARY})  # type: ignore[dict-item]
        await saved.asave("nightly", overwrite=True)

        loaded: Any = await Block.aload("batchflow-run-storage/nightly")

        assert isinstance(loaded, RunStorageBlock)
        assert loaded.storage_options["auto_mkdir"].get_secret_value() == CANARY
        await loaded.write_path("run-1/x", b"content")
        assert (tmp_path / "run-1" / "x").read_bytes() == b"content"


@pytest.mark.anyio
class TestKeys:
    async def test_bytes_are_kept_as_they_are(self, files: RunStorageBlock) -> None:
        content = bytes(range(256)) * 1000

        await files.write_path("run-1/records/a.json", b"before")
        await files.write_path("run-1/records/a.json", content)

        assert await files.read_path("run-1/records/a.json") == content

    async def test_an_absent_key_is_told_apart_from_an_error(self, files: RunStorageBlock) -> None:
        await files.write_path("run-1/x", b"")
        assert await files.read_path("run-1/x") == b""
        for absent in ("run-1/y", "run-2/x"):
            with pytest.raises(FileNotFoundError):
                await files.read_path(absent)

    async def test_names_are_listed_sorted_and_one_level_deep(self, files: RunStorageBlock) -> None:
        for key in ("b/2", "b/1", "a/deep/er", "b/3/x"):
            await files.write_path(key, b"x")

        assert await files.list_names("") == ["a", "b"]
        assert await files.list_names("b") == ["1", "2", "3"]
        assert await files.list_names("nowhere") == []

    async def test_a_listing_is_never_a_remembered_one(self, files: RunStorageBlock) -> None:
        await files.write_path("b/1", b"x")
        assert await files.list_names("b") == ["1"]

        await RunStorageBlock(url=files.url).write_path("b/2", b"x")

        assert await files.list_names("b") == ["1", "2"]

    async def test_a_file_is_copied_whole(self, files: RunStorageBlock, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"x" * 3_000_000)

        await files.put_file("run-1/outputs.jsonl", source)

        assert await files.read_path("run-1/outputs.jsonl") == source.read_bytes()

    @pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a/.."])
    async def test_no_key_leads_out_of_the_storage(self, files: RunStorageBlock, key: str, tmp_path: Path) -> None:
        for use in (
            files.read_path(key),
            files.write_path(key, b"x"),
            files.put_file(key, tmp_path / "s"),
            files.list_names(key),
        ):
            with pytest.raises(ValueError, match="leads out of the storage"):
                await use
        with pytest.raises(ValueError, match="leads out of the storage"):
            RunStorageBlock(url=str(tmp_path)).local_path(key)

    async def test_only_local_keys_are_files(self, tmp_path: Path) -> None:
        path = RunStorageBlock(url=str(tmp_path / "runs")).local_path("run-1/lock")

        assert path == tmp_path / "runs" / "run-1" / "lock"
        assert path.parent.is_dir()
        assert RunStorageBlock(url="memory://x").local_path("run-1/lock") is None


@pytest.mark.anyio
class TestWholeWrites:
    @pytest.fixture
    def local(self, tmp_path: Path) -> RunStorageBlock:
        return RunStorageBlock(url=str(tmp_path / "runs"))

    @staticmethod
    def writes(local: RunStorageBlock, tmp_path: Path) -> list[Callable[[], Any]]:
        (tmp_path / "source").write_bytes(b"after")
        return [
            lambda: local.write_path("run-1/x", b"after"),
            lambda: local.put_file("run-1/x", tmp_path / "source"),
        ]

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    async def test_an_interrupted_write_leaves_what_was_there_and_no_trace(
        self, local: RunStorageBlock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        await local.write_path("run-1/x", b"before")
        seen: list[list[str]] = []

        def fail(*_: Any) -> None:
            seen.append(sorted(path.name[:9] for path in (tmp_path / "runs" / "run-1").iterdir()))
            raise OSError(28, "No space left on device")

        for write in self.writes(local, tmp_path):
            with monkeypatch.context() as full:
                full.setattr(os if step == "fsync" else Path, step, fail)
                with pytest.raises(OSError, match="No space left"):
                    await write()
            assert await local.read_path("run-1/x") == b"before"
            assert await local.list_names("run-1") == ["x"]
        assert seen == [[".writing-", "x"]] * 2, "all of it was written beside its place first"

    async def test_content_is_on_disk_before_it_has_its_name_and_the_name_after(
        self, local: RunStorageBlock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[str] = []
        really_sync, really_replace = os.fsync, Path.replace

        def fsync(fd: int) -> None:
            steps.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name[:9]}")
            really_sync(fd)

        def replace(self: Path, target: Path) -> Path:
            steps.append("rename")
            return really_replace(self, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)
        for write in self.writes(local, tmp_path):
            await write()

        assert steps == ["sync .writing-", "rename", "sync run-1"] * 2

    async def test_a_killed_write_is_a_file_that_no_reader_takes_for_the_key(
        self, local: RunStorageBlock, tmp_path: Path
    ) -> None:
        await local.write_path("run-1/x", b"before")
        script = f"""
import asyncio, os, signal
from prefect_batchflow.blocks import RunStorageBlock
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(RunStorageBlock(url={str(tmp_path / "runs")!r}).write_path("run-1/x", b"after"))
"""
        done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)  # noqa: ASYNC221 - short

        assert done.returncode == -9
        assert await local.read_path("run-1/x") == b"before"
        left = [name for name in await local.list_names("run-1") if name != "x"]
        assert [name[:9] for name in left] == [".writing-"]

    @pytest.mark.parametrize(
        ("access", "mask", "folder", "file"),
        [
            (None, 0o000, 0o700, 0o600),
            ("owner", 0o022, 0o700, 0o600),
            ("umask", 0o022, 0o755, 0o644),
            ("umask", 0o007, 0o770, 0o660),
            ("umask", 0o077, 0o700, 0o600),
        ],
        ids=str,
    )
    async def test_only_the_owner_may_read_unless_the_umask_is_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: str | None, mask: int, folder: int, file: int
    ) -> None:
        monkeypatch.delenv(ACCESS_VARIABLE, raising=False)
        if access:
            monkeypatch.setenv(ACCESS_VARIABLE, access)
        before = os.umask(mask)
        try:
            block = RunStorageBlock(url=str(tmp_path / "new" / "runs"))
            await block.write_path("run-1/records/x", b"")
            await block.create_path("run-1/y", b"")
            await block.put_file("run-1/images/z", Path(__file__))
            assert block.local_path("run-1/leases/l") is not None
        finally:
            os.umask(before)

        places = [place for place in (tmp_path / "new").rglob("*") if place.is_dir()]
        files = [place for place in (tmp_path / "new").rglob("*") if place.is_file()]
        assert {oct(place.stat().st_mode & 0o777) for place in (tmp_path / "new", *places)} == {oct(folder)}
        assert [place.name for place in sorted(files, key=lambda place: place.name)] == ["x", "y", "z"]
        assert {oct(place.stat().st_mode & 0o777) for place in files} == {oct(file)}

    async def test_another_access_is_refused(self, local: RunStorageBlock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ACCESS_VARIABLE, "0644")

        with pytest.raises(InvalidOptionError, match=r"BATCHFLOW_FILE_ACCESS is '0644'\. Expected owner"):
            await local.write_path("run-1/x", b"")

    async def test_a_folder_that_exists_keeps_its_mode(self, local: RunStorageBlock, tmp_path: Path) -> None:
        (tmp_path / "runs" / "run-1").mkdir(parents=True)
        (tmp_path / "runs" / "run-1").chmod(0o750)
        await local.write_path("run-1/x", b"")

        assert (tmp_path / "runs" / "run-1").stat().st_mode & 0o777 == 0o750


def test_prefect_registers_the_blocks_and_no_base_class() -> None:
    found = [name for name, value in inspect.getmembers(blocks) if Block.is_block_class(value)]

    assert found == [
        "AzureOpenAIConnectionBlock",
        "CustomConnectionBlock",
        "OpenAIConnectionBlock",
        "RunStorageBlock",
    ]


def test_prefect_keeps_keys_as_they_are() -> None:
    assert RunStorageBlock(url="memory://x")._resolve_path("run-1/records/a.json") is None
    assert blocks.RunStorageBlock.get_block_type_slug() == "batchflow-run-storage"
