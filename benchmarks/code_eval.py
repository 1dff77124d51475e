"""Programs run against their tests, one per line, with hard limits: is each of many thousand lines right?

    python benchmarks/code_eval.py --data HumanEval.jsonl.gz --times 100
    python benchmarks/code_eval.py --data HumanEval.jsonl.gz --times 100 --spoiled

Runs `flows/code_eval` over a file in HumanEval's format, `--times` times, in chunks. With `--spoiled`, five programs of each
round are bad: one loops forever, one crashes, one exits, one raises, one uses too much memory. Exit status 1 if a line is not
as expected.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from ended_run import run_in

ROOT = Path(__file__).resolve().parent.parent
FLOW = f"{ROOT / 'flows' / 'code_eval' / 'evaluate.py'}:evaluate"
SPOILED = {
    "    while True:\n        pass\n": "LineExecutionTimeoutError",
    "    import ctypes\n    ctypes.string_at(0)\n": "ProcessCrashError",
    "    import os\n    os._exit(0)\n": "ProcessCrashError",
    "    raise KeyError('spoiled')\n": "ScriptExecutionError",
    "    eaten = []\n    while True:\n        eaten.append(bytearray(1 << 20))\n": "LineOutOfMemoryError",
}
"""The body of a bad program, to the error code that its line must have."""


def problems(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, gzipped or not."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def spoiled(rows: list[dict[str, Any]], at_time: int) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The rows with five of them spoiled, other ones each round, and the expected error codes by index."""
    rows, codes = list(rows), {}
    for index, (body, code) in enumerate(SPOILED.items()):
        # Spread over the rows; with enough rounds, all rows get their turn.
        row = (index * len(rows) // len(SPOILED) + at_time) % len(rows)
        rows[row] = {**rows[row], "canonical_solution": body}
        codes[row] = code
    return rows, codes


def main() -> int:
    """Run, compare and print; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--times", type=int, default=1, help="how often each problem runs")
    parser.add_argument("--spoiled", action="store_true", help="replace five programs of each round by bad ones")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--line-timeout", type=float, default=10.0, help="seconds; more than a correct program needs")
    parser.add_argument("--line-memory-mb", type=int, default=512)
    given = parser.parse_args()
    rows = problems(given.data)
    lines: list[dict[str, Any]] = []
    expected: dict[int, str] = {}
    for at_time in range(given.times):
        these, codes = spoiled(rows, at_time) if given.spoiled else (rows, {})
        expected |= {len(lines) + row: code for row, code in codes.items()}
        lines += these
    with tempfile.TemporaryDirectory(prefix="batchflow-benchmark-") as scratch:
        run = run_in(
            Path(scratch),
            FLOW,
            lines,
            worker_count=given.workers,
            line_timeout_sec=given.line_timeout,
            line_memory_mb=given.line_memory_mb,
            granularity="chunk",
        )
    result = run.result
    right = {row["line_number"] for row in run.outputs if row["passed"]}
    checks = {
        "lines": (result.total_lines, len(lines)),
        "completed": (result.completed_lines, len(lines) - len(expected)),
        "failed": (result.failed_lines, len(expected)),
        "passed": (right, set(range(len(lines))) - expected.keys()),
        "each failed as it must": (run.codes, expected),
    }
    per_sec = len(lines) / run.seconds
    print(f"{len(lines)} lines, {given.workers} workers: {run.seconds:.1f} s, {per_sec:.1f} lines per second")
    print(f"failed: {dict(Counter(run.codes.values())) or 'none'}")
    for name, (found, must) in checks.items():
        shown = found if isinstance(found, int) else len(found)
        print(f"{name:<24} {shown}{'' if found == must else '  WRONG'}")
    return int(any(found != must for found, must in checks.values()))


if __name__ == "__main__":
    sys.exit(main())
