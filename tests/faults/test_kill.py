"""A run that is killed with -9 in the middle, and the same command again: nothing lost, nothing run twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from invariants import MARK, Watch
from prefect.settings import PREFECT_API_URL
from waiting import wait_until

from prefect_batchflow.granularity import SMALLEST_CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("prefect_server")]

LINES = 1_000
WORKERS = 2
FLOW = """
import os, time

def main(n: int, witness: str) -> dict:
    fd = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{n}\\n".encode())
    os.close(fd)
    time.sleep(0.005)  # so that there is a middle to be killed in
    return {"square": n * n}
"""


class Run:
    """One run, started and killed as often as a test likes."""

    def __init__(self, folder: Path, write_rows: Callable[..., Path], granularity: str) -> None:
        self.witness = folder / f"witness-{granularity}"
        self.storage = folder / f"runs-{granularity}"
        self.run = self.storage / "nightly"
        flow = folder / "square.py"
        flow.write_text(FLOW)
        rows = {n: {"n": n, "witness": str(self.witness)} for n in range(LINES)}
        self.watch = Watch(self.run, rows, self.witness, 2 * SMALLEST_CHUNK, mark=str(self.run))
        self.command = [
            sys.executable, "-m", "prefect_batchflow.cli", "run", f"{flow}:main",
            "--data", str(write_rows(list(rows.values()))), "--run-id", "nightly", "--workers", str(WORKERS),
            "--storage", str(self.storage), "--granularity", granularity,
        ]  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), MARK: str(self.run)}
        return subprocess.Popen(self.command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_a_killed_run_goes_on_with_the_same_command(
    granularity: str, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    run = Run(tmp_path, write_rows, granularity)
    seed = random.randrange(10_000)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    after = random.Random(seed).randint(LINES // 10, LINES * 3 // 4)

    run.watch.begin()
    process = run.start()
    try:
        wait_until(lambda: run.watch.executed().total() >= after, description=f"{after} lines ran", timeout_sec=100)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    run.watch.check(None)
    assert run.watch.executed().total() < LINES, "it was killed in the middle"

    run.watch.begin()
    run.watch.check(run.start().wait(timeout=100))

    assert run.watch.executed_again <= run.watch.in_flight
