"""The ephemeral Prefect server of a process that names no other: started for a run, heard out, gone with the process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_LOGGING_LEVEL, get_current_settings, temporary_settings

from prefect_batchflow.exceptions import UnexpectedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

START_SEC = 120
"""Prefect waits 20 s, which is too short for a new database on a busy machine."""
DRAIN_FLOOR_SEC = 5.0
DRAIN_TASK_RUNS_PER_SEC = 20.0

# Reads until the run's process is gone, then ends the server; by descriptor, since a process id may come round again.
_GUARD = """
import os, signal, sys
server = os.pidfd_open(int(sys.argv[1]))
sys.stdin.read()
signal.pidfd_send_signal(server, signal.SIGTERM)
"""


def has_own_server() -> bool:
    """Whether Prefect starts an ephemeral server in this process, which ends with it."""
    settings = get_current_settings()
    return not settings.api.url and settings.server.ephemeral.enabled


@contextlib.contextmanager
def own_server_named() -> Iterator[None]:
    """Name this process's ephemeral server in the settings, which other processes take over; does nothing without one."""
    if not has_own_server():
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    with temporary_settings({PREFECT_API_URL: server.api_url}) if server.running else contextlib.nullcontext():
        yield


def start_own_server() -> None:
    """Start the server that Prefect would start, if it would, so that a run can end well in it.

    Ctrl-C reaches every process of a terminal; Prefect's server would be gone before the run has ended. This one does not
    hear it, has longer to start, says nothing of its own abrupt end, and does not outlive a process that was killed.

    Raises:
        UnexpectedError: It does not start.
    """
    if not has_own_server():
        return
    # Here, and not before: it brings the whole server, more than a second of imports.
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    failure: BaseException | None = None

    def start() -> None:
        nonlocal failure
        # A process inherits what the thread that starts it has blocked; this thread is for that.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            with temporary_settings({PREFECT_SERVER_LOGGING_LEVEL: "CRITICAL"}):
                server.start(START_SEC)
        except BaseException as exc:  # noqa: BLE001 - carried to the caller's thread
            failure = exc

    if not server.running:
        thread = threading.Thread(target=contextvars.copy_context().run, args=[start], name="own-server", daemon=True)
        thread.start()
        thread.join()
    if failure is not None or server.server_process is None:
        raise UnexpectedError(
            f"Prefect's own server did not start: ({type(failure).__name__}) {failure}. Start one that keeps running, `prefect "
            "server start`, and name it: `prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`."
        ) from failure
    _guard(server.server_process.pid)


@functools.cache
def _guard(server_pid: int) -> None:
    guard = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-I", "-S", "-c", _GUARD, str(server_pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end() -> None:
        guard.kill()
        guard.communicate()

    atexit.register(end)


async def wait_until_recorded(flow_run_id: UUID, task_runs: int, most_sec: float | None = None) -> int | None:
    """Wait until the server knows how all task runs of a flow run ended, for a bounded time.

    An ephemeral server takes what it has not written with it. `most_sec` is the bound; `None` goes by the task runs.

    Returns:
        How many are missing; `None` when the server did not say.
    """
    limit = DRAIN_FLOOR_SEC + task_runs / DRAIN_TASK_RUNS_PER_SEC if most_sec is None else most_sec
    deadline = time.monotonic() + limit
    recorded: int | None = None
    ended = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]}}}
    body = {"flow_runs": {"id": {"any_": [str(flow_run_id)]}}, "task_runs": ended}
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(DRAIN_FLOOR_SEC), get_client() as client:
                recorded = int((await client.request("POST", "/task_runs/count", json=body)).json())
                if recorded >= task_runs:
                    return 0
        await asyncio.sleep(0.1)
    return None if recorded is None else task_runs - recorded
