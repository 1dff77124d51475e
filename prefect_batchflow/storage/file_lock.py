"""A lock on a file of this machine, which the system releases however its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from typing import TYPE_CHECKING

from prefect_batchflow.storage.private_files import file_mode

if TYPE_CHECKING:
    from pathlib import Path

_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


class FileLock:
    """The lock of one path. Only the file that is at the path now counts: a removed or replaced one locks nobody out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self.is_supported = True
        """Whether the file system has such locks, as far as is known."""

    @property
    def is_held(self) -> bool:
        """Whether this object has the lock."""
        return self._fd is not None

    @property
    def inode(self) -> int | None:
        """The locked file's. While its holder lives, no other file of the disk gets this number."""
        return None if self._fd is None else os.fstat(self._fd).st_ino

    def take(self) -> bool:
        """Take the lock; whether it is this object's now. Creates the file if there is none."""
        while self._fd is None and self.is_supported:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, file_mode())
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not self._is_at_path(fd):
                    os.close(fd)
                    continue
            except BlockingIOError:
                os.close(fd)
                return False
            except OSError as exc:
                os.close(fd)
                if exc.errno not in _UNSUPPORTED:
                    raise
                self.is_supported = False
                return False
            self._fd = fd
        return self._fd is not None

    def replace(self) -> None:
        """Put a new file, locked by this object, at the path. The holder of the old one is not asked."""
        if not self.is_supported:
            return
        new = self._path.with_name(f".lock-{uuid.uuid4().hex}")
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, file_mode())
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.replace(self._path)
        except BaseException:
            os.close(fd)
            new.unlink(missing_ok=True)
            raise
        self.release()
        self._fd = fd

    def take_again(self) -> None:
        """If somebody removed or replaced the locked file, lock the one that is at the path now, unless it is locked."""
        if self._fd is not None and not self._is_at_path(self._fd):
            self.release()
            self.take()

    def release(self) -> None:
        """Give the lock back. A forked child that has inherited the descriptor must not keep it."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = None

    def _is_at_path(self, fd: int) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(fd), there)


def is_locked(path: Path) -> bool:
    """Whether somebody has the lock of a path. Only looks."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        return False
    finally:
        os.close(fd)
