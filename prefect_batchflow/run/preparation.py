"""The first stage: load the flow, start its executor, open the storage, check the data. Can refuse a run; writes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_batchflow.blocks import open_storage
from prefect_batchflow.cluster.clusters import cluster_of
from prefect_batchflow.connections.given import MISSING
from prefect_batchflow.definition.load import load_flow, merged_copy
from prefect_batchflow.definition.run_folder import run_folder
from prefect_batchflow.exceptions import (
    FlowEntryInitializationError,
    GetConnectionError,
    InvalidOptionError,
    UnsupportedFeatureError,
)
from prefect_batchflow.execution.languages import new_executor
from prefect_batchflow.execution.program.environment import connections_in
from prefect_batchflow.images.forms import form_of
from prefect_batchflow.inputs.places import absolute
from prefect_batchflow.inputs.readers import open_source
from prefect_batchflow.lines import check, read_lines
from prefect_batchflow.prefect_runtime.connection_blocks import find_connections, load_connections
from prefect_batchflow.run.roots import ROOTS_VARIABLE, check_roots_of
from prefect_batchflow.storage.source_run import (
    INPUTS,
    OUTPUTS,
    open_previous_inputs,
    open_previous_run,
    previous_inputs_url,
    refers_to_inputs,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from prefect_batchflow.blocks import RunStorageBlock
    from prefect_batchflow.cluster.clusters import Cluster
    from prefect_batchflow.definition.flow import Flow, FlowDescription
    from prefect_batchflow.execution.executor import Executor
    from prefect_batchflow.inputs.readers import Source
    from prefect_batchflow.lines import Inventory, Line
    from prefect_batchflow.run.state import RunState

LONGEST_NAME = 100
"""A longer constant, in characters, is not taken for the name of a connection."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the later stages work with."""

    flow: Flow
    """The flow as it runs here: a copy if it has additional includes, with the inputs that its code declares."""
    loaded_flow: Flow
    """The flow as it was written."""
    has_aggregation: bool
    executor: Executor
    cluster: Cluster | None
    """Where lines run instead of on this machine; not connected yet."""
    files: RunStorageBlock
    """The run storage."""
    sources: Sequence[Source]
    inventory: Inventory
    """The lines of the data, counted."""
    inputs_mapping: Mapping[str, Any]
    output_dir: Path | None

    def lines(self) -> Iterator[Line]:
        """Read the data again, as lines."""
        return read_lines(
            self.sources,
            self.flow.inputs,
            self.inputs_mapping,
            self.inventory,
            flow_folder=str(self.flow.working_dir),
            image_form=form_of(self.flow.message_format),
        )


@contextlib.asynccontextmanager
async def preparation(state: RunState) -> AsyncIterator[Preparation]:
    """Load the flow. On leaving, end everything that was started for the run and remove the copy of a flow with includes."""
    loaded_flow = load_flow(
        state.live.flow if state.live.flow is not None else state.request.flow,
        state.request.working_dir or None,
        variant=state.request.variant,
        node_connections=state.request.node_connections,
    )
    with contextlib.ExitStack() as copy:
        flow = loaded_flow
        if flow.additional_includes:
            folder = await asyncio.to_thread(copy.enter_context, run_folder())
            flow, notes = await asyncio.to_thread(merged_copy, flow, folder)
            for note in notes:
                state.note(note)
        connections = {**await load_connections(state.request.connections), **(state.live.connections or {})}
        preparing = Preparation(state, flow, loaded_flow, connections)
        try:
            yield preparing
        finally:
            await preparing.close()


class Preparation:
    """Starts and opens everything that a run needs, and checks it. `flow` is a copy if `loaded_flow` has includes."""

    def __init__(self, state: RunState, flow: Flow, loaded_flow: Flow, connections: Mapping[str, Any]) -> None:
        self._state = state
        self._request, self._options = state.request, state.options
        self._flow = flow
        self._loaded_flow = loaded_flow
        self._connections = connections
        self._output_dir = _local_folder(self._request.output_dir)
        self._executor = self._new_executor()
        self._check_cluster_options()
        self._cluster: Cluster | None = None

    async def prepare(self) -> Prepared:
        """Start the executor, open the storage and check the data."""
        description = await self._start()
        flow = self._flow.described(description)
        files = await open_storage(self._request.storage)
        if self._options.task_runner != "local":
            self._cluster = cluster_of(
                self._options.task_runner, self._options.task_runner_address, self._executor.slots
            )
        sources = await self._open_sources(files)
        inventory = await asyncio.to_thread(
            check,
            sources,
            flow.inputs,
            self._request.inputs_mapping,
            self._options.max_lines_count or None,
            bad_rows=self._options.bad_rows,
            is_stopped=lambda: self._state.stop.is_stopped,
        )
        for note in inventory.notes:
            self._state.note(note)
        return Prepared(
            flow,
            self._loaded_flow,
            description.has_aggregation,
            self._executor,
            self._cluster,
            files,
            sources,
            inventory,
            self._request.inputs_mapping,
            self._output_dir,
        )

    async def close(self) -> None:
        """End the executor and disconnect from the cluster."""
        await self._executor.close()
        if self._cluster is not None:
            await self._cluster.close()

    # --- the executor ------------------------------------------------------------------------------------------------

    def _new_executor(self) -> Executor:
        state = self._state
        return new_executor(
            self._flow,
            self._options,
            state.live.executor_proxy,
            run_id=self._request.run_id,
            init_kwargs=state.init_kwargs,
            connections=self._connections,
            environment_variables=state.environment_variables,
            storage=state.live.run_storage,
        )

    async def _start(self) -> FlowDescription:
        """Start the executor. If a connection is missing, start it again with the connections of saved blocks."""
        try:
            return await self._executor.start()
        except (GetConnectionError, FlowEntryInitializationError) as exc:
            missing = exc.additional_info.get(MISSING)
            found = await find_connections(self._may_be_connections(str(missing))) if missing else {}
            if missing not in found:
                raise
        self._state.logger.info("Connections from saved blocks: %s", ", ".join(found))
        await self._executor.close()
        self._connections = {**found, **self._connections}
        self._executor = self._new_executor()
        return await self._executor.start()

    def _may_be_connections(self, missing: str) -> set[str]:
        """Names in the flow, its variables and its constructor's arguments that can be connections, for one request."""
        values: list[Any] = [missing]
        for node in self._flow.program.nodes:
            values += [node.connection, *node.constants.values()]
        values += connections_in({**self._flow.environment_variables, **self._state.environment_variables})
        for argument in self._state.init_kwargs.values():
            values.append(argument.get("connection") if isinstance(argument, dict) else argument)
        return {value for value in values if isinstance(value, str) and 0 < len(value) <= LONGEST_NAME}

    def _check_cluster_options(self) -> None:
        """Refuse options that do not work on a cluster, before anything starts."""
        options, runner = self._options, self._options.task_runner
        if runner == "local":
            if options.task_runner_address:
                raise InvalidOptionError(
                    f"task_runner_address={options.task_runner_address!r} needs a cluster. Set task_runner='dask' or 'ray'."
                )
            return
        if options.granularity == "line":
            raise InvalidOptionError(
                f"granularity='line' does not work with task_runner={runner!r}: submitting a task to a cluster takes as long "
                "as running many lines. Leave granularity out, and the cluster gets chunks of lines."
            )
        if self._executor.given() is None:
            raise UnsupportedFeatureError(
                f"The flow {self._flow.name!r} has its own executor; task_runner={runner!r} runs Python flows only. "
                "Leave task_runner out."
            )
        if self._request.storage.startswith("memory:"):
            raise InvalidOptionError(
                f"The storage {self._request.storage!r} is in the memory of this process, where the workers of a cluster "
                "cannot reach it. Give a folder on a shared disk, or a bucket."
            )

    # --- the data ----------------------------------------------------------------------------------------------------

    async def _open_sources(self, files: RunStorageBlock) -> list[Source]:
        request = self._request
        if not request.sources and not request.run:
            raise InvalidOptionError(
                "No data was given. Give the URL of a file (jsonl, csv, tsv, json, parquet, arrow), a folder or a pattern: "
                "--data on the command line, `data` in a deployment's parameters, or `input_dirs` of BatchEngine.run."
            )
        given = [open_source(url, name=name) for name, url in request.sources.items()]
        return [*given, *await self._previous_sources(request.run, files)] if request.run else given

    async def _previous_sources(self, run_id: str, files: RunStorageBlock) -> list[Source]:
        """The outputs of the previous run, and its data if the mapping refers to it."""
        if run_id == self._request.run_id:
            raise InvalidOptionError(f"The run {run_id!r} cannot be built on itself. Give the new run another run id.")
        if twice := {OUTPUTS, INPUTS} & self._request.sources.keys():
            raise InvalidOptionError(
                f"The source {sorted(twice)[0]!r} was given twice: as data, and by run={run_id!r}. Leave one of them out."
            )
        previous = await open_previous_run(files, run_id)
        for note in previous.notes:
            self._state.note(note)
        sources = [previous.outputs]
        if refers_to_inputs(self._request.inputs_mapping):
            if self._state.flow_run.deployment_id is not None:
                check_roots_of(INPUTS, previous_inputs_url(previous.manifest), os.environ.get(ROOTS_VARIABLE, ""))
            sources.append(await asyncio.to_thread(open_previous_inputs, previous.manifest))
        return sources


def _local_folder(folder: str) -> Path | None:
    if not folder:
        return None
    if "://" in folder and not folder.startswith("file://"):
        raise InvalidOptionError(
            f"The output_dir {folder!r} is not a folder on this machine. Give a local folder. The run storage can be remote, "
            "and it has the outputs too."
        )
    return Path(absolute(folder.removeprefix("file://")))
