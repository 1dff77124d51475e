"""`batch_run`: the Prefect flow of a batch run, its stages in order, and the door to it for Python code.

definition → inputs → lines → execution → results → aggregation → report.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from prefect import flow, runtime
from prefect.client.schemas.objects import FlowRun, State  # noqa: TC002 - Prefect resolves the flow's annotations
from prefect.context import FlowRunContext
from prefect.exceptions import ParameterTypeError
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field, ValidationError

from prefect_batchflow.aggregation import aggregate
from prefect_batchflow.blocks import open_storage
from prefect_batchflow.definition.flow import load_flow
from prefect_batchflow.exceptions import (
    BatchflowException,
    BatchRunTimeoutError,
    InvalidOptionError,
    RunChangedError,
    StorageError,
    UnexpectedError,
    UnsupportedFeatureError,
    error_dict,
)
from prefect_batchflow.execution.executor import (
    Executor,
    LineOutcome,
    ProxyExecutor,
    registered_executor,
    registered_languages,
)
from prefect_batchflow.execution.pool import WorkerPool
from prefect_batchflow.inputs.readers import Source, open_source
from prefect_batchflow.lines import Line, check, input_hash, read_lines
from prefect_batchflow.live import LiveRun, ProgressReport, current_live_run, handed_over
from prefect_batchflow.own_server import has_own_server, start_own_server, wait_until_recorded
from prefect_batchflow.report.artifacts import Progress, write_failed_lines, write_summary
from prefect_batchflow.report.markdown import failed_table, summary_markdown
from prefect_batchflow.results import AggregationResult, BatchResult, Receipt, Status, Tally, line_result, summary_line
from prefect_batchflow.settings import (
    DEFAULT_LINE_TIMEOUT_SEC,
    DEFAULT_MAX_CONCURRENCY,
    DEFAULT_WORKER_COUNT,
    BatchRequest,
    Granularity,
    LinePolicy,
    OnChange,
    RunOptions,
    default_storage_url,
)
from prefect_batchflow.storage.custom import persist_line
from prefect_batchflow.storage.keys import RunKeys, check_run_id
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
from prefect_batchflow.storage.records import RecordIndex, RunRecords
from prefect_batchflow.storage.takeover import take_over_run, take_over_storage
from prefect_batchflow.surroundings import (
    end_abandoned,
    give_up,
    is_cancelled_in_prefect,
    let_go_of_server,
    server_answers,
    signals_cancel,
)
from prefect_batchflow.tasks import Chunk, LineRunner, chunk_task, is_broken, line_task
from prefect_batchflow.window import Window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

LINE_GRANULARITY_UP_TO = 1_000
"""Lines for which `auto` makes a task run each."""
SMALLEST_CHUNK = 50
MOST_TASK_RUNS = 1_000
"""Chunks grow so that a run has no more."""
STOP_GRACE_SEC = 3.0
"""How long the lines of a stopped run may take to end and be written."""
REPORT_EVERY_SEC = 0.25
LOOK_FOR_CANCEL_EVERY_SEC = 2.0
LAST_STATE_SEC = 15.0
"""How long a server that is gone has to come back for the last state of a run from Python."""


def _flow_run_name() -> str:
    parameters = runtime.flow_run.parameters
    name = Path(str(parameters.get("flow") or "batch").rpartition(":")[2] or "batch").name
    return f"{name}-{parameters.get('run_id') or runtime.flow_run.id}"


@flow(name="batch-run", flow_run_name=_flow_run_name, persist_result=False, log_prints=False)
async def batch_run(
    flow: str,
    data: str = "",
    inputs_mapping: dict[str, Any] | None = None,
    run_id: str = "",
    resume_from: str = "",
    more_data: dict[str, str] | None = None,
    init_kwargs: dict[str, Any] | None = None,
    max_lines_count: Annotated[int, Field(ge=0)] = 0,
    worker_count: Annotated[int, Field(ge=1, le=1024)] = DEFAULT_WORKER_COUNT,
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = DEFAULT_MAX_CONCURRENCY,
    line_timeout_sec: Annotated[float, Field(gt=0)] = DEFAULT_LINE_TIMEOUT_SEC,
    line_memory_mb: Annotated[int, Field(ge=0)] = 0,
    batch_timeout_sec: Annotated[float, Field(ge=0)] = 0.0,
    retries: Annotated[int, Field(ge=0)] = 0,
    retry_delay_sec: Annotated[float, Field(ge=0)] = 0.0,
    retry_backoff: Annotated[float, Field(ge=1)] = 2.0,
    retry_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0,
    retry_on: str = "",
    granularity: Granularity = "auto",
    on_change: OnChange = "refuse",
    storage: str = "",
    output_dir: str = "",
    working_dir: str = "",
) -> State[Any]:
    """Run a flow over a dataset, line by line.

    Args:
        flow: Folder with a flow.dag.yaml or flow.flex.yaml, such a file, module:attr, or path/to/file.py:attr.
        data: URL of the rows, the source `data` of the mapping: jsonl, csv, tsv or json, .gz of each, or a folder.
        inputs_mapping: Input name to ${data.column} or a literal. Inputs not named come from the column of their name.
        run_id: Name of the run; the same name again resumes it. Empty is this flow run's id, so that a Retry resumes.
        resume_from: Another run, whose completed lines are taken over where their inputs are the same.
        more_data: Further sources, name to URL, for mappings such as ${run.outputs.answer}.
        init_kwargs: Arguments of a class flow's constructor.
        max_lines_count: Rows read from each source; 0 is all.
        worker_count: Worker processes, for sync code: a line at a time each.
        max_concurrency: Lines at once, for async code, in one process.
        line_timeout_sec: Seconds a line may run, counted from when a worker has it.
        line_memory_mb: MiB a line may add to its worker's memory; 0 is no limit.
        batch_timeout_sec: Seconds the whole run may take; 0 is no limit.
        retries: Further attempts for a line that failed.
        retry_delay_sec: Seconds before the first retry.
        retry_backoff: Each further delay is the one before times this.
        retry_jitter: Each delay is stretched by a random part of itself up to this share.
        retry_on: Error codes that are retried, separated by commas, such as LineExecutionTimeoutError; empty is all.
        granularity: One task run a line, one for many lines, or auto: line up to 1,000 lines.
        on_change: When data, mapping or flow have changed since the run began: refuse to resume, reuse lines whose
            inputs are the same, or rerun all.
        storage: Where runs are kept: a path or URL, or batchflow-run-storage/NAME for a saved block. Empty is below
            PREFECT_HOME.
        output_dir: A folder on the worker's machine that gets the outputs too.
        working_dir: Folder the flow's code runs in; empty is the flow's own.
    """
    live = current_live_run()
    try:
        request = BatchRequest(
            flow=flow,
            working_dir=working_dir or None,
            data={**({"data": data} if data else {}), **(more_data or {})},
            inputs_mapping=inputs_mapping or {},
            init_kwargs=init_kwargs or {},
            run_id=check_run_id(run_id or str(_flow_run().id)),
            resume_from=check_run_id(resume_from) if resume_from else None,
            storage=storage or default_storage_url(),
            output_dir=output_dir or None,
            options=RunOptions(
                policy=LinePolicy(
                    timeout_sec=line_timeout_sec,
                    retries=retries,
                    retry_delay_sec=retry_delay_sec,
                    backoff=retry_backoff,
                    jitter=retry_jitter,
                    retry_on=tuple(code.strip() for code in retry_on.split(",") if code.strip()),
                ),
                batch_timeout_sec=batch_timeout_sec or None,
                worker_count=worker_count,
                max_concurrency=max_concurrency,
                line_memory_mb=line_memory_mb or None,
                granularity=granularity,
                max_lines_count=max_lines_count or None,
                on_change=on_change,
            ),
        )
        run = asyncio.ensure_future(_BatchRun(request, live).run())
        with signals_cancel(live.cancel, run.cancel):
            result = await _uncancelled(run, live)
    except BatchflowException as exc:
        live.failure = exc
        get_run_logger().error("%s", exc)
        await _server_is_gone(live)
        return Failed(message=str(exc))
    except Exception as exc:  # noqa: BLE001 - the border of the run
        # Not foreseen: Prefect's own failure, or a fault of ours. The log has the traceback, the caller the cause.
        get_run_logger().exception("The batch run broke")
        live.failure = UnexpectedError(f"The batch run broke: ({type(exc).__name__}) {exc}")
        live.failure.__cause__ = exc
        return Failed(message=str(live.failure))
    live.result = result
    message = summary_line(result)
    if result.status is Status.Canceled:
        return Cancelled(message=f"{message}. {await _who_cancelled(live)}")
    if result.status is Status.Failed:
        batch_error = result.error_summary.batch_error_dict or {}
        return Failed(message=f"{message}. {batch_error.get('message', '')}")
    return Completed(message=message, data=result)


async def _server_is_gone(live: LiveRun) -> bool:
    """Look whether the Prefect server still answers; if not, nothing more waits for it."""
    if await server_answers():
        return False
    live.server_gone.set()
    let_go_of_server()
    return True


async def _who_cancelled(live: LiveRun) -> str | None:
    """Why the run was cancelled; a worker hands a cancel in the UI on as SIGTERM, and Prefect tells it from others."""
    flow_run = _flow_run()
    if flow_run.deployment_id is not None and await is_cancelled_in_prefect(flow_run.id):
        return "Canceled in Prefect."
    return live.cancel_reason


async def _uncancelled(run: asyncio.Task[BatchResult], live: LiveRun) -> BatchResult:
    """Await the run: Prefect's cancel of this task only asks it to end, and it ends with a result."""
    while True:
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            if run.cancelled():
                raise
            live.cancel("Canceled in Prefect.")


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None, "called inside the Prefect flow only"
    assert context.flow_run is not None, "Prefect made it before it called the flow"
    return context.flow_run


class _BatchRun:
    """One batch run: its stages, and what they hand on."""

    def __init__(self, request: BatchRequest, live: LiveRun) -> None:
        self.request = request
        self.options = request.options
        self.live = live
        self.logger = get_run_logger()
        # Asked of the context once: `prefect.runtime` asks the server each time for some of it.
        self.flow_run = _flow_run()
        self.keys = RunKeys(request.run_id)
        self.tally = Tally()
        self.reused_lines = 0
        self.task_runs = 0
        self.start_time = datetime.now(UTC)
        self.clock = time.monotonic()
        self.batch_error: BatchflowException | None = None
        self.runner: LineRunner | None = None
        self.changed_lines: set[int] = set()
        """Lines that an earlier session has no fitting record of: what it has does not count any more."""
        self.numbers: set[int] | None = None
        """The data's own line numbers; `None` for lines numbered by position."""

    async def run(self) -> BatchResult:
        """The stages, in order."""
        self.live.tally = self.tally
        self.flow = load_flow(
            self.live.flow if self.live.flow is not None else self.request.flow, self.request.working_dir
        )
        self.executor = self._executor()
        try:
            self.flow = self.flow.described(description := await self.executor.start())
            self.files = await open_storage(self.request.storage)
            self.sources = self._open_sources()
            self.inventory = await asyncio.to_thread(
                check, self.sources, self.flow.inputs, self.request.inputs_mapping, self.options.max_lines_count
            )
            if any(source.own_numbers for source in self.inventory.sources):
                self.numbers = set()
            for note in self.inventory.notes:
                self._note(note)
            async with Lease(self.files, self.keys):
                index = await self._open_run()
                await self._run_lines(index)
                aggregation = None
                if description.has_aggregation and not self._stopped:
                    aggregation = await self._aggregate()
                return await self._report(aggregation)
        finally:
            await self.executor.close()

    # --- definition, inputs ------------------------------------------------------------------------------------------

    def _executor(self) -> Executor:
        live, language = self.live, self.flow.language.lower()
        proxy = live.executor_proxy or registered_executor(language)
        init_kwargs = live.init_kwargs if live.init_kwargs is not None else self.request.init_kwargs
        if proxy is not None:
            return ProxyExecutor(
                self.flow,
                proxy,
                run_id=self.request.run_id,
                slots=self.options.worker_count,
                init_kwargs=init_kwargs,
                connections=live.connections,
                storage=live.run_storage,
            )
        if language != "python":
            known = ", ".join(["python", *registered_languages()])
            raise UnsupportedFeatureError(
                f"The flow {self.flow.name!r} is written in {language!r}; flows of {known} can run. Register an executor: "
                f"BatchEngine.register_executor({language!r}, <AbstractExecutorProxy subclass>)."
            )
        return WorkerPool(
            self.flow,
            init_kwargs=init_kwargs,
            worker_count=self.options.worker_count,
            max_concurrency=self.options.max_concurrency,
            line_memory_mb=self.options.line_memory_mb,
        )

    def _open_sources(self) -> list[Source]:
        if not self.request.data:
            raise InvalidOptionError(
                "No data was given. Give the URL of a jsonl, csv, tsv or json file: --data on the command line, `data` in "
                "a deployment's parameters, `input_dirs` of BatchEngine.run."
            )
        return [open_source(url, name=name, base_dir=self.request.base_dir) for name, url in self.request.data.items()]

    def _lines(self) -> Iterator[Line]:
        return read_lines(self.sources, self.flow.inputs, self.request.inputs_mapping, self.inventory)

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
        self.session = len(sessions)
        self.records = RunRecords(self.files, self.keys, self.session, since)
        index, damaged = await self.records.scan()
        for damage in damaged:
            self._note(f"{damage} Its lines are run again.")
        return index

    async def _take_over(self) -> None:
        """Copy completed lines of another run, or of a storage the caller brought, into this one."""
        earlier = RunRecords(self.files, self.keys, session=0)
        if self.request.resume_from is not None:
            other = RunKeys(self.request.resume_from)
            await require_manifest(self.files, other)
            taken = await take_over_run(RunRecords(self.files, other, session=0), earlier)
            self.logger.info("%d completed lines taken over from run %s", taken, self.request.resume_from)
        if self.live.resume_storage is not None:
            taken = await take_over_storage(self.live.resume_storage, self._lines(), earlier)
            self.logger.info("%d completed lines taken over from %s", taken, type(self.live.resume_storage).__name__)

    def _fingerprints(self) -> dict[str, str]:
        init_kwargs = self.live.init_kwargs if self.live.init_kwargs is not None else self.request.init_kwargs
        return {
            **{f"data:{source.name}": source.sha256[:32] for source in self.inventory.sources},
            "inputs_mapping": fingerprint(self.request.inputs_mapping),
            "flow": fingerprint_files(self.flow.files, self.flow.working_dir),
            "init": fingerprint(dict(init_kwargs)),
        }

    def _manifest(self, prints: dict[str, str], sessions: list[Session], records_since: int) -> Manifest:
        from_python = self.live.init_kwargs
        return Manifest(
            run_id=self.request.run_id,
            flow_name=self.flow.name,
            flow=self.flow.source,
            working_dir=str(self.flow.working_dir),
            data={name: _absolute(url, self.request.base_dir) for name, url in self.request.data.items()},
            inputs_mapping=self.request.inputs_mapping,
            init_names=sorted(self.request.init_kwargs if from_python is None else from_python),
            init_kwargs=self.request.init_kwargs if from_python is None else None,
            options=self.options,
            output_dir=_absolute(self.request.output_dir, self.request.base_dir) if self.request.output_dir else None,
            total_lines=self.inventory.total_lines,
            fingerprints=prints,
            sessions=sessions,
            records_since=records_since,
        )

    # --- lines -------------------------------------------------------------------------------------------------------

    @property
    def _stopped(self) -> bool:
        return self.runner is not None and self.runner.stopped

    async def _run_lines(self, index: RecordIndex) -> None:
        """Feed the lines that are not done to a window of task runs, and count what comes back."""
        total = self.inventory.total_lines
        chunk_size = _chunk_size(self.options.granularity, total)
        runner = self.runner = LineRunner(
            self.executor, self.records, self.options.policy, self.tally.add, self._persisted
        )
        tag = f"run:{self.request.run_id}"
        # Prefect's own types do not tell that an async task asked for its state gives an awaitable.
        one_task_run: Any = line_task(runner, tag) if chunk_size is None else chunk_task(runner, tag)

        async def run(lines: list[Line]) -> None:
            state = await one_task_run(Chunk(lines), return_state=True)
            if is_broken(state):
                first = lines[0].line_number
                runner.fail(
                    UnexpectedError(
                        f"The task run of line {first} and {len(lines) - 1} more ended in {state.name}: {state.message}. "
                        "The run stops; resume it."
                    )
                )

        # Wider than the workers, so that none waits while Prefect begins and ends task runs.
        width = self.executor.slots + max(4, self.executor.slots // 4)
        window = Window(width if chunk_size is None else 1 + math.ceil(width / chunk_size), lambda: runner.waiting)
        self.logger.info(
            "Run %s: %d lines of %s, %s, %d at once",
            self.request.run_id,
            total,
            self.flow.name,
            "a task run each" if chunk_size is None else f"{chunk_size} a task run",
            self.executor.slots,
        )
        with self._stopping(window):
            async with Progress(self.request.run_id, total) as progress, _beside(self._watch(progress, window)):
                try:
                    async for lines in self._undone(index, chunk_size or 1):
                        if runner.stopped:
                            continue  # only to count the lines behind that are done already
                        self.task_runs += 1
                        await window.begin(functools.partial(run, lines))
                    await window.drain()
                finally:
                    await window.end(STOP_GRACE_SEC if runner.stopped else 0)
                progress.update(self.tally.ended_lines, self.tally.failed_lines)
                if self.live.listener is not None:
                    self.live.listener(self._progress_report(time.monotonic() - self.clock))
        for number in runner.canceled:
            self.tally.add(Receipt(line_number=number, status=Status.Canceled))
        if runner.failure is not None:
            raise runner.failure
        if not runner.stopped and self.tally.ended_lines != total:
            raise UnexpectedError(
                f"{total} lines were counted before the run, {self.tally.ended_lines} have ended; every line must be "
                "accounted for. Please report this; resuming the run runs the others."
            )

    async def _undone(self, index: RecordIndex, size: int) -> AsyncIterator[list[Line]]:
        """The lines without a fitting completed record, in groups; the others are counted on the way."""
        lines = self._lines()
        group: list[Line] = []
        while batch := await asyncio.to_thread(_next_lines, lines, 500):
            for line in batch:
                if self.numbers is not None:
                    self.numbers.add(line.line_number)
                done = index.completed(line.line_number, input_hash(line.inputs)) if index.lines else None
                if done is not None:
                    self.reused_lines += 1
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
    def _stopping(self, window: Window) -> Iterator[None]:
        """Let a cancel, the run's time limit or a failing storage stop the lines."""
        runner, loop = self.runner, asyncio.get_running_loop()
        assert runner is not None

        def stop() -> None:
            runner.stop()
            window.wake()

        def on_limit() -> None:
            limit = self.options.batch_timeout_sec
            self.batch_error = BatchRunTimeoutError(
                f"The batch run exceeded its limit of {limit:g} seconds. Resume it, with a longer batch_timeout_sec, to run "
                "the lines that are left."
            )
            stop()

        timer = None
        if self.options.batch_timeout_sec is not None:
            left = self.options.batch_timeout_sec - (time.monotonic() - self.clock)
            timer = loop.call_later(max(left, 0), on_limit)
        runner.on_failure = stop

        def on_cancel() -> None:
            loop.call_soon_threadsafe(stop)

        self.live.when_cancelled(on_cancel)
        try:
            yield
        finally:
            self.live.when_cancelled(lambda: None)
            if timer is not None:
                timer.cancel()

    async def _watch(self, progress: Progress, window: Window) -> None:
        """Tell how far the run is, and look whether somebody cancelled it in the UI, where Prefect does not tell us."""
        look_again = time.monotonic() + LOOK_FOR_CANCEL_EVERY_SEC
        began = time.monotonic()
        while True:
            progress.update(self.tally.ended_lines, self.tally.failed_lines)
            window.wake()
            if self.live.listener is not None:
                self.live.listener(self._progress_report(time.monotonic() - began))
            await asyncio.sleep(REPORT_EVERY_SEC)
            if self.flow_run.deployment_id is None and time.monotonic() >= look_again:
                look_again = time.monotonic() + LOOK_FOR_CANCEL_EVERY_SEC
                if await is_cancelled_in_prefect(self.flow_run.id):
                    self.live.cancel("Canceled in Prefect.")

    def _progress_report(self, elapsed_sec: float) -> ProgressReport:
        return ProgressReport(
            run_id=self.request.run_id,
            flow_name=self.flow.name,
            total_lines=self.inventory.total_lines,
            completed_lines=self.tally.completed_lines,
            failed_lines=self.tally.failed_lines,
            reused_lines=self.reused_lines,
            running_lines=len(self.executor.running()),
            elapsed_sec=elapsed_sec,
        )

    def _persisted(self, outcomes: Sequence[LineOutcome]) -> None:
        """Hand lines to the storage that the caller brought, if any."""
        storage = self.live.run_storage
        if storage is None:
            return
        for outcome in outcomes:
            try:
                persist_line(storage, line_result(outcome.parsed(), self.request.run_id))
            except Exception as exc:
                raise StorageError(
                    f"{type(storage).__name__} did not take line {outcome.receipt.line_number}: "
                    f"({type(exc).__name__}) {exc}. The run stops; its own records are kept."
                ) from exc

    # --- aggregation, report -----------------------------------------------------------------------------------------

    async def _newest_records(self) -> AsyncIterator[dict[str, Any]]:
        async for stored, record in self.records.newest():
            number = stored.receipt.line_number
            of_other_inputs = number in self.changed_lines and stored.session < self.session
            if self._is_in_data(number) and not of_other_inputs:
                yield record

    def _is_in_data(self, line_number: int) -> bool:
        return line_number < self.inventory.total_lines if self.numbers is None else line_number in self.numbers

    async def _aggregate(self) -> AggregationResult:
        aggregation = await aggregate(
            self.executor,
            self._newest_records(),
            run_id=self.request.run_id,
            timeout_sec=self.options.policy.timeout_sec,
        )
        self.tally.add_aggregation(aggregation)
        if self.live.run_storage is not None:
            for info in aggregation.node_run_infos.values():
                self.live.run_storage.persist_node_run(info)
        return aggregation

    async def _report(self, aggregation: AggregationResult | None) -> BatchResult:
        """Sum up, write the files people take away, and show it in Prefect."""
        canceled = self._stopped and self.batch_error is None
        result = self.tally.batch_result(
            self.inventory.total_lines,
            self.start_time,
            datetime.now(UTC),
            status=Status.Canceled if canceled else Status.Completed,
            batch_error=error_dict(self.batch_error) if self.batch_error else None,
        )
        output_dir = (
            Path(_absolute(self.request.output_dir, self.request.base_dir)) if self.request.output_dir else None
        )
        await write_outputs(self.files, self.keys, self._newest_records(), result, output_dir)
        await self._write_artifacts(result)
        self.logger.info("Run %s: %s", self.request.run_id, summary_line(result))
        await self._hand_in()
        return result

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
        if await _server_is_gone(self.live):
            self._note(
                "The Prefect server does not answer: it may show this run as going on, and not all of its lines. The run's "
                "own records and outputs are whole."
            )
            return
        if not has_own_server():
            return
        missing = await wait_until_recorded(self.flow_run.id, self.task_runs)
        if missing:
            self._note(
                f"{missing} of {self.task_runs} task runs had not reached Prefect's own server when the run ended; its "
                "records are whole. With a server that keeps running (prefect server start) none are missed."
            )

    def _note(self, text: str) -> None:
        self.live.notes.append(text)
        self.logger.warning("%s", text)


def _absolute(url: str, base_dir: str | None) -> str:
    """A path as it is found from any folder; a URL as it is."""
    if "://" in url or url == "-":
        return url
    return str(Path(base_dir or "", Path(url).expanduser()).absolute())


def _chunk_size(granularity: Granularity, total_lines: int) -> int | None:
    """Lines a task run; `None` is a task run a line."""
    if granularity == "line" or (granularity == "auto" and total_lines <= LINE_GRANULARITY_UP_TO):
        return None
    return max(SMALLEST_CHUNK, math.ceil(total_lines / MOST_TASK_RUNS))


def _next_lines(lines: Iterator[Line], count: int) -> list[Line]:
    return list(itertools.islice(lines, count))


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


def run_batch(parameters: Mapping[str, Any], live: LiveRun) -> BatchResult:
    """Run `batch_run` from Python and give its result: the one sync door, for `BatchEngine` and the command line.

    In the main thread without a running event loop it runs there, so that signals reach it; otherwise, as in a notebook,
    in a thread of its own.

    Raises:
        BatchflowException: There is no result: the flow, the mapping, the data, the storage or an option is wrong.
    """
    _check_parameters(parameters)
    failure: BaseException | None = None

    def run() -> None:
        nonlocal failure
        try:
            start_own_server()
            with handed_over(live):
                asyncio.run(_awaited(parameters, live))
        except BaseException as exc:  # noqa: BLE001 - carried to the caller's thread, or its meaning is in `live`
            failure = exc

    if threading.current_thread() is threading.main_thread() and not _loop_is_running():
        run()
    else:
        thread = threading.Thread(target=run, name="batchflow-run")
        thread.start()
        thread.join()
    if live.server_gone.is_set():
        let_go_of_server()
    if live.result is not None:
        return live.result
    if live.failure is not None:
        raise live.failure
    if isinstance(failure, BatchflowException | KeyboardInterrupt | SystemExit):
        raise failure
    raise UnexpectedError(
        f"The batch run ended without a result: ({type(failure).__name__}) {failure}. If the Prefect server did not answer, "
        "see whether it runs (prefect config view shows PREFECT_API_URL)."
    ) from failure


async def _awaited(parameters: Mapping[str, Any], live: LiveRun) -> None:
    """Run it; Prefect would try for minutes to tell a server that is gone how it ended."""
    run = asyncio.ensure_future(batch_run(**parameters, return_state=True))
    gone = asyncio.ensure_future(live.server_gone.wait())
    await asyncio.wait({run, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    await asyncio.wait({run}, timeout=LAST_STATE_SEC)
    if not run.done():
        await give_up(run)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse options that cannot be before there is a flow run; Prefect would say it as that run's failure."""
    try:
        batch_run.validate_parameters(dict(parameters))
    except ParameterTypeError as exc:
        cause = exc.__context__
        if not isinstance(cause, ValidationError):
            raise InvalidOptionError(str(exc)) from None
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in cause.errors()]
        raise InvalidOptionError("Options that cannot be: " + "; ".join(problems) + ".") from None
