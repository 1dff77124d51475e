"""Charts of saved results, one file per benchmark; benchmarks without results are skipped.

python benchmarks/plots.py --results benchmarks/results --into docs/images
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeAlias

import computing
import concurrency
import first_line
import memory
import overhead
import resume
import server_load
from charts import Bar, Bars, Lines, Mark, Series, chart
from peers import CACHE
from results import OURS, Measurement, Results, ms_a_line

Value: TypeAlias = Callable[[Measurement], float | None]

LABELS = {
    "promptflow": "promptflow",
    "inspect": "Inspect AI",
    "map": "Prefect .map",
    "bare": "Prefect, bare tasks",
    "auto": "batchflow",
    "line": "batchflow, line",
    "chunk": "batchflow, chunk",
    "processes": "batchflow, processes",
    "ideal": "plain loops",
}
IDEAL_MARK = Mark(1.0, "ideal")


def bars(results: Results, value: Value, title: str, mark: Mark | None = None) -> list[Bars]:
    """A panel per measured size."""
    panels: dict[str, dict[str, list[float]]] = {}
    for measurement in results.good:
        if (figure := value(measurement)) is not None:
            rows = panels.setdefault(results.size(measurement), {})
            rows.setdefault(measurement["contender"], []).append(figure)
    sizes = sorted(panels, key=[results.size(m) for m in results.measurements if m["round"] == 0].index)
    return [
        Bars(
            ": ".join(filter(None, [title, size])),
            [Bar(LABELS[name], panels[size][name], name in OURS) for name in LABELS if name in panels[size]],
            mark,
        )
        for size in sizes
    ]


def bars_of_all_sizes(results: Results, value: Value, title: str) -> Bars:
    """One panel, for benchmarks with few contenders."""
    contender = {results.label(m): m["contender"] for m in results.good}
    rows = results.rows(value)
    return Bars(
        title,
        [
            Bar(label.replace(contender[label], LABELS[contender[label]], 1), values, contender[label] in OURS)
            for label, values in rows.items()
        ],
    )


def growth(results: Results, value: Value, title: str, *, is_log: bool = False) -> list[Lines]:
    """A panel of the medians over the number of lines; none if all have the same number."""
    series = []
    for name, label in LABELS.items():
        points = []
        for lines in sorted({m["lines"] for m in results.good}):
            here = [m for m in results.good if (m["contender"], m["lines"]) == (name, lines)]
            figures = [figure for m in here if (figure := value(m)) is not None]
            if figures:
                points.append((lines, median(figures)))
        if len(points) > 1:
            series.append(Series(label, points, name in OURS))
    return [Lines(title, series, lambda lines: f"{lines:,.0f} lines", is_log)] if series else []


def panels_of(results: Results) -> tuple[str, list[Bars | Lines]]:
    """The chart's title and its panels."""
    match results.benchmark:
        case overhead.NAME:
            return "What a line costs that does nothing", [*bars(results, ms_a_line, "ms per line")]
        case concurrency.NAME:
            title = f"Lines that wait {results.facts['wait_sec']:g} s, as for a model's answer"
            return title, [*bars(results, concurrency.of_ideal(results), "times the ideal", IDEAL_MARK)]
        case computing.NAME:
            return "Lines that compute", [*bars(results, computing.of_ideal(results), "times the ideal", IDEAL_MARK)]
        case memory.NAME:
            return "Memory, and the cost of a line, as the data grows", [
                *growth(results, memory.peak_mb, "the engine's process, peak in MB"),
                *growth(results, memory.worker_peak_mb, "its largest child, peak in MB"),
                *growth(results, ms_a_line, "ms per line", is_log=True),
            ]
        case first_line.NAME:
            return "How long until the first line runs", [*bars(results, first_line.first_line_sec, "seconds")]
        case resume.NAME:
            return "A resumed run: how long until the first new line runs", [
                bars_of_all_sizes(results, first_line.first_line_sec, "seconds"),
                bars_of_all_sizes(results, lambda m: m["seconds"], "seconds until the end, which has all outputs"),
            ]
        case server_load.NAME:
            return "What a run costs the Prefect server", [
                bars_of_all_sizes(results, server_load.task_runs, "task runs"),
                bars_of_all_sizes(results, server_load.database_mb, "database grown, MB"),
                bars_of_all_sizes(results, server_load.server_cpu_sec, "processor time of the server, s"),
                bars_of_all_sizes(results, server_load.behind_sec, "until the API shows the end, s after it"),
            ]
    raise ValueError(f"no chart for {results.benchmark}")


def notes(results: Results) -> list[str]:
    """The command, the machine and the versions, in small print."""
    facts, rounds = results.facts, 1 + max(m["round"] for m in results.measurements)
    made = {len(values) for values in results.rows(lambda m: m["seconds"]).values()}
    of = f"{rounds}" if made == {rounds} else f"up to {rounds}"
    counted = f"medians of {of} rounds, from the least to the most" if rounds > 1 else "one round"
    same = results.size(results.measurements[0], varying=False)
    return [
        *facts["command"].splitlines(),
        ", ".join(filter(None, [same, counted])),
        f"{facts['processor']}, {facts['cores']} cores, Python {facts['python']}, {', '.join(facts['versions'])}",
    ]


BENCHMARKS = [module.NAME for module in (overhead, concurrency, computing, memory, first_line, resume, server_load)]


def main() -> int:
    """Write the charts; 1 if there was nothing to draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results, into = CACHE / "results", CACHE / "plots"
    parser.add_argument("--results", type=Path, default=results, help="folder of the figures; default: %(default)s")
    parser.add_argument("--into", type=Path, default=into, help="folder for the charts; default: %(default)s")
    given = parser.parse_args()
    written = [path for name in BENCHMARKS if (path := draw(given.results, name, given.into))]
    for path in written:
        print(path)
    if not written:
        print(f"No results in {given.results}", file=sys.stderr)
    return 0 if written else 1


def draw(results_folder: Path, name: str, into: Path) -> Path | None:
    """Write one benchmark's chart; `None` if it has no results."""
    results = Results.load(results_folder, name)
    if results is None or not results.good:
        return None
    title, panels = panels_of(results)
    into.mkdir(parents=True, exist_ok=True)
    path = into / f"{name.replace('_', '-')}.svg"
    path.write_text(chart(title, panels, notes(results)), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
