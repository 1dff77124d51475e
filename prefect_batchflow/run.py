"""One batch run: its stages in order, and what they hand on.

definition → inputs → lines → execution → results → aggregation → report.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from prefect_batchflow.aggregation import aggregate
from prefect_batchflow.blocks import open_storage
from prefect_batchflow.cluster.clusters import cluster_of
from prefect_batchflow.cluster.runner import ClusterRunner, Shares
from prefect_batchflow.cluster.work import RunDescription
from prefect_batchflow.connection_blocks import find_connections, load_connections
from prefect_batchflow.connections import MISSING
from prefect_batchflow.definition.flow import Dag, FlowDescription, Literal, load_flow, merged_copy
from prefect_batchflow.definition.run_folder import run_folder
from prefect_batchflow.definition.variants import parse_variant
from prefect_batchflow.exceptions import (
    BatchflowException,
    BatchRunTimeoutError,
    FlowEntryInitializationError,
    GetConnectionError,
    InvalidOptionError,
    RunChangedError,
    RunInUseError,
    StorageError,
    UnexpectedError,
    UnsupportedFeatureError,
    error_dict,
)
from prefect_batchflow.execution.environment import connections_in
from prefect_batchflow.execution.executor import (
    Executor,
    LineOutcome,
    ProxyExecutor,
    executor_for,
    registered_languages,
)
from prefect_batchflow.execution.pool import WorkerPool
from prefect_batchflow.failure_limits import FailureLimits
from prefect_batchflow.inputs.places import is_local_path, local_path
from prefect_batchflow.inputs.readers import Source, open_source
from prefect_batchflow.lines import Line, check, chunks, input_hash, read_lines
from prefect_batchflow.live import LiveRun, ProgressReport
from prefect_batchflow.own_server import has_own_server, wait_until_recorded
from prefect_batchflow.report.artifacts import Progress, write_failed_lines, write_summary
from prefect_batchflow.report.markdown import failed_table, summary_markdown
from prefect_batchflow.results import BatchResult, Receipt, Status, Tally, line_result, summary_line
from prefect_batchflow.roots import ROOTS_VARIABLE, check_roots_of
from prefect_batchflow.settings import (
    BatchRequest,
    Granularity,
    default_storage_url,
)
from prefect_batchflow.storage.control import LOOK_EVERY_SEC, Driver, supersede
from prefect_batchflow.storage.custom import persist_line
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.lease import Lease
from prefect_batchflow.storage.manifest import (
    Manifest,
    Session,
    changes,
    fingerprint,
    fingerprint_files,
    read_manifest,
    require_manifest,
    versions,
    write_manifest,
)
from prefect_batchflow.storage.outputs import write_outputs
from prefect_batchflow.storage.previous_run import (
    INPUTS,
    OUTPUTS,
    open_previous_inputs,
    open_previous_run,
    previous_inputs_url,
    refers_to_inputs,
)
from prefect_batchflow.storage.records import RecordIndex, RunRecords
from prefect_batchflow.storage.takeover import take_over_run, take_over_storage
from prefect_batchflow.surroundings import (
    end_abandoned,
    is_cancelled_in_prefect,
    let_go_of_server,
    server_answers,
)
from prefect_batchflow.tasks import Chunk, LineRunner, chunk_task, completed_lines_unlogged, is_broken, line_task
from prefect_batchflow.window import Window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence

    from prefect.client.schemas.objects import FlowRun

    from prefect_batchflow.cluster.clusters import Cluster

T = TypeVar("T")

LINE_GRANULARITY_UP_TO = 1_000
"""Lines for which `auto` makes a task run each."""
SMALLEST_CHUNK = 50
MOST_TASK_RUNS = 200
"""Chunks grow so that a run has no more: what a person can look through, and a server takes in within seconds."""
LINES_AHEAD = 100
"""Lines of the next chunk that are begun before the one before ends: beginning a task run takes longer than short lines."""
FLOW_PARTS = frozenset({"flow", "init", "variant", "node_connections", "environment"})
"""The fingerprints that must be the same for lines of another run to be this run's."""
LONGEST_NAME = 100
"""Characters of a literal that may be a connection's name."""
READ_LINES = 500
"""Lines read at once, in a thread: reading may wait for a network."""
WRITE_GRACE_SEC = 5.0
"""How long the write that is going on when a run is stopped may take; what is not written by then is not done."""
STOP_GRACE_SEC = 3.0
"""How long the lines of a stopped run may take to end and be written."""
CLUSTER_STOP_GRACE_SEC = 2.0 + LOOK_EVERY_SEC + STOP_GRACE_SEC / 2
"""The same on a cluster, whose tasks hear of it with a delay."""
DRAIN_SEC = 5.0
"""How long lines that run may go on after the first Ctrl-C; with what follows, the run ends within 10 s of it."""
REPORT_EVERY_SEC = 0.25
LOOK_FOR_CANCEL_EVERY_SEC = 2.0


async def server_is_gone(live: LiveRun) -> bool:
    """Look whether the Prefect server still answers; if not, nothing more waits for it."""
    if await server_answers():
        return False
    live.server_gone.set()
    let_go_of_server()
    return True


def current_flow_run() -> FlowRun:
    """The Prefect flow run that is going on; asked of the context, for `prefect.runtime` asks the server for some of it."""
    context = FlowRunContext.get()
    assert context is not None, "called inside the Prefect flow only"
    assert context.flow_run is not None, "Prefect made it before it called the flow"
    return context.flow_run


@dataclass(frozen=True, slots=True)
class _Course:
    """How the lines of a run are run."""

    runner: LineRunner | ClusterRunner
    run: Callable[[list[Line]], Coroutine[Any, Any, None]]
    """Runs a group of lines."""
    window: Window
    group: int
    """Lines of a group."""
    how: str
    """For the log."""

    @property
    def stop_grace_sec(self) -> float:
        """How long the lines of a stopped run may take to end and be written."""
        return STOP_GRACE_SEC if isinstance(self.runner, LineRunner) else CLUSTER_STOP_GRACE_SEC


class BatchRun:
    """One batch run: its stages, and what they hand on."""

    def __init__(self, request: BatchRequest, live: LiveRun) -> None:
        self.request = request
        self.options = request.options
        self.live = live
        self.logger = get_run_logger()
        self.flow_run = current_flow_run()
        self.keys = RunKeys(request.run_id)
        self.tally = Tally()
        self.reused_lines = 0
        self.task_runs = 0
        self.start_time = datetime.now(UTC)
        self.clock = time.monotonic()
        self.batch_error: BatchflowException | None = None
        self.runner: LineRunner | ClusterRunner | None = None
        self.cluster: Cluster | None = None
        self._is_stopped = False
        """By somebody, by the run's time limit, or by a failure that is no line's."""
        self.changed_lines: set[int] = set()
        """Lines that an earlier session has no fitting record of: what it has does not count any more."""
        self.numbers: set[int] | None = None
        """The data's own line numbers; `None` for lines numbered by position."""

    async def run(self) -> BatchResult:
        """The stages, in order; the flow runs where it is, or with its additional includes in a copy that is removed."""
        self.live.tally = self.tally
        self.flow = load_flow(
            self.live.flow if self.live.flow is not None else self.request.flow,
            self.request.working_dir,
            variant=self.request.variant,
            node_connections=self.request.node_connections,
        )
        self.working_dir = self.flow.working_dir
        self.loaded_flow = self.flow
        with contextlib.ExitStack() as copy:
            if self.flow.additional_includes:
                folder = await asyncio.to_thread(copy.enter_context, run_folder())
                self.flow, notes = await asyncio.to_thread(merged_copy, self.flow, folder)
                for note in notes:
                    self._note(note)
            return await self._run_loaded()

    async def _run_loaded(self) -> BatchResult:
        self.output_dir = _local_folder(self.request.output_dir, self.request.base_dir)
        self.connections = {**await load_connections(self.request.connections), **(self.live.connections or {})}
        self._check_cluster_options()
        self.executor = self._executor()
        try:
            description = await self._unless_stopped(self._prepare())
            if description is None:
                return await self._stopped_before_lines()
            async with Lease(self.files, self.keys, self._on_lease_lost):
                index = await self._open_run()
                await self._run_lines(index)
                if description.has_aggregation and not self._is_stopped:
                    await self._aggregate()
                return await self._report()
        finally:
            await self.executor.close()
            if self.cluster is not None:
                await self.cluster.close()

    async def _prepare(self) -> FlowDescription:
        """Load the flow, open the storage and check the data: all that may refuse the run, and writes nothing."""
        self.flow = self.flow.described(description := await self._start())
        self.files = await open_storage(self.request.storage)
        if self.options.task_runner != "local":
            self.cluster = self._cluster()
        self.sources = await self._open_sources()
        self.inventory = await asyncio.to_thread(
            check,
            self.sources,
            self.flow.inputs,
            self.request.inputs_mapping,
            self.options.max_lines_count,
            bad_rows=self.options.bad_rows,
            is_stopped=lambda: self._is_stopped,
        )
        if any(source.own_numbers for source in self.inventory.sources):
            self.numbers = set()
        for note in self.inventory.notes:
            self._note(note)
        await self._check_before_writing()
        if self.cluster is not None:
            self.places = await self.cluster.connect()
        return description

    async def _unless_stopped(self, stage: Coroutine[Any, Any, T]) -> T | None:
        """What a stage gives; `None` when the run is stopped before it ends."""
        work = asyncio.ensure_future(stage)
        try:
            with self._stopping(work.cancel):
                await asyncio.wait({work})
        finally:
            work.cancel()
        return None if work.cancelled() else work.result()

    async def _stopped_before_lines(self) -> BatchResult:
        """The result of a run of which nobody knows the lines; nothing of it is in the storage."""
        self._note("Stopped before the data was read: no line has begun, and nothing was written.")
        self.live.result = self._batch_result(total_lines=0)
        await self._hand_in()
        return self.live.result

    def _on_lease_lost(self, exc: RunInUseError) -> None:
        if self.runner is not None:
            self.runner.fail(exc)

    # --- definition, inputs ------------------------------------------------------------------------------------------

    @property
    def _environment_variables(self) -> Mapping[str, str]:
        """Those of this run; the flow's own are in its files."""
        given = self.live.environment_variables
        return self.request.environment_variables if given is None else given

    def _executor(self) -> Executor:
        live, language = self.live, self.flow.language.lower()
        proxy = live.executor_proxy or executor_for(self.flow)
        init_kwargs = live.init_kwargs if live.init_kwargs is not None else self.request.init_kwargs
        if proxy is not None:
            return ProxyExecutor(
                self.flow,
                proxy,
                run_id=self.request.run_id,
                slots=self.options.worker_count,
                init_kwargs=init_kwargs,
                connections=self.connections or None,
                storage=live.run_storage,
                environment_variables=self._environment_variables,
            )
        if language != "python":
            known = ", ".join(["python", *registered_languages()])
            raise UnsupportedFeatureError(
                f"The flow {self.flow.name!r} is written in {language!r}; flows of {known} can run. Register an executor: "
                f"BatchEngine.register_executor({language!r}, <AbstractExecutorProxy subclass>). Or say in its yaml how the "
                "service that runs it is started: `service: {command: […]}`, see docs/other-languages.md."
            )
        return WorkerPool(
            self.flow,
            init_kwargs=init_kwargs,
            connections=self.connections,
            environment_variables=self._environment_variables,
            worker_count=self.options.worker_count,
            max_concurrency=self.options.max_concurrency,
            line_memory_mb=self.options.line_memory_mb,
        )

    def _check_cluster_options(self) -> None:
        """Refuse what a run on a cluster cannot be, before anything is started."""
        options, runner = self.options, self.options.task_runner
        if runner == "local":
            if options.task_runner_address:
                raise InvalidOptionError(
                    f"task_runner_address={options.task_runner_address!r} goes with a cluster: say task_runner='dask' or 'ray'."
                )
            return
        if options.granularity == "line":
            raise InvalidOptionError(
                f"granularity='line' does not go with task_runner={runner!r}: submitting a task costs a cluster as much as "
                "running many lines. Leave it out; a cluster gets chunks."
            )
        if self.flow.language.lower() != "python" or self.live.executor_proxy is not None:
            raise UnsupportedFeatureError(
                f"The flow {self.flow.name!r} is run by an executor of its own; with task_runner={runner!r} only Python flows "
                "run. Leave task_runner out."
            )
        if self.request.storage.startswith("memory:"):
            raise InvalidOptionError(
                f"The storage {self.request.storage!r} is this process's memory, and the workers of a cluster are other "
                "processes. Give a folder of a shared disk, or a bucket."
            )

    def _cluster(self) -> Cluster:
        return cluster_of(self.options.task_runner, self.options.task_runner_address, self.executor.slots)

    async def _start(self) -> FlowDescription:
        """Start the executor; for connections that the flow asks for and that were not given, with those of saved blocks."""
        try:
            return await self.executor.start()
        except (GetConnectionError, FlowEntryInitializationError) as exc:
            missing = exc.additional_info.get(MISSING)
            found = await find_connections(self._may_be_connections(str(missing))) if missing else {}
            if missing not in found:
                raise
        self.logger.info("Connections taken from blocks of their names: %s", ", ".join(found))
        await self.executor.close()
        self.connections = {**found, **self.connections}
        self.executor = self._executor()
        return await self.executor.start()

    def _may_be_connections(self, missing: str) -> set[str]:
        """The names in flow, variables and constructor's arguments that may be connections: all are asked for at once."""
        values: list[Any] = [missing]
        if isinstance(self.flow.program, Dag):
            for node in self.flow.program.nodes:
                values += [value.value for value in node.inputs.values() if isinstance(value, Literal)]
                values.append(getattr(node, "connection", None))
        values += connections_in({**self.flow.environment_variables, **self._environment_variables})
        for argument in (self.live.init_kwargs or self.request.init_kwargs).values():
            values.append(argument.get("connection") if isinstance(argument, dict) else argument)
        return {value for value in values if isinstance(value, str) and 0 < len(value) <= LONGEST_NAME}

    async def _open_sources(self) -> list[Source]:
        if not self.request.data and self.request.run is None:
            raise InvalidOptionError(
                "No data was given. Give the URL of a file (jsonl, csv, tsv, json, parquet, arrow), a folder or a pattern: "
                "--data on the command line, `data` in a deployment's parameters, `input_dirs` of BatchEngine.run."
            )
        given = [open_source(url, name=name, base_dir=self.request.base_dir) for name, url in self.request.data.items()]
        return [*given, *await self._previous_sources(self.request.run)] if self.request.run else given

    async def _previous_sources(self, run_id: str) -> list[Source]:
        """The outputs of the run that this one is built on, and its data if the mapping asks for it."""
        if run_id == self.request.run_id:
            raise InvalidOptionError(f"The run {run_id!r} cannot be built on itself. Give the new run another run id.")
        if twice := {OUTPUTS, INPUTS} & self.request.data.keys():
            raise InvalidOptionError(
                f"The source {sorted(twice)[0]!r} was given as data, and by run={run_id!r} as well: leave out one of them."
            )
        previous = await open_previous_run(self.files, run_id)
        for note in previous.notes:
            self._note(note)
        sources = [previous.outputs]
        if refers_to_inputs(self.request.inputs_mapping):
            if self.flow_run.deployment_id is not None:
                check_roots_of(INPUTS, previous_inputs_url(previous.manifest), os.environ.get(ROOTS_VARIABLE, ""))
            sources.append(await asyncio.to_thread(open_previous_inputs, previous.manifest))
        return sources

    def _lines(self) -> Iterator[Line]:
        return read_lines(
            self.sources,
            self.flow.inputs,
            self.request.inputs_mapping,
            self.inventory,
            flow_folder=str(self.flow.working_dir),
            message_format=self.flow.message_format,
        )

    # --- the run's records -------------------------------------------------------------------------------------------

    async def _open_run(self) -> RecordIndex:
        """Compare with what the run was, write its manifest, and learn which lines are done."""
        before = await read_manifest(self.files, self.keys)
        prints = self._fingerprints()
        changed = changes(before.fingerprints, prints) if before else []
        if changed and self.options.on_change == "refuse":
            raise RunChangedError(
                f"The run {self.request.run_id!r} cannot be resumed as it was: {', '.join(changed)}. Give another run id, "
                "or on_change='reuse' to keep the lines whose inputs are the same, or on_change='rerun' to run all again.",
                changes=changed,
            )
        for change in changed:
            self._note(f"{change} since the run began; on_change is {self.options.on_change!r}")
        resume_from = self.request.resume_from
        if before and resume_from and resume_from not in {session.resumed_from for session in before.sessions}:
            self._note(
                f"resume_from {resume_from!r} is ignored: the run {self.request.run_id!r} exists and goes on from its own "
                "lines. Give another run id to take over the lines of that run."
            )
        if before and (earlier := before.sessions[-1].prefect_flow_run_id):
            await end_abandoned(UUID(earlier), self.flow_run.id)
        session = Session(
            started_at=self.start_time.isoformat(),
            prefect_flow_run_id=str(self.flow_run.id),
            versions=versions(),
            resumed_from=self.request.resume_from,
        )
        sessions = [*(before.sessions if before else []), session]
        if before is None:
            # Before the manifest: a run that could not take over all has not begun, and its next start takes over again.
            await self._take_over()
        since = before.records_since if before else 0
        if changed and self.options.on_change == "rerun":
            since = len(sessions)
        await write_manifest(self.files, self.keys, self._manifest(prints, sessions, since))
        if before is not None:
            # Whatever its last start ran on: one that was killed may have left tasks of the start before it on a cluster.
            await supersede(self.files, self.keys, len(sessions))
        self.session = len(sessions)
        self.records_since = since
        self.records = RunRecords(self.files, self.keys, self.session, since)
        index, damaged = await self.records.scan()
        for damage in damaged:
            self._note(f"{damage} Its lines are run again.")
        return index

    async def _check_before_writing(self) -> None:
        """Refuse what would end a run after it has left something in the storage, or after its lines were paid for."""
        resume_from = self.request.resume_from
        if resume_from is not None and await read_manifest(self.files, self.keys) is None:
            self._refuse_other_flow(await require_manifest(self.files, RunKeys(resume_from)))
        if self.output_dir is not None:
            try:
                await asyncio.to_thread(_try_to_write, self.output_dir)
            except OSError as exc:
                raise InvalidOptionError(
                    f"The output_dir {self.output_dir} cannot be written: ({type(exc).__name__}) {exc}. Nothing was run. "
                    "Give a folder that can."
                ) from exc

    async def _take_over(self) -> None:
        """Copy completed lines of another run, or of a storage the caller brought, into this one."""
        earlier = RunRecords(self.files, self.keys, session=0)
        if self.request.resume_from is not None:
            other = RunKeys(self.request.resume_from)
            manifest = await require_manifest(self.files, other)
            taken = await take_over_run(RunRecords(self.files, other, 0, manifest.records_since), earlier)
            self.logger.info("%d completed lines taken over from run %s", taken, self.request.resume_from)
        if self.live.resume_storage is not None:
            others: list[int] = []
            taken = await take_over_storage(self.live.resume_storage, self._lines(), earlier, others.append)
            if others:
                self._note(
                    f"{len(others)} completed lines of {type(self.live.resume_storage).__name__} had other inputs than "
                    f"now, and are run again; the first is line {others[0]}."
                )
            self.logger.info("%d completed lines taken over from %s", taken, type(self.live.resume_storage).__name__)

    def _refuse_other_flow(self, other: Manifest) -> None:
        """Lines of another flow are not this one's; other data and another mapping show line by line."""
        both = (other.fingerprints, self._fingerprints())
        changed = changes(*({part: prints[part] for part in FLOW_PARTS & prints.keys()} for prints in both))
        if changed and self.options.on_change == "refuse":
            raise RunChangedError(
                f"The lines of run {other.run_id!r} cannot be taken over: {', '.join(changed)} since. Run without "
                "resume_from, or say on_change='reuse' to take the lines whose inputs are the same all the same.",
                changes=changed,
            )
        for change in changed:
            self._note(f"{change} since run {other.run_id}, whose lines are taken over")

    def _fingerprints(self) -> dict[str, str]:
        init_kwargs = self.live.init_kwargs if self.live.init_kwargs is not None else self.request.init_kwargs
        return {
            **{f"data:{source.name}": source.sha256[:32] for source in self.inventory.sources},
            "inputs_mapping": fingerprint(self.request.inputs_mapping),
            "flow": fingerprint_files(self.flow.files, self.flow.working_dir),
            "init": fingerprint(dict(init_kwargs)),
            **({"variant": fingerprint(parse_variant(self.request.variant))} if self.request.variant else {}),
            **({"node_connections": fingerprint(chosen)} if (chosen := self.request.node_connections) else {}),
            **({"environment": fingerprint(dict(environment))} if (environment := self._environment_variables) else {}),
        }

    def _manifest(self, prints: dict[str, str], sessions: list[Session], records_since: int) -> Manifest:
        from_python = self.live.init_kwargs
        return Manifest(
            run_id=self.request.run_id,
            flow_name=self.flow.name,
            flow=self.flow.source,
            working_dir=str(self.working_dir),
            variant=self.request.variant,
            node_connections=self.request.node_connections,
            environment_names=sorted(self._environment_variables),
            data={name: _absolute(url, self.request.base_dir) for name, url in self.request.data.items()},
            run=self.request.run,
            inputs_mapping=self.request.inputs_mapping,
            init_names=sorted(self.request.init_kwargs if from_python is None else from_python),
            init_kwargs=self.request.init_kwargs if from_python is None else None,
            connections=self.request.connections,
            options=self.options,
            output_dir=str(self.output_dir) if self.output_dir else None,
            total_lines=self.inventory.total_lines,
            fingerprints=prints,
            sessions=sessions,
            records_since=records_since,
        )

    # --- lines -------------------------------------------------------------------------------------------------------

    async def _run_lines(self, index: RecordIndex) -> None:
        """Feed the lines that are not done to a window of task runs, and count what comes back."""
        total = self.inventory.total_lines
        chunk_size = _chunk_size(self.options.granularity, total)
        limits = self.limits = FailureLimits(self.options.failures, total)

        def ended(receipt: Receipt) -> None:
            if (error := limits.add(receipt)) is not None and self.batch_error is None:
                self.batch_error = error
                if self.runner is not None:
                    self.runner.on_failure()

        async with self._course(chunk_size, ended) as course:
            await self._feed(course, index)
        self._account_for_every_line(course.runner)

    @contextlib.asynccontextmanager
    async def _course(self, chunk_size: int | None, ended: Callable[[Receipt], None]) -> AsyncIterator[_Course]:
        """How lines are run: by task runs in this process, or on the cluster while its tasks are told that the run goes on."""
        if self.cluster is not None:
            async with Driver(self.files, self.keys, self.session) as driver:
                yield self._course_on_cluster(self.cluster, driver, ended)
            return
        runner = LineRunner(
            self.executor, self.records, self.options.policy, self.tally.add, ended=ended, persisted=self._persisted
        )
        make_task = line_task if chunk_size is None else chunk_task
        run_task = functools.partial(self._run_task, make_task(runner, f"run:{self.request.run_id}"))
        # More lines than workers, so that none waits while Prefect begins and ends task runs. Lines are counted, not
        # task runs: a chunk whose last line hangs must not keep the next one from the other workers.
        width = self.executor.slots + max(4, self.executor.slots // 4, min(chunk_size or 0, LINES_AHEAD))
        window = Window(width, lambda: runner.open_lines)
        how = "a task run each" if chunk_size is None else f"{chunk_size} a task run"
        yield _Course(runner, run_task, window, chunk_size or 1, f"{how}, {self.executor.slots} at once")

    def _course_on_cluster(self, cluster: Cluster, driver: Driver, ended: Callable[[Receipt], None]) -> _Course:
        shares = Shares(self.executor.slots, self.places, self.inventory.total_lines)
        assert isinstance(self.executor, WorkerPool), "checked with the options"
        description = RunDescription(
            run_id=self.request.run_id,
            session=self.session,
            since=self.records_since,
            owner=driver.owner,
            storage_url=self.files.url,
            storage_options={name: value.get_secret_value() for name, value in self.files.storage_options.items()},
            flow=self.loaded_flow,
            given=self.executor.given(),
            policy=self.options.policy,
            fail_fast=self.options.failures.fail_fast,
            lines_at_once=shares.lines_at_once,
            line_memory_mb=self.options.line_memory_mb,
        )
        runner = ClusterRunner(
            cluster,
            driver,
            description,
            self.records,
            self.tally.add,
            ended=ended,
            persisted=self._persisted if self.live.run_storage is not None else None,
        )
        how = f"{shares.chunk_size} a task, {shares.running} tasks at once on {self.places} places of {cluster.kind}"
        how += f", {shares.lines_at_once} lines at once in each"
        return _Course(runner, runner.run, Window(shares.submitted), shares.chunk_size, how)

    async def _feed(self, course: _Course, index: RecordIndex) -> None:
        runner = self.runner = course.runner
        window = course.window
        runner.on_room = window.wake
        total = self.inventory.total_lines
        self.logger.info("Run %s: %d lines of %s, %s", self.request.run_id, total, self.flow.name, course.how)
        with self._stopping(window.wake), completed_lines_unlogged(self.flow_run.id):
            async with Progress(self.request.run_id, total) as progress, _beside(self._watch(progress, window)):
                deadline = 0.0
                try:
                    async for lines in self._undone(index, course.group):
                        if runner.stopped:
                            # Only to count the lines behind that are done already, and not for long.
                            if time.monotonic() > (deadline := deadline or time.monotonic() + STOP_GRACE_SEC):
                                self._note("Stopped before all data was read: more lines may be done than are counted.")
                                break
                            continue
                        self.task_runs += 1
                        await window.begin(functools.partial(course.run, lines))
                        runner.enter(len(lines))
                    await window.drain()
                finally:
                    await window.end(course.stop_grace_sec if runner.stopped else 0)
                    await runner.written(WRITE_GRACE_SEC)
                progress.update(self.tally.ended_lines, self.tally.failed_lines)
                self._tell(time.monotonic() - self.clock)

    async def _run_task(self, task: Any, lines: list[Line]) -> None:
        """One task run; its lines are counted as they end, so its state only tells whether all of them did."""
        # `Any`: Prefect's types do not tell that an async task asked for its state gives an awaitable.
        state = await task(Chunk(lines), return_state=True)
        if is_broken(state) and self.runner is not None:
            self.runner.fail(
                UnexpectedError(
                    f"The task run of {len(lines)} lines from line {lines[0].line_number} on ended in {state.name}: "
                    f"{state.message}. The run stops; resume it."
                )
            )

    def _account_for_every_line(self, runner: LineRunner | ClusterRunner) -> None:
        for number in runner.canceled:
            self.tally.add(Receipt(line_number=number, status=Status.Canceled))
        for number, receipt in runner.unsettled.items():
            if number not in runner.canceled:
                self.tally.add(receipt)  # stopped before its next attempt: it has failed
        if runner.failure is not None:
            raise runner.failure
        total = self.inventory.total_lines
        if not runner.stopped and self.tally.ended_lines != total:
            raise UnexpectedError(
                f"{total} lines were counted before the run, {self.tally.ended_lines} have ended; every line must be "
                "accounted for. Please report this; resuming the run runs the others."
            )

    async def _undone(self, index: RecordIndex, size: int) -> AsyncIterator[list[Line]]:
        """The lines without a fitting completed record, in groups; the others are counted on the way."""
        batches = chunks(self._lines(), READ_LINES)
        group: list[Line] = []
        while batch := await asyncio.to_thread(next, batches, None):
            for line in batch:
                if self.numbers is not None:
                    self.numbers.add(line.line_number)
                done = index.completed(line.line_number, input_hash(line.inputs)) if index.lines else None
                if done is not None:
                    self.reused_lines += 1
                    self.limits.add_reused()
                    self.tally.add(done)
                    continue
                if line.line_number in index.lines:
                    self.changed_lines.add(line.line_number)
                group.append(line)
                if len(group) == size:
                    yield group
                    group = []
        if group:
            yield group

    @contextlib.contextmanager
    def _stopping(self, also: Callable[[], object]) -> Iterator[None]:
        """Let a cancel, the run's time limit or a failing storage stop the lines, and what `also` stops."""
        runner, loop = self.runner, asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []

        def stop() -> None:
            self._is_stopped = True
            if runner is not None:
                runner.stop()
            also()

        def drain() -> None:
            if runner is None:
                stop()
                return
            self._is_stopped = True
            runner.stop(drain=True)
            timers.append(loop.call_later(DRAIN_SEC, stop))

        def on_limit() -> None:
            limit = self.options.batch_timeout_sec
            self.batch_error = BatchRunTimeoutError(
                f"The batch run exceeded its limit of {limit:g} seconds. Resume it, with a longer batch_timeout_sec, to run "
                "the lines that are left."
            )
            stop()

        if self.options.batch_timeout_sec is not None:
            left = self.options.batch_timeout_sec - (time.monotonic() - self.clock)
            timers.append(loop.call_later(max(left, 0), on_limit))
        if runner is not None:
            runner.on_failure = stop
        self.live.when_cancelled(lambda drains: loop.call_soon_threadsafe(drain if drains else stop))
        try:
            yield
        finally:
            self.live.when_cancelled(lambda _: None)
            for timer in timers:
                timer.cancel()

    async def _watch(self, progress: Progress, window: Window) -> None:
        """Tell how far the run is, and look whether somebody cancelled it in the UI, where Prefect does not tell us."""
        look_again = time.monotonic() + LOOK_FOR_CANCEL_EVERY_SEC
        began = time.monotonic()
        while True:
            progress.update(self.tally.ended_lines, self.tally.failed_lines)
            window.wake()
            self._tell(time.monotonic() - began)
            await asyncio.sleep(REPORT_EVERY_SEC)
            if self.flow_run.deployment_id is None and time.monotonic() >= look_again:
                look_again = time.monotonic() + LOOK_FOR_CANCEL_EVERY_SEC
                if await is_cancelled_in_prefect(self.flow_run.id):
                    self.live.cancel("Canceled in Prefect.")

    def _tell(self, elapsed_sec: float) -> None:
        """Tell the caller how far the run is; one who cannot hear it does not cost the run its result."""
        if self.live.listener is None:
            return
        try:
            self.live.listener(self._progress_report(elapsed_sec))
        except Exception as exc:  # noqa: BLE001 - the caller's code
            self.live.listener = None
            self._note(f"The listener raised ({type(exc).__name__}) {exc} and is told no more.")

    def _progress_report(self, elapsed_sec: float) -> ProgressReport:
        return ProgressReport(
            run_id=self.request.run_id,
            flow_name=self.flow.name,
            total_lines=self.inventory.total_lines,
            completed_lines=self.tally.completed_lines,
            failed_lines=self.tally.failed_lines,
            reused_lines=self.reused_lines,
            running_lines=0 if self.runner is None else self.runner.running(),
            elapsed_sec=elapsed_sec,
        )

    def _persisted(self, outcomes: Sequence[LineOutcome]) -> None:
        """Hand lines to the storage that the caller brought, if any."""
        storage = self.live.run_storage
        if storage is None:
            return
        for outcome in outcomes:
            with self._told_by_storage(f"line {outcome.receipt.line_number}"):
                persist_line(storage, line_result(outcome.parsed(), self.request.run_id))

    @contextlib.contextmanager
    def _told_by_storage(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            raise StorageError(
                f"{type(self.live.run_storage).__name__} did not take {what}: ({type(exc).__name__}) {exc}. The run "
                "stops; its own records are kept."
            ) from exc

    # --- aggregation, report -----------------------------------------------------------------------------------------

    async def _newest_records(self) -> AsyncIterator[dict[str, Any]]:
        async for stored, record in self.records.newest():
            number = stored.receipt.line_number
            of_other_inputs = number in self.changed_lines and stored.session < self.session
            # Its earlier attempt has failed, and counts no more: the line was canceled in the next one.
            was_canceled = self.runner is not None and number in self.runner.canceled
            if self._is_in_data(number) and not of_other_inputs and not was_canceled:
                yield record

    def _is_in_data(self, line_number: int) -> bool:
        return line_number < self.inventory.total_lines if self.numbers is None else line_number in self.numbers

    async def _aggregate(self) -> None:
        """Run the aggregation, unless the run is stopped before it ends."""
        work = aggregate(
            self.executor,
            self._newest_records(),
            run_id=self.request.run_id,
            image_folders={"": str(self.flow.working_dir), **{s.name: s.folder for s in self.sources}},
            timeout_sec=self.options.policy.timeout_sec,
        )
        aggregation = await self._unless_stopped(work)
        if self.runner is not None and self.runner.failure is not None:
            raise self.runner.failure
        if aggregation is None:
            self._note("The aggregation was stopped before it ended; there are no metrics.")
            return
        self.tally.add_aggregation(aggregation)
        if self.live.run_storage is not None:
            for info in aggregation.node_run_infos.values():
                with self._told_by_storage(f"node {info.node!r}"):
                    self.live.run_storage.persist_node_run(info)

    async def _report(self) -> BatchResult:
        """Sum up, write the files people take away, and show it in Prefect."""
        result = self._batch_result(self.inventory.total_lines)
        await write_outputs(
            self.files, self.keys, self._newest_records(), result, self.output_dir, self.flow.message_format
        )
        await self._write_artifacts(result)
        self.logger.info("Run %s: %s", self.request.run_id, summary_line(result))
        self.live.result = result
        await self._hand_in()
        return result

    def _batch_result(self, total_lines: int) -> BatchResult:
        canceled = self._is_stopped and self.batch_error is None
        return self.tally.batch_result(
            total_lines,
            self.start_time,
            datetime.now(UTC),
            status=Status.Canceled if canceled else Status.Completed,
            batch_error=error_dict(self.batch_error) if self.batch_error else None,
        )

    async def _write_artifacts(self, result: BatchResult) -> None:
        run_id = self.request.run_id
        summary = summary_markdown(
            result,
            self.tally,
            run_id=run_id,
            flow_name=self.flow.name,
            storage_url=self.files.location(run_id),
            outputs_url=self.files.location(self.keys.outputs),
            next_command=self._next_command(),
            reused_lines=self.reused_lines,
        )
        writes = [write_summary(run_id, summary)]
        # A run that was resumed may have to clear the table of the time before.
        if result.failed_lines or self.reused_lines:
            writes.append(write_failed_lines(run_id, failed_table(self.tally.failures), result.failed_lines))
        await asyncio.gather(*writes)

    def _next_command(self) -> str:
        if self.flow.source is None:
            return ""
        elsewhere = self.request.storage != default_storage_url()
        return f"batchflow resume {self.request.run_id}" + (f" --storage {self.request.storage}" if elsewhere else "")

    async def _hand_in(self) -> None:
        """Wait, for a bounded time, until a server that ends with this process has all task runs."""
        if await server_is_gone(self.live):
            self._note(
                "The Prefect server does not answer: it may show this run as going on, and not all of its lines. The run's "
                "own records and outputs are whole."
            )
            return
        if not has_own_server():
            return
        # A stopped run has task runs that never reported; its caller waits for the result.
        most_sec = STOP_GRACE_SEC if self._is_stopped else None
        missing = await wait_until_recorded(self.flow_run.id, self.task_runs, most_sec)
        if missing and not self._is_stopped:
            self._note(
                f"{missing} of {self.task_runs} task runs had not reached Prefect's own server when the run ended; its "
                "records are whole. With a server that keeps running (prefect server start) none are missed."
            )

    def _note(self, text: str) -> None:
        self.live.notes.append(text)
        self.logger.warning("%s", text)


def _absolute(url: str, base_dir: str | None) -> str:
    """A path as it is found from any folder; a URL as it is."""
    return local_path(url, base_dir) if is_local_path(url) else url


def _local_folder(folder: str | None, base_dir: str | None) -> Path | None:
    if folder is None:
        return None
    if "://" in folder and not folder.startswith("file://"):
        raise InvalidOptionError(
            f"The output_dir {folder!r} is no folder of this machine. Give one; the run storage may be elsewhere, and "
            "has the outputs too."
        )
    return Path(base_dir or "", Path(folder.removeprefix("file://")).expanduser()).absolute()


def _try_to_write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _chunk_size(granularity: Granularity, total_lines: int) -> int | None:
    """Lines a task run; `None` is a task run a line."""
    if granularity == "line" or (granularity == "auto" and total_lines <= LINE_GRANULARITY_UP_TO):
        return None
    return max(SMALLEST_CHUNK, math.ceil(total_lines / MOST_TASK_RUNS))


@contextlib.asynccontextmanager
async def _beside(work: Any) -> AsyncIterator[None]:
    """Run something in the background of a block; it is cancelled at its end."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
