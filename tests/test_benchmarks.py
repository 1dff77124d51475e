"""The benchmarks as programs: each says what it does, and what is drawn and told of saved results is what was measured."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PROGRAMS = sorted(path.name for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text())


def run(program: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / program), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def measurement(contender: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {"contender": contender, "lines": 2_000, "at_once": 2, "round": 0, "seconds": seconds, **more}


def save(folder: Path, benchmark: str, *measurements: dict[str, Any], **facts: Any) -> None:
    facts = {
        "command": f"python benchmarks/{benchmark}.py",
        "processor": "a <fast> one",
        "cores": 2,
        "memory_gb": 8,
        "python": "3.11.7",
        "versions": ["prefect 3.8.8"],
        "load_before": 0.0,
        **facts,
    }
    saved = {"benchmark": benchmark, "facts": facts, "measurements": measurements}
    (folder / f"{benchmark}.json").write_text(json.dumps(saved))


def texts(svg: Path) -> list[str]:
    root = ElementTree.fromstring(svg.read_text())  # noqa: S314 - our own file
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_says_what_it_does_and_is_in_the_readme(program: str) -> None:
    helped = run(program, "--help")
    assert helped.returncode == 0, helped.stderr
    assert "usage: " in helped.stdout
    assert f"`{program}`" in (BENCHMARKS / "README.md").read_text()


def test_no_file_imports_one_that_imports_it() -> None:
    imported: dict[str, set[str]] = {}
    for path in BENCHMARKS.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        imported[path.stem] = names | {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}

    order = list(TopologicalSorter(imported).static_order())  # raises for a circle

    assert order.index("results") < order.index("measuring") < order.index("overhead")


def test_an_unknown_contender_is_refused_before_anything_is_started() -> None:
    refused = run("overhead.py", "--contenders", "auto,nobody")
    assert refused.returncode == 2
    assert "no such contender: nobody" in refused.stderr


def test_a_chart_has_the_medians_and_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    rounds = [measurement("auto", seconds, round=number) for number, seconds in enumerate([1.2, 9.0, 1.6])]
    save(tmp_path, "overhead", *rounds, measurement("promptflow", 8.0), measurement("map", 1.0, failed="no"))
    drawn = []
    for name in ("once", "again"):
        assert run("plots.py", "--results", tmp_path, "--into", tmp_path / name).returncode == 0
        drawn.append((tmp_path / name / "overhead.svg").read_bytes())
    said = texts(tmp_path / "once" / "overhead.svg")
    assert drawn[0] == drawn[1]
    assert said[said.index("batchflow") + 1] == "0.800"
    assert said[said.index("promptflow") + 1] == "4.00"
    assert "Prefect .map" not in said
    assert any("a <fast> one" in text for text in said)


def test_a_chart_of_growth_has_a_line_for_each_that_was_measured_at_several_sizes(tmp_path: Path) -> None:
    def grown(contender: str, lines: int) -> dict[str, Any]:
        memory = {"resident_before": 1_024, "peak": 1_024 * lines, "worker_peak": 2_048}
        return measurement(contender, 1.0, **memory) | {"lines": lines}

    save(tmp_path, "memory", grown("auto", 100), grown("auto", 1_000), grown("promptflow", 100))
    assert run("plots.py", "--results", tmp_path, "--into", tmp_path).returncode == 0
    said = texts(tmp_path / "memory.svg")
    assert "batchflow  1,000" in said
    assert not any(text.startswith("promptflow  ") for text in said)


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    done = run("plots.py", "--results", tmp_path, "--into", tmp_path)
    assert done.returncode == 1
    assert "No results" in done.stderr


@pytest.mark.parametrize(("seconds", "verdict", "status"), [(1.5, "reached", 0), (1.7, "MISSED", 1)])
def test_a_number_is_reached_or_missed(tmp_path: Path, seconds: float, verdict: str, status: int) -> None:
    save(tmp_path, "overhead", measurement("auto", seconds), measurement("promptflow", 8.0))
    told = run("reached.py", "--results", tmp_path)
    row = next(line for line in told.stdout.splitlines() if line.startswith("trivial node"))
    assert row.endswith(verdict)
    assert "4.00" in row
    assert told.returncode == status
