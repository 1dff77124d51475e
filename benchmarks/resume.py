"""A run that is started again when all of its lines but a few are done: how long until the first of those begins?

    python benchmarks/resume.py --full

The first start runs all lines; the last ones fail. Each further start, a process of its own, runs those and no other, and
they fail again, so that each finds the same. `--lines` are all lines of the data.
"""

from __future__ import annotations

import sys

from first_line import first_line_sec
from measuring import Group, Preset, Work, command_line, measure_again
from results import table

NAME = "resume"
FAILING = 10
QUICK = Preset([Group(["auto"], [2_000])], rounds=2)
FULL = Preset([Group(["auto"], [10_000, 100_000])], rounds=5)


def main() -> int:
    """Measure, and print seconds until the first new line, and until the end."""
    given = command_line(__doc__, QUICK, FULL)
    results = measure_again(NAME, given, Work("marking", failing=FAILING))
    return results.tell(
        table("seconds to first new line", results.rows(first_line_sec)),
        table("seconds to the end", results.rows(lambda m: m["seconds"])),
    )


if __name__ == "__main__":
    sys.exit(main())
