"""A temporary folder for the time of a run, which the next one removes where a run was killed before it could."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "batchflow-run-"


@contextmanager
def run_folder() -> Iterator[Path]:
    """Give an empty folder, locked while it is in use and removed at the end, and remove those that nobody has locked.

    The system drops the lock of a process however it dies, so what is not locked is in nobody's use.
    """
    remove_abandoned()
    folder, lock = _new_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned() -> None:
    """Remove this user's folders of runs that were killed."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if not (entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False)):
                continue
            # One that cannot be locked is in use, goes at this moment, or is on a file system without locks: it stays.
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                    lock = _locked(entry.path)
                    shutil.rmtree(entry.path, ignore_errors=True)
                    os.close(lock)


def _new_folder() -> tuple[Path, int | None]:
    """A folder and the descriptor that locks it; `None` on a file system without locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            lock = _locked(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # another run, in the moment before the lock, took it for abandoned
        except OSError:
            return folder, None
        if folder.exists():
            return folder, lock
        os.close(lock)


def _locked(folder: str | Path) -> int:
    """A descriptor that holds the lock of a folder; no program that is started inherits it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
