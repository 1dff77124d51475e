"""The ephemeral Prefect server of a process without another one. It starts for a run and ends with the process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_LOGGING_LEVEL, get_current_settings, temporary_settings

from prefect_batchflow.exceptions import UnexpectedError
from prefect_batchflow.prefect_runtime.task_runs import ended_task_runs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

START_SEC = 120
"""Prefect's own 20 s are too short for a new database on a busy machine."""
DRAIN_FLOOR_SEC = 5.0
DRAIN_TASK_RUNS_PER_SEC = 20.0
_ROOT_LEVEL = "PREFECT_LOGGING_ROOT_LEVEL"
"""For loggers of the server's libraries: at their default level, a busy new database fills a screen with tracebacks."""

# Waits until the run's process is gone, then ends the server; by descriptor, because a process id can be reused.
_GUARD = """
import os, signal, sys
server = os.pidfd_open(int(sys.argv[1]))
sys.stdin.read()
signal.pidfd_send_signal(server, signal.SIGTERM)
"""


def has_own_server() -> bool:
    """Whether Prefect uses an ephemeral server, which ends with this process."""
    settings = get_current_settings()
    return not settings.api.url and settings.server.ephemeral.enabled


@contextlib.contextmanager
def own_server_named() -> Iterator[None]:
    """Set the API URL to this process's ephemeral server, for processes that get the settings. Does nothing without one."""
    if not has_own_server():
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    with temporary_settings({PREFECT_API_URL: server.api_url}) if server.running else contextlib.nullcontext():
        yield


def start_own_server() -> None:
    """Start the ephemeral server, if Prefect would start one, so that it outlives the end of a run.

    Ctrl-C reaches every process of a terminal and would end Prefect's server before the run. This server ignores Ctrl-C, has
    more time to start, logs nothing about its abrupt end, and ends if this process is killed.

    Raises:
        UnexpectedError: The server does not start.
    """
    if not has_own_server():
        return
    # Not at the top: it imports the whole server, which takes more than a second.
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    failure: BaseException | None = None

    def start() -> None:
        nonlocal failure
        # A process inherits the signals that its starting thread has blocked. That is why this thread exists.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            with temporary_settings({PREFECT_SERVER_LOGGING_LEVEL: "CRITICAL"}), _environment(_ROOT_LEVEL, "CRITICAL"):
                server.start(START_SEC)
        except BaseException as exc:  # noqa: BLE001 - handed to the caller's thread
            failure = exc

    if not server.running:
        thread = threading.Thread(target=contextvars.copy_context().run, args=[start], name="own-server", daemon=True)
        thread.start()
        thread.join()
    if failure is not None or server.server_process is None:
        raise UnexpectedError(
            f"The Prefect server of this run did not start: ({type(failure).__name__}) {failure}. Start one yourself with "
            "`prefect server start`, and set its address: `prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`."
        ) from failure
    _guard(server.server_process.pid)


@contextlib.contextmanager
def _environment(variable: str, value: str) -> Iterator[None]:
    """Set an environment variable for processes that start meanwhile, unless the user has set it."""
    if variable in os.environ:
        yield
        return
    os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable, None)


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
    """Wait, for a bounded time, until the server has recorded how all task runs of a flow run ended.

    An ephemeral server loses what it has not written when it ends. `most_sec` is the bound; `None` depends on `task_runs`.

    Returns:
        How many task runs are missing; `None` if the server did not answer.
    """
    limit = DRAIN_FLOOR_SEC + task_runs / DRAIN_TASK_RUNS_PER_SEC if most_sec is None else most_sec
    deadline = time.monotonic() + limit
    recorded: int | None = None
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(DRAIN_FLOOR_SEC):
                recorded = await ended_task_runs(flow_run_id)
                if recorded >= task_runs:
                    return 0
        await asyncio.sleep(0.1)
    return None if recorded is None else task_runs - recorded
