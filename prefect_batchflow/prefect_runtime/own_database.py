"""Whether Prefect's own database can have a block, without Prefect: a server of its own takes seconds to say no."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prefect_batchflow.settings import default_home

if TYPE_CHECKING:
    from collections.abc import Collection

_ELSEWHERE: Final = ("PREFECT_API_URL", "DATABASE", "PREFECT_PROFILES_PATH")
"""Settings that say another place, as parts of their names."""
_SETTINGS_FILES: Final = {".env": "PREFECT_", "pyproject.toml": "[TOOL.PREFECT", "prefect.toml": ""}
"""Where Prefect reads settings, in the current folder, and how these begin there; and profiles in its home."""


def block_name(connection: str) -> str:
    """The block name for a connection: lower case, with a dash for other characters than letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", connection.lower()).strip("-")


def may_have_blocks(names: Collection[str]) -> bool:
    """Whether a block can have one of these names: false only if Prefect uses a local database that has none of them."""
    if "prefect" in sys.modules or _says_elsewhere():
        return True
    database = default_home() / "prefect.db"
    if not database.is_file():
        return False
    marks = ", ".join("?" * len(names))
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            query = f"SELECT 1 FROM block_document WHERE name IN ({marks}) LIMIT 1"  # noqa: S608 - only question marks
            return connection.execute(query, list(names)).fetchone() is not None
    except sqlite3.Error:  # another version's, or busy: let Prefect say it
        return True


def _says_elsewhere() -> bool:
    if any(name.startswith("PREFECT_") and any(part in name for part in _ELSEWHERE) for name in os.environ):
        return True
    places = {default_home() / "profiles.toml": "PREFECT_", **{Path(n): mark for n, mark in _SETTINGS_FILES.items()}}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return any(
            place.is_file() and mark in place.read_text(encoding="utf-8").upper() for place, mark in places.items()
        )
    return True
