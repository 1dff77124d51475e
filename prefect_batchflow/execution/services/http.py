"""Flows in other languages: a process that speaks promptflow's executor service protocol over HTTP on this machine.

`HttpExecutorProxy` starts the process, sends it lines, and replaces it when it dies or hangs. docs/other-languages.md has
the protocol and what a service may rely on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from prefect_batchflow.definition.flow import Service
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import (
    FlowDefinitionError,
    InputTypeError,
    InvalidOptionError,
    ProcessCrashError,
    UnexpectedError,
    WorkerStartError,
    error_dict,
)
from prefect_batchflow.execution.program.environment import resolved
from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy
from prefect_batchflow.execution.services.service_process import ServiceProcess
from prefect_batchflow.execution.workers.processes import end_with_token
from prefect_batchflow.execution.workers.supervision import Supervisor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import httpx

    from prefect_batchflow.definition.flow import Flow

HOST = "127.0.0.1"
INIT_KWARGS_VARIABLE = "BATCHFLOW_INIT_KWARGS"
"""In the service's environment: the run's `init_kwargs` as JSON, if there are any."""
CONNECTIONS_VARIABLE = "BATCHFLOW_CONNECTIONS"
"""In the service's environment: the `connections` given to `BatchEngine` as JSON, if there are any."""

_SENDS = 3
"""How often a call that no service took is tried."""
_PORTS = 3
"""How many ports are tried when somebody takes the one that was free a moment before."""
_HEALTH_SEC = 2.0
"""How long one health call of a starting service may take."""
_NOTICE_EXIT_SEC = 1.0
"""How long after a broken call the end of the process may be seen."""
_IDLE_CONNECTION_SEC = 1.0
"""Shorter than services keep theirs: a connection that they close at the moment of its use looks like a crash."""
_SHOWN = 300

_PORT_TAKEN = re.compile(r"EADDRINUSE|address (is )?already in use", re.IGNORECASE)

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Served:
    """One process and the client that talks to it."""

    process: ServiceProcess
    client: httpx.AsyncClient
    ended_because: str = ""
    """Why it was ended from here."""


class HttpExecutorProxy(AbstractExecutorProxy):
    """Runs a flow in a process of another language, over HTTP.

    Register it, or a subclass with a command of its own, with `BatchEngine.register_executor`. The flow's yaml may say
    `service: {command: […], aggregation: true, start_timeout_sec: 20}`. In a command `{port}`, `{entry}`, `{flow_file}`
    and `{working_dir}` are filled in.

    Source: promptflow devkit `_proxy/_base_executor_proxy.py`, `APIBasedExecutorProxy`.
    """

    command: ClassVar[Sequence[str]] = ()
    """What starts the service when the flow's yaml says nothing."""
    start_timeout_sec: ClassVar[float] = 20.0
    """How long it may take until `GET /health` is answered, when the flow's yaml says nothing."""
    answer_timeout_sec: ClassVar[float] = 5.0
    """How long `GET /health` may take after a call that came to no answer; then the service is replaced."""
    stop_timeout_sec: ClassVar[float] = 5.0
    """How long it may take from SIGTERM to its end; then it is killed."""

    def __init__(
        self,
        flow: Flow,
        *,
        init_kwargs: Mapping[str, Any] | None = None,
        connections: Mapping[str, Any] | None = None,
        environment_variables: Mapping[str, str] | None = None,
    ) -> None:
        self._flow = flow
        self._service = flow.service or Service()
        self._command = self._filled_command()
        self._environment = {**os.environ, **resolved(environment_variables or {}, connections or {})}
        for variable, name, values in (
            (INIT_KWARGS_VARIABLE, "init_kwargs", init_kwargs),
            (CONNECTIONS_VARIABLE, "connections", connections),
        ):
            if values:
                self._environment[variable] = _as_json(name, values)
        self._token = uuid.uuid4().hex
        self._started = 0
        self._supervisor: Supervisor | None = None
        self._served: _Served | None = None
        self._repair: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def create(
        cls,
        flow_file: Path,
        working_dir: Path | None = None,
        *,
        connections: Mapping[str, Any] | None = None,
        storage: Any = None,
        **kwargs: Any,
    ) -> HttpExecutorProxy:
        """Start the service, and wait until it is healthy.

        Raises:
            FlowDefinitionError: Neither the flow's yaml nor the class has a command.
            InvalidOptionError: `init_kwargs` or `connections` are not JSON.
            WorkerStartError: The service does not start, ends, or is not healthy in time.
        """
        flow = load_flow(flow_file, working_dir)
        proxy = cls(
            flow,
            init_kwargs=kwargs.get("init_kwargs"),
            connections=connections,
            environment_variables=kwargs.get("environment_variables"),
        )
        try:
            proxy._supervisor = Supervisor(proxy._token)
            proxy._served = await proxy._start()
        except BaseException:
            await proxy.destroy()
            raise
        return proxy

    async def destroy(self) -> None:
        """End the service: SIGTERM, and a kill when that does not end it; after it no process of it is alive."""
        self._closed = True
        try:
            if self._repair is not None:
                self._repair.cancel()
                await asyncio.wait([self._repair])
            if self._served is not None:
                await self._served.process.stop(self.stop_timeout_sec)
                await self._served.client.aclose()
        finally:
            end_with_token(self._token)
            if self._supervisor is not None:
                await asyncio.to_thread(self._supervisor.let_go)

    @property
    def has_aggregation(self) -> bool:
        """Whether the yaml says so: `service: {aggregation: true}`, or a node with `aggregation: true`."""
        return self._service.aggregation

    async def wait_until_ready(self) -> None:
        """Wait for a service that is looked at or replaced; that is no line's time."""
        await self._usable()

    async def exec_line_async(
        self, inputs: Mapping[str, Any], index: int | None = None, run_id: str | None = None
    ) -> Any:
        """`POST /execution`; an error that the service answers is the line's, with its codes.

        Raises:
            ProcessCrashError: The service died, or was replaced, while it had the line.
            InputTypeError: The inputs hold NaN or infinity, which JSON has not.
            UnexpectedError: It answered what is no answer.
        """
        body = {"run_id": run_id, "line_number": index, "inputs": dict(inputs)}
        answer = await self._post("/execution", body, f"Line {index}")
        if (error := _error_in(answer)) is not None:
            return {"output": None, "run_info": {"status": "Failed", "error": error}}
        if "output" not in answer:
            raise UnexpectedError(
                f"Line {index}: POST /execution was answered with the keys {sorted(answer)}, expected 'output' among them.",
                target="Executor",
            )
        return answer

    async def exec_aggregation_async(
        self, batch_inputs: Mapping[str, Any], aggregation_inputs: Mapping[str, Any], run_id: str | None = None
    ) -> Any:
        """`POST /aggregation`; raises as `exec_line_async` does, and gives the service's error as `error`."""
        body = {
            "run_id": run_id,
            "batch_inputs": dict(batch_inputs),
            "aggregation_inputs": dict(aggregation_inputs),
        }
        answer = await self._post("/aggregation", body, "The aggregation")
        return {**answer, "error": _error_in(answer)}

    async def _post(self, path: str, body: Mapping[str, Any], what: str) -> dict[str, Any]:
        import httpx

        content = _body(body, what)
        for _ in range(_SENDS):
            served = await self._usable()
            try:
                response = await served.client.post(path, content=content, headers={"Content-Type": "application/json"})
            except httpx.ConnectError:
                # Nobody took the call, so the line has not begun.
                self._doubt(served)
            except httpx.HTTPError as exc:
                raise await self._broken_call(served, what, exc) from exc
            except asyncio.CancelledError:
                # The line met its limit, or its run ends; the service may hang.
                self._doubt(served)
                raise
            else:
                return _answer(response, f"{what}: POST {path}")
        raise UnexpectedError(
            f"{what}: the service of the flow {self._flow.name!r} answers GET /health, and took no connection for POST {path} "
            f"in {_SENDS} attempts. It should listen on {HOST} at the port it was given until it is ended.",
            target="Executor",
        )

    async def _broken_call(self, served: _Served, what: str, exc: Exception) -> ProcessCrashError | UnexpectedError:
        """Why a call that the service had taken ended without an answer."""
        process = served.process
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NOTICE_EXIT_SEC):
                await process.exited.wait()
        how = served.ended_because or process.how_it_ended
        if process.exited.is_set():
            return ProcessCrashError(
                f"{what}: the service of the flow {self._flow.name!r} {how} while it had the line. {_said(process)}",
                target="Executor",
                additional_info={"ProcessCrashDetails": {"exit_code": process.returncode, "output": process.tail}},
            )
        self._doubt(served)
        return UnexpectedError(
            f"{what}: the service of the flow {self._flow.name!r} runs, and gave no HTTP answer: "
            f"({type(exc).__name__}) {exc}. {_said(process)}",
            target="Executor",
        )

    # --- the service ---------------------------------------------------------------------------------------------------

    async def _usable(self) -> _Served:
        """The service, once it is known to answer; a new one if the last one died."""
        assert self._served is not None, "create() comes first"
        if self._served.process.exited.is_set():
            self._doubt(self._served)
        while self._repair is not None:
            # Shielded: a line that does not wait any more takes nothing from the others.
            await asyncio.shield(self._repair)
        return self._served

    def _doubt(self, served: _Served) -> None:
        """Have the service looked at, and replaced if it is dead or does not answer; lines wait for that."""
        if served is self._served and self._repair is None and not self._closed:
            self._repair = asyncio.get_running_loop().create_task(self._look_after(served))
            self._repair.add_done_callback(self._repaired)

    def _repaired(self, repair: asyncio.Task[None]) -> None:
        self._repair = None
        if not repair.cancelled():
            repair.exception()  # whoever waits for it has it; that nobody does is no fault

    async def _look_after(self, served: _Served) -> None:
        process = served.process
        trouble = "" if process.exited.is_set() else await _health(served.client, self.answer_timeout_sec)
        if not trouble and not process.exited.is_set():
            return
        if not process.exited.is_set():
            served.ended_because = f"was ended, for GET /health {trouble} after a call without an answer,"
            await process.kill()
        logger.warning(
            "The service of the flow %r %s and is started again. %s",
            self._flow.name,
            served.ended_because or process.how_it_ended,
            _said(process),
        )
        await served.client.aclose()
        self._served = await self._start()

    async def _start(self) -> _Served:
        """Start a process, and wait until it is healthy."""
        timeout_sec = self._service.start_timeout_sec or self.start_timeout_sec
        attempt = 1
        while True:
            served = self._launch()
            try:
                trouble = await _until_healthy(served, timeout_sec)
            except BaseException:
                await self._give_up(served)
                raise
            if not trouble:
                return served
            await self._give_up(served)
            if attempt == _PORTS or not _PORT_TAKEN.search(served.process.tail):
                break
            attempt += 1
        raise WorkerStartError(f"The service of the flow {self._flow.name!r} {trouble}. {_said(served.process)}")

    def _launch(self) -> _Served:
        import httpx

        port = _free_port()
        self._started += 1
        command = [argument.replace("{port}", str(port)) for argument in self._command]
        try:
            process = ServiceProcess(
                command,
                # With an end of its own: tokens are looked for by how they begin, and 1 begins 10.
                token=f"{self._token}-{self._started}.",
                cwd=self._flow.working_dir,
                environment={**self._environment, "PORT": str(port)},
            )
        except OSError as exc:
            raise WorkerStartError(
                f"The service of the flow {self._flow.name!r} does not start: {exc.strerror or exc}. Its command is "
                f"{command}, started in {self._flow.working_dir}. Install {command[0]!r} where PATH finds it, or name it "
                "with its path in the yaml's service.command."
            ) from exc
        client = httpx.AsyncClient(
            base_url=f"http://{HOST}:{port}",
            # The executor keeps the time, and the number of calls at once.
            timeout=None,  # noqa: S113
            limits=httpx.Limits(keepalive_expiry=_IDLE_CONNECTION_SEC),
            # A proxy of the environment does not lead back to this machine.
            trust_env=False,
            # Plain HTTP: loading the certificates would cost more than the start of most services.
            verify=False,  # noqa: S501
        )
        return _Served(process, client)

    async def _give_up(self, served: _Served) -> None:
        await served.process.kill()
        await served.client.aclose()

    def _filled_command(self) -> list[str]:
        flow = self._flow
        command = self._service.command or tuple(self.command)
        entry = flow.program.attribute
        place = flow.definition_file or flow.working_dir
        if not command:
            raise FlowDefinitionError(
                f"{place}: nothing says how the service of the flow is started. Write\n"
                'service:\n  command: [program, argument, "{port}"]\n'
                f"or register a subclass of {HttpExecutorProxy.__name__} with a `command` for {flow.language!r}."
            )
        if not entry and any("{entry}" in argument for argument in command):
            raise FlowDefinitionError(
                f"{place}: no 'entry', which the command of {flow.language!r} starts: {list(command)}. Name the service's "
                "file as 'entry', or write a 'service' with a 'command'."
            )
        for name, value in (
            ("{entry}", entry),
            ("{flow_file}", str(flow.definition_file or "")),
            ("{working_dir}", str(flow.working_dir)),
        ):
            command = tuple(argument.replace(name, value) for argument in command)
        return list(command)


class JavaScriptExecutorProxy(HttpExecutorProxy):
    """Flows of `language: javascript`: Node.js runs their `entry`."""

    command = ("node", "{entry}", "--port", "{port}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _as_json(name: str, values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(values), allow_nan=False)
    except (TypeError, ValueError) as exc:
        # Names only: the values may be secrets.
        raise InvalidOptionError(
            f"{name} ({', '.join(map(str, values))}) must be JSON for a flow in another language: {exc}. Give plain values."
        ) from exc


def _body(body: Mapping[str, Any], what: str) -> bytes:
    """As JSON, in ASCII: a lone surrogate comes through as it is."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError as exc:
        raise InputTypeError(
            f"{what}: an input is NaN or infinite, which JSON has not: a service in another language cannot be sent it. "
            "Take null, or a text.",
            target="Executor",
        ) from exc


async def _health(client: httpx.AsyncClient, timeout_sec: float) -> str:
    """What `GET /health` did instead of an answer 200 to 299, for messages; empty when it is healthy."""
    import httpx

    try:
        async with asyncio.timeout(timeout_sec):
            response = await client.get("/health")
    except TimeoutError:
        return f"was not answered within {timeout_sec:g} seconds"
    except httpx.HTTPError as exc:
        return f"failed: ({type(exc).__name__}) {exc}"
    return "" if response.is_success else f"was answered with status {response.status_code}"


async def _until_healthy(served: _Served, timeout_sec: float) -> str:
    """Wait until the service is healthy; what keeps it from that, for messages, or nothing."""
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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await process.exited.wait()
        pause = min(pause * 1.5, 0.5)
    return f"{process.how_it_ended} before it was healthy"


def _answer(response: httpx.Response, call: str) -> dict[str, Any]:
    """The JSON object of an answer; of a status outside of 200 to 299 one with an `error`."""
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError) as exc:
        answer = None
        found = f"{response.text[:_SHOWN]!r} ({exc})"
    else:
        found = f"{answer!r:.{_SHOWN}}"
    if isinstance(answer, dict) and (response.is_success or _error_in(answer) is not None):
        return answer
    expected = "a JSON object" if response.is_success else "status 200, or a JSON object with 'error'"
    raise UnexpectedError(
        f"{call} was answered with status {response.status_code} and {found}, expected {expected}.", target="Executor"
    )


def _error_in(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The error that a service answered, in promptflow's shape, codes kept; `None` for an answer without one."""
    error = answer.get("error")
    if error is None:
        return None
    if not isinstance(error, dict):
        return error_dict(UnexpectedError(str(error), target="Executor"))
    blank = error_dict(UnexpectedError("The service gave no message.", target="Executor"))
    if not isinstance(error.get("code"), str):
        return {**blank, **error, "code": blank["code"], "innerError": blank["innerError"]}
    if not isinstance(error.get("message"), str):
        error = {**error, "message": blank["message"]}
    return {**blank, "innerError": None, **error}


def _said(process: ServiceProcess) -> str:
    return f"Its last output: {process.tail[-_SHOWN * 4 :]}" if process.tail else "It printed nothing."
