"""Tries calls of the run storage again, in this one place, whatever the storage is.

An error is one of three kinds. It passes: a timeout, a lost connection, HTTP 429, 500, 502, 503. It may pass: a 403, which
object stores give by mistake too, and any error that is not known here. It lasts: no such bucket, no space, read-only.
"Not there" is an answer, but only if the store's listing agrees and nobody saw the key before.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import enum
import errno
import random
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_batchflow.exceptions import BatchflowException
from prefect_batchflow.storage.files import Files, RunFiles, ShortReadError, open_file_system

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

T = TypeVar("T")

DELAYS_SEC = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 8.0)
"""The waits before further tries; each is shortened at random by up to a half, so that many processes do not try at once."""
PASSES_WITHIN_SEC = 30.0
"""No try begins later than this after the first one failed."""
LOOKS = 3
"""Tries of a call whose error may pass."""
LOOK_AGAIN_SEC = (0.0, 0.1, 0.5)
"""Pauses before a file is read again that is missing or looks damaged. One short or stale read is not yet damage."""
LISTINGS = 6
"""Most looks at a folder whose listings differ."""


class UnseenError(OSError):
    """A key was listed or written, and the store does not find it."""


class Kind(enum.Enum):
    """Whether an error of a storage can pass."""

    PASSES = enum.auto()
    MAY_PASS = enum.auto()
    LASTS = enum.auto()


_PASSING_STATUS = frozenset({408, 423, 425, 429, 500, 502, 503, 504, 509, 520, 522, 524, 529})
_LASTING_STATUS = frozenset({404, 405, 410, 411, 413, 414, 501, 507})
_PASSING_ERRNO = frozenset(
    {
        errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.EREMOTEIO, errno.EMFILE,
        errno.ENFILE, errno.ENOLCK, errno.ENOBUFS, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET,
        errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNABORTED, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN,
        errno.EPIPE, errno.ESHUTDOWN, errno.ECOMM, errno.EPROTO,
    }
)  # fmt: skip
_LASTING_ERRNO = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
        errno.ENOENT, errno.EEXIST, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENODEV, errno.ENXIO,
    }
)  # fmt: skip
_PASSING_NAMES = (
    "Timeout",
    "TimedOut",
    "Disconnect",
    "Connection",
    "ConnectError",
    "Payload",
    "IncompleteRead",
    "Throttl",
)
"""Parts of the names of errors of network packages, which have no common base class."""
_LASTING_TYPES = (
    BatchflowException, FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, NotImplementedError,
    ImportError, TypeError, AttributeError, ValueError,
)  # fmt: skip


def kind_of(exc: BaseException, *, is_local: bool = False) -> Kind:
    """Whether an error can pass. An error of a package counts as the error that caused it, if that says more."""
    if isinstance(exc, (UnseenError, ShortReadError, TimeoutError, ConnectionError, EOFError)):
        return Kind.PASSES
    if isinstance(exc, _LASTING_TYPES) and not _status(exc):
        return Kind.LASTS
    if is_local and isinstance(exc, PermissionError):
        return Kind.LASTS
    for error in _with_causes(exc):
        if status := _status(error):
            if status in _PASSING_STATUS:
                return Kind.PASSES
            return Kind.LASTS if status in _LASTING_STATUS else Kind.MAY_PASS
        number = getattr(error, "errno", None)
        if number in _LASTING_ERRNO:
            return Kind.LASTS
        if number in _PASSING_ERRNO or isinstance(error, (TimeoutError, ConnectionError, EOFError)):
            return Kind.PASSES
        if any(part in base.__name__ for base in type(error).__mro__ for part in _PASSING_NAMES):
            return Kind.PASSES
    return Kind.MAY_PASS


def _with_causes(exc: BaseException) -> Iterator[BaseException]:
    error: BaseException | None = exc
    for _ in range(5):
        if error is None:
            return
        yield error
        error = error.__cause__


def _status(exc: BaseException) -> int | None:
    """The HTTP status of an error of boto, aiohttp, Azure, Google or requests."""
    response = getattr(exc, "response", None)
    if isinstance(response, dict):
        candidates = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        candidates = [getattr(response, "status_code", None), getattr(response, "status", None)]
    candidates += [getattr(exc, name, None) for name in ("status", "status_code", "code")]
    for value in candidates:
        text = str(value) if isinstance(value, (int, str)) else ""
        if text.isdecimal() and 400 <= int(text) < 600:
            return int(text)
    return None


def open_files(url: str, options: Mapping[str, Any]) -> RunFiles:
    """Open the file system of a storage, by a URL from `folder_url` and with fsspec's options.

    Raises:
        InvalidOptionError: It cannot be opened. If a package is missing, the message says how to install it.
    """
    return retried(open_file_system(url, options))


def retried(files: Files) -> RunFiles:
    """The same files, with each call tried again while its error can pass."""
    return _RetriedFiles(files)


class _RetriedFiles:
    """The files of a storage, each call tried again while its error can pass.

    `_may_write` gets the key of a write before each try, and can refuse it: a try can be half a minute after the first one.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self.is_local = files.is_local
        self._known: dict[str, set[str]] = {}
        """Folder to the names in it that were listed or written by this process. Only for stores whose looks can err."""
        self._failing = set[object]()
        """The calls that wait for their next try."""
        self._listeners: list[weakref.WeakMethod[Callable[[bool], None]]] = []
        self._may_write: Callable[[str], Awaitable[None]] | None = None

    def fenced(self, may_write: Callable[[str], Awaitable[None]]) -> RunFiles:
        fenced = copy.copy(self)  # what it knows and who listens is shared
        fenced._may_write = may_write
        return fenced

    def when_failing(self, call: Callable[[bool], None]) -> None:
        """Call this method when the storage begins to fail, and when it works or has failed for good; kept weakly."""
        self._listeners[:] = [*filter(lambda known: known() is not None, self._listeners), weakref.WeakMethod(call)]
        if self._failing:
            call(True)

    def _tell(self, is_failing: bool) -> None:
        for listener in self._listeners:
            if (call := listener()) is not None:
                call(is_failing)

    async def read_path(self, path: str) -> bytes:
        return await self._again(lambda: self._seen(path, lambda: self._files.read_path(path)))

    async def write_path(self, path: str, content: bytes) -> None:
        await self._again(lambda: self._files.write_path(path, content), path)
        self._know(path)

    async def create_path(self, path: str, content: bytes) -> None:
        tries = 0

        async def create() -> None:
            nonlocal tries
            tries += 1
            try:
                await self._files.create_path(path, content)
            except FileExistsError:
                # An earlier try can have reached the store, although its answer was lost.
                if tries == 1 or await self._files.read_path(path) != content:
                    raise

        await self._again(create, path)
        self._know(path)

    async def put_file(self, path: str, source: Path) -> None:
        await self._again(lambda: self._files.put_file(path, source), path)
        self._know(path)

    async def get_file(self, path: str, target: Path) -> None:
        await self._again(lambda: self._seen(path, lambda: self._files.get_file(path, target)))

    async def size_of(self, path: str) -> int | None:
        return await self._again(lambda: self._seen(path, lambda: self._files.size_of(path)))

    async def move(self, path: str, target: str) -> None:
        await self._again(lambda: self._files.move(path, target), path)
        self._know(target)
        folder, _, name = path.rpartition("/")
        self._known.get(folder, set()).discard(name)

    async def delete_path(self, path: str) -> None:
        await self._again(lambda: self._files.delete_path(path), path)
        folder, _, name = path.rpartition("/")
        self._known.get(folder, set()).discard(name)

    async def delete_folder(self, folder: str) -> None:
        await self._again(lambda: self._files.delete_folder(folder), folder)
        for known in [known for known in self._known if f"{known}/".startswith(f"{folder}/")]:
            del self._known[known]

    async def list_names(self, folder: str) -> list[str]:
        def look() -> Awaitable[list[str]]:
            return self._again(lambda: self._files.list_names(folder))

        names = await look()
        if self.is_local:
            return names
        for delay in DELAYS_SEC[: LISTINGS - 1]:
            # A store can answer with an older listing, or with a part: two that agree are believed.
            before, names = names, await look()
            if names == before and self._known.get(folder, set()) <= set(names):
                break
            await asyncio.sleep(_shortened(delay))
        else:
            names = sorted({*names, *await self._really_there(folder, self._known.get(folder, set()) - set(names))})
        self._known[folder] = set(names)
        return names

    def local_path(self, key: str) -> Path | None:
        return self._files.local_path(key)

    def location(self, key: str = "") -> str:
        return self._files.location(key)

    def scrubbed(self, text: str) -> str:
        return self._files.scrubbed(text)

    async def _again(self, call: Callable[[], Awaitable[T]], writes: str | None = None) -> T:
        """Make a call until it succeeds or its error lasts. The error then has a note on how long was tried."""
        with contextlib.ExitStack() as failing:
            began = 0.0
            tries = 0
            while True:
                if writes is not None and self._may_write is not None:
                    await self._may_write(writes)
                try:
                    return await call()
                except Exception as exc:
                    tries += 1
                    now = time.monotonic()
                    began = began or now
                    kind = kind_of(exc, is_local=self.is_local)
                    most = {Kind.PASSES: len(DELAYS_SEC) + 1, Kind.MAY_PASS: LOOKS, Kind.LASTS: 1}[kind]
                    delay = _shortened(DELAYS_SEC[min(tries, len(DELAYS_SEC)) - 1])
                    if tries >= most or (tries > 1 and now + delay - began > PASSES_WITHIN_SEC):
                        if tries > 1:
                            exc.add_note(f"tried {tries} times in {now - began:.0f} s")
                        raise
                    if tries == 1:
                        failing.enter_context(self._is_failing())
                await asyncio.sleep(delay)

    @contextlib.contextmanager
    def _is_failing(self) -> Iterator[None]:
        this = object()
        self._failing.add(this)
        if len(self._failing) == 1:
            self._tell(True)
        try:
            yield
        finally:
            self._failing.remove(this)
            if not self._failing:
                self._tell(False)

    async def _seen(self, path: str, look: Callable[[], Awaitable[T]]) -> T:
        """Look at a key. If it is not found, although it was listed or written, nobody can tell whether it is there."""
        try:
            return await look()
        except FileNotFoundError as exc:
            if self.is_local:
                raise
            folder, _, name = path.rpartition("/")
            if name not in self._known.get(folder, ()):
                try:
                    listed = await self._files.list_names(folder)
                except FileNotFoundError:  # not even the bucket is there
                    raise exc from None
                if name not in listed:
                    raise
            raise UnseenError(f"{path} was listed or written, and the storage does not find it now") from exc

    async def _really_there(self, folder: str, missing: set[str]) -> list[str]:
        """The names that can be read although no listing has them. The others are gone, as many looks agree."""
        there = []
        for name in sorted(missing):
            path = f"{folder}/{name}"

            async def read(path: str = path) -> bool:
                try:
                    await self._files.read_path(path)
                except FileNotFoundError:
                    return False
                return True

            if await self._again(read):
                there.append(name)
        return there

    def _know(self, path: str) -> None:
        if not self.is_local:
            folder, _, name = path.rpartition("/")
            self._known.setdefault(folder, set()).add(name)


def looks() -> Iterator[Awaitable[None]]:
    """The looks at a file, each to be awaited first: the one at once, and those later ones that tell a bad read from damage."""
    for pause in (0.0, *LOOK_AGAIN_SEC):
        yield asyncio.sleep(pause)


async def read_sound(files: Files, key: str, decode: Callable[[bytes], T]) -> T:
    """Read a key and decode it. Content that does not decode is read again: damage is what two looks agree on.

    Raises:
        Exception: The error of `decode`, or of the read.
    """
    before: bytes | None = None
    for delay in DELAYS_SEC:
        content = await files.read_path(key)
        try:
            return decode(content)
        except (BatchflowException, ValueError):
            if content == before:
                raise
        before = content
        await asyncio.sleep(_shortened(delay))
    return decode(await files.read_path(key))


def _shortened(delay_sec: float) -> float:
    return delay_sec * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
