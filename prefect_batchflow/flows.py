"""`batch_run`: the Prefect flow of a batch run, and the door to it for Python code."""

# Annotations here are objects, not texts: a served flow goes to the process of its run without the names that texts need.
import asyncio
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import fastapi.encoders  # noqa: F401 - Prefect imports it in the first call of a flow, while somebody waits for lines
from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.exceptions import ParameterTypeError
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field, ValidationError

from prefect_batchflow.definition.document import environment_texts
from prefect_batchflow.errors.chosen import rerun_errors, retried_errors
from prefect_batchflow.exceptions import (
    BatchflowException,
    InvalidOptionError,
    UnexpectedError,
)
from prefect_batchflow.prefect_runtime.flow_runs import current_flow_run, is_cancelled_in_prefect
from prefect_batchflow.prefect_runtime.gone_server import give_up, let_go_of_server
from prefect_batchflow.prefect_runtime.own_server import start_own_server
from prefect_batchflow.results.models import BatchResult, summary_line
from prefect_batchflow.results.records import Status
from prefect_batchflow.run.batch_run import run_stages
from prefect_batchflow.run.ending import server_is_gone
from prefect_batchflow.run.handle import LiveRun, current_live_run, handed_over
from prefect_batchflow.run.roots import ROOTS_VARIABLE, check_roots
from prefect_batchflow.run.signals import signals_cancel
from prefect_batchflow.settings import (
    DEFAULT_LINE_TIMEOUT_SEC,
    DEFAULT_MAX_CONCURRENCY,
    DEFAULT_WORKER_COUNT,
    MAX_FAILURES,
    BadRows,
    BatchRequest,
    Granularity,
    LinePolicy,
    OnChange,
    RunOptions,
    TaskRunnerName,
    check_max_failures,
    default_storage_url,
)
from prefect_batchflow.storage.keys import check_run_id

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
    inputs_mapping: dict[str, Any] = {},  # noqa: B006 - read only, and the UI's form shows a default of None as a tab
    run_id: str = "",
    run: str = "",
    resume_from: str = "",
    more_data: dict[str, str] = {},  # noqa: B006 - see above
    init_kwargs: dict[str, Any] = {},  # noqa: B006 - see above
    connections: dict[str, str] = {},  # noqa: B006 - see above
    max_lines_count: Annotated[int, Field(ge=0)] = 0,
    worker_count: Annotated[int, Field(ge=1, le=1024)] = DEFAULT_WORKER_COUNT,
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = DEFAULT_MAX_CONCURRENCY,
    line_timeout_sec: Annotated[float, Field(gt=0)] = DEFAULT_LINE_TIMEOUT_SEC,
    line_memory_mb: Annotated[int, Field(ge=0)] = 0,
    batch_timeout_sec: Annotated[float, Field(ge=0)] = 0.0,
    max_failures: Annotated[str, Field(pattern=MAX_FAILURES)] = "",
    max_same_errors: Annotated[int, Field(ge=0)] = 0,
    retries: Annotated[int, Field(ge=0)] = 0,
    retry_delay_sec: Annotated[float, Field(ge=0)] = 0.0,
    retry_backoff: Annotated[float, Field(ge=1)] = 2.0,
    retry_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0,
    retry_on: str = "",
    granularity: Granularity = "auto",
    task_runner: TaskRunnerName = "local",
    task_runner_address: str = "",
    bad_rows: BadRows = "refuse",
    on_change: OnChange = "refuse",
    rerun: str = "",
    storage: str = "",
    output_dir: str = "",
    working_dir: str = "",
    variant: str = "",
    node_connections: dict[str, dict[str, str]] = {},  # noqa: B006 - see above
    environment_variables: dict[str, Any] = {},  # noqa: B006 - see above
) -> State[Any]:
    """Run a flow over a dataset, line by line.

    Args:
        flow: Folder with a flow.dag.yaml or flow.flex.yaml, such a file, module:attr, or path/to/file.py:attr.
        data: URL of the rows, the source `data` of the mapping: jsonl, csv, tsv, json, each also .gz or .zst, parquet,
            arrow; a folder, or a pattern such as data/*.jsonl.
        inputs_mapping: Input name to ${data.column} or a literal. Inputs not named come from the column of their name.
        run_id: Name of the run; the same name again resumes it. Empty is this flow run's id, so that a Retry resumes.
        run: Another run of the same storage: its outputs are the source `run.outputs`, its data the source `run.inputs`.
        resume_from: Another run, whose completed lines are taken over where their inputs are the same.
        more_data: Further sources, name to URL, for mappings such as ${run.outputs.answer}.
        init_kwargs: Arguments of a class flow's constructor.
        connections: Name of a connection to the saved block that has it: openai-connection/NAME, or NAME alone. One that
            is not named here is looked for among the blocks by its own name.
        max_lines_count: Rows read from each source; 0 is all.
        worker_count: Worker processes, for sync code: a line at a time each.
        max_concurrency: Lines at once, for async code, in one process.
        line_timeout_sec: Seconds a line may run, counted from when a worker has it.
        line_memory_mb: MiB a line may add to its worker's memory; 0 is no limit.
        batch_timeout_sec: Seconds the whole run may take; 0 is no limit.
        max_failures: End the run at this number of failed lines, such as 1 or 50, or when more than this share of the lines
            that have ended failed, such as 5%. A share counts once 20 lines or all have ended. Empty is no limit.
        max_same_errors: End the run when so many lines in a row failed with the same error; 0 is no limit.
        retries: Further attempts for a line that failed.
        retry_delay_sec: Seconds before the first retry.
        retry_backoff: Each further delay is the one before times this.
        retry_jitter: Each delay varies at random around itself, by up to this share.
        retry_on: Errors that are retried, separated by commas: classes (rate_limit, transient, timeout, crash, out_of_memory,
            user_code, bad_input, refused), codes such as LineExecutionTimeoutError, types of exceptions. Empty is all but
            bad_input and refused, which would fail again.
        granularity: One task run a line, one for many lines, or auto: line up to 1,000 lines. On a cluster it is chunk.
        task_runner: Where lines run: local is this machine; dask and ray are a cluster, docs/scaling.md.
        task_runner_address: Of the cluster: tcp://host:8786 for dask, ray://host:10001 or auto for ray. Empty starts one on
            this machine for the time of the run.
        bad_rows: A row that cannot be read, or lacks a column that others have: refuse to start, or fail that line only.
        on_change: When data, mapping or flow have changed since the run began: refuse to resume, reuse lines whose
            inputs are the same, or rerun all.
        rerun: Which lines that failed before run again, separated by commas: failed, which is all; timed_out; classes, codes
            and types of errors as in retry_on. The others stay failed. Empty is failed.
        storage: Where runs are kept: a path or URL, or batchflow-run-storage/NAME for a saved block. Empty is below
            PREFECT_HOME.
        output_dir: A folder on the worker's machine that gets the outputs too.
        working_dir: Folder the flow's code runs in; empty is the flow's own.
        variant: A node's variant, as ${node.variant_1}; empty is each node's default.
        node_connections: Node of a flow.dag.yaml to what it has in place of its own connection, deployment_name or model, as
            {"answer": {"connection": "other_ai"}}.
        environment_variables: Set in the workers before the flow's code is imported, over those of its yaml. Prefect keeps
            them in clear with the other parameters.
    """
    live = current_live_run()
    try:
        request = BatchRequest(
            flow=flow,
            working_dir=working_dir or None,
            variant=variant,
            node_connections=node_connections,
            environment_variables=environment_texts(environment_variables),
            data={**({"data": data} if data else {}), **more_data},
            inputs_mapping=inputs_mapping,
            init_kwargs=init_kwargs,
            connections=connections,
            run_id=check_run_id(run_id or str(current_flow_run().id)),
            run=check_run_id(run) if run else None,
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
                    retry_on=retried_errors(retry_on),
                ),
                max_failures=max_failures,
                max_same_errors=max_same_errors or None,
                batch_timeout_sec=batch_timeout_sec or None,
                worker_count=worker_count,
                max_concurrency=max_concurrency,
                line_memory_mb=line_memory_mb or None,
                granularity=granularity,
                task_runner=task_runner,
                task_runner_address=task_runner_address,
                max_lines_count=max_lines_count or None,
                bad_rows=bad_rows,
                on_change=on_change,
                rerun=rerun_errors(rerun),
            ),
        )
        if current_flow_run().deployment_id is not None:
            check_roots(request, os.environ.get(ROOTS_VARIABLE, ""))
        work = asyncio.ensure_future(run_stages(request, live))
        with signals_cancel(lambda reason, drain: live.cancel(reason, drain=drain), work.cancel):
            result = await _uncancelled(work, live)
    except BatchflowException as exc:
        live.failure = exc
        get_run_logger().error("%s", exc)
        await server_is_gone(live)
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


async def _who_cancelled(live: LiveRun) -> str | None:
    """Why the run was cancelled; a worker hands a cancel in the UI on as SIGTERM, and Prefect tells it from others."""
    flow_run = current_flow_run()
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


def run_batch(parameters: Mapping[str, Any], live: LiveRun) -> BatchResult:
    """Run `batch_run` from Python and give its result: the one sync door, for `BatchEngine` and the command line.

    In the main thread without a running event loop it runs there, so that signals reach it; otherwise, as in a notebook,
    in a thread of its own.

    Raises:
        BatchflowException: There is no result: the flow, the mapping, the data, the storage or an option is wrong.
    """
    check_max_failures(str(parameters.get("max_failures", "")))
    _check_parameters(parameters)
    retried_errors(str(parameters.get("retry_on", "")))
    rerun_errors(str(parameters.get("rerun", "")))
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
        try:
            thread.join()
        except KeyboardInterrupt:
            # A notebook's interrupt reaches the caller, not the run.
            live.cancel("Canceled by an interrupt.")
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
