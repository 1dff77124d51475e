"""The goals beside the measured numbers, one row each, from saved results.

    python benchmarks/reached.py --results benchmarks/results

Exit status 1 if a goal is missed. A row without a measurement says so and does not count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeAlias

import concurrency
import first_line
import memory
import overhead
import resume
from peers import CACHE
from results import Measurement, Results, ms_a_line

Value: TypeAlias = Callable[[Results], Callable[[Measurement], float | None]]
PEERS = ("promptflow", "map", "inspect")


@dataclass(frozen=True)
class Target:
    """One row."""

    text: str
    benchmark: str
    contender: str
    lines: int
    value: Value
    at_most: float | None
    """`None`: no goal, for comparison only."""
    at_once: int = 2
    from_lines: int = 0
    """The value is the difference to the figure with this number of lines."""

    def figure(self, results: Results, contender: str, at_once: int) -> float | None:
        """A contender's median; `None` if it was not measured."""
        wanted = self._median(results, contender, self.lines, at_once)
        if not self.from_lines or wanted is None:
            return wanted
        less = self._median(results, contender, self.from_lines, at_once)
        return None if less is None else wanted - less

    def _median(self, results: Results, contender: str, lines: int, at_once: int) -> float | None:
        value = self.value(results)
        cell = (contender, lines, at_once)
        here = [value(m) for m in results.good if (m["contender"], m["lines"], m["at_once"]) == cell]
        figures = [figure for figure in here if figure is not None]
        return median(figures) if figures else None


def plain(value: Callable[[Measurement], float | None]) -> Value:
    """A value that needs nothing but its measurement."""
    return lambda _: value


TARGETS = [
    Target("trivial node, 2,000 lines, ms per line", overhead.NAME, "auto", 2_000, plain(ms_a_line), 0.8),
    Target("the same, 20,000 lines, chunks", overhead.NAME, "chunk", 20_000, plain(ms_a_line), 0.35),
    Target("a task run a line, 1,000 lines, ms per line", overhead.NAME, "line", 1_000, plain(ms_a_line), 3.8),
    Target("lines that wait, 200 at once, x ideal", concurrency.NAME, "auto", 2_000, concurrency.of_ideal, 1.15, 200),
    Target(
        "the same, 64 at once, which promptflow can do", concurrency.NAME, "auto", 2_000, concurrency.of_ideal, None, 64
    ),
    Target("worker process, trivial flow, MB", memory.NAME, "auto", 10_000, plain(memory.worker_peak_mb), 40),
    Target(
        "parent, 10,000 -> 100,000 lines, + MB",
        memory.NAME,
        "auto",
        100_000,
        plain(memory.peak_mb),
        30,
        from_lines=10_000,
    ),
    Target("parent, 1,000,000 lines, MB", memory.NAME, "auto", 1_000_000, plain(memory.peak_mb), 400),
    Target(
        "resume of 100,000 lines: first new line, s", resume.NAME, "auto", 100_000, plain(first_line.first_line_sec), 5
    ),
]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = CACHE / "results"
    parser.add_argument("--results", type=Path, default=folder, help="folder of the figures; default: %(default)s")
    given = parser.parse_args()
    print(f"{'':<46}" + "".join(f"{name:>12}" for name in (*PEERS, "ours", "at most")))
    missed = [target.text for target in TARGETS if not _tell(target, Results.load(given.results, target.benchmark))]
    return 1 if missed else 0


def _tell(target: Target, results: Results | None) -> bool:
    """Print a row; whether the goal is reached, or unknown."""
    names = (*PEERS, target.contender)
    figures = [target.figure(results, name, target.at_once) if results else None for name in names]
    ours, limit = figures[-1], target.at_most
    reached = ours is None or limit is None or ours <= limit
    verdict = "not measured" if ours is None else "" if limit is None else "reached" if reached else "MISSED"
    print(f"{target.text:<46}" + "".join(map(_column, [*figures, limit])) + f"  {verdict}")
    return reached


def _column(figure: float | None) -> str:
    return f"{'-':>12}" if figure is None else f"{figure:>12.2f}"


if __name__ == "__main__":
    sys.exit(main())
