"""Files of a run storage: whole or not at all, on the disk before they have a name, and never outside of the storage."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from scripted_storage import HttpError, ScriptedFileSystem

from prefect_batchflow.blocks import RunStorageBlock

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

KEY = "run-1/records/a.jsonl"
WRITES = ["write_path", "create_path", "put_file"]


async def written(files: RunStorageBlock, how: str, content: bytes, folder: Path) -> None:
    """Write `KEY` in one of the three ways."""
    source = folder / "source"
    source.write_bytes(content)
    await getattr(files, how)(KEY, source if how == "put_file" else content)


@pytest.mark.parametrize("how", WRITES)
async def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_its_name_is(
    local: RunStorageBlock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    target = tmp_path / "runs" / KEY
    synced: list[tuple[bytes | str, bool]] = []
    really_sync = os.fsync

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name if path.is_dir() else path.read_bytes(), target.exists()))
        really_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)

    await written(local, how, b"content", tmp_path)

    assert synced == [(b"content", False), ("records", True)]


@pytest.mark.parametrize("how", ["write_path", "put_file"])
async def test_a_reader_has_the_old_file_or_the_new_one(local: RunStorageBlock, tmp_path: Path, how: str) -> None:
    await written(local, how, b"old", tmp_path)
    with (tmp_path / "runs" / KEY).open("rb") as reader:
        await written(local, how, b"new, and longer", tmp_path)

        assert reader.read() == b"old"
    assert await local.read_path(KEY) == b"new, and longer"


@pytest.mark.parametrize("where", ["local", "remote"])
async def test_a_key_that_exists_is_not_created(where: str, request: pytest.FixtureRequest) -> None:
    files: RunStorageBlock = request.getfixturevalue(where)
    await files.create_path(KEY, b"first")

    with pytest.raises(FileExistsError):
        await files.create_path(KEY, b"second")

    assert await files.read_path(KEY) == b"first"
    assert await files.list_names("run-1/records") == ["a.jsonl"]


@pytest.mark.parametrize("how", WRITES)
async def test_a_write_that_fails_leaves_what_there_was_and_nothing_beside_it(
    local: RunStorageBlock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how != "create_path":
        await written(local, how, b"old", tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        await written(local, how, b"new", tmp_path)

    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before


CALLS: dict[str, Callable[[RunStorageBlock, str, Path], Any]] = {
    "read_path": lambda files, key, _: files.read_path(key),
    "write_path": lambda files, key, _: files.write_path(key, b"x"),
    "create_path": lambda files, key, _: files.create_path(key, b"x"),
    "put_file": lambda files, key, path: files.put_file(key, path),
    "get_file": lambda files, key, path: files.get_file(key, path),
    "delete_path": lambda files, key, _: files.delete_path(key),
    "delete_folder": lambda files, key, _: files.delete_folder(key),
    "list_names": lambda files, key, _: files.list_names(key),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("key", ["../outside", "run-1/../../outside", "run-1/..", "/etc/outside"])
@pytest.mark.parametrize("where", ["local", "remote"])
async def test_no_key_leads_out_of_the_storage(
    tmp_path: Path, request: pytest.FixtureRequest, where: str, key: str, call: str
) -> None:
    files: RunStorageBlock = request.getfixturevalue(where)
    source = tmp_path / "source"
    source.write_bytes(b"x")

    with pytest.raises(ValueError, match="leads out of the storage"):
        await CALLS[call](files, key, source)

    assert not (tmp_path / "outside").exists()


async def test_a_bucket_that_is_not_there_is_not_an_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of a store says "not found" of both; only of a bucket the store itself has said so."""

    def no_bucket(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("The specified bucket does not exist") from HttpError(404)

    files = RunStorageBlock(url=f"scripted://{uuid.uuid4().hex}/runs")
    assert await files.list_names("run-1/records") == []
    monkeypatch.setattr(ScriptedFileSystem, "ls", no_bucket)

    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        await files.list_names("run-1/records")
