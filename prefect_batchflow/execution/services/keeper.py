"""Keeps one service running: starts it, checks its health, and replaces it when it dies or hangs."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import secrets
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import WorkerStartError
from prefect_batchflow.execution.services.service_process import ServiceProcess
from prefect_batchflow.execution.workers.supervision import Supervisor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx

    from prefect_batchflow.execution.scrubbing import Scrubber

SERVICE_TOKEN_VARIABLE = "BATCHFLOW_SERVICE_TOKEN"  # noqa: S105 - its name only
"""Set in the service's environment; each call has it in `Authorization: Bearer …`."""
HOST = "127.0.0.1"
_PORTS = 3
"""How many ports to try, because another process can take a port between our look and the start."""
_HEALTH_SEC = 2.0
"""How long to wait for one health check while the service starts."""
_IDLE_CONNECTION_SEC = 1.0
"""Shorter than services keep idle connections: one that they close while we use it would look like a crash."""
_PORT_TAKEN = re.compile(r"EADDRINUSE|address (is )?already in use", re.IGNORECASE)

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Served:
    """One process and the client that talks to it."""

    process: ServiceProcess
    client: httpx.AsyncClient
    ended_because: str = ""
    """Why the keeper ended it, if it did."""


class ServiceKeeper:
    """Keeps the service of a flow running, within the time limits that `HttpExecutorProxy` documents.

    Args:
        name: The flow's name, for messages.
        command: The command that starts the service; `{port}` is filled in.
        environment: The service's whole environment except `PORT` and `SERVICE_TOKEN_VARIABLE`.
        scrubber: Takes secrets out of what the service prints.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        scrubber: Scrubber,
        start_timeout_sec: float,
        answer_timeout_sec: float,
        stop_timeout_sec: float,
    ) -> None:
        self.supervisor = Supervisor()
        self.served: Served | None = None
        """The current process and its client."""
        self._name, self._command, self._cwd, self._environment = name, command, cwd, environment
        self._secret = secrets.token_urlsafe(24)
        """What every call proves that it comes from this run. Other processes of this machine can reach the port, too."""
        self._scrubber = scrubber.knowing([self._secret])
        self._start_timeout_sec = start_timeout_sec
        self._answer_timeout_sec = answer_timeout_sec
        self._stop_timeout_sec = stop_timeout_sec
        self._repair: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Start the service and wait until it is healthy; if it fails, raise `WorkerStartError`. Call `stop` even then."""
        self.supervisor.start()
        self.served = await self._new()

    async def stop(self) -> None:
        """End the service with SIGTERM, or kill it if needed. No process of it is alive afterwards."""
        self._closed = True
        try:
            if self._repair is not None:
                self._repair.cancel()
                await asyncio.wait([self._repair])
            if self.served is not None:
                await self.served.process.stop(self._stop_timeout_sec)
                await self.served.client.aclose()
        finally:
            await self.supervisor.close()

    async def usable(self) -> Served:
        """The service, after any check or repair that is under way; a new one if the last one died."""
        assert self.served is not None, "create() comes first"
        if self.served.process.exited.is_set():
            self.doubt(self.served)
        while self._repair is not None:
            # Shielded: when one line stops waiting, the repair continues for the others.
            await asyncio.shield(self._repair)
        return self.served

    def doubt(self, served: Served) -> None:
        """Check the service, and replace it if it is dead or does not answer; lines wait for this."""
        if served is self.served and self._repair is None and not self._closed:
            self._repair = asyncio.get_running_loop().create_task(self._look_after(served))
            self._repair.add_done_callback(self._repaired)

    def _repaired(self, repair: asyncio.Task[None]) -> None:
        self._repair = None
        if not repair.cancelled():
            repair.exception()  # the lines that wait get it; asyncio must not complain if there are none

    async def _look_after(self, served: Served) -> None:
        process = served.process
        trouble = "" if process.exited.is_set() else await _health(served.client, self._answer_timeout_sec)
        if not trouble and not process.exited.is_set():
            return
        if not process.exited.is_set():
            served.ended_because = f"was ended, because GET /health {trouble} after an unanswered call,"
            await process.kill()
        logger.warning(
            "The service of the flow %r %s and is started again. %s",
            self._name,
            served.ended_because or process.how_it_ended,
            process.said,
        )
        await served.client.aclose()
        self.served = await self._new()

    async def _new(self) -> Served:
        """Start a process and wait until it is healthy."""
        for _ in range(_PORTS):
            served = self._launch()
            try:
                trouble = await _until_healthy(served, self._start_timeout_sec)
            except BaseException:
                await self._give_up(served)
                raise
            if not trouble:
                return served
            await self._give_up(served)
            if not _PORT_TAKEN.search(served.process.tail):
                break
        raise WorkerStartError(f"The service of the flow {self._name!r} {trouble}. {served.process.said}")

    def check_program(self) -> None:
        """Refuse a command whose program does not exist, without starting it.

        Raises:
            WorkerStartError: The program is not there.
        """
        program = self._command[0]
        path = str(Path(self._cwd, program)) if os.path.dirname(program) else program  # noqa: PTH120 - of a command
        if shutil.which(path, path=self._environment.get("PATH")) is None:
            raise self._not_started(os.strerror(errno.ENOENT), list(self._command))

    def _not_started(self, why: str, command: list[str]) -> WorkerStartError:
        return WorkerStartError(
            f"The service of the flow {self._name!r} does not start: {why}. Its command is {command}, started in "
            f"{self._cwd}. Install {command[0]!r} in a folder of PATH, or give its path in the yaml's service.command."
        )

    def _launch(self) -> Served:
        import httpx

        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        command = [argument.replace("{port}", str(port)) for argument in self._command]
        try:
            process = ServiceProcess(
                command,
                token=self.supervisor.new_token(),
                cwd=self._cwd,
                environment={**self._environment, "PORT": str(port), SERVICE_TOKEN_VARIABLE: self._secret},
                scrubber=self._scrubber,
            )
        except OSError as exc:
            raise self._not_started(exc.strerror or str(exc), command) from exc
        client = httpx.AsyncClient(
            base_url=f"http://{HOST}:{port}",
            headers={"Authorization": f"Bearer {self._secret}"},
            # The executor limits the time and the number of calls at once.
            timeout=None,  # noqa: S113
            limits=httpx.Limits(keepalive_expiry=_IDLE_CONNECTION_SEC),
            # A proxy from the environment could not reach this machine.
            trust_env=False,
            # Plain HTTP: loading certificates would take longer than most services take to start.
            verify=False,  # noqa: S501
        )
        return Served(process, client)

    async def _give_up(self, served: Served) -> None:
        await served.process.kill()
        await served.client.aclose()


async def _health(client: httpx.AsyncClient, timeout_sec: float) -> str:
    """How `GET /health` failed, for messages; empty if the answer is 200 to 299."""
    import httpx

    try:
        async with asyncio.timeout(timeout_sec):
            response = await client.get("/health")
    except TimeoutError:
        return f"was not answered within {timeout_sec:g} seconds"
    except httpx.HTTPError as exc:
        return f"failed: ({type(exc).__name__}) {exc}"
    return "" if response.is_success else f"was answered with status {response.status_code}"


async def _until_healthy(served: Served, timeout_sec: float) -> str:
    """Wait until the service is healthy; why it is not, for messages, or an empty text."""
    process = served.process
    deadline = time.monotonic() + timeout_sec
    pause = 0.02
    trouble = "was never called"
    while not process.exited.is_set():
        left = deadline - time.monotonic()
        if left <= 0:
            return f"was not healthy within {timeout_sec:g} seconds: GET /health {trouble}"
        trouble = await _health(served.client, min(_HEALTH_SEC, left))
        if not trouble and not process.exited.is_set():
            return ""
        await process.exits_within(pause)
        pause = min(pause * 1.5, 0.5)
    return f"{process.how_it_ended} before it was healthy"
