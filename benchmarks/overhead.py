"""The cost of a line that does nothing: promptflow, Inspect AI, plain Prefect and this package side by side.

    python benchmarks/overhead.py --full
    python benchmarks/overhead.py --contenders promptflow,auto --lines 2000 --rounds 5

Each measurement is a process of its own, and its clock covers only the call of `run()`. README.md has the details.
"""

from __future__ import annotations

import sys

from measuring import Group, Preset, Work, command_line, measure_all
from results import ms_a_line, table

NAME = "overhead"
ALL = ("promptflow", "inspect", "map", "bare", "auto", "line", "chunk")
QUICK = Preset([Group(ALL, [100])], rounds=1)
FULL = Preset(
    [Group(ALL, [2_000]), Group(["map", "bare", "line"], [1_000]), Group(["promptflow", "auto", "chunk"], [20_000])],
    rounds=5,
)


def main() -> int:
    """Measure, and print a table of ms per line and one of ratios."""
    given = command_line(__doc__, QUICK, FULL)
    results = measure_all(NAME, given, Work())
    return results.tell(table("ms per line", results.rows(ms_a_line)), table("ratio, pair by pair", results.pairs()))


if __name__ == "__main__":
    sys.exit(main())
