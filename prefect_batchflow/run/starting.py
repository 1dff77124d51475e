"""Starting a flow: load it, merge its includes, find its connections, start its executor. Runs and `batchflow check` share it.

Prefect is imported only to look up saved connections, so that a check of a flow without any is quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect_batchflow.connections.files import connection_in_file, is_connection_file
from prefect_batchflow.connections.given import MISSING, WANTED
from prefect_batchflow.connections.variables import connection_of_variables
from prefect_batchflow.definition.load import load_flow, merged
from prefect_batchflow.exceptions import FlowEntryInitializationError, GetConnectionError, PrefectServerError
from prefect_batchflow.execution.languages import new_executor
from prefect_batchflow.execution.program.environment import connections_in
from prefect_batchflow.prefect_runtime.own_database import block_name, may_have_blocks
from prefect_batchflow.settings import RunOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from prefect_batchflow.definition.flow import Flow, FlowDescription
    from prefect_batchflow.exceptions import BatchflowException
    from prefect_batchflow.execution.executor import Executor
    from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy

LONGEST_NAME = 100
"""A longer constant, in characters, is not taken for the name of a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRequest:
    """A flow, and what a run gives it besides data."""

    flow: str | Callable[..., Any]
    """As for `load_flow`, like the next three."""
    working_dir: str = ""
    variant: str = ""
    node_connections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    init_kwargs: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, str] = field(default_factory=dict)
    """Connection name to the Prefect block or the file that has it."""
    connections: Mapping[str, Any] = field(default_factory=dict)
    """Connection name to the connection itself, or to promptflow's dictionary."""
    environment_variables: Mapping[str, str] = field(default_factory=dict)
    options: RunOptions = field(default_factory=RunOptions)
    run_id: str = ""
    executor_proxy: AbstractExecutorProxy | type[AbstractExecutorProxy] | None = None
    run_storage: Any = None


@contextlib.asynccontextmanager
async def starting(request: FlowRequest) -> AsyncIterator[FlowStart]:
    """Load a flow. On leaving, end its executor and remove the copy of a flow with includes."""
    loaded_flow = load_flow(
        request.flow, request.working_dir or None, variant=request.variant, node_connections=request.node_connections
    )
    with contextlib.ExitStack() as copy:
        flow, notes = loaded_flow, list[str]()
        if flow.additional_includes:
            flow, notes = await asyncio.to_thread(copy.enter_context, merged(flow))
        start = FlowStart(
            request, flow, loaded_flow, notes, await connections_of(request, environment_of(flow, request))
        )
        try:
            yield start
        finally:
            await start.executor.close()


async def connections_of(request: FlowRequest, environ: Mapping[str, str]) -> dict[str, Any]:
    """The connections that the request names or gives; those that it gives count."""
    places = {name: place for name, place in request.blocks.items() if name not in request.connections}
    blocks = {name: place for name, place in places.items() if not is_connection_file(place)}
    found = {
        name: connection_in_file(name, place, environ) for name, place in places.items() if is_connection_file(place)
    }
    if blocks:
        from prefect_batchflow.prefect_runtime.connection_blocks import load_connections

        found |= await load_connections(blocks)
    return {**found, **request.connections}


def environment_of(flow: Flow, request: FlowRequest) -> dict[str, str]:
    """The environment of the flow's code."""
    return {**os.environ, **flow.environment_variables, **request.environment_variables}


class FlowStart:
    """A loaded flow and its executor. `flow` is a copy if `loaded_flow` has includes."""

    def __init__(
        self, request: FlowRequest, flow: Flow, loaded_flow: Flow, notes: list[str], connections: Mapping[str, Any]
    ) -> None:
        self.flow = flow
        self.loaded_flow = loaded_flow
        self.notes = notes
        """What the merge of includes has replaced, for people."""
        self.found: list[str] = []
        """The connections that come from saved blocks of their name, or from variables."""
        self._request = request
        self._connections = dict(connections)
        self.executor = self._new_executor()

    @property
    def connections(self) -> Mapping[str, Any]:
        """The connections that the flow gets, by name."""
        return self._connections

    async def start(self) -> FlowDescription:
        """Start the executor. While a connection is missing, start it again with saved blocks, or with variables."""
        while True:
            try:
                return await self.executor.start()
            except (GetConnectionError, FlowEntryInitializationError) as exc:
                found = await self._found(exc)
                if not found:
                    raise
            await self.executor.close()
            self.found += found
            self._connections = {**found, **self._connections}
            self.executor = self._new_executor()

    async def _found(self, exc: BatchflowException) -> dict[str, Any]:
        """The connection that was missing, and others that the flow may ask for next; empty if there is none."""
        missing = exc.additional_info.get(MISSING)
        if not missing or missing in self._connections:
            return {}
        found, no_server = dict[str, Any](), ""
        try:
            found = await self._saved_connections(missing)
        except PrefectServerError as problem:
            no_server = problem.message
        if missing in found:
            return found
        environ = environment_of(self.flow, self._request)
        spec = connection_of_variables(missing, environ, exc.additional_info.get(WANTED) or ())
        if spec is not None:
            if no_server:
                self.notes.append(f"The connection {missing!r} comes from variables. {no_server}")
            return {missing: spec}
        if no_server:
            raise PrefectServerError(f"{exc.message} Saved connections could not be looked up: {no_server}") from exc
        return {}

    async def _saved_connections(self, missing: str) -> dict[str, Any]:
        names = {missing, *may_be_connections(self.flow, self._request)} - self._connections.keys()
        if not may_have_blocks([name for name in map(block_name, names) if name]):
            return {}
        from prefect_batchflow.prefect_runtime.connection_blocks import find_connections

        return await find_connections(names)

    def _new_executor(self) -> Executor:
        request = self._request
        return new_executor(
            self.flow,
            request.options,
            request.executor_proxy,
            run_id=request.run_id,
            init_kwargs=request.init_kwargs,
            connections=self._connections,
            environment_variables=request.environment_variables,
            storage=request.run_storage,
        )


def may_be_connections(flow: Flow, request: FlowRequest) -> set[str]:
    """Names in the flow, its variables and its constructor's arguments that can be connections, for one request."""
    values: list[Any] = []
    for node in flow.program.nodes:
        values += [node.connection, *node.constants.values()]
    values += connections_in({**flow.environment_variables, **request.environment_variables})
    for argument in request.init_kwargs.values():
        values.append(argument.get("connection") if isinstance(argument, dict) else argument)
    return {value for value in values if isinstance(value, str) and 0 < len(value) <= LONGEST_NAME}
