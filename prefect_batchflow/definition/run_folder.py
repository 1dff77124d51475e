"""A temporary folder for one run; if the run is killed, the next run removes the folder."""

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
    """Give an empty folder, locked while in use and removed at the end; remove abandoned ones first.

    The system drops a process's locks however it dies, so a folder without lock is abandoned.
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
    """Remove this user's folders of killed runs."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if not (entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False)):
                continue
            # A folder that cannot be locked is in use, just being removed, or on a file system without locks.
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                    lock = _locked(entry.path)
                    shutil.rmtree(entry.path, ignore_errors=True)
                    os.close(lock)


def _new_folder() -> tuple[Path, int | None]:
    """A folder and the descriptor that locks it, which is `None` on a file system without locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            lock = _locked(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # before it was locked, another run took it for abandoned
        except OSError:
            return folder, None
        if folder.exists():
            return folder, lock
        os.close(lock)


def _locked(folder: str | Path) -> int:
    """A descriptor that holds the folder's lock; child processes do not inherit it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
