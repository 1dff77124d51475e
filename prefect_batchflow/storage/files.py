"""The files of a run storage, on any file system that fsspec opens, written whole or not at all.

Local writes are temp file, fsync and rename; remote ones a single PUT, or a large file's parts that are completed as one:
object stores show either at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from prefect_batchflow.errors.packages import pip_install
from prefect_batchflow.exceptions import BatchflowException, InvalidOptionError, StorageError, told
from prefect_batchflow.inputs.places import OBJECT_STORES, absolute, fresh_listings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ANOTHER_STORAGE = "Make it readable, or give another one, with --storage or BATCHFLOW_STORAGE."


class RunFiles(Protocol):
    """What a run needs of a file system."""

    async def read_path(self, path: str) -> bytes:
        """Give a key's bytes.

        Raises:
            FileNotFoundError: There is no such key. Any other error means that it cannot be told.
        """
        ...

    async def write_path(self, path: str, content: bytes) -> None:
        """Write a key whole; a reader sees all of it or what was there before."""
        ...

    async def create_path(self, path: str, content: bytes) -> None:
        """Write a key whole that is not there yet: of several who do so at once one succeeds, on stores that can compare.

        Raises:
            FileExistsError: It is there.
        """
        ...

    async def put_file(self, path: str, source: Path) -> None:
        """Copy a local file to a key, whole like `write_path`."""
        ...

    async def get_file(self, path: str, target: Path) -> None:
        """Copy a key to a local file."""
        ...

    async def list_names(self, folder: str) -> list[str]:
        """The names directly below a folder, sorted; a folder that is not there holds none.

        Raises:
            OSError: It cannot be told; where the whole bucket is not there this is a `FileNotFoundError`.
        """
        ...

    def local_path(self, key: str) -> Path | None:
        """The file of a key on this machine, if it is one; its folder is made."""
        ...

    def location(self, key: str = "") -> str:
        """Where a key lies, for people: a path on this machine, else a URL."""
        ...


@contextlib.contextmanager
def storage_errors(files: RunFiles, verb: str, key: str = "", cure: str = "") -> Iterator[None]:
    """Raise whatever the storage raises as a `StorageError` that says what failed, where and why.

    Args:
        files: The storage's file system.
        verb: `read`, `write` or `list`.
        key: The file or folder in question.
        cure: What to do about it, in whole sentences.
    """
    try:
        yield
    except BatchflowException:
        raise
    except Exception as exc:
        text = f"Cannot {verb} the run storage at {files.location(key)}: {told(exc)}. {cure}"
        raise StorageError(text.rstrip(), key=key) from exc


def write_beside(folder: Path, name: str, write: Callable[[Path], object], *, again: bool = True) -> None:
    """Write a file of an output folder whole, under another name first; one that is there only if `again`.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        if not again and (folder / name).exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".writing-{name}"
        write(temporary)
        temporary.replace(folder / name)
    except OSError as exc:
        raise StorageError(
            f"Cannot write the output folder {folder}: {exc}. The run's own folder has the outputs too; give a folder "
            "that can be written."
        ) from exc


def folder_url(url: str) -> str:
    """A storage's URL as it is kept: a path absolute, no slash at the end.

    Raises:
        InvalidOptionError: It is no single folder.
    """
    if not url or "::" in url:
        raise InvalidOptionError(
            f"The storage URL {url!r} is no single folder. Give a path or one URL, such as s3://bucket/runs; "
            "chained URLs (`::`) are refused."
        )
    if "://" not in url:
        return absolute(url)
    protocol, _, path = url.partition("://")
    return f"{protocol}://{path.rstrip('/') or path[:1]}"


def open_files(url: str, options: Mapping[str, Any]) -> RunFiles:
    """Open the file system of a storage.

    Args:
        url: As `folder_url` gives it.
        options: What fsspec needs to open it.

    Raises:
        InvalidOptionError: It cannot be opened; the message names a package that is missing.
    """
    try:
        file_system, root = fsspec.core.url_to_fs(url, **{**fresh_listings(url), **options})
    except ImportError as exc:
        module = OBJECT_STORES.get(url.split(":")[0])
        install = pip_install(module) if module else f"pip install the package it names: {exc}"
        raise InvalidOptionError(f"The storage {url} needs a package that is not installed. {install}") from exc
    except ValueError as exc:
        raise InvalidOptionError(f"The storage URL {url!r} cannot be opened: {exc}") from exc
    root = root.rstrip("/")
    return _LocalFiles(root) if isinstance(file_system, LocalFileSystem) else _RemoteFiles(url, file_system, root)


class _LocalFiles:
    """A folder of this machine."""

    def __init__(self, root: str) -> None:
        self._root = root

    async def read_path(self, path: str) -> bytes:
        return await asyncio.to_thread(self._path(path).read_bytes)

    async def write_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(_replace, self._path(path), content)

    async def create_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(_create, self._path(path), content)

    async def put_file(self, path: str, source: Path) -> None:
        await asyncio.to_thread(_copy, source, self._path(path))

    async def get_file(self, path: str, target: Path) -> None:
        await asyncio.to_thread(shutil.copyfile, self._path(path), target)

    async def list_names(self, folder: str) -> list[str]:
        return await asyncio.to_thread(_names, self._path(folder))

    def local_path(self, key: str) -> Path:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def location(self, key: str = "") -> str:
        return f"{self._root}/{key}".rstrip("/")

    def _path(self, key: str) -> Path:
        return Path(_below(self._root, key))


class _RemoteFiles:
    """A folder of any other file system."""

    def __init__(self, url: str, file_system: Any, root: str) -> None:
        self._url = url
        self._fs = file_system
        self._root = root
        # Else s3fs asks for a key's size first, a second request, to read large ones in parts at once.
        self._read_options = {"max_concurrency": 1} if url.startswith(("s3://", "s3a://")) else {}

    async def read_path(self, path: str) -> bytes:
        return bytes(await asyncio.to_thread(self._fs.cat_file, _below(self._root, path), **self._read_options))

    async def write_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(self._fs.pipe_file, _below(self._root, path), content)

    async def create_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(self._fs.pipe_file, _below(self._root, path), content, mode="create")

    async def put_file(self, path: str, source: Path) -> None:
        await asyncio.to_thread(self._fs.put_file, str(source), _below(self._root, path))

    async def get_file(self, path: str, target: Path) -> None:
        await asyncio.to_thread(self._fs.get_file, _below(self._root, path), str(target))

    async def list_names(self, folder: str) -> list[str]:
        target = _below(self._root, folder) if folder else self._root

        def names() -> list[str]:
            # A listing that fsspec remembers would hide what another process wrote.
            self._fs.invalidate_cache(target)
            try:
                found = self._fs.ls(target, detail=False)
            except FileNotFoundError as exc:
                # An empty folder is what the file system finds itself; that there is no bucket is what the store answers.
                if exc.__cause__ is not None:
                    raise
                return []
            return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)

        return await asyncio.to_thread(names)

    def local_path(self, key: str) -> None:
        return None

    def location(self, key: str = "") -> str:
        return f"{self._url}/{key}".rstrip("/")


def _below(root: str, key: str) -> str:
    if key.startswith("/") or ".." in key.split("/"):
        raise ValueError(f"The storage key {key!r} leads out of the storage.")
    return f"{root}/{key}"


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []


def _replace(target: Path, content: bytes) -> None:
    with _beside(target) as (fd, temporary):
        _write(fd, content)
        temporary.replace(target)
    _sync_folder(target.parent)


def _create(target: Path, content: bytes) -> None:
    with _beside(target) as (fd, temporary):
        _write(fd, content)
        target.hardlink_to(temporary)
    _sync_folder(target.parent)


def _write(fd: int, content: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.fsync(fd)


def _copy(source: Path, target: Path) -> None:
    with _beside(target) as (fd, temporary):
        with source.open("rb") as read, open(fd, "wb", closefd=False) as file:
            shutil.copyfileobj(read, file, 1 << 20)
        os.fsync(fd)
        temporary.replace(target)
    _sync_folder(target.parent)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[tuple[int, Path]]:
    """A temporary file in the target's folder, gone if it was not renamed."""
    try:
        fd, name = tempfile.mkstemp(prefix=".writing-", dir=target.parent)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=".writing-", dir=target.parent)
    try:
        os.fchmod(fd, 0o644)
        yield fd, Path(name)
    finally:
        os.close(fd)
        Path(name).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
