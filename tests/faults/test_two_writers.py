"""F11: two processes on one run id, and one that was stopped past its lease and wakes up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from invariants import Watch
from prefect.settings import PREFECT_API_URL
from waiting import wait_until

import prefect_batchflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(300)]

LINES = 200
WORKERS = 2
AHEAD = 40
"""More than the lines that two workers can have been sent."""
FLOW = """
import os, time

def main(n: int, witness: str) -> dict:
    fd = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{n}\\n".encode())
    os.close(fd)
    time.sleep(0.05)
    while os.path.exists(f"{witness}.hold"):
        time.sleep(0.05)
    return {"square": n * n}
"""


class Place(NamedTuple):
    """A run storage."""

    url: str
    fetch: Callable[[], object] = lambda: None
    """Brings its run to the folder of the test."""


class Run:
    """One run that several processes try to run, with leases that last 3 s."""

    def __init__(self, folder: Path, storage: Place, write_rows: Callable[..., Path]) -> None:
        self.folder = folder
        self.witness = folder / "witness"
        self.outputs = folder / "outputs"
        flow = folder / "square.py"
        flow.write_text(FLOW)
        rows = {n: {"n": n, "witness": str(self.witness)} for n in range(LINES)}
        here = folder / "runs" / "nightly"
        self.watch = Watch(here, rows, self.witness, AHEAD, output_dir=self.outputs, fetch=storage.fetch)
        self.watch.begin()
        self.command = [
            sys.executable, str(Path(__file__).parents[1] / "support" / "quick_lease.py"), "run", f"{flow}:main",
            "--data", str(write_rows(list(rows.values()))), "--run-id", "nightly", "--workers", str(WORKERS),
            "--storage", storage.url, "--output-dir", str(self.outputs),
        ]  # fmt: skip

    @contextmanager
    def process(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        env = {
            **os.environ,
            "PREFECT_API_URL": PREFECT_API_URL.value(),
            "PYTHONPATH": str(Path(prefect_batchflow.__file__).parents[1]),
        }
        with (self.folder / name).open("wb") as log:
            started = subprocess.Popen(self.command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield started
        finally:
            started.kill()
            started.wait()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no line end, so that the run is still there however long another process takes to start."""
        hold = self.witness.with_name(f"{self.witness.name}.hold")
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()

    def said(self, name: str) -> str:
        return " ".join((self.folder / name).read_text().split())

    def executed(self) -> list[int]:
        return list(map(int, self.witness.read_text().split())) if self.witness.exists() else []


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Place(str(tmp_path / "runs"))
    bucket = request.getfixturevalue("bucket")
    return Place(f"{bucket.url}/runs", lambda: bucket.download("runs/nightly/", tmp_path / "runs" / "nightly"))


def test_the_second_is_refused_with_who_holds_it_and_until_when(
    tmp_path: Path, storage: Place, write_rows: Callable[..., Path]
) -> None:
    run = Run(tmp_path, storage, write_rows)
    with run.process("first") as first:
        wait_until(lambda: len(run.executed()) > 10, description="it runs", timeout_sec=30)
        with run.held(), run.process("second") as second:
            assert second.wait(60) != 0
        assert first.wait(100) == 0, run.said("first")

    assert f"already running by process {first.pid} on " in run.said("second")
    assert "Its lease holds until 20" in run.said("second")
    run.watch.check(0)


def test_a_stopped_writer_loses_its_run_and_is_refused_when_it_wakes_up(
    tmp_path: Path, storage: Place, write_rows: Callable[..., Path]
) -> None:
    run = Run(tmp_path, storage, write_rows)
    with run.process("first") as first:
        wait_until(lambda: len(run.executed()) > LINES // 4, description="it runs", timeout_sec=30)
        first.send_signal(signal.SIGSTOP)
        status, tries = -1, 0
        while status != 0:
            tries += 1
            assert tries < 20, run.said("second")
            run.watch.begin()
            with run.process("second") as second:
                status = second.wait(100)
            run.watch.check(status, refused=status != 0)
            assert status == 0 or "already running" in run.said("second"), run.said("second")

        run.watch.begin()
        first.send_signal(signal.SIGCONT)
        assert first.wait(60) != 0

    assert f"taken over by process {second.pid}" in run.said("first")
    run.watch.check(None, asked_again=dict.fromkeys(range(LINES), 1))
    twice = [n for n, count in Counter(run.executed()).items() if count > 1]
    assert len(twice) <= AHEAD, "only lines that were in flight ran again"


def test_a_removed_lock_file_lets_no_second_process_in(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    run = Run(tmp_path, Place(str(tmp_path / "runs")), write_rows)
    with run.process("first") as first:
        wait_until(lambda: len(run.executed()) > 10, description="it runs", timeout_sec=30)
        (tmp_path / "runs" / "nightly" / "lock").unlink()
        with run.held(), run.process("second") as second:
            assert second.wait(60) != 0
        assert first.wait(100) == 0, run.said("first")

    run.watch.check(0)
