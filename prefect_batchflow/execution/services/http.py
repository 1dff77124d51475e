"""Flows in other languages: the run talks to a process that speaks promptflow's executor service protocol over HTTP.

docs/other-languages.md describes the protocol and what a service can rely on.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, ClassVar

from prefect_batchflow.definition.flow import Service
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import (
    FlowDefinitionError,
    InputTypeError,
    InvalidOptionError,
    ProcessCrashError,
    UnexpectedError,
    error_dict,
)
from prefect_batchflow.execution.program.environment import resolved
from prefect_batchflow.execution.scrubbing import Scrubber
from prefect_batchflow.execution.services.keeper import HOST, ServiceKeeper
from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import httpx

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.services.keeper import Served

INIT_KWARGS_VARIABLE = "BATCHFLOW_INIT_KWARGS"
"""Set in the service's environment to the run's `init_kwargs` as JSON, if there are any."""
CONNECTIONS_VARIABLE = "BATCHFLOW_CONNECTIONS"
"""Set in the service's environment to the `connections` of `BatchEngine` as JSON, if there are any."""

_SENDS = 3
"""How often to send a call that finds no service listening."""
_NOTICE_EXIT_SEC = 1.0
"""How long to wait after a broken call to see whether the process has ended."""
_SHOWN = 300


class HttpExecutorProxy(AbstractExecutorProxy):
    """Runs a flow in a process of another language, over HTTP.

    Register it, or a subclass with its own command, with `BatchEngine.register_executor`. The flow's yaml can have
    `service: {command: […], aggregation: true, start_timeout_sec: 20}`. `{port}`, `{entry}`, `{flow_file}` and
    `{working_dir}` are filled in in the command.

    Source: promptflow devkit `_proxy/_base_executor_proxy.py`, `APIBasedExecutorProxy`.
    """

    command: ClassVar[Sequence[str]] = ()
    """The command that starts the service, if the flow's yaml has none."""
    start_timeout_sec: ClassVar[float] = 20.0
    """How long the service can take until it answers `GET /health`, if the flow's yaml has no limit."""
    answer_timeout_sec: ClassVar[float] = 5.0
    """How long `GET /health` can take after an unanswered call; then the service is replaced."""
    stop_timeout_sec: ClassVar[float] = 5.0
    """How long the service can take to end after SIGTERM; then it is killed."""

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
        environment = {**os.environ, **resolved(environment_variables or {}, connections or {})}
        if init_kwargs:
            environment[INIT_KWARGS_VARIABLE] = _as_json("init_kwargs", init_kwargs)
        if connections:
            environment[CONNECTIONS_VARIABLE] = _as_json("connections", connections)
        self._keeper = ServiceKeeper(
            flow.name,
            self._filled_command(),
            cwd=flow.working_dir,
            environment=environment,
            scrubber=Scrubber.of_run(flow, connections or {}, init_kwargs or {}, environment_variables or {}),
            start_timeout_sec=self._service.start_timeout_sec or self.start_timeout_sec,
            answer_timeout_sec=self.answer_timeout_sec,
            stop_timeout_sec=self.stop_timeout_sec,
        )

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
        """Start the service and wait until it is healthy.

        Raises:
            FlowDefinitionError: Neither the flow's yaml nor the class has a command.
            InvalidOptionError: `init_kwargs` or `connections` cannot be written as JSON.
            WorkerStartError: The service does not start, ends early, or is not healthy in time.
        """
        proxy = cls(
            load_flow(flow_file, working_dir),
            init_kwargs=kwargs.get("init_kwargs"),
            connections=connections,
            environment_variables=kwargs.get("environment_variables"),
        )
        try:
            await proxy._keeper.start()
        except BaseException:
            await proxy.destroy()
            raise
        return proxy

    def check_program(self) -> None:
        """Refuse a flow whose service cannot start because its program does not exist; raises `WorkerStartError`."""
        self._keeper.check_program()

    async def destroy(self) -> None:
        """End the service with SIGTERM, or kill it if needed. No process of it is alive afterwards."""
        await self._keeper.stop()

    @property
    def has_aggregation(self) -> bool:
        """Whether the yaml has `service: {aggregation: true}` or a node with `aggregation: true`."""
        return self._service.aggregation

    async def wait_until_ready(self) -> None:
        """Wait while the service is checked or replaced; this does not count as a line's time."""
        await self._keeper.usable()

    async def exec_line_async(
        self, inputs: Mapping[str, Any], index: int | None = None, run_id: str | None = None
    ) -> Any:
        """Send `POST /execution`. If the service answers with an error, it becomes the line's error and keeps its codes.

        Raises:
            ProcessCrashError: The service died, or was replaced, while it had the line.
            InputTypeError: An input is NaN or infinite, which JSON cannot express.
            UnexpectedError: The answer does not follow the protocol.
        """
        body = {"run_id": run_id, "line_number": index, "inputs": dict(inputs)}
        answer = await self._post("/execution", body, f"Line {index}")
        if (error := _error_in(answer)) is not None:
            return {"output": None, "run_info": {"status": "Failed", "error": error}}
        if "output" not in answer:
            raise UnexpectedError(
                f"Line {index}: the answer to POST /execution has the keys {sorted(answer)}, but no 'output'.",
                target="Executor",
            )
        return answer

    async def exec_aggregation_async(
        self, batch_inputs: Mapping[str, Any], aggregation_inputs: Mapping[str, Any], run_id: str | None = None
    ) -> Any:
        """Send `POST /aggregation`. The service's error is in `error`; this raises what `exec_line_async` raises."""
        body = {"run_id": run_id, "batch_inputs": dict(batch_inputs), "aggregation_inputs": dict(aggregation_inputs)}
        answer = await self._post("/aggregation", body, "The aggregation")
        return {**answer, "error": _error_in(answer)}

    async def _post(self, path: str, body: Mapping[str, Any], what: str) -> dict[str, Any]:
        import httpx

        content = _body(body, what)
        for _ in range(_SENDS):
            served = await self._keeper.usable()
            try:
                response = await served.client.post(path, content=content, headers={"Content-Type": "application/json"})
            except httpx.ConnectError:
                # Nothing listened, so the line has not begun.
                self._keeper.doubt(served)
            except httpx.HTTPError as exc:
                raise await self._broken_call(served, what, exc) from exc
            except asyncio.CancelledError:
                # The line met its limit, or the run ends. The service may hang.
                self._keeper.doubt(served)
                raise
            else:
                return _answer(response, f"{what}: POST {path}")
        raise UnexpectedError(
            f"{what}: the service of the flow {self._flow.name!r} answers GET /health, but accepted no connection for "
            f"POST {path} in {_SENDS} attempts. It must listen on {HOST}, at the port it was given, until it is ended.",
            target="Executor",
        )

    async def _broken_call(self, served: Served, what: str, exc: Exception) -> ProcessCrashError | UnexpectedError:
        """Why a call that the service accepted was not answered."""
        process = served.process
        await process.exits_within(_NOTICE_EXIT_SEC)
        if process.exited.is_set():
            how = served.ended_because or process.how_it_ended
            return ProcessCrashError(
                f"{what}: the service of the flow {self._flow.name!r} {how} while it had the line. {process.said}",
                target="Executor",
                additional_info={"ProcessCrashDetails": {"exit_code": process.returncode, "output": process.tail}},
            )
        self._keeper.doubt(served)
        return UnexpectedError(
            f"{what}: the service of the flow {self._flow.name!r} runs, but gave no HTTP answer: "
            f"({type(exc).__name__}) {exc}. {process.said}",
            target="Executor",
        )

    def _filled_command(self) -> list[str]:
        flow = self._flow
        command = self._service.command or tuple(self.command)
        entry = flow.program.attribute
        place = flow.definition_file or flow.working_dir
        if not command:
            raise FlowDefinitionError(
                f"{place}: the flow has no command that starts its service. Write\n"
                'service:\n  command: [program, argument, "{port}"]\n'
                f"or register a subclass of {HttpExecutorProxy.__name__} with a `command` for {flow.language!r}."
            )
        if not entry and any("{entry}" in argument for argument in command):
            raise FlowDefinitionError(
                f"{place}: the flow has no 'entry', but the command of {flow.language!r} needs one: {list(command)}. Give "
                "the service's file as 'entry', or write a 'service' with a 'command'."
            )
        file = str(flow.definition_file or "")
        values = {"{entry}": entry, "{flow_file}": file, "{working_dir}": str(flow.working_dir)}
        for name, value in values.items():
            command = tuple(argument.replace(name, value) for argument in command)
        return list(command)


class JavaScriptExecutorProxy(HttpExecutorProxy):
    """Runs flows with `language: javascript`: Node.js runs their `entry`."""

    command = ("node", "{entry}", "--port", "{port}")


def _as_json(name: str, values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(values), allow_nan=False)
    except (TypeError, ValueError) as exc:
        # Names only: the values may be secrets.
        raise InvalidOptionError(
            f"{name} ({', '.join(map(str, values))}) must be JSON for a flow in another language: {exc}. Give plain values."
        ) from exc


def _body(body: Mapping[str, Any], what: str) -> bytes:
    """The body as JSON in ASCII, so that a lone surrogate arrives unchanged."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError as exc:
        raise InputTypeError(
            f"{what}: an input is NaN or infinite. JSON cannot express it, so it cannot be sent to a service in another "
            "language. Use null or a text instead.",
            target="Executor",
        ) from exc


def _answer(response: httpx.Response, call: str) -> dict[str, Any]:
    """The JSON object of an answer; with a status outside 200 to 299 it must have an `error`."""
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError) as exc:
        answer = None
        found = f"{response.text[:_SHOWN]!r} ({exc})"
    else:
        found = f"{answer!r:.{_SHOWN}}"
    if isinstance(answer, dict) and (response.is_success or _error_in(answer) is not None):
        return answer
    expected = "a JSON object" if response.is_success else "status 200 or a JSON object with 'error'"
    raise UnexpectedError(
        f"{call} was answered with status {response.status_code} and {found}; expected {expected}.", target="Executor"
    )


def _error_in(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The error in a service's answer, in promptflow's form and with its codes; `None` if there is none."""
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
