"""Memory and the cost of a line as the data grows, of the engine's process and of its largest child process.

    python benchmarks/memory.py --full
    python benchmarks/memory.py --contenders auto,map --lines 1000,10000

Peaks are the kernel's own (VmHWM). `grown` is the peak minus the memory before `run()`, after all imports.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from measuring import Group, Preset, Work, command_line, measure_all
from results import Results, ms_a_line, table

if TYPE_CHECKING:
    from results import Measurement

NAME = "memory"
SHARES = (0.25, 0.5, 0.75, 0.95)
QUICK = Preset([Group(["promptflow", "inspect", "map", "auto"], [50, 200])], rounds=1)
FULL = Preset(
    [
        Group(["inspect", "map"], [1_000, 10_000]),
        Group(["promptflow", "auto"], [1_000, 10_000, 100_000]),
        Group(["auto"], [1_000_000]),
    ],
    rounds=3,
)


def peak_mb(measurement: Measurement) -> float:
    """The peak of the engine's process."""
    return float(measurement["peak"] / 1024)


def worker_peak_mb(measurement: Measurement) -> float | None:
    """The peak of the largest process that it started; `None` if it started none."""
    return measurement["worker_peak"] / 1024 or None


def grown_mb(measurement: Measurement) -> float:
    """The memory that the run added to the process."""
    return float((measurement["peak"] - measurement["resident_before"]) / 1024)


def resident_mb(measurement: Measurement, share: float) -> float | None:
    """The memory of the engine's process after that share of its life; `None` if it was too short for a sample."""
    samples = measurement["samples"]
    return samples[min(int(share * len(samples)), len(samples) - 1)][1] / 1024 if samples else None


def over_the_run(results: Results) -> dict[str, list[float]]:
    """The memory by quarters: does it grow with the finished lines?"""
    rows = {share: results.rows(partial(resident_mb, share=share)) for share in SHARES}
    labels = list(rows[SHARES[0]])
    return {f"{label}, at {share:.0%}": rows[share][label] for label in labels for share in SHARES}


def main() -> int:
    """Measure, and print peaks, growth and ms per line."""
    given = command_line(__doc__, QUICK, FULL)
    results: Results = measure_all(NAME, given, Work(sampled=True))
    return results.tell(
        table("parent's peak, MB", results.rows(peak_mb), 1),
        table("parent's memory grown, MB", results.rows(grown_mb), 1),
        table("parent over its life, MB", over_the_run(results), 1),
        table("largest child's peak, MB", results.rows(worker_peak_mb), 1),
        table("ms per line", results.rows(ms_a_line)),
    )


if __name__ == "__main__":
    sys.exit(main())
