"""Prefect's own database is made for its owner, whatever the umask, as run folders are."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

from prefect_batchflow.prefect_runtime.own_server import make_private_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _make(url: str) -> None:
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: url}):
        make_private_database()


@pytest.mark.usefixtures("umask")
def test_the_database_and_sqlites_other_files_are_for_the_owner(tmp_path: Path) -> None:
    file = tmp_path / "home" / "prefect.db"

    _make(f"sqlite+aiosqlite:///{file}")

    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        modes = {path.name: _mode(path) for path in file.parent.iterdir()}
    assert modes == dict.fromkeys(("prefect.db", "prefect.db-wal", "prefect.db-shm"), 0o600)
    assert _mode(file.parent) == 0o700


def test_the_umask_counts_where_the_environment_asks_for_it(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHFLOW_FILE_ACCESS", "umask")

    _make(f"sqlite+aiosqlite:///{tmp_path}/prefect.db")

    assert _mode(tmp_path / "prefect.db") == 0o666 & ~umask


def test_a_database_that_exists_keeps_its_mode_and_content(tmp_path: Path) -> None:
    file = tmp_path / "prefect.db"
    file.write_bytes(b"content")
    file.chmod(0o640)

    _make(f"sqlite+aiosqlite:///{file}")

    assert (file.read_bytes(), _mode(file)) == (b"content", 0o640)


def test_a_link_to_nowhere_makes_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").symlink_to(tmp_path / "elsewhere.db")

    _make(f"sqlite+aiosqlite:///{tmp_path}/prefect.db")

    assert not (tmp_path / "elsewhere.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://u@h/prefect",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///file::memory:?cache=shared",
    ],
)
def test_other_databases_are_no_files_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)

    _make(url)

    assert list(tmp_path.iterdir()) == []
