"""Prefect's server and worker as processes of their own, in a home of their own, and nothing left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import prefect_database
from prefect_api import LIMIT_SEC, wait_for
from steering import FLOW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steering import Steering

PREFECT = [sys.executable, "-m", "prefect"]


@dataclass(frozen=True)
class LocalRun:
    """A run from Python, going on in a process that leads a group of its own."""

    process: subprocess.Popen[bytes]
    output: Path
    log: Path
    """What it said on standard error."""

    def result(self, limit_sec: float = LIMIT_SEC) -> dict[str, Any]:
        """Its `BatchResult`, once the process has ended."""
        self.process.wait(limit_sec)
        assert self.process.returncode == 0, self.log.read_text(errors="replace")
        return dict(json.loads(self.output.read_text()))


@dataclass
class Home:
    """A Prefect home and the processes that were started in it.

    What a run leaves running is found by this home in its environment, whoever started it.
    """

    folder: Path
    api_url: str = ""
    """Empty: no server is configured."""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        """Ours, without any other settings of Prefect or of this package."""
        ours = {
            name: text for name, text in os.environ.items() if not name.startswith(("PREFECT_", "BATCHFLOW_", "PF_"))
        }
        server = {"PREFECT_API_URL": self.api_url} if self.api_url else {}
        return {
            **ours,
            **server,
            "PREFECT_HOME": str(self.folder),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "BATCHFLOW_STORAGE": str(self.runs),
            **more,
        }

    @property
    def runs(self) -> Path:
        """The run storage."""
        return self.folder / "runs"

    @property
    def database(self) -> Path:
        """That of Prefect's server."""
        return self.folder / "prefect.db"

    def output(self, name: str) -> Path:
        """What a process has printed so far; its standard error is in the file beside it, `.log`."""
        return self.folder / f"{name}.out"

    def start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own."""
        output = self.output(name)
        with output.open("wb") as out, output.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=self.environment(**environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def local_run(
        self,
        steered: Steering,
        *,
        run_id: str = "",
        environment: dict[str, str] | None = None,
        direct: bool = False,
        **options: object,
    ) -> LocalRun:
        """Start a run of the steered flow from Python, as a program of its own: by `BatchEngine`, or by `batch_run` itself."""
        given = {
            "flow": FLOW,
            "data": str(steered.data),
            "inputs_mapping": steered.inputs_mapping,
            "run_id": run_id or None,
            "options": {"worker_count": 2, **options},
            **({"direct": True} if direct else {}),
        }
        name = f"local-run-{len(self.started)}"
        program = Path(__file__).with_name("local_run.py")
        process = self.start(name, [sys.executable, str(program), json.dumps(given)], **(environment or {}))
        return LocalRun(process, self.output(name), self.output(name).with_suffix(".log"))

    def prefect(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run a command of Prefect's to its end and give what it printed."""
        done = subprocess.run(
            [*PREFECT, "--no-prompt", *arguments],
            env=self.environment(),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"prefect {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def end(self) -> None:
        """End every process of this home: asked first, then killed."""
        for process in reversed(self.started):
            end_group(process)
        for pid in processes_with("PREFECT_HOME", str(self.folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def prefect_home() -> Iterator[Home]:
    """A home with a database; when it is left its processes and its folder are gone."""
    with tempfile.TemporaryDirectory(prefix="batchflow-server-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        prefect_database.put(home.database)
        try:
            yield home
        finally:
            home.end()


def start_server(home: Home) -> subprocess.Popen[bytes]:
    """Start a server on a free port of 127.0.0.1, wait until it answers, and let the home use it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # The UI of a server on another port than 4200 must be told where the API is.
    process = home.start("server", command, PREFECT_SERVER_UI_API_URL=url)

    def is_healthy() -> bool:
        assert process.poll() is None, home.output("server").with_suffix(".log").read_text(errors="replace")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health", timeout=5).is_success
        return False

    wait_for(is_healthy, "the server answers")
    home.api_url = url
    prefect_database.keep(home.database)
    return process


def processes_with(variable: str, value: str) -> list[int]:
    """The processes, this one apart, that have a variable with this value in their environment."""
    needle = f"{variable}={value}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if needle in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def command_of(pid: int) -> str:
    """A process's command line; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def end_group(process: subprocess.Popen[bytes], grace_sec: float = 15) -> None:
    """End a process that leads its group, with the group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            os.killpg(process.pid, signal.SIGCONT)  # a stopped one does not hear the other
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_sec)
            break
    # What the leader left in its group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def interrupt_group(process: subprocess.Popen[bytes]) -> float:
    """Press Ctrl-C in a process's terminal, and give the seconds until it has ended; at most 60."""
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    return time.monotonic() - began
