"""A run that is killed with -9 in the middle, and the same command again: nothing lost, nothing run twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect.settings import PREFECT_API_URL
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("prefect_server")]

LINES = 1_000
WORKERS = 2
MARK = "BATCHFLOW_TEST_RUN"
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
        rows = [{"n": n, "witness": str(self.witness)} for n in range(LINES)]
        self.command = [
            sys.executable, "-m", "prefect_batchflow.cli", "run", f"{flow}:main",
            "--data", str(write_rows(rows)), "--run-id", "nightly", "--workers", str(WORKERS),
            "--storage", str(self.storage), "--granularity", granularity,
        ]  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), MARK: str(self.run)}
        return subprocess.Popen(self.command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def is_alive(self) -> bool:
        """Whether any process of it is, by what all of them have in their environment."""
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"{MARK}={self.run}\0".encode() in environ.read_bytes():
                    return True
        return False

    def executed(self) -> list[int]:
        return list(map(int, self.witness.read_text().split())) if self.witness.exists() else []

    def acknowledged(self) -> set[int]:
        """The lines with a completed record, read the way `jq` would."""
        found = set()
        for path in (self.run / "records").glob("[!.]*.jsonl"):
            for text in path.read_text().splitlines()[1:]:
                record = json.loads(text)
                if record["status"] == "Completed":
                    found.add(record["line_number"])
        return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_a_killed_run_goes_on_with_the_same_command(
    granularity: str, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    run = Run(tmp_path, write_rows, granularity)
    seed = random.randrange(10_000)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    after = random.Random(seed).randint(LINES // 10, LINES * 3 // 4)

    process = run.start()
    try:
        wait_until(lambda: len(run.executed()) >= after, description=f"{after} lines ran", timeout_sec=100)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    wait_until(lambda: not run.is_alive(), description="no process of the killed run is alive", timeout_sec=5)

    before, acknowledged = run.executed(), run.acknowledged()
    assert len(before) < LINES, "it was killed in the middle"

    assert run.start().wait(timeout=100) == 0

    again = run.executed()[len(before) :]
    assert acknowledged.isdisjoint(again), "a line whose record was kept ran again"
    assert set(before) | set(again) == set(range(LINES))
    in_flight = set(before) - acknowledged
    assert set(before) & set(again) <= in_flight
    lines = (run.run / "outputs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"line_number": n, "square": n * n} for n in range(LINES)]
    result = json.loads((run.run / "batch_result.json").read_text())
    assert (result["completed_lines"], result["total_lines"]) == (LINES, LINES)
