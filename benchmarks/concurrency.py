"""Lines that wait, as for a model's answer: how close each engine comes to lines x wait / lines at once.

    python benchmarks/concurrency.py --full

`auto`, `bare` and `inspect` run async code on an event loop. `map` runs sync code on threads. `promptflow` and `processes`
(this package) run the same sync code in processes, one line at a time each.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from measuring import Group, Preset, Work, command_line, measure_all
from results import Results, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from results import Measurement

NAME = "concurrency"
ON_EVENT_LOOP = ("inspect", "bare", "auto", "line", "chunk")
THREADS_AND_LOOPS, PROCESSES = ("inspect", "map", "bare", "auto"), ("promptflow", "processes")
QUICK = Preset([Group(["promptflow", *THREADS_AND_LOOPS, "processes"], [200], [16])], rounds=1)
FULL = Preset([Group(THREADS_AND_LOOPS, [2_000], [16, 64, 200]), Group(PROCESSES, [2_000], [16, 64])], rounds=5)


def of_ideal(results: Results) -> Callable[[Measurement], float]:
    """The time of a measurement, divided by the ideal."""
    wait_sec = results.facts["wait_sec"]
    return lambda m: float(m["seconds"] / (m["lines"] * wait_sec / m["at_once"]))


def main() -> int:
    """Measure, and print seconds and the ratios to the ideal."""
    wait = {"type": float, "default": 0.5, "help": "seconds a line waits; default: 0.5"}
    given = command_line(__doc__, QUICK, FULL, ("--wait-sec", wait))
    work = Work("waiting", dict.fromkeys(ON_EVENT_LOOP, "waiting_async"), {"BENCH_WAIT_SEC": str(given.wait_sec)})
    results = measure_all(NAME, given, work, wait_sec=given.wait_sec)
    return results.tell(
        table("seconds", results.rows(lambda m: m["seconds"])),
        table("times the ideal", results.rows(of_ideal(results))),
    )


if __name__ == "__main__":
    sys.exit(main())
