"""A worker process that starts before its flow is known."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from pools import flow_of, is_alive, run, running_pool

from prefect_batchflow.execution.workers import started
from prefect_batchflow.execution.workers.killing import with_token
from prefect_batchflow.execution.workers.started import ready_worker, take_ready_worker

if TYPE_CHECKING:
    from pathlib import Path

WHERE = """
import os

def main():
    return {"pid": os.getpid(), "folder": os.getcwd()}
"""


def ready() -> started.ReadyWorker:
    """The one that waits now."""
    [waiting] = started._ready
    return waiting


@pytest.mark.anyio
async def test_the_first_worker_of_a_run_is_the_one_that_is_ready(tmp_path: Path) -> None:
    with ready_worker():
        pid = ready().process.popen.pid
        async with running_pool(flow_of(tmp_path, WHERE), worker_count=1) as pool:
            line = await run(pool)
            assert with_token(f"{pool._supervisor.token}-1.") == [pid]
    assert line.parsed()["output"] == {"pid": pid, "folder": str(tmp_path)}
    assert not is_alive(pid)


@pytest.mark.anyio
async def test_the_next_run_in_the_block_starts_its_own(tmp_path: Path) -> None:
    with ready_worker():
        pid = ready().process.popen.pid
        found = []
        for _ in range(2):
            async with running_pool(flow_of(tmp_path, WHERE), worker_count=1) as pool:
                found.append((await run(pool)).parsed()["output"]["pid"])
    assert found[0] == pid
    assert found[1] != pid


def test_one_that_no_run_takes_is_ended() -> None:
    with ready_worker():
        pid = ready().process.popen.pid
        assert is_alive(pid)
    assert not is_alive(pid)
    assert take_ready_worker() is None


@pytest.mark.parametrize("change", ["a variable", "it died"])
def test_one_that_no_longer_fits_is_not_taken(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    with ready_worker():
        process = ready().process.popen
        if change == "a variable":
            monkeypatch.setenv("A_LATER_VARIABLE", "1")
        else:
            process.kill()
            process.wait()
        assert take_ready_worker() is None
    assert not is_alive(process.pid)


@pytest.mark.parametrize("entries", [".", "lib", f"/a{os.pathsep}", f"{os.pathsep}/a", f"/a{os.pathsep}b"])
def test_entries_that_depend_on_the_folder_keep_it_from_starting_early(
    monkeypatch: pytest.MonkeyPatch, entries: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", entries)
    with ready_worker():
        assert not started._ready


@pytest.mark.parametrize("entries", [None, "", "/a", f"/a{os.pathsep}/b"])
def test_other_entries_do_not(monkeypatch: pytest.MonkeyPatch, entries: str | None) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if entries is not None:
        monkeypatch.setenv("PYTHONPATH", entries)
    with ready_worker():
        assert started._ready


def test_a_process_that_cannot_start_is_left_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(started, "ReadyWorker", fails)
    with ready_worker():
        assert take_ready_worker() is None
