"""A run with four bad lines in a hundred, each bad in its own way: does every line end as it must, and in time?

    python benchmarks/faulty_lines.py --lines 10000

Of each hundred lines, one hangs, one crashes, one raises, and one is killed: by SIGKILL or, every second time, for its memory.
Exit status 1 if a wrong line fails, if a class is wrong, or if the run takes longer than its limits allow.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from ended_run import run_in

from prefect_batchflow.errors.classes import class_of_error

ROOT = Path(__file__).resolve().parent.parent
FLOW = f"{ROOT / 'tests' / 'support' / 'faulty_lines.py'}:main"

CODES = {
    "hang in C": "LineExecutionTimeoutError",
    "segfault": "ProcessCrashError",
    "raise": "ScriptExecutionError",
    "kill": "ProcessCrashError",
    "memory": "LineOutOfMemoryError",
}
"""A fault to the error code that its line must have."""
EVERY = 100
AT_REST_SEC = 30.0
"""Seconds that a run can take besides its lines: the server, the first worker, the report."""
LINE_SEC = 0.01
"""Seconds that a line can take when it does nothing."""
RESTART_SEC = 1.0
"""Seconds that a line can take when it loses its worker: the worker's end, a new one, and the time to fill the memory."""


def fault_of(number: int) -> str:
    """What a line does."""
    kind = "kill" if number // EVERY % 2 else "memory"
    return {10: "hang in C", 35: "segfault", 60: "raise", 85: kind}.get(number % EVERY, "")


def main() -> int:
    """Run, compare and print; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--line-timeout", type=float, default=2.0, help="seconds")
    given = parser.parse_args()
    faults = [fault_of(number) for number in range(given.lines)]
    expected = {number: CODES[fault] for number, fault in enumerate(faults) if fault}
    hung = faults.count("hang in C")
    lost = sum(fault not in ("", "raise") for fault in faults)
    allowed = AT_REST_SEC + (hung * given.line_timeout + lost * RESTART_SEC + given.lines * LINE_SEC) / given.workers
    with tempfile.TemporaryDirectory(prefix="batchflow-benchmark-") as scratch:
        run = run_in(
            Path(scratch),
            FLOW,
            [{"n": number, "fault": fault, "folder": scratch} for number, fault in enumerate(faults)],
            worker_count=given.workers,
            line_timeout_sec=given.line_timeout,
            line_memory_mb=64,
        )
        executed = Counter(map(int, Path(scratch, "begun").read_text().split()))
    result, classes = run.result, Counter(class_of_error(row["_error"]) for row in run.failed)
    right = [{"line_number": n, "square": n * n} for n in range(given.lines) if n not in expected]
    checks = {
        "every line is counted": result.completed_lines + result.failed_lines == result.total_lines == given.lines,
        "just those fail": run.codes.keys() == expected.keys(),
        "each in its class": run.codes == expected,
        "the others are right": run.outputs == right,
        "each was begun once": executed == Counter(range(given.lines)),
        f"within {allowed:.0f} s": run.seconds <= allowed,
    }
    limit = f"a limit of {given.line_timeout:g} s a line"
    print(f"{given.lines} lines, {given.workers} workers, {limit}: {run.seconds:.1f} s")
    print(f"{result.completed_lines} completed, {result.failed_lines} failed")
    print(", ".join(f"{count} {kind}" for kind, count in classes.items()))
    for name, holds in checks.items():
        print(f"{name:<24} {'yes' if holds else 'NO'}")
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
