"""The inside of task runs: the current run, its parameters and its result, and the delay before a retry."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.context import TaskRunContext
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.utilities.math import clamped_poisson_interval

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import TaskRun

KEEPS_NOTHING: Final[dict[str, Any]] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "cache_result_in_memory": False,
    "log_prints": False,
}
"""Options of a task whose results are in the run storage, not in Prefect's."""


def tag_task_run(run_tag: str) -> TaskRun:
    """Tag the current task run with its run, and return it.

    The task itself has no tags: if a task run has tags when it starts, Prefect asks the server for a concurrency slot, one
    request per line. This tag reaches the server with the last state of the task run.
    """
    task_run = _context().task_run
    if run_tag not in task_run.tags:
        task_run.tags.append(run_tag)
    return task_run


async def ended_task_runs(flow_run_id: UUID) -> int:
    """How many task runs of a flow run the server knows to have ended. Raises whatever the client raises."""
    ended = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]}}}
    body = {"flow_runs": {"id": {"any_": [str(flow_run_id)]}}, "task_runs": ended}
    async with get_client() as client:
        return int((await client.request("POST", "/task_runs/count", json=body)).json())


def task_parameter(name: str) -> Any:
    """A parameter of the current task run; for the function that names the run."""
    return _context().parameters[name]


def in_memory_result(value: Any) -> Any:
    """A value as the data of a task run's state. It is passed on as it is and never written.

    Prefect leaves a finished result alone. For a plain value it would look up its default storage each time.
    """
    return _store().create_result_record(value)


@functools.cache
def _store() -> ResultStore:
    # With a storage of its own, the store does not ask the server for the default one.
    return ResultStore(result_storage=LocalFileSystem(), cache_result_in_memory=False)


def jittered(delay_sec: float, jitter: float) -> float:
    """A delay with random jitter, as Prefect adds it to retries of a task, so that both granularities wait alike."""
    return clamped_poisson_interval(delay_sec, jitter) if jitter and delay_sec else delay_sec


def _context() -> TaskRunContext:
    context = TaskRunContext.get()
    assert context is not None, "call it inside a task run only"
    return context
