"""Memory, and the cost of a line, as the data grows: of the engine's process, and of the largest that it starts.

    python benchmarks/memory.py --full
    python benchmarks/memory.py --contenders auto,map --lines 1000,10000

Peaks are the kernel's own (VmHWM). `grown` is the peak without what was resident before `run()`, all imports done.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from measuring import Group, Preset, Work, command_line, measure_all
from results import Results, ms_a_line, table

if TYPE_CHECKING:
    from results import Measurement

NAME = "memory"
QUICK = Preset([Group(["promptflow", "inspect", "map", "auto"], [100, 1_000])], rounds=1)
FULL = Preset(
    [
        Group(["inspect", "map"], [1_000, 10_000]),
        Group(["promptflow", "auto"], [1_000, 10_000, 100_000]),
        Group(["auto"], [1_000_000]),
    ],
    rounds=3,
)


def peak_mb(measurement: Measurement) -> float:
    """The most that the engine's process had."""
    return float(measurement["peak"] / 1024)


def worker_peak_mb(measurement: Measurement) -> float | None:
    """The most that the largest process it started had; `None` where it started none."""
    return measurement["worker_peak"] / 1024 or None


def grown_mb(measurement: Measurement) -> float:
    """What the run added to the process."""
    return float((measurement["peak"] - measurement["resident_before"]) / 1024)


def main() -> int:
    """Measure, and print peaks, growth and ms a line."""
    given = command_line(__doc__, QUICK, FULL)
    results: Results = measure_all(NAME, given, Work(sampled=True))
    return results.tell(
        table("parent's peak, MB", results.rows(peak_mb), 1),
        table("parent's memory grown, MB", results.rows(grown_mb), 1),
        table("largest child's peak, MB", results.rows(worker_peak_mb), 1),
        table("ms a line", results.rows(ms_a_line)),
    )


if __name__ == "__main__":
    sys.exit(main())
