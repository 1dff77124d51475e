"""What a run costs when nobody sets an option, on a Prefect server that keeps running.

    python benchmarks/defaults.py
    python benchmarks/defaults.py --only waiting,computing,behind,failing --rounds 5

waiting: 200 sync lines that wait 1 s, as for a model: seconds, workers and their memory, task runs.
computing: 1,000 lines of about 15 ms of pure Python, at the defaults and with two workers, in pairs.
behind: 1,000 or 2,000 lines that do nothing, and a run right behind: ms per line, seconds to the first line of the next run.
failing: 300 lines that fail with messages of 100 KB: what a run at Prefect's default log level prints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from measuring import HERE, LIMIT_SEC, Bench, Work, benching, write_data

if TYPE_CHECKING:
    from collections.abc import Callable

ENGINE = HERE / "contenders" / "defaults_engine.py"
FAILS = 'def main(text: str) -> str:\n    raise ValueError(f"{text} " + "x" * 100_000)\n'


@dataclass(frozen=True)
class Ran:
    """One run."""

    seconds: float
    first_line_sec: float
    completed: int
    failed: int
    workers: str
    printed: str


def run(bench: Bench, flow: str, lines: int, **options: Any) -> Ran:
    """Run a flow in a process of its own. The server is not waited for, before or afterwards."""
    folder = Path(tempfile.mkdtemp(dir=bench.scratch))
    data, first_line = folder / "data.jsonl", folder / "first_line"
    write_data(data, lines)
    done = subprocess.run(
        [sys.executable, str(ENGINE), flow, str(data), str(folder / "runs"), json.dumps(options)],
        env={**bench.env, "BENCH_WAIT_SEC": "1", "BENCH_FIRST_LINE": str(first_line)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SEC,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"The run ended with exit code {done.returncode}:\n{done.stdout[-3000:]}")
    *printed, last = done.stdout.splitlines()
    told = json.loads(last)
    begun = told.pop("begun")
    first = float(first_line.read_text()) - begun if first_line.exists() else 0.0
    return Ran(first_line_sec=first, printed="\n".join(printed), **told)


def waiting(bench: Bench, rounds: int) -> None:
    """200 sync lines of 1 s."""
    for _ in range(rounds):
        before = bench.server.count()
        ran = run(bench, str(HERE / "flows" / "waiting"), 200)
        bench.server.settle(None, limit_sec=LIMIT_SEC)
        print(f"  {ran.seconds:.1f} s, {ran.workers}; {bench.server.count() - before} task runs", flush=True)


def computing(bench: Bench, rounds: int) -> None:
    """1,000 computing lines, in pairs, every second one the other way round."""
    flow, ratios = str(HERE / "flows" / "computing"), []
    for number in range(rounds):
        seconds = {}
        for workers in (0, 2) if number % 2 else (2, 0):
            seconds[workers] = run(bench, flow, 1_000, worker_count=workers).seconds
            bench.server.settle(None, limit_sec=LIMIT_SEC)
        ratios.append(seconds[0] / seconds[2])
        print(f"  {seconds[0]:.2f} s; {seconds[2]:.2f} s with two workers; ratio {ratios[-1]:.3f}", flush=True)
    print(f"  median of the ratios {median(ratios):.3f}")


def behind(bench: Bench, rounds: int) -> None:
    """Trivial lines, and the next run right behind."""
    flow = str(HERE / "flows" / "marking")
    for lines in (1_000, 2_000):
        costs, firsts = [], []
        for _ in range(rounds):
            ran, next_run = run(bench, flow, lines), run(bench, flow, lines)
            costs.append(1000 * ran.seconds / lines)
            firsts.append(next_run.first_line_sec)
            bench.server.settle(None, limit_sec=LIMIT_SEC)
            print(f"  {lines:,} lines: {costs[-1]:.3f} ms each; next first line after {firsts[-1]:.2f} s", flush=True)
        print(f"  median {median(costs):.3f} ms per line, {median(firsts):.2f} s, at most {max(firsts):.2f} s")


def failing(bench: Bench, rounds: int) -> None:
    """300 lines that fail with long messages, with Prefect's own log level."""
    flow = bench.scratch / "fails.py"
    flow.write_text(FAILS)
    for _ in range(rounds):
        ran = run(bench, f"{flow}:main", 300)
        print(
            f"  {ran.failed} failed, {len(ran.printed.splitlines())} lines and {len(ran.printed):,} characters printed"
        )


PARTS: dict[str, Callable[[Bench, int], None]] = {
    "waiting": waiting,
    "computing": computing,
    "behind": behind,
    "failing": failing,
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    given = parser.parse_args()
    with benching(Work(), "INFO") as bench:
        run(bench, str(HERE / "flows" / "trivial"), 20)  # not counted
        for name in given.only.split(","):
            print(f"{name} (load {os.getloadavg()[0]:.1f})", flush=True)
            PARTS[name](bench, given.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
