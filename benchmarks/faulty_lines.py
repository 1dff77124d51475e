"""A run of which four lines in a hundred go wrong, each in another way: does every line end as it must, and in time?

    python benchmarks/faulty_lines.py --lines 10000

One line in a hundred hangs, one crashes, one raises, one is killed by the system: every second of these by SIGKILL, the others
for their memory. Exits with 1 when a line fails that must not, or in another class, or when the run takes longer than its
limits allow.
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
"""A fault to the code that its line must fail with."""
EVERY = 100
AT_REST_SEC = 30.0
"""What a run may take beside its lines: the server, the first worker, the report."""
LINE_SEC = 0.01
"""What a line that does nothing may take."""
RESTART_SEC = 1.0
"""What a line may take that costs its worker: its end, a new one that loads the flow, and for its memory the filling of it."""


def fault_of(number: int) -> str:
    """What a line does."""
    kind = "kill" if number // EVERY % 2 else "memory"
    return {10: "hang in C", 35: "segfault", 60: "raise", 85: kind}.get(number % EVERY, "")


def main() -> int:
    """Run, compare and print; 1 when something is off."""
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
