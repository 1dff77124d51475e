"""What a line costs when it does nothing: promptflow, plain Prefect and this package side by side.

    python benchmarks/overhead.py --contenders promptflow,map,bare,auto,line,chunk --lines 2000 --rounds 5

Each measurement is a process of its own whose clock spans only the call of `run()`. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from server import Server, end_group, prefect_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".benchmarks"
"""Git-ignored: promptflow's virtual environment, and each run's scratch folder while it lasts."""
PROMPTFLOW = "promptflow-devkit==1.18.5"
WARM_UP_LINES = 20
LIMIT_SEC, LIMIT_SEC_A_LINE = 120.0, 0.1
"""How long a measurement, and after it the server, may take before it is given up."""


@dataclass(frozen=True)
class Contender:
    """One way to run the lines."""

    script: str
    granularity: str = ""
    """Given to our engine."""
    task_run_a_line: bool = False
    """Otherwise only the contender knows how many task runs it makes."""
    peer: bool = True
    """Somebody else's; ratios are ours to a peer's."""


CONTENDERS = {
    "promptflow": Contender("promptflow_engine.py"),
    "map": Contender("prefect_map.py", task_run_a_line=True),
    "bare": Contender("prefect_bare.py", task_run_a_line=True),
    "auto": Contender("batchflow_engine.py", "auto", peer=False),
    "line": Contender("batchflow_engine.py", "line", task_run_a_line=True, peer=False),
    "chunk": Contender("batchflow_engine.py", "chunk", peer=False),
}


@dataclass(frozen=True)
class Bench:
    """What all measurements of one run share."""

    lines: int
    workers: int
    scratch: Path
    env: dict[str, str]
    server: Server
    promptflow_python: str | None

    def round(self, number: int, names: Sequence[str]) -> dict[str, float]:
        """Measure each contender once, in another order each round; give ms a line."""
        shift = number // 2 % len(names)
        order = [*names[shift:], *names[:shift]]
        return {name: self.measure(name) for name in (reversed(order) if number % 2 else order)}

    def measure(self, name: str) -> float:
        """Run one contender, wait until the server has settled, and give its ms a line."""
        contender = CONTENDERS[name]
        limit_sec = LIMIT_SEC + LIMIT_SEC_A_LINE * self.lines
        known = self.server.count()
        seconds = self.run(contender, limit_sec)
        settled = self.server.settle(known + self.lines if contender.task_run_a_line else None, limit_sec=limit_sec)
        figure = 1000 * seconds / self.lines
        note = "" if settled else f"   (the server had not settled {limit_sec:.0f} s later: mind the next figure)"
        print(f"  {name:<12}{figure:8.3f} ms a line{note}", flush=True)
        return figure

    def run(self, contender: Contender, limit_sec: float) -> float:
        """Run a contender's script in a session of its own; give the seconds that it measured."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        data = folder / "data.jsonl"
        data.write_text("".join(f'{{"text": "line {number}"}}\n' for number in range(self.lines)), encoding="utf-8")
        interpreter = self.promptflow_python if contender == CONTENDERS["promptflow"] else sys.executable
        script, flow, out = HERE / "contenders" / contender.script, HERE / "trivial_flow", folder / "out"
        out.mkdir()
        arguments = [script, flow, data, out, self.lines, self.workers, contender.granularity]
        process = subprocess.Popen(
            [str(interpreter), *map(str, arguments)],
            cwd=folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            said = process.communicate(timeout=limit_sec)[0].decode(errors="replace")
        finally:
            end_group(process)
            shutil.rmtree(folder)
        if process.returncode:
            raise RuntimeError(f"{contender.script} ended with exit code {process.returncode}:\n{said[-3000:]}")
        return float(next(json.loads(row)["seconds"] for row in reversed(said.splitlines()) if row[:1] == "{"))


def promptflow_python() -> str:
    """The interpreter that has promptflow: `BATCHFLOW_BENCH_PROMPTFLOW_PYTHON`, else of an environment made here."""
    if given := os.environ.get("BATCHFLOW_BENCH_PROMPTFLOW_PYTHON"):
        return given
    folder = CACHE / PROMPTFLOW.replace("==", "-")
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        print(f"Installing {PROMPTFLOW} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", PROMPTFLOW], check=True)
        complete.touch()
    return str(python)


def clean_environment(scratch: Path) -> dict[str, str]:
    """The caller's environment without its settings for Prefect, promptflow and us; all homes in `scratch`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PF_", "BATCHFLOW_"))}
    return env | {
        "HOME": str(scratch),
        "PREFECT_HOME": str(scratch / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PF_DISABLE_TRACING": "true",
    }


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder on the disk that the repository is on, not in memory as `/tmp` may be; removed on leaving."""
    CACHE.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def machine(promptflow: str | None) -> str:
    """Processor, cores, versions, and whether the machine was idle: what figures are worth nothing without."""
    cpuinfo = Path("/proc/cpuinfo")
    facts = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [fact.partition(":")[2].strip() for fact in facts if fact.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    versions = [f"{name} {version(name)}" for name in ("prefect", "prefect-batchflow")]
    if promptflow:
        ask = "from importlib.metadata import version; print(version('promptflow-devkit'))"
        answer = subprocess.run([promptflow, "-c", ask], check=True, capture_output=True, text=True)
        versions.append(f"promptflow-devkit {answer.stdout.strip()}")
    processor = models[0] if models else platform.machine()
    idle = f"load average {os.getloadavg()[0]:.1f} before the start"
    return f"{processor}, {cores} cores, Python {platform.python_version()}, {', '.join(versions)}; {idle}"


def table(title: str, rows: dict[str, list[float]]) -> str:
    """Minimum, median and maximum of each row."""
    lines = [f"{title:<24}{'min':>9}{'median':>9}{'max':>9}"]
    lines += [f"{name:<24}{min(v):9.3f}{median(v):9.3f}{max(v):9.3f}" for name, v in rows.items()]
    return "\n".join(lines)


def ratios(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    """Ours to each peer's, the two figures of a ratio from the same round."""
    names = list(rounds[0])
    pairs = [(o, p) for o in names if not CONTENDERS[o].peer for p in names if CONTENDERS[p].peer]
    return {f"{ours} / {peer}": [figures[ours] / figures[peer] for figures in rounds] for ours, peer in pairs}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="comma-separated; default: all")
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contender; default: 5")
    parser.add_argument("--log-level", default="INFO", help="Prefect's in all contenders; default: INFO, as Prefect's")
    given = parser.parse_args()
    given.contenders = given.contenders.split(",")
    if unknown := set(given.contenders) - set(CONTENDERS):
        parser.error(f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}")
    if min(given.lines, given.workers, given.rounds) < 1:
        parser.error("--lines, --workers and --rounds must be at least 1")
    return given


def main() -> None:
    """Measure, and print a table of ms a line and one of ratios."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server and the scratch folder go, too
    promptflow = promptflow_python() if "promptflow" in given.contenders else None
    heading = machine(promptflow)
    with scratch_folder() as scratch, prefect_server(clean_environment(scratch), scratch / "server.log") as server:
        prefect = {"PREFECT_API_URL": server.api_url, "PREFECT_LOGGING_LEVEL": given.log_level}
        env = clean_environment(scratch) | prefect
        bench = Bench(given.lines, given.workers, scratch, env, server, promptflow)
        print(f"Warm-up, {WARM_UP_LINES} lines, not counted", flush=True)
        replace(bench, lines=WARM_UP_LINES).round(0, given.contenders)
        rounds = []
        for number in range(given.rounds):
            print(f"Round {number + 1} of {given.rounds}", flush=True)
            rounds.append(bench.round(number, given.contenders))
    print(f"\n{shlex.join(['python', *sys.argv])}\n{heading}")
    print(f"{given.lines:,} lines, {given.workers} workers, {given.rounds} rounds\n")
    print(table("ms a line", {name: [figures[name] for figures in rounds] for name in given.contenders}))
    if compared := ratios(rounds):
        print("\n" + table("ratio, pair by pair", compared))


if __name__ == "__main__":
    main()
