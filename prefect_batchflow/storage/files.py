"""The files of a run storage, on any file system that fsspec opens, written whole or not at all.

A local write is a temporary file, an fsync and a rename. A remote write is one PUT, or a multipart upload for a large file:
object stores show either all at once.

It is over 400 lines because all three kinds of file systems are here, beside the protocol that they share.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import threading
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from prefect_batchflow.errors.packages import pip_install
from prefect_batchflow.exceptions import BatchflowException, InvalidOptionError, StorageError, told
from prefect_batchflow.execution.scrubbing import Scrubber
from prefect_batchflow.inputs.places import OBJECT_STORES, absolute, fresh_listings
from prefect_batchflow.storage.private_files import WRITING, make_folder, refuse_link, unfinished

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

T = TypeVar("T")

_PASSWORD = re.compile(r"^([a-z0-9+]+://[^/@:]*):([^/@]*)@")
_OPEN_OPTIONS = frozenset(
    {
        "endpoint_url", "account_name", "account_host", "project", "host", "port", "username", "user", "region_name",
        "location", "anon", "timeout", "protocol", "consistency", "access", "auto_mkdir",
    }
)  # fmt: skip
"""Options for fsspec that messages can show. The values of all others count as secrets."""
SERVERS = ("sftp://", "ssh://")
SERVER_ANSWERS_SEC = 60.0
"""How long an SFTP server can take for one answer."""
ANOTHER_STORAGE = "Make it readable, or give another one, with --storage or BATCHFLOW_STORAGE."


class ShortReadError(OSError):
    """A store gave less than the whole content of a key."""


class Files(Protocol):
    """The calls of a run storage. `retries` makes them again while their errors can pass."""

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine, whose answers are certain."""

    async def read_path(self, path: str) -> bytes:
        """Give a key's bytes.

        Raises:
            FileNotFoundError: There is no such key. Any other error leaves that open.
        """
        ...

    async def write_path(self, path: str, content: bytes) -> None:
        """Write a key whole: a reader sees either the new content or the old."""
        ...

    async def create_path(self, path: str, content: bytes) -> None:
        """Write a new key whole. If several processes try at once, one succeeds, on stores with conditional writes.

        Raises:
            FileExistsError: The key exists.
        """
        ...

    async def put_file(self, path: str, source: Path) -> None:
        """Copy a local file to a key, whole like `write_path`."""
        ...

    async def get_file(self, path: str, target: Path) -> None:
        """Copy a key to a local file."""
        ...

    async def size_of(self, path: str) -> int | None:
        """How many bytes a key has, without reading it; `None` if the storage does not know.

        Raises:
            FileNotFoundError: There is no such key. Any other error leaves that open.
        """
        ...

    async def move(self, path: str, target: str) -> None:
        """Give a key another name, without reading it."""
        ...

    async def delete_path(self, path: str) -> None:
        """Delete a key. A missing one is no error."""
        ...

    async def delete_folder(self, folder: str) -> None:
        """Delete a folder with everything in it. A missing one is no error."""
        ...

    async def list_names(self, folder: str) -> list[str]:
        """The names directly below a folder, sorted; none if the folder does not exist.

        Raises:
            OSError: The folder cannot be listed; a `FileNotFoundError` if the bucket does not exist.
        """
        ...

    def local_path(self, key: str) -> Path | None:
        """The path of a key on this machine, whose folder is created; `None` on a remote storage."""
        ...

    def location(self, key: str = "") -> str:
        """A key's place for messages: a path on this machine, otherwise a URL."""
        ...

    def scrubbed(self, text: str) -> str:
        """A text, such as that of an error, without the secrets in the storage's URL and options."""
        ...


class RunFiles(Files, Protocol):
    """What a run needs of a file system."""

    def when_failing(self, call: Callable[[bool], None]) -> None:
        """Call this method with `True` when the storage begins to fail, and with `False` when it works or has failed for good.

        It is kept weakly, so that it ends with its object.
        """
        ...

    def fenced(self, may_write: Callable[[str], Awaitable[None]]) -> RunFiles:
        """The same files for one writer: `may_write` gets each key before each try of a write, and can refuse it."""
        ...


@contextlib.contextmanager
def storage_errors(files: Files, verb: str, key: str = "", cure: str = "") -> Iterator[None]:
    """Turn any error of the storage into a `StorageError` that says what failed, where and why, and what to do (`cure`).

    `verb` is `read`, `write` or `list`; `cure` has whole sentences.
    """
    try:
        yield
    except BatchflowException:
        raise
    except Exception as exc:
        tried = "".join(f" ({note})" for note in getattr(exc, "__notes__", ()))
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            cure = f"{cure} Free some space first.".lstrip()
        text = f"Cannot {verb} the run storage at {files.location(key)}: {files.scrubbed(told(exc))}{tried}. {cure}"
        raise StorageError(text.rstrip(), key=key) from exc


async def remove_unfinished_on_server(files: Files, folders: Iterable[str]) -> None:
    """Remove the unfinished files of dead processes from folders of an SFTP server. Other stores have none.

    Call it with the run's lease held.
    """
    if files.location().startswith(SERVERS):
        with contextlib.suppress(Exception):  # they are in nobody's way
            for folder in folders:
                for name in await files.list_names(folder):
                    if name.startswith(WRITING):
                        await files.delete_path(f"{folder}/{name}")


def write_beside(
    folder: Path, name: str, write: Callable[[Path], object], *, again: bool = True, inner: str = ""
) -> None:
    """Write a file of an output folder under a temporary name, then rename it. The folder is created.

    `write` writes the content to the path that it gets, a new file. Without `again`, a file that exists stays. `inner`
    is a folder in the output folder that gets the file.

    Raises:
        StorageError: The file cannot be written.
    """
    try:
        target = folder / inner / name
        if inner:
            refuse_link(target.parent)
        if not again and target.exists():
            return
        with unfinished(target.parent) as temporary:
            write(temporary)
            temporary.replace(target)
    except OSError as exc:
        raise StorageError(
            f"Cannot write the output folder {folder}: {exc}. The outputs are in the run's own folder too. Give an output "
            "folder that is writable."
        ) from exc


def folder_url(url: str) -> str:
    """Normalize a storage's URL: a path becomes absolute, a slash at the end goes.

    Raises:
        InvalidOptionError: The URL is empty or a chain.
    """
    if not url or "::" in url:
        raise InvalidOptionError(
            f"The storage URL {url!r} is not a single folder. Give a path or one URL, such as s3://bucket/runs; "
            "chained URLs (`::`) are not supported."
        )
    if "://" not in url:
        return absolute(url)
    protocol, _, path = url.partition("://")
    return f"{protocol}://{path.rstrip('/') or path[:1]}"


def open_file_system(url: str, options: Mapping[str, Any]) -> Files:
    """Open the file system of a storage, by a URL from `folder_url` and with fsspec's options. Each call is made once.

    Raises:
        InvalidOptionError: It cannot be opened. If a package is missing, the message says how to install it.
    """
    scrubber = Scrubber(_secrets(url, options))
    try:
        if url.startswith(SERVERS):
            server = fsspec.get_filesystem_class(url.split(":")[0])
            given = {**server._get_kwargs_from_urls(url), **options}
            root = server._strip_protocol(url).rstrip("/")
            return _ServerFiles(url, lambda: server(**given, skip_instance_cache=True), root, scrubber)
        file_system, root = fsspec.core.url_to_fs(url, **{**fresh_listings(url), **options})
    except ImportError as exc:
        module = {**OBJECT_STORES, **dict.fromkeys(("sftp", "ssh"), "paramiko")}.get(url.split(":")[0])
        install = pip_install(module) if module else f"Install the package that fsspec names: {exc}"
        raise InvalidOptionError(f"The storage {shown(url)} needs a package that is not installed. {install}") from exc
    except ValueError as exc:
        raise InvalidOptionError(f"The storage URL {shown(url)!r} cannot be opened: {scrubber.text(str(exc))}") from exc
    root = root.rstrip("/")
    return (
        _LocalFiles(root)
        if isinstance(file_system, LocalFileSystem)
        else _RemoteFiles(url, file_system, root, scrubber)
    )


def shown(url: str) -> str:
    """A storage's URL for messages, without a password."""
    return _PASSWORD.sub(r"\1@", url)


def _secrets(url: str, options: Mapping[str, Any]) -> set[str]:
    given = [value for name, value in options.items() if isinstance(value, str) and name not in _OPEN_OPTIONS]
    return {*given, *([password[2]] if (password := _PASSWORD.match(url)) else [])}


class _LocalFiles:
    """A folder of this machine."""

    is_local = True

    def __init__(self, root: str) -> None:
        self._root = root

    async def read_path(self, path: str) -> bytes:
        return await asyncio.to_thread(self._path(path).read_bytes)

    async def write_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(_put, self._path(path), lambda file: file.write(content))

    async def create_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(_put, self._path(path), lambda file: file.write(content), new=True)

    async def put_file(self, path: str, source: Path) -> None:
        def copy(file: IO[bytes]) -> None:
            with source.open("rb") as read:
                shutil.copyfileobj(read, file, 1 << 20)

        await asyncio.to_thread(_put, self._path(path), copy)

    async def get_file(self, path: str, target: Path) -> None:
        await asyncio.to_thread(shutil.copyfile, self._path(path), target)

    async def size_of(self, path: str) -> int:
        return (await asyncio.to_thread(self._path(path).stat)).st_size

    async def move(self, path: str, target: str) -> None:
        def move() -> None:
            make_folder(self._path(target).parent)
            self._path(path).replace(self._path(target))

        await asyncio.to_thread(move)

    async def delete_path(self, path: str) -> None:
        await asyncio.to_thread(self._path(path).unlink, missing_ok=True)

    async def delete_folder(self, folder: str) -> None:
        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._path(folder))

        await asyncio.to_thread(delete)

    async def list_names(self, folder: str) -> list[str]:
        return await asyncio.to_thread(_names, self._path(folder))

    def local_path(self, key: str) -> Path:
        target = self._path(key)
        make_folder(target.parent)
        return target

    def location(self, key: str = "") -> str:
        return f"{self._root}/{key}".rstrip("/")

    def scrubbed(self, text: str) -> str:
        return text

    def _path(self, key: str) -> Path:
        return Path(_below(self._root, key))


class _RemoteFiles:
    """A folder of any other file system."""

    is_local = False

    def __init__(self, url: str, file_system: Any, root: str, scrubber: Scrubber) -> None:
        self._shown = shown(url)
        self._scrubber = scrubber
        self._fs = file_system
        self._root = root
        # Saves a request: to read large keys in parallel parts, s3fs would ask for the key's size first.
        self._read_options = {"max_concurrency": 1} if url.startswith(("s3://", "s3a://")) else {}
        store = OBJECT_STORES.get(url.partition("://")[0])
        # Azure's package hands large files to aiohttp in a form that it refuses, except for uploads with checksums.
        self._put_options = {"validate_content": True} if store == "adlfs" else {}
        self._asks_for_bucket = store in ("adlfs", "gcsfs")

    async def read_path(self, path: str) -> bytes:
        target = _below(self._root, path)
        return bytes(await self._call(lambda: self._fs.cat_file(target, **self._read_options)))

    async def write_path(self, path: str, content: bytes) -> None:
        target = _below(self._root, path)
        await self._call(lambda: self._fs.pipe_file(target, content))

    async def create_path(self, path: str, content: bytes) -> None:
        target = _below(self._root, path)
        await self._call(lambda: self._fs.pipe_file(target, content, mode="create"))

    async def put_file(self, path: str, source: Path) -> None:
        target = _below(self._root, path)
        await self._call(lambda: self._fs.put_file(str(source), target, **self._put_options))

    async def get_file(self, path: str, target: Path) -> None:
        source = _below(self._root, path)

        def get() -> None:
            self._fs.get_file(source, str(target))
            size, found = self._size(source), target.stat().st_size
            if size is not None and size != found:
                raise ShortReadError(f"{found} of {size} bytes of {source} arrived")

        await self._call(get)

    async def size_of(self, path: str) -> int | None:
        target = _below(self._root, path)
        return await self._call(lambda: self._size(target))

    def _size(self, target: str) -> int | None:
        # A cached answer would be that of an earlier content.
        self._fs.invalidate_cache(target.rpartition("/")[0])
        size = self._fs.info(target).get("size")
        return size if isinstance(size, int) else None

    async def move(self, path: str, target: str) -> None:
        source, goal = _below(self._root, path), _below(self._root, target)

        def move() -> None:
            with contextlib.suppress(FileNotFoundError):  # an earlier try, whose answer was lost
                self._fs.cp_file(source, goal)
                self._fs.rm_file(source)

        await self._call(move)

    async def delete_path(self, path: str) -> None:
        target = _below(self._root, path)

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(target)

        await self._call(delete)

    async def delete_folder(self, folder: str) -> None:
        target = _below(self._root, folder)

        def delete() -> None:
            self._fs.invalidate_cache(target)
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(target, recursive=True)

        await self._call(delete)

    async def list_names(self, folder: str) -> list[str]:
        target = _below(self._root, folder) if folder else self._root

        def names() -> list[str]:
            # A cached listing would hide files that another process wrote.
            self._fs.invalidate_cache(target)
            try:
                found = self._fs.ls(target, detail=False)
            except FileNotFoundError as exc:
                # The error has a cause if the store reported a missing bucket; fsspec itself raises it for an empty folder.
                if exc.__cause__ is not None:
                    raise
                if self._asks_for_bucket:
                    self._require_bucket()
                return []
            return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)

        return await self._call(names)

    def _require_bucket(self) -> None:
        """Tell an empty folder from a bucket that is not there, for stores whose packages say the same of both."""
        bucket = self._root.partition("/")[0]
        try:
            self._fs.info(bucket)
        except FileNotFoundError as exc:
            raise FileNotFoundError(f"The specified bucket does not exist: {bucket}") from exc
        except Exception:  # noqa: BLE001 - perhaps only looking at buckets is not allowed
            return
        self._asks_for_bucket = False

    def local_path(self, key: str) -> None:
        return None

    def location(self, key: str = "") -> str:
        return f"{self._shown}/{key}".rstrip("/")

    def scrubbed(self, text: str) -> str:
        return self._scrubber.text(text)

    async def _call(self, call: Callable[[], T]) -> T:
        return await asyncio.to_thread(call)


class _ServerFiles(_RemoteFiles):
    """A folder of an SFTP server, over one connection that makes one call at a time and is opened again when it breaks.

    `connect` gives fsspec's file system, which connects at once.
    """

    def __init__(self, url: str, connect: Callable[[], Any], root: str, scrubber: Scrubber) -> None:
        super().__init__(url, None, root, scrubber)
        self._connect = connect
        self._one_at_a_time = threading.Lock()  # paramiko mixes up the answers to calls from several threads
        self._folders: set[str] = set()

    async def write_path(self, path: str, content: bytes) -> None:
        await self._put(path, lambda file: file.write(content))

    async def create_path(self, path: str, content: bytes) -> None:
        target = _below(self._root, path)

        def create() -> None:
            self._make_folder(target)
            try:
                file = self._fs.ftp.open(target, "wxb")
            except FileNotFoundError:
                raise
            except OSError as exc:
                # The protocol has no word for a name that exists.
                self._fs.ftp.stat(target)
                raise FileExistsError(f"{path} exists") from exc
            with file:
                file.write(content)

        await self._call(create)

    async def put_file(self, path: str, source: Path) -> None:
        def copy(file: IO[bytes]) -> None:
            with source.open("rb") as read:
                shutil.copyfileobj(read, file, 1 << 20)

        await self._put(path, copy)

    async def move(self, path: str, target: str) -> None:
        source, goal = _below(self._root, path), _below(self._root, target)

        def move() -> None:
            self._make_folder(goal)
            with contextlib.suppress(FileNotFoundError):  # an earlier try, whose answer was lost
                self._fs.ftp.posix_rename(source, goal)

        await self._call(move)

    async def _put(self, path: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write a temporary file beside the target, and give it the target's name."""
        target = _below(self._root, path)
        temporary = f"{target.rpartition('/')[0]}/{WRITING}{uuid.uuid4().hex[:12]}"

        def put() -> None:
            self._make_folder(target)
            try:
                with self._fs.ftp.open(temporary, "wb") as file:
                    write(file)
                self._fs.ftp.posix_rename(temporary, target)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._fs.ftp.remove(temporary)
                raise

        await self._call(put)

    def _make_folder(self, target: str) -> None:
        folder = target.rpartition("/")[0]
        if folder not in self._folders:
            self._fs.makedirs(folder, exist_ok=True)
            self._folders.add(folder)

    async def _call(self, call: Callable[[], T]) -> T:
        def alone() -> T:
            with self._one_at_a_time:
                if self._fs is not None and not self._fs.client.get_transport().is_active():
                    self._close()
                if self._fs is None:
                    self._fs = self._connect()
                    self._fs.ftp.get_channel().settimeout(SERVER_ANSWERS_SEC)
                try:
                    return call()
                except FileNotFoundError:
                    self._folders.clear()  # perhaps someone deleted the folder
                    raise
                except TimeoutError:
                    self._close()  # a late answer would be taken for that of the next call
                    raise

        return await asyncio.to_thread(alone)

    def _close(self) -> None:
        client, self._fs = self._fs.client, None
        client.close()


def _below(root: str, key: str) -> str:
    if key.startswith("/") or ".." in key.split("/"):
        raise ValueError(f"The storage key {key!r} leads out of the storage.")
    return f"{root}/{key}"


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []


def _put(target: Path, write: Callable[[IO[bytes]], object], *, new: bool = False) -> None:
    """Write a temporary file beside the target, sync it, and give it the target's name."""
    with unfinished(target.parent) as temporary:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if new:
            target.hardlink_to(temporary)
        else:
            temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
