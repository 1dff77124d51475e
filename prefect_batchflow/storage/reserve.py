"""Space on a disk that a run keeps free for the results of lines that are running.

Without it, a disk that fills loses results that are paid for, and each further try pays for the same lines again. So a run
on a local disk begins with a file of this size, before the first line. When the disk is full, the run removes the file,
writes what has ended, and stops. The next try begins only if there is room for the file again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING, Self

from prefect_batchflow.exceptions import StorageError

if TYPE_CHECKING:
    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys

FLUSH_BYTES = 256 * 1024
"""A chunk of lines writes its results when this much is waiting."""
CHUNK_BYTES = 2 * FLUSH_BYTES
"""The space for the waiting and the half-written results of a chunk."""
LOCAL_CHUNKS = 2
"""Chunks that a run has at once on this machine: the next one begins before the current one ends."""
TIMES_LARGEST = 2
"""The space for a segment while another one waits to be written."""
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_TOO_LARGE = frozenset({errno.EFBIG})


def is_full(exc: BaseException) -> bool:
    """Whether an error, or one that caused it, says that the disk or the quota is full."""
    return _says(exc, _NO_SPACE)


def is_too_large(exc: BaseException) -> bool:
    """Whether it says that a smaller file could be written."""
    return _says(exc, _NO_SPACE | _TOO_LARGE)


def _says(exc: BaseException | None, numbers: frozenset[int]) -> bool:
    while exc is not None:
        if isinstance(exc, OSError) and exc.errno in numbers:
            return True
        exc = exc.__cause__
    return False


class Reserve:
    """A context manager that has the reserved space of one run. If the storage is no local disk, nothing is reserved.

    `chunks` is how many chunks of lines run at once, here or on the machines of a cluster. Their tasks do not enter the
    context: they use what the run has reserved, if they have the same disk.

    Raises:
        StorageError: On entry, when there is not enough space.
    """

    def __init__(self, files: RunFiles, keys: RunKeys, chunks: int = LOCAL_CHUNKS) -> None:
        self._smallest = CHUNK_BYTES * max(LOCAL_CHUNKS, chunks)
        self._path = files.local_path(keys.reserve)
        self._folder = files.local_path(keys.records)
        self._bytes = 0
        self.is_used = False
        """Whether the disk was full, so that no further line may begin."""

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._take)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()

    def _take(self) -> None:
        """Reserve the space, as much as the run's segments so far show to be necessary."""
        if self._path is None or self._folder is None:
            return
        largest = 0
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            largest = max((entry.stat().st_size for entry in entries if entry.is_file()), default=0)
        size = max(self._smallest, TIMES_LARGEST * largest)
        try:
            self._grow(size)
        except OSError as exc:
            self.release()
            if not is_full(exc):
                return  # a file system without such files; its own errors tell
            free = shutil.disk_usage(self._path.parent).free
            raise StorageError(
                f"The disk of the run storage at {self._path.parent} is full: {free / 1e6:.1f} MB are free, and a run needs "
                f"{size / 1e6:.1f} MB for the results of the lines that run at once. No line was run. Free some space, then "
                "start the run again."
            ) from exc

    def wrote(self, size: int) -> None:
        """Learn how large a segment is, and reserve more if it is larger than expected."""
        if self._path is None or self.is_used or not self._bytes or TIMES_LARGEST * size <= self._bytes:
            return
        try:
            self._grow(TIMES_LARGEST * size)
        except OSError as exc:
            self.is_used = self.is_used or is_full(exc)

    def use(self) -> bool:
        """Give the space to what has to be written now; whether there was any."""
        had = self._bytes > 0 or (self._path is not None and self._path.is_file())
        self.is_used = True
        self.release()
        return had

    def release(self) -> None:
        """Remove the file."""
        self._bytes = 0
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _grow(self, size: int) -> None:
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)
        self._bytes = size
