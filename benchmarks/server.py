"""A Prefect server of the benchmark's own: started, waited for, and ended with all its processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

START_SEC = 90.0
STEADY_SEC = 3.0
"""The counts must stay as they are for so long before the server counts as settled."""
UNFINISHED = {"task_runs": {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}}


@dataclass(frozen=True)
class Server:
    """A running server."""

    api_url: str

    def count(self, task_run_filter: Mapping[str, Any] | None = None) -> int:
        """How many task runs the server knows of; all, without a filter."""
        response = httpx.post(f"{self.api_url}/task_runs/count", json=task_run_filter or {}, timeout=60)
        response.raise_for_status()
        return int(response.json())

    def settle(self, expected: int | None, *, limit_sec: float) -> bool:
        """Wait until the server has digested what its clients sent.

        Args:
            expected: All task runs that it should know of; `None` when only the contender knows.
            limit_sec: Give up after so long.

        Returns:
            Whether it has: the expected count, none unfinished, and no change for `STEADY_SEC`.
        """
        end = time.monotonic() + limit_sec
        before, steady_since = -1, time.monotonic()
        while (now := time.monotonic()) < end:
            total, unfinished = self.count(), self.count(UNFINISHED)
            if total != before or unfinished or expected not in (None, total):
                before, steady_since = total, now
            elif now - steady_since >= STEADY_SEC:
                return True
            time.sleep(0.5)
        return False


@contextmanager
def prefect_server(env: Mapping[str, str], log: Path) -> Iterator[Server]:
    """A server on a free port of 127.0.0.1, on SQLite in the `PREFECT_HOME` of `env`; ended on leaving.

    Raises:
        RuntimeError: It did not become healthy within `START_SEC`; the message ends with its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}/api")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_until_healthy(server, process, log)
        yield server
    finally:
        end_group(process)


def wait_until_healthy(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server answers that it is healthy."""
    end = time.monotonic() + START_SEC
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{server.api_url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"The Prefect server was not healthy within {START_SEC:.0f} s; its log ends:\n{tail}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started in a session of its own, and whatever it started: asked first, then killed."""
    for number, grace_sec in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(grace_sec)
        except subprocess.TimeoutExpired:
            continue
    process.wait(5)
