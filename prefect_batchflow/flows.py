"""`batch_run`: the Prefect flow of a batch run, and `run_batch`, which runs it from Python.

The texts of its form are in `settings`, beside the options.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from prefect import Flow, flow, runtime
from prefect.client.schemas.objects import State
from prefect.exceptions import MissingContextError, ParameterTypeError
from prefect.logging import get_logger, get_run_logger
from pydantic import ValidationError

from prefect_batchflow.definition.document import environment_texts
from prefect_batchflow.exceptions import (
    BatchflowException,
    InvalidOptionError,
    PrefectServerError,
    UnexpectedError,
    told,
)
from prefect_batchflow.execution.program.importing import refuse_run_while_loading
from prefect_batchflow.execution.workers.started import ready_worker
from prefect_batchflow.inputs.places import without_credentials
from prefect_batchflow.prefect_runtime import imports, states  # noqa: F401 - imports are the purpose of `imports`
from prefect_batchflow.prefect_runtime.flow_runs import current_flow_run, is_cancelled_in_prefect
from prefect_batchflow.prefect_runtime.gone_server import exit_without_waiting, let_go_of_server
from prefect_batchflow.prefect_runtime.network import prepare_network
from prefect_batchflow.prefect_runtime.own_server import has_own_server, start_own_server
from prefect_batchflow.prefect_runtime.reached_server import check_server
from prefect_batchflow.prefect_runtime.server_calls import Bounds, Untold, bounded_clients, bounds_current_client
from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.records import Status
from prefect_batchflow.results.texts import encodable, encodable_value
from prefect_batchflow.run.batch_run import run_stages
from prefect_batchflow.run.ending import batchflow_command, server_is_gone
from prefect_batchflow.run.handle import LiveRun, current_live_run, handed_over
from prefect_batchflow.run.roots import Roots
from prefect_batchflow.run.signals import signals_cancel
from prefect_batchflow.settings import OPTION_NAMES, PARAMETERS, BatchRequest, RunOptions, default_storage_url
from prefect_batchflow.storage.keys import check_run_id

F = TypeVar("F", bound=Callable[..., Any])

_PLACES = frozenset({"data", "more_data", "storage", "image_roots"})
"""Parameters whose URLs can have passwords and signatures, which Prefect would keep and show."""


def _flow_run_name() -> str:
    parameters = runtime.flow_run.parameters
    name = Path(str(parameters.get("flow") or "batch").rpartition(":")[2] or "batch").name
    return encodable(f"{name}-{parameters.get('run_id') or runtime.flow_run.id}")


def _with_parameters(function: F) -> F:
    """Give a function the signature and docstring from which Prefect makes the form."""
    parameters = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            # Defaults are only read. A default of None would be a tab in the form.
            default=inspect.Parameter.empty if option.default is ... else option.default,
            annotation=Annotated[option.kind, option],
        )
        for option in PARAMETERS.values()
    ]
    function.__signature__ = inspect.Signature(parameters, return_annotation=State[Any])  # type: ignore[attr-defined]
    lines = "\n".join(f"    {option.name}: {option.description}" for option in PARAMETERS.values())
    function.__doc__ = f"{function.__doc__}\n\nArgs:\n{lines}\n"
    return function


def request_of(parameters: Mapping[str, Any]) -> BatchRequest:
    """The parameters of `batch_run` as one request, with run names checked and the defaults of this flow run.

    Raises:
        InvalidOptionError: An option is out of bounds, or a run id is not valid.
    """
    given = dict(parameters)
    options = RunOptions(**{name: given.pop(name) for name in OPTION_NAMES if name in given})
    request = BatchRequest(**given, options=options)
    for name in filter(None, (request.run, request.resume_from)):
        check_run_id(name)
    return replace(
        request,
        run_id=check_run_id(request.run_id or str(current_flow_run().id)),
        environment_variables=environment_texts(request.environment_variables),
        storage=request.storage or default_storage_url(),
    )


class BatchRunFlow(Flow[..., Any]):
    """A Prefect flow whose calls from Python end in time when the server is gone. A process that Prefect starts calls `fn`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow; to be awaited."""
        return _with_bounds(super().__call__(*args, **kwargs))

    def with_options(self, *args: Any, **kwargs: Any) -> "BatchRunFlow":
        """The same flow with other options of Prefect."""
        return _called_with_bounds(super().with_options(*args, **kwargs))


def _called_with_bounds(made: Flow[..., Any]) -> BatchRunFlow:
    # Prefect reads the decorator `flow` from the source, and makes its own class.
    made.__class__ = BatchRunFlow
    assert isinstance(made, BatchRunFlow)
    return made


@_called_with_bounds
@flow(name="batch-run", flow_run_name=_flow_run_name, persist_result=False, log_prints=False)
@_with_parameters
async def batch_run(*args: Any, **parameters: Any) -> State[Any]:
    """Run a flow over a dataset, line by line."""
    live = current_live_run()
    if live.is_bounded:
        return await _run(live, args, parameters)
    # Prefect has started this process for a deployment.
    bounds_current_client(_bounds_of(live))
    try:
        return await _run(live, args, parameters)
    finally:
        exit_without_waiting()


async def _run(live: LiveRun, args: tuple[Any, ...], parameters: Mapping[str, Any]) -> State[Any]:
    try:
        request = request_of({**dict(zip(PARAMETERS, args, strict=False)), **parameters, **live.parameters})
        live.show_command = batchflow_command("show", request)
        Roots.of_flow_run(current_flow_run().deployment_id).check(request)
        work = asyncio.ensure_future(run_stages(request, live))
        with signals_cancel(lambda reason, drain: live.cancel(reason, drain=drain), work.cancel):
            result = await _uncancelled(work, live)
    except BatchflowException as exc:
        live.failure = exc
        get_run_logger().error("%s", exc)
        await server_is_gone(live)
        return states.failed(str(exc))
    except Exception as exc:  # noqa: BLE001 - the border of the run
        # Prefect failed, or this package has a bug. The log gets the traceback, the caller gets the cause.
        get_run_logger().exception("The batch run stopped on an unexpected error")
        live.failure = UnexpectedError(f"The batch run stopped on an unexpected error: ({type(exc).__name__}) {exc}")
        live.failure.__cause__ = exc
        return states.failed(str(live.failure))
    live.result = result
    reason = await _who_cancelled(live) if result.status is Status.Canceled else None
    return states.of_result(result, reason or "")


async def _who_cancelled(live: LiveRun) -> str | None:
    """Why the run was cancelled. A cancel in the UI reaches a worker's run as SIGTERM, so Prefect is asked."""
    flow_run = current_flow_run()
    if flow_run.deployment_id is not None and await is_cancelled_in_prefect(flow_run.id):
        return "Canceled in Prefect."
    return live.cancel_reason


async def _uncancelled(run: asyncio.Task[BatchResult], live: LiveRun) -> BatchResult:
    """Await the run. If Prefect cancels this task, the run is asked to end, and still gives a result."""
    while True:
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            if run.cancelled():
                raise
            live.cancel("Canceled in Prefect.")


def run_batch(parameters: Mapping[str, Any], live: LiveRun) -> BatchResult:
    """Run `batch_run` from Python and give its result, for `BatchEngine` and the command line.

    It runs in the main thread, so that signals reach it. If that is not the current thread, or has a running event loop
    as in a notebook, it runs in a new thread.

    Raises:
        BatchflowException: There is no result, because the flow, the mapping, the data, the storage or an option is wrong.
    """
    refuse_run_while_loading()
    _check_parameters(parameters)
    shown = {
        name: encodable_value(without_credentials(value) if name in _PLACES else value)
        for name, value in parameters.items()
    }
    live.parameters = {
        name: value for name, value in parameters.items() if shown[name] is not value and shown[name] != value
    }
    failure: BaseException | None = None

    def run() -> None:
        nonlocal failure
        try:
            prepare_network()
            start_own_server()
            with ready_worker(), handed_over(live):
                asyncio.run(_called(shown))
        except BaseException as exc:  # noqa: BLE001 - raised in the caller's thread, unless `live` has the result
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
    if live.result is not None:
        return live.result
    if live.failure is not None:
        raise live.failure
    if isinstance(failure, BatchflowException | KeyboardInterrupt | SystemExit):
        raise failure
    cause = f"{told(failure)}. " if failure is not None else ""
    raise UnexpectedError(
        f"The batch run ended without a result. {cause}Check that the Prefect server runs (`prefect config view` shows "
        "PREFECT_API_URL)."
    ) from failure


async def _with_bounds(call: Coroutine[Any, Any, Any]) -> Any:
    """Await a call of the Prefect flow, and give up a server that is gone. Prefect would try for minutes to reach it.

    Raises:
        PrefectServerError: The server cannot be used before the first line.
    """
    live = current_live_run()
    try:
        with handed_over(live):
            await check_server(live.say)
            async with bounded_clients(_bounds_of(live)):
                live.is_bounded = True
                return await call
    except RuntimeError as exc:
        # Prefect hides the cause if its first question, about the server's version, has no answer.
        if isinstance(exc.__cause__, PrefectServerError):
            raise exc.__cause__ from None
        raise
    finally:
        call.close()
        if live.server_gone.is_set() and live.untold is None and live.result is not None:
            _note(
                live,
                "The Prefect server did not answer for a time while the run ended. It may not show all of its lines and "
                "artifacts. The run's own records and outputs are whole.",
            )
        if live.server_gone.is_set():
            let_go_of_server()
        exit_without_waiting()


def _bounds_of(live: LiveRun) -> Bounds:
    return Bounds(live.begun.is_set, live.say, partial(_on_untold, live))


def _on_untold(live: LiveRun, untold: Untold) -> None:
    """Say what the server does not know of the run's end."""
    if live.untold is not None:
        return
    live.untold, ended = untold, untold.state.title()
    live.server_gone.set()
    shows = (
        "It shows nothing of this run."
        if untold.is_unknown
        else f"It does not know that the run has ended as {ended}, and may show its flow run {untold.flow_run_id} as running."
    )
    whole = " The run's own records and outputs are whole." if live.result is not None else ""
    later = ""
    if live.show_command and not untold.is_unknown:
        later = f" Once it answers, `{live.show_command}` sets this right."
        if has_own_server():  # the next one has the same database
            later = " The next start of the run sets this right."
    text = f"{untold.cause}. {shows}{whole}{later}"
    if live.failure is not None:
        live.failure.message = f"{live.failure.message} {text}"
        live.failure.args = (live.failure.message,)
    _note(live, text)
    let_go_of_server()


def _note(live: LiveRun, text: str) -> None:
    live.notes.append(text)
    try:
        logger: Any = get_run_logger()
    except MissingContextError:
        logger = get_logger(__name__)
    logger.warning("%s", text)


async def _called(parameters: Mapping[str, Any]) -> None:
    await batch_run(**parameters, return_state=True)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse wrong options before a flow run starts. Otherwise Prefect reports them as a failed run."""
    try:
        batch_run.validate_parameters(dict(parameters))
    except ParameterTypeError as exc:
        cause = exc.__context__
        if not isinstance(cause, ValidationError):
            raise InvalidOptionError(str(exc)) from None
        problems = [
            f"{'.'.join(map(str, e['loc']))} is {e['input']!r}. {e['msg'].rstrip('.')}." for e in cause.errors()
        ]
        raise InvalidOptionError(" ".join(problems)) from None
