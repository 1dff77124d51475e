"""Lines that compute, about 15 ms of pure Python each: how close each engine comes to the machine's limit.

    python benchmarks/computing.py --full

Each round also measures the ideal: the same function in plain loops, in as many processes as there are workers.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from measuring import Group, Preset, Work, command_line, measure_all
from results import IDEAL, Results, is_pair, ms_a_line, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from results import Measurement

NAME = "computing"
ALL = (IDEAL, "promptflow", "inspect", "map", "bare", "auto", "line")
QUICK = Preset([Group(ALL, [100])], rounds=1)
FULL = Preset([Group(ALL, [1_000])], rounds=5)


def of_ideal(results: Results) -> Callable[[Measurement], float | None]:
    """The time of a measurement, divided by the ideal of its round."""

    def ratio(measurement: Measurement) -> float | None:
        ideals = (m for m in results.good if m["contender"] == IDEAL and is_pair(m, measurement))
        return next((float(measurement["seconds"] / ideal["seconds"]) for ideal in ideals), None)

    return ratio


def main() -> int:
    """Measure, and print ms per line and the ratios to the ideal."""
    given = command_line(__doc__, QUICK, FULL)
    results = measure_all(NAME, given, Work("computing"))
    return results.tell(
        table("ms per line", results.rows(ms_a_line)), table("times the ideal", results.rows(of_ideal(results)))
    )


if __name__ == "__main__":
    sys.exit(main())
