"""The figures of a benchmark: saved as JSON with command and machine, grouped, and printed as tables."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

from peers import PEERS, peer_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Measurement: TypeAlias = dict[str, Any]
"""`contender`, `lines`, `at_once`, `round`; then either `failed`, or `seconds` and the other measured values."""
OURS = ("auto", "line", "chunk", "processes")
IDEAL = "ideal"


@dataclass
class Results:
    """All measurements of one benchmark, and where they were made."""

    benchmark: str
    facts: dict[str, Any]
    """The command, the machine, the versions."""
    measurements: list[Measurement] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write `<benchmark>.json`, one measurement per line."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(json.dumps(measurement) for measurement in self.measurements)
        head = json.dumps({key: value for key, value in asdict(self).items() if key != "measurements"}, indent=1)
        (folder / f"{self.benchmark}.json").write_text(f'{head[:-2]},\n "measurements": [\n{rows}\n]}}\n')

    @classmethod
    def load(cls, folder: Path, benchmark: str) -> Results | None:
        """The saved results; `None` if there are none."""
        path = folder / f"{benchmark}.json"
        return cls(**json.loads(path.read_text())) if path.exists() else None

    def take_over(self, earlier: Results | None) -> None:
        """Put the figures of earlier commands on the same machine before those to come."""
        if earlier is None:
            return
        self.measurements = [*earlier.measurements, *self.measurements]
        self.facts["command"] = f"{earlier.facts['command']}\n{self.facts['command']}"
        self.facts["versions"] = list(dict.fromkeys([*earlier.facts["versions"], *self.facts["versions"]]))

    @property
    def good(self) -> list[Measurement]:
        """The measurements that did not fail."""
        return [measurement for measurement in self.measurements if "failed" not in measurement]

    @property
    def failures(self) -> list[Measurement]:
        """The measurements that failed."""
        return [measurement for measurement in self.measurements if "failed" in measurement]

    def size(self, measurement: Measurement, *, varying: bool = True) -> str:
        """Lines and lines at once, as far as they differ between measurements, or as far as they do not."""
        words = {"lines": f"{measurement['lines']:,} lines", "at_once": f"{measurement['at_once']} at once"}
        return ", ".join(words[key] for key in words if varying == (len({m[key] for m in self.measurements}) > 1))

    def label(self, measurement: Measurement) -> str:
        """The contender, with lines and lines at once where the results have several of them."""
        return ", ".join(filter(None, [measurement["contender"], self.size(measurement)]))

    def rows(self, value: Callable[[Measurement], float | None]) -> dict[str, list[float]]:
        """The values of all rounds, by label; a measurement without a value is skipped."""
        rows: dict[str, list[float]] = {}
        for measurement in sorted(self.good, key=lambda m: m["round"]):
            figure = value(measurement)
            if figure is not None:
                rows.setdefault(self.label(measurement), []).append(figure)
        first = [self.label(m) for m in self.measurements if m["round"] == 0]
        return {label: rows[label] for label in first if label in rows}

    def pairs(self) -> dict[str, list[float]]:
        """Ours to each peer's time, pair by pair: both of the same round, lines and lines at once."""
        rows: dict[str, list[float]] = {}
        for ours in self.good:
            for peer in self.good:
                if ours["contender"] in OURS and peer["contender"] not in (*OURS, IDEAL) and is_pair(ours, peer):
                    label = f"{self.label(ours)} / {peer['contender']}"
                    rows.setdefault(label, []).append(ours["seconds"] / peer["seconds"])
        return rows

    def heading(self) -> str:
        """The benchmark, the command, the machine and the versions."""
        facts = self.facts
        machine = f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB, Python {facts['python']}"
        idle = f"load average {facts['load_before']} before the start"
        return f"{facts['command']}\n{machine}, {', '.join(facts['versions'])}; {idle}"

    def tell(self, *tables: str) -> int:
        """Print the tables under the heading; give the exit status, 1 if a measurement failed."""
        print("\n" + "\n\n".join([self.heading(), *(text for text in tables if text)]))
        for failure in self.failures:
            print(f"\nround {failure['round'] + 1}, {self.label(failure)} FAILED: {failure['failed']}")
        return 1 if self.failures else 0


def is_pair(one: Measurement, other: Measurement) -> bool:
    """Whether two measurements of the same work were made in the same round."""
    return all(one[key] == other[key] for key in ("round", "lines", "at_once"))


def ms_a_line(measurement: Measurement) -> float:
    """The cost of a line."""
    return float(1000 * measurement["seconds"] / measurement["lines"])


def table(title: str, rows: dict[str, list[float]], digits: int = 3) -> str:
    """Minimum, median and maximum of each row; nothing without rows."""
    if not rows:
        return ""
    width = max(24, len(title) + 1, *(len(name) + 1 for name in rows))
    lines = [f"{title:<{width}}{'min':>10}{'median':>10}{'max':>10}"]
    for name, values in rows.items():
        figures = (min(values), median(values), max(values))
        lines.append(f"{name:<{width}}" + "".join(f"{figure:>10,.{digits}f}" for figure in figures))
    return "\n".join(lines)


def environment_facts(contenders: Iterable[str]) -> dict[str, Any]:
    """The command, processor, cores, memory, versions, and whether the machine was idle."""
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    rows = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    versions = [f"{name} {version(name)}" for name in ("prefect", "prefect-batchflow")]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(meminfo.read_text().split()[1]) / 2**20) if meminfo.exists() else 0,
        "python": platform.python_version(),
        "versions": versions + [peer_version(name) for name in dict.fromkeys(contenders) if name in PEERS],
        "load_before": round(os.getloadavg()[0], 1),
    }
