"""Real clusters: a Dask scheduler with two worker processes, and a Ray of two CPUs, as processes that end with the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = "BATCHFLOW_TEST_CLUSTER"
STARTS_WITHIN_SEC = 90.0
RAY = """
import sys, ray
context = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


@dataclass(frozen=True)
class RealCluster:
    """A cluster that runs."""

    kind: str
    address: str
    mark: str

    def options(self) -> list[str]:
        """The words of the command line that have a run go there."""
        return ["--task-runner", self.kind, "--task-runner-address", self.address]

    def processes(self, program: str = "prefect_batchflow.execution") -> list[int]:
        """Those on the cluster that run a program; by default workers of ours and their supervisors."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                is_its = f"{MARK}={self.mark}\0".encode() in environ.read_bytes()
                if is_its and program.encode() in (environ.parent / "cmdline").read_bytes():
                    found.append(int(environ.parent.name))
        return found

    def wait_until_empty(self, within_sec: float) -> None:
        """No process of ours is on it any more."""
        wait_until(
            lambda: not self.processes(), description=f"no worker is on the {self.kind} cluster", timeout_sec=within_sec
        )


def _environment(mark: str) -> dict[str, str]:
    # Ray would write a key of its own below the home folder.
    return {**os.environ, MARK: mark, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def _process(command: list[str], mark: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("ab") as output,
        subprocess.Popen(
            command, env=_environment(mark), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _end_all(mark: str) -> None:
    cluster = RealCluster("", "", mark)
    for pid in cluster.processes(""):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def dask_cluster(folder: Path) -> Iterator[RealCluster]:
    """A scheduler and two worker processes, which are started again when they die."""
    mark, log, file = uuid.uuid4().hex, folder / "log", folder / "scheduler.json"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    workers = [sys.executable, "-m", "distributed.cli.dask_worker", "--nworkers", "2", "--nthreads", "1"]
    try:
        with (
            _process([*scheduler, "--no-dashboard", "--scheduler-file", str(file)], mark, log),
            _process([*workers, "--no-dashboard", "--scheduler-file", str(file)], mark, log),
        ):
            wait_until(
                lambda: log.read_text().count("Registered to:") == 2,
                description="two Dask workers",
                timeout_sec=STARTS_WITHIN_SEC,
            )
            import json

            yield RealCluster("dask", json.loads(file.read_text())["address"], mark)
    finally:
        _end_all(mark)


@contextmanager
def ray_cluster(folder: Path) -> Iterator[RealCluster]:
    """One node of two CPUs."""
    mark = uuid.uuid4().hex
    try:
        with _process([sys.executable, "-c", RAY], mark, folder / "log") as process:
            assert process.stdout is not None
            address = process.stdout.readline().decode().strip()
            assert address, (folder / "log").read_text()
            yield RealCluster("ray", address, mark)
    finally:
        _end_all(mark)
