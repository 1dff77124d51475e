"""The ephemeral Prefect server of a process without another one. It starts for a run and ends with the process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_API_URL,
    PREFECT_SERVER_LOGGING_LEVEL,
    get_current_settings,
    temporary_settings,
)

from prefect_batchflow.exceptions import PrefectServerError, told
from prefect_batchflow.prefect_runtime.network import address_of
from prefect_batchflow.prefect_runtime.task_runs import ended_task_runs
from prefect_batchflow.storage.private_files import file_mode, make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

START_SEC = 120
"""Prefect's own 20 s are too short for a new database on a busy machine."""
MOST_STARTS = 2
"""It is given up when it ends this often while it starts."""
DIAGNOSIS_SEC = 30
DRAIN_FLOOR_SEC = 5.0
DRAIN_TASK_RUNS_PER_SEC = 20.0
_ROOT_LEVEL = "PREFECT_LOGGING_ROOT_LEVEL"
"""For loggers of the server's libraries: at their default level, a busy new database fills a screen with tracebacks."""

_NOT_STARTED = "The Prefect server of this run did not start"
_START_ONE = (
    "Correct this, or start a server yourself (`prefect server start`) and set its address: "
    "`prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`."
)

_OPEN_DATABASE = """
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""

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


def own_server_url() -> str:
    """The API of this process's ephemeral server; empty if none runs."""
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    return server.api_url if server.running else ""


def start_own_server() -> None:
    """Start the ephemeral server, if Prefect would start one, so that it outlives the end of a run.

    Ctrl-C reaches every process of a terminal and would end Prefect's server before the run. This server ignores Ctrl-C, has
    more time to start, logs nothing about its abrupt end, and ends if this process is killed.

    Raises:
        PrefectServerError: The server does not start.
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
        make_private_database()
        thread = threading.Thread(target=contextvars.copy_context().run, args=[start], name="own-server", daemon=True)
        thread.start()
        ended: set[int] = set()
        while thread.is_alive():
            thread.join(0.2)
            process = server.server_process
            if process is None or process.poll() is None:
                continue
            # Prefect starts it again, on another port, because the port may have been taken. A second end has another cause.
            ended.add(process.pid)
            if thread.is_alive() and len(ended) >= MOST_STARTS:
                server.stop()
                raise PrefectServerError(f"{_NOT_STARTED}: {_why_not_started(process.returncode)}. {_START_ONE}")
    if failure is not None or server.server_process is None:
        raise PrefectServerError(
            f"{_NOT_STARTED}: {told(failure) if failure is not None else 'it has ended'}. {_START_ONE}"
        ) from failure
    _guard(server.server_process.pid)


def make_private_database() -> None:
    """Make the file of Prefect's own database for the owner only, as run folders are: it has parameters and prints of runs.

    SQLite gives its other files the same mode. A file that exists keeps its own.
    """
    kind, _, place = str(PREFECT_API_DATABASE_CONNECTION_URL.value() or "").partition(":///")
    if not kind.startswith("sqlite") or not place.startswith("/") or "?" in place:
        return
    with contextlib.suppress(OSError):  # it exists, or SQLite's own error says more
        make_folder(Path(place).parent)
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, file_mode()))


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


def _why_not_started(status: int | None) -> str:
    """Open the server's database as it would, and give the error."""
    try:
        tried = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-W", "ignore", "-c", _OPEN_DATABASE],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DIAGNOSIS_SEC,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"its database did not open within {DIAGNOSIS_SEC} s, perhaps because another process has locked it"
    if tried.returncode == 0:
        return f"it ended with status {status} each time"
    errors = [line for line in tried.stderr.splitlines() if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    cause = (errors or ["unknown error"])[-1].rstrip(".")
    if "revision" in cause:
        cause += ", perhaps because a newer Prefect made it"
    configured = get_current_settings().server.database.connection_url
    url = configured.get_secret_value() if configured else f"sqlite:///{get_current_settings().home / 'prefect.db'}"
    place = urlsplit(url).path if url.startswith("sqlite") else address_of(url)
    return f"its database {place} cannot be used: {cause}. Another PREFECT_HOME has another database"


@functools.cache
def _guard(server_pid: int) -> None:
    """Have a process that ends the server once this one is gone, and another one if that process is killed."""
    ending = threading.Event()
    guards: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        guard = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-S", "-c", _GUARD, str(server_pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        guards[:] = [guard]
        return guard

    def keep(guard: subprocess.Popen[bytes]) -> None:
        # One that ends by itself found no server.
        while guard.wait() < 0 and not ending.is_set():
            guard.communicate()
            try:
                guard = start()
            except OSError:
                return

    def end() -> None:
        ending.set()
        for guard in guards:
            guard.kill()
        keeper.join()
        for guard in guards:
            guard.communicate()

    keeper = threading.Thread(target=keep, args=[start()], name="own-server-guard", daemon=True)
    keeper.start()
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
