"""What `batchflow run` and `batchflow resume` share: run, show progress, show the result, give the exit status."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.cli.process import quiet_prefect, signals_interrupt
from prefect_batchflow.exceptions import (
    BatchRunTimeoutError,
    LineFailureError,
    RunNotFoundError,
    StorageError,
    SystemErrorException,
    UnexpectedError,
    UserErrorException,
)
from prefect_batchflow.results.records import Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_batchflow.cli.arguments import Screen
    from prefect_batchflow.cli.runs import StoredRun
    from prefect_batchflow.results.models import BatchResult
    from prefect_batchflow.run.handle import ProgressReport
    from prefect_batchflow.storage.custom import AbstractBatchRunStorage

COMPLETED, RUN_FAILED, WRONG_USE, LINES_FAILED, CANCELED = 0, 1, 2, 3, 130

EXIT_STATUSES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (BatchRunTimeoutError, RUN_FAILED),
    (LineFailureError, LINES_FAILED),
    (UserErrorException, WRONG_USE),
    (SystemErrorException, RUN_FAILED),
    (KeyboardInterrupt, CANCELED),
)
"""The exit status of a command that ends with an error: that of the first class that fits, else 1."""

OWN_SERVER_TEXT: Final = (
    "Starting a Prefect server. To skip this wait, keep one running (`prefect server start`) and set PREFECT_API_URL."
)

ENDS_TEXT: Final = "Running lines are stopped. Finished lines are kept."
DRAINS_TEXT: Final = "Running lines get some seconds to finish. Press again to stop them now."


def run_and_show(
    parameters: dict[str, Any],
    storage: str,
    screen: Screen,
    notes: Sequence[str] = (),
    begun: AbstractBatchRunStorage | None = None,
    environment: Mapping[str, str] | None = None,
    connections: Mapping[str, Any] | None = None,
) -> int:
    """Run, show progress, then show the result and the `notes`. Lines that `begun` has completed are taken over.

    `environment`, `connections` and constructor arguments with a key in clear text are not kept: only their names.
    """
    quiet_prefect(debug=screen.debug)
    from prefect_batchflow.cli.progress import Progress
    from prefect_batchflow.cli.runs import read_stored

    run_id = parameters["run_id"]
    with signals_interrupt(), Progress(living=False if screen.debug else None) as progress:
        from prefect.exceptions import TerminationSignal

        from prefect_batchflow.execution.scrubbing import has_keys
        from prefect_batchflow.flows import run_batch
        from prefect_batchflow.prefect_runtime.flow_runs import flow_run_url
        from prefect_batchflow.prefect_runtime.own_server import has_own_server
        from prefect_batchflow.run.handle import LiveRun

        last: list[ProgressReport] = []

        def listen(report: ProgressReport) -> None:
            last[:] = [report]
            progress.update(report)
            if live.cancel_reason:
                progress.say(f"{live.cancel_reason} {DRAINS_TEXT if live.drains else ENDS_TEXT}")

        def note_before_lines(text: str) -> None:
            if not last:
                progress.note(text)

        live = LiveRun(
            listener=listen,
            on_note=note_before_lines,
            say=progress.say,
            resume_storage=begun,
            environment_variables=environment,
            connections=connections,
        )
        if has_keys(init_kwargs := parameters.get("init_kwargs") or {}):
            live.init_kwargs = init_kwargs
            parameters = {**parameters, "init_kwargs": {}}
        for text in notes:
            progress.note(text)
        if has_own_server():
            progress.say(OWN_SERVER_TEXT)
        try:
            result = run_batch({**parameters, "storage": storage}, live)
        except UnexpectedError as exc:
            if live.cancel_reason or isinstance(exc.__cause__, TerminationSignal):  # a signal outside of `batch_run`
                raise KeyboardInterrupt from exc
            raise
        try:
            stored = read_stored(run_id, storage) if result.total_lines else None
        except RunNotFoundError as exc:
            if result.status is not Status.Canceled:
                raise StorageError(
                    f"The run ended, but its folder is gone: {exc} Something else deletes files of the storage. Find out what, "
                    "then run it again."
                ) from exc
            stored = None
        if stored is None:  # stopped before its manifest was written: there is no run to show
            if error := result.error_summary.batch_error_dict:
                raise BatchRunTimeoutError(str(error["message"]))
            raise KeyboardInterrupt
    if live.tally is not None:
        stored = replace(stored, error_groups=live.tally.error_groups)
    stored = replace(stored, notes=(*notes, *live.notes, *stored.notes))
    show_run(
        stored,
        screen,
        storage_option=storage,
        reused_lines=last[-1].reused_lines if last else 0,
        workers=live.workers,
        prefect_url=flow_run_url(stored.manifest.sessions[-1].prefect_flow_run_id),
    )
    return exit_status(result)


def exit_status(result: BatchResult) -> int:
    """The exit status of a run with a result."""
    if result.status is Status.Canceled:
        return CANCELED
    if result.status is Status.Failed:
        return RUN_FAILED
    if result.completed_lines < result.total_lines or result.error_summary.aggr_error_dict:
        return LINES_FAILED
    return COMPLETED


def show_run(stored: StoredRun, screen: Screen, **more: Any) -> None:
    """Show a run, to people or to programs."""
    from prefect_batchflow.cli.screen import print_json
    from prefect_batchflow.cli.view_run import print_run, run_document

    if screen.json:
        print_json(run_document(stored, **more))
    else:
        print_run(stored, **more)
