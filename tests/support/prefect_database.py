"""The database of a Prefect server that has just started for the first time, kept between sessions.

Its many migrations take 6 s of a processor, which each server in a new home would spend again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

folder: Path | None = None
"""Where it is kept; nowhere if pytest keeps nothing."""


def keep(database: Path) -> None:
    """Keep a copy of the database of a server that has started, unless there is one."""
    if folder is None or (kept := _kept(folder)).exists():
        return
    copy = kept.with_suffix(f".{os.getpid()}")
    with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    copy.replace(kept)


def put(database: Path) -> None:
    """Put a copy where a server will look for its database, if one is kept."""
    if folder is not None and (kept := _kept(folder)).exists():
        shutil.copyfile(kept, database)


def _kept(folder: Path) -> Path:
    return folder / f"{version('prefect')}.db"
