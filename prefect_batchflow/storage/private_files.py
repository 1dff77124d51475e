"""New files and folders of a run on this machine: for their owner only, unless the environment asks for the umask.

Records and outputs have what users asked a model and what it said. Names of unfinished files cannot be foreseen, and no link is
followed on the way to them, so that nobody who can write to the folder chooses what a run overwrites.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESS_VARIABLE = "BATCHFLOW_FILE_ACCESS"
"""`owner`, the default: folders 0700, files 0600. `umask`: 0777 and 0666 without the bits of the umask."""
WRITING = ".writing-"
"""How the names of unfinished files begin."""


def file_mode() -> int:
    """The mode with which to open a new file; the umask of the process still applies."""
    return 0o666 if _is_shared() else 0o600


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that do not exist. A folder that exists keeps its mode."""
    mode = 0o777 if _is_shared() else 0o700
    for missing in reversed([folder, *folder.parents]):
        if not missing.is_dir():
            missing.mkdir(mode=mode, exist_ok=True)


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Give a new, empty file in a folder, which is made if there is none. On leaving it is removed, if it is still there.

    Raises:
        OSError: The folder is not writable, or something else is in its place.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    path = folder / f"{WRITING}{secrets.token_hex(8)}"
    try:
        descriptor = os.open(path, flags, file_mode())
    except FileNotFoundError:
        make_folder(folder)
        descriptor = os.open(path, flags, file_mode())
    os.close(descriptor)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def remove_unfinished(folder: Path, since: Path, *, older_by_sec: float = 0.0, in_folders: bool = True) -> int:
    """Remove the unfinished files of dead processes from a folder and the folders in it, and return how many.

    Only files older than `since` go, by the clock of their disk: a file that this process has just written there. In a folder
    that several runs can share, `older_by_sec` protects the files that others are writing, and `in_folders` can be false.
    """
    removed = 0
    with contextlib.suppress(OSError):  # they are in nobody's way
        newest = since.stat().st_mtime_ns - int(older_by_sec * 1e9)
        for place, folders, names in os.walk(folder):
            if not in_folders:
                folders.clear()
            for name in names:
                path = Path(place, name)
                if not name.startswith(WRITING):
                    continue
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_mtime_ns < newest:
                    path.unlink(missing_ok=True)
                    removed += 1
    return removed


def refuse_link(folder: Path) -> None:
    """Refuse a folder of a run that is a link to somewhere else.

    Raises:
        OSError: It is a link.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISLNK(folder.lstat().st_mode):
            raise NotADirectoryError(f"{folder} is a link, which can lead anywhere. Remove it")


def _is_shared() -> bool:
    access = os.environ.get(ACCESS_VARIABLE, "owner")
    if access not in ("owner", "umask"):
        raise InvalidOptionError(
            f"{ACCESS_VARIABLE} is {access!r}. Expected owner, for files that only you can read, or umask, for files that the "
            "umask of the process lets others read."
        )
    return access == "umask"
