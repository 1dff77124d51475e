"""A Prefect server of the benchmark's own: started, waited for, and ended with all its processes."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from processes import cpu_sec_of_session, end_group

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_SEC = 90.0
STEADY_SEC = 3.0
"""The server has settled when its counts have not changed for this time."""
LOOK_EVERY_SEC = 0.5
_UNFINISHED = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]}}}


@dataclass(frozen=True)
class Load:
    """What a server has taken in since it started."""

    task_runs: int
    database_bytes: int
    cpu_sec: float

    def since(self, before: Load) -> Load:
        """The difference to `before`."""
        return Load(
            self.task_runs - before.task_runs,
            self.database_bytes - before.database_bytes,
            self.cpu_sec - before.cpu_sec,
        )


@dataclass(frozen=True)
class Server:
    """A running server."""

    api_url: str
    database: Path
    session: int
    """The processor time of all its processes."""

    def count(self, kind: str = "task_runs", *, unfinished: bool = False) -> int:
        """How many `task_runs` or `flow_runs` the server knows of."""
        wanted = {kind: _UNFINISHED} if unfinished else {}
        response = httpx.post(f"{self.api_url}/{kind}/count", json=wanted, timeout=60)
        response.raise_for_status()
        return int(response.json())

    def load(self) -> Load:
        """Its load so far; free pages of the database are not counted."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=60)) as database:
            ask = "SELECT (page_count - freelist_count) * page_size"
            tables = "pragma_page_count, pragma_freelist_count, pragma_page_size"
            ((size,),) = database.execute(f"{ask} FROM {tables}")
        return Load(self.count(), int(size), cpu_sec_of_session(self.session))

    def settle(self, expected: int | None, *, limit_sec: float) -> float | None:
        """Wait until the server has processed everything that its clients sent.

        Args:
            expected: The number of task runs that it should have; `None` if only the contender knows.
            limit_sec: Give up after this time.

        Returns:
            The moment on the monotonic clock when it settled: the expected count, no run unfinished, and no change for
            `STEADY_SEC`. `None` if it did not settle.
        """
        end = time.monotonic() + limit_sec
        before, steady_since = -1, time.monotonic()
        while (now := time.monotonic()) < end:
            total = self.count()
            unfinished = self.count(unfinished=True) or self.count("flow_runs", unfinished=True)
            if total != before or unfinished or expected not in (None, total):
                before, steady_since = total, now
            elif now - steady_since >= STEADY_SEC:
                return steady_since
            time.sleep(LOOK_EVERY_SEC)
        return None


@contextmanager
def prefect_server(env: Mapping[str, str], log: Path) -> Iterator[Server]:
    """A server on a free port of 127.0.0.1, on SQLite in the `PREFECT_HOME` of `env`; ended on leaving.

    Raises:
        RuntimeError: It was not healthy within `START_SEC`; the message ends with its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}/api", Path(env["PREFECT_HOME"]) / "prefect.db", process.pid)
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
