"""The contenders, the command line, and measurements one after the other on one settled server: for all benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers import CACHE, PEERS, peer_python
from processes import SAMPLE_EVERY_SEC, Memory, end_group
from results import Results, environment_facts
from server import Server, prefect_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from results import Measurement

HERE = Path(__file__).resolve().parent
WARM_UP_LINES = 20
LIMIT_SEC, LIMIT_SEC_A_LINE = 120.0, 0.1
"""Seconds that a measurement can take, and the server after it, before it is given up."""


@dataclass(frozen=True)
class Contender:
    """One way to run the lines."""

    script: str
    granularity: str = ""
    """The granularity of our engine."""
    task_run_a_line: bool = False
    """Whether it makes one task run per line; otherwise only the contender knows how many it makes."""


CONTENDERS = {
    "promptflow": Contender("promptflow_engine.py"),
    "inspect": Contender("inspect_eval.py"),
    "map": Contender("prefect_map.py", task_run_a_line=True),
    "bare": Contender("prefect_bare.py", task_run_a_line=True),
    "auto": Contender("batchflow_engine.py", "auto"),
    "line": Contender("batchflow_engine.py", "line", task_run_a_line=True),
    "chunk": Contender("batchflow_engine.py", "chunk"),
    "processes": Contender("batchflow_engine.py", "auto"),
    "ideal": Contender("plain_processes.py"),
}


@dataclass(frozen=True)
class Cell:
    """One measurement of each round."""

    contender: str
    lines: int
    at_once: int


@dataclass(frozen=True)
class Group:
    """Each contender with each number of lines and each number at once."""

    contenders: Sequence[str]
    lines: Sequence[int]
    at_once: Sequence[int] = (2,)

    def cells(self) -> list[Cell]:
        """All of them."""
        return [Cell(*cell) for cell in product(self.contenders, self.lines, self.at_once)]


@dataclass(frozen=True)
class Preset:
    """The default measurements of a benchmark."""

    groups: Sequence[Group]
    rounds: int


@dataclass(frozen=True)
class Work:
    """What lines do."""

    flow: str = "trivial"
    """A folder of `flows/`."""
    flows: Mapping[str, str] = field(default_factory=dict)
    """Other flow folders, by contender."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that the flow reads."""
    sampled: bool = False
    """Whether to sample the memory while lines run, which takes some processor time."""
    failing: int = 0
    """How many lines at the end of the data fail."""


@dataclass(frozen=True)
class Bench:
    """The server and the folders of all measurements."""

    work: Work
    scratch: Path
    env: Mapping[str, str]
    server: Server

    def measure(self, cell: Cell, round_number: int, *, run_id: str = "") -> Measurement:
        """Run one contender, and wait until the server has settled; a contender that fails is a measurement too."""
        limit_sec = LIMIT_SEC + LIMIT_SEC_A_LINE * cell.lines
        contender, before = CONTENDERS[cell.contender], self.server.load()
        measured: Measurement = {**asdict(cell), "round": round_number}
        try:
            measured |= self._run(cell, limit_sec, run_id)
        except (RuntimeError, subprocess.TimeoutExpired) as exc:
            measured["failed"] = str(exc)
        # A run that is resumed, or failed, makes fewer task runs than lines.
        is_known = contender.task_run_a_line and not run_id and "failed" not in measured
        expected = before.task_runs + cell.lines if is_known else None
        settled = self.server.settle(expected, limit_sec=limit_sec)
        measured["server"] = asdict(self.server.load().since(before))
        if "failed" in measured:
            print(f"  {_name(cell)}FAILED: {measured['failed']}", flush=True)
            return measured
        measured["server"]["end_sec"] = None if settled is None else max(0.0, settled - measured.pop("ended"))
        figure = f"{measured['seconds']:9.2f} s, {1000 * measured['seconds'] / cell.lines:8.3f} ms per line"
        note = "" if settled else f"   (the server had not settled {limit_sec:.0f} s later: mind the next figure)"
        print(f"  {_name(cell)}{figure}{note}", flush=True)
        return measured

    def _run(self, cell: Cell, limit_sec: float, run_id: str) -> Measurement:
        """Run a contender's script in a session of its own; give what it measured."""
        contender = CONTENDERS[cell.contender]
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        data, out, first_line, log = folder / "data.jsonl", folder / "out", folder / "first_line", folder / "log"
        write_data(data, cell.lines, self.work.failing)
        out.mkdir()
        job = {
            "flow": str(HERE / "flows" / self.work.flows.get(cell.contender, self.work.flow)),
            "data": str(data),
            "output_dir": str(out),
            "completed_lines": cell.lines - self.work.failing,
            "at_once": cell.at_once,
            "granularity": contender.granularity,
            "run_id": run_id,
        }
        python = peer_python(cell.contender) if cell.contender in PEERS else sys.executable
        with log.open("wb") as said:
            process = subprocess.Popen(
                [python, str(HERE / "contenders" / contender.script), json.dumps(job)],
                cwd=folder,
                env={**self.env, **self.work.env, "BENCH_FIRST_LINE": str(first_line)},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            memory = _wait(process, limit_sec, sampled=self.work.sampled)
            lines = log.read_text(errors="replace").splitlines()
            if process.returncode:
                tail = "\n".join(lines)[-3000:]
                raise RuntimeError(f"{contender.script} ended with exit code {process.returncode}:\n{tail}")
            measured: Measurement = next(json.loads(line) for line in reversed(lines) if line[:1] == "{")
            begun = measured.pop("begun")
            if first_line.exists():
                measured["first_line_sec"] = float(first_line.read_text()) - begun
            return measured | (memory.figures() if memory else {})
        finally:
            end_group(process)
            shutil.rmtree(folder)


def _wait(process: subprocess.Popen[bytes], limit_sec: float, *, sampled: bool) -> Memory | None:
    """Wait for the end of a process, and sample its memory meanwhile if asked to."""
    if not sampled:
        process.wait(limit_sec)
        return None
    memory, end = Memory(process.pid), time.monotonic() + limit_sec
    while True:
        try:
            process.wait(SAMPLE_EVERY_SEC)
        except subprocess.TimeoutExpired:
            if time.monotonic() > end:
                raise
            memory.sample()
        else:
            return memory


def write_data(path: Path, lines: int, failing: int = 0) -> None:
    """Rows with a column `text`; the last ones ask the flow `marking` to fail."""
    with path.open("w", encoding="utf-8") as rows:
        for number in range(lines):
            text = f"{'line' if number < lines - failing else 'fail'} {number}"
            rows.write(f'{{"text": "{text}"}}\n')


def ordered(cells: Sequence[Cell], round_number: int) -> list[Cell]:
    """The cells in another order each round, every second one backwards."""
    shift = round_number // 2 % len(cells)
    order = [*cells[shift:], *cells[:shift]]
    return order[::-1] if round_number % 2 else order


def _name(cell: Cell) -> str:
    return f"{cell.contender:<12}{cell.lines:>10,} lines{cell.at_once:>5} at once"


def clean_environment(scratch: Path) -> dict[str, str]:
    """The caller's environment without its settings for the contenders; all homes in `scratch`."""
    settings = ("PREFECT_", "PF_", "BATCHFLOW_", "INSPECT_", "BENCH_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    return env | {
        "HOME": str(scratch),
        "PREFECT_HOME": str(scratch / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PF_DISABLE_TRACING": "true",
    }


@contextmanager
def benching(work: Work, log_level: str) -> Iterator[Bench]:
    """A bench with a server of its own, on the repository's disk, because `/tmp` can be in memory."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server and the scratch folder go, too
    CACHE.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
    try:
        env = clean_environment(scratch)
        with prefect_server(env, scratch / "server.log") as server:
            env |= {"PREFECT_API_URL": server.api_url, "PREFECT_LOGGING_LEVEL": log_level}
            yield Bench(work, scratch, env, server)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def command_line(
    description: str | None, quick: Preset, full: Preset, *more: tuple[str, dict[str, Any]]
) -> argparse.Namespace:
    """The options of all benchmarks, and `more`; the result has `cells`, the measurements to make.

    Args:
        description: The benchmark's docstring.
        quick: The measurements without options, which show whether everything works.
        full: The measurements with `--full`, the size of quoted figures.
        more: Names and keyword arguments of further options.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the full size, which takes long; a quick look by default")
    parser.add_argument("--contenders", type=_names, help=f"comma-separated, of {', '.join(CONTENDERS)}")
    parser.add_argument("--lines", type=_numbers, help="one number, or several, comma-separated")
    at_once = "worker processes, threads, or lines on an event loop: one number or several"
    parser.add_argument("--at-once", "--workers", type=_numbers, help=at_once)
    parser.add_argument("--rounds", type=_number, help="measurements of each contender")
    parser.add_argument(
        "--log-level", default="INFO", help="Prefect's log level in all contenders; default: INFO, as in Prefect"
    )
    folder = CACHE / "results"
    parser.add_argument(
        "--results", type=Path, default=folder, help="folder for the figures as JSON; default: %(default)s"
    )
    parser.add_argument("--add", action="store_true", help="add to the existing figures")
    for name, keywords in more:
        parser.add_argument(name, **keywords)
    given = parser.parse_args()
    preset = full if given.full else quick
    groups, given.rounds = preset.groups, given.rounds or preset.rounds
    if given.contenders or given.lines or given.at_once:
        first = preset.groups[0]
        chosen = Group(given.contenders or first.contenders, given.lines or first.lines, given.at_once or first.at_once)
        groups = [chosen]
    given.cells = list(dict.fromkeys(cell for group in groups for cell in group.cells()))
    return given


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(CONTENDERS):
        raise argparse.ArgumentTypeError(
            f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}"
        )
    return names


def _number(text: str) -> int:
    number = int(text.replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _numbers(text: str) -> list[int]:
    return [_number(part) for part in text.split(",")]


def measure_all(name: str, given: argparse.Namespace, work: Work, **facts: Any) -> Results:
    """Measure each cell of the groups in each round, after a round that is not counted.

    Args:
        name: The name of the results, which are saved after each measurement.
        given: The command line.
        work: What lines do.
        facts: More facts that belong to the figures.
    """
    cells = given.cells
    results = Results(name, environment_facts(cell.contender for cell in cells) | facts)
    if given.add:
        results.take_over(Results.load(given.results, name))
    with benching(work, given.log_level) as bench:
        print(f"Warm-up, {WARM_UP_LINES} lines, not counted", flush=True)
        for contender in dict.fromkeys(cell.contender for cell in cells):
            bench.measure(Cell(contender, WARM_UP_LINES, min(cell.at_once for cell in cells)), 0)
        for number in range(given.rounds):
            print(f"Round {number + 1} of {given.rounds}", flush=True)
            for cell in ordered(cells, number):
                results.measurements.append(bench.measure(cell, number))
                results.save(given.results)
    return results


def measure_again(name: str, given: argparse.Namespace, work: Work) -> Results:
    """As `measure_all`, of runs that have been started before: each cell is one run, begun once and resumed each round."""
    cells = given.cells
    results = Results(name, environment_facts(cell.contender for cell in cells) | {"failing_lines": work.failing})
    with benching(work, given.log_level) as bench:
        print("The first starts, not counted", flush=True)
        run_ids = {cell: f"{cell.contender}-{cell.lines}-{cell.at_once}" for cell in cells}
        for cell in cells:
            bench.measure(cell, 0, run_id=run_ids[cell])
        for number in range(given.rounds):
            print(f"Start {number + 1} of {given.rounds}", flush=True)
            for cell in ordered(cells, number):
                results.measurements.append(bench.measure(cell, number, run_id=run_ids[cell]))
                results.save(given.results)
    return results
