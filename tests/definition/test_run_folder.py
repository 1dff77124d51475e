"""A run has a temporary folder that is removed: by itself, or where it was killed by the next run."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from prefect_batchflow.definition import run_folder as module
from prefect_batchflow.definition.run_folder import PREFIX, remove_abandoned, run_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_empty_and_removed_at_the_end(temporary: Path) -> None:
    with run_folder() as folder:
        assert list(folder.iterdir()) == []
        (folder / "file").touch()

    assert list(temporary.iterdir()) == []


def test_one_that_is_in_use_stays(temporary: Path) -> None:
    with run_folder() as one, run_folder() as other:
        assert sorted(temporary.iterdir()) == sorted([one, other])


def test_one_of_a_process_that_was_killed_is_removed_by_the_next(temporary: Path) -> None:
    code = (
        "import sys, tempfile; from prefect_batchflow.definition.run_folder import run_folder\n"
        f"tempfile.tempdir = {str(temporary)!r}\n"
        "with run_folder() as folder:\n"
        "    (folder / 'deep').mkdir(); (folder / 'deep' / 'file').touch()\n"
        "    print(folder, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().decode().strip())
        remove_abandoned()
        assert (left / "deep" / "file").exists(), "its process lives"
        killed.send_signal(signal.SIGKILL)

    assert left.exists()
    with run_folder() as folder:
        assert list(temporary.iterdir()) == [folder]


def test_what_is_not_its_own_stays(temporary: Path) -> None:
    (temporary / "other").mkdir()
    (temporary / f"{PREFIX}file").touch()
    (temporary / f"{PREFIX}link").symlink_to(temporary / "other")

    remove_abandoned()

    assert len(list(temporary.iterdir())) == 3


def test_one_that_another_run_takes_for_abandoned_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock, another run may remove it, or be about to."""
    lock, taken = module._locked, [BlockingIOError, FileNotFoundError]

    def locked(folder: str | Path) -> int:
        if taken:
            raise taken.pop()
        return lock(folder)

    monkeypatch.setattr(module, "_locked", locked)
    with run_folder() as folder:
        assert folder.exists()

    assert taken == []
    assert len(list(temporary.iterdir())) == 2, "those that the other run has"


def test_it_works_without_locks(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(folder: str | Path) -> int:
        raise OSError(f"no locks on {folder}")

    monkeypatch.setattr(module, "_locked", locked)
    with run_folder() as folder:
        remove_abandoned()
        assert folder.exists()

    assert list(temporary.iterdir()) == []
