"""A run that is started again with almost all lines finished: how long until the first new line begins?

    python benchmarks/resume.py --full

The first start runs all lines, and the last ones fail. Each further start is a process of its own and runs only these. They
fail again, so each start finds the same lines. `--lines` is the number of all lines.
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
