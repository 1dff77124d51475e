"""F2: kill -9 of `batchflow run` at random times, again and again, until the run comes to its end. All invariants each time.

    pytest -n 0 -m faults tests/faults/test_random_kills.py --random-kills 500 --kill-seed 7 -s

A run is killed several times and then left alone; further runs follow until there were enough kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from invariants import MARK, Watch
from prefect.settings import PREFECT_API_URL

import prefect_batchflow
from prefect_batchflow.granularity import SMALLEST_CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(4 * 3600)]

WORKERS = 2
IN_FLIGHT = {"line": 24, "chunk": 2 * SMALLEST_CHUNK}
"""Lines that the workers run, and those whose results wait for the disk; with chunks, those of two chunks."""
LINES = {"line": (30, 80), "chunk": (100, 200)}
KILLS_A_RUN = 6
START_SEC = 2.0
END_SEC = 0.6
ENDS_WITHIN_SEC = 120.0
FLOW = """
import os, time
from pathlib import Path

def main(n: int) -> dict:
    fd = os.open(Path(__file__).with_name("witness"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{n}\\n".encode())
    os.close(fd)
    time.sleep(0.02)
    return {"square": n * n}
"""


class KilledRun:
    """One run that is started and killed with the same command."""

    def __init__(self, folder: Path, chance: random.Random, granularity: str) -> None:
        folder.mkdir()
        self._chance, self._log = chance, folder / "log"
        lines = chance.randint(*LINES[granularity])
        (folder / "square.py").write_text(FLOW)
        rows = {n: {"n": n} for n in range(lines)}
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
        run = folder / "runs" / "nightly"
        self._command = [
            sys.executable, "-m", "prefect_batchflow.cli", "run", f"{folder / 'square.py'}:main",
            "--data", str(folder / "rows.jsonl"), "--run-id", "nightly", "--workers", str(WORKERS),
            "--storage", str(run.parent), "--output-dir", str(folder / "outputs"), "--granularity", granularity,
        ]  # fmt: skip
        self.watch = Watch(
            run, rows, folder / "witness", IN_FLIGHT[granularity], output_dir=folder / "outputs", mark=str(run)
        )

    def start(self, *, kill: bool) -> bool:
        """Start it, and perhaps kill it; whether it came to its end."""
        self.watch.begin()
        env = {
            **os.environ,
            "PREFECT_API_URL": PREFECT_API_URL.value(),
            "PYTHONPATH": str(Path(prefect_batchflow.__file__).parents[1]),
            MARK: self.watch.mark,
        }
        with self._log.open("ab") as log:
            process = subprocess.Popen(self._command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            if kill:
                self._wait_for_a_moment(process)
            else:
                process.wait(ENDS_WITHIN_SEC)
        finally:
            process.send_signal(signal.SIGKILL)
            status = process.wait(10)
        was_killed = status == -signal.SIGKILL
        self.watch.check(None if was_killed else status)
        return not was_killed

    def _wait_for_a_moment(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until some time in its life: while it starts, while lines run, or while it ends."""
        chance, lines = self._chance, len(self.watch.lines)
        done = len(self.watch.executed())
        phase = chance.choices(["start", "lines", "end"], [2, 5, 3])[0]
        if phase == "start":
            seconds = chance.uniform(0, START_SEC)
        else:
            enough = chance.randint(done, lines) if phase == "lines" else lines
            self._wait_for(process, lambda: len(self.watch.executed()) > enough or self._all_have_run())
            seconds = chance.uniform(0, 0.03 if phase == "lines" else END_SEC)
        self._wait_for(process, lambda: False, seconds)

    def _all_have_run(self) -> bool:
        return len(self.watch.executed()) == len(self.watch.lines)

    @staticmethod
    def _wait_for(
        process: subprocess.Popen[bytes], is_true: Callable[[], bool], seconds: float = ENDS_WITHIN_SEC
    ) -> None:
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until and not is_true():
            time.sleep(0.001)


@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_runs_that_are_killed_at_random_lose_nothing_and_run_nothing_twice(
    granularity: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    wanted = request.config.getoption("--random-kills") // 2
    seed = request.config.getoption("--kill-seed")
    seed = random.randrange(1_000_000) if seed is None else seed
    print(f"--kill-seed {seed}")  # noqa: T201 - shown if the test fails
    chance = random.Random(f"{seed} {granularity}")
    watches: list[Watch] = []
    while (kills := sum(watch.kills for watch in watches)) < wanted:
        run = KilledRun(tmp_path / f"run{len(watches)}", chance, granularity)
        watches.append(run.watch)
        most = min(KILLS_A_RUN, wanted - kills)
        while run.watch.kills < most:
            run.start(kill=True)
        assert run.start(kill=False)

        executions, lines = run.watch.executed().total(), len(run.watch.lines)
        assert executions <= lines + run.watch.kills * run.watch.in_flight

    facts = {
        "kills": sum(watch.kills for watch in watches),
        "runs": len(watches),
        "starts": sum(watch.starts for watch in watches),
        "lines": sum(len(watch.lines) for watch in watches),
        "executed again": sum(watch.executed_again for watch in watches),
        "most in flight at a kill": max(watch.worst for watch in watches),
    }
    print(f"{granularity}: {facts}")  # noqa: T201 - the figures of a long run
