"""The time from the call of `run()` until the first line runs: loading the flow, checking the data, starting workers.

python benchmarks/first_line.py --full
"""

from __future__ import annotations

import sys

from measuring import Group, Preset, Work, command_line, measure_all
from results import Measurement, table

NAME = "first_line"
ALL = ("promptflow", "inspect", "map", "bare", "auto", "line", "chunk")
QUICK = Preset([Group(ALL, [20])], rounds=1)
FULL = Preset(
    [Group(ALL, [100]), Group(["promptflow", "inspect", "auto"], [10_000]), Group(["auto"], [100_000])], rounds=5
)


def first_line_sec(measurement: Measurement) -> float:
    """Seconds from the call of `run()` until the first line's code ran."""
    return float(measurement["first_line_sec"])


def main() -> int:
    """Measure, and print seconds."""
    given = command_line(__doc__, QUICK, FULL)
    results = measure_all(NAME, given, Work("marking"))
    return results.tell(table("seconds to first line", results.rows(first_line_sec)))


if __name__ == "__main__":
    sys.exit(main())
