"""The first stage: load the flow, start its executor, open the storage, check the data. Can refuse a run; writes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_batchflow.blocks import open_storage
from prefect_batchflow.cluster.clusters import cluster_of
from prefect_batchflow.exceptions import InvalidOptionError, UnsupportedFeatureError
from prefect_batchflow.inputs.places import local_folder, located_image_roots
from prefect_batchflow.inputs.readers import open_source
from prefect_batchflow.lines import check, read_lines_of
from prefect_batchflow.run.roots import Roots
from prefect_batchflow.run.starting import FlowRequest, starting
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
    from pathlib import Path

    from prefect_batchflow.blocks import RunStorageBlock
    from prefect_batchflow.cluster.clusters import Cluster
    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.executor import Executor
    from prefect_batchflow.inputs.readers import Source
    from prefect_batchflow.lines import Inventory, Line
    from prefect_batchflow.run.starting import FlowStart
    from prefect_batchflow.run.state import RunState


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
    connections: Mapping[str, Any]
    """The connections that the flow gets, with their secrets. Their `repr` shows none."""
    environ: Mapping[str, str]
    """The environment of the flow's code."""
    image_roots: tuple[str, ...] = ()
    """Folders where images can be besides the folders of the data, absolute paths or URLs."""

    def lines(self) -> Iterator[Line]:
        """Read the data again, as lines."""
        return read_lines_of(self.flow, self.sources, self.inputs_mapping, self.inventory, self.image_roots)


@contextlib.asynccontextmanager
async def preparation(state: RunState) -> AsyncIterator[Preparation]:
    """Load the flow. On leaving, end everything that was started for the run and remove the copy of a flow with includes."""
    request, live = state.request, state.live
    wanted = FlowRequest(
        flow=live.flow if live.flow is not None else request.flow,
        working_dir=request.working_dir,
        variant=request.variant,
        node_connections=request.node_connections,
        init_kwargs=state.init_kwargs,
        blocks=request.connections,
        connections=live.connections or {},
        environment_variables=state.environment_variables,
        options=state.options,
        run_id=request.run_id,
        executor_proxy=live.executor_proxy,
        run_storage=live.run_storage,
    )
    async with starting(wanted) as start:
        for note in start.notes:
            state.note(note)
        preparing = Preparation(state, start)
        try:
            yield preparing
        finally:
            await preparing.close()


class Preparation:
    """Starts and opens everything that a run needs, and checks it."""

    def __init__(self, state: RunState, start: FlowStart) -> None:
        self._state = state
        self._request, self._options = state.request, state.options
        self._flow = start
        self._output_dir = local_folder(self._request.output_dir)
        self._check_cluster_options()
        self._cluster: Cluster | None = None

    async def prepare(self) -> Prepared:
        """Start the executor, open the storage and check the data."""
        description = await self._flow.start()
        if self._flow.found:
            self._state.logger.info("Connections from saved blocks or variables: %s", ", ".join(self._flow.found))
        flow, executor = self._flow.flow.described(description), self._flow.executor
        files = await open_storage(self._request.storage)
        if self._options.task_runner != "local":
            self._cluster = cluster_of(self._options.task_runner, self._options.task_runner_address, executor.slots)
        sources = await self._open_sources(files)
        image_roots = located_image_roots(self._request.image_roots)
        inventory = await asyncio.to_thread(
            check,
            sources,
            flow.inputs,
            self._request.inputs_mapping,
            self._options.max_lines_count or None,
            bad_rows=self._options.bad_rows,
            inputs_with_default=self._options.inputs_with_default,
            takes_any=flow.takes_any,
            is_stopped=lambda: self._state.stop.is_stopped,
        )
        for note in inventory.notes:
            self._state.note(note)
        return Prepared(
            flow,
            self._flow.loaded_flow,
            description.has_aggregation,
            executor,
            self._cluster,
            files,
            sources,
            inventory,
            self._request.inputs_mapping,
            self._output_dir,
            dict(self._flow.connections),
            {**os.environ, **flow.environment_variables, **self._state.environment_variables},
            image_roots,
        )

    async def close(self) -> None:
        """Disconnect from the cluster."""
        if self._cluster is not None:
            await self._cluster.close()

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
        if self._flow.executor.given() is None:
            raise UnsupportedFeatureError(
                f"The flow {self._flow.flow.name!r} has its own executor; task_runner={runner!r} runs Python flows only. "
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
        column = self._options.line_number_column
        roots = Roots.of_flow_run(self._state.flow_run.deployment_id)
        given = [
            open_source(url, name=name, line_number_column=column, may_read=roots.may_read)
            for name, url in request.sources.items()
        ]
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
            roots = Roots.of_flow_run(self._state.flow_run.deployment_id)
            roots.check_source(INPUTS, previous_inputs_url(previous.manifest))
            sources.append(await asyncio.to_thread(open_previous_inputs, previous.manifest, roots.may_read))
        return sources
