"""Task runs from the inside: the current one, what it was called with, how it waits before a retry, what it gives back."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.utilities.math import clamped_poisson_interval

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun

KEEPS_NOTHING: Final[dict[str, Any]] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "cache_result_in_memory": False,
    "log_prints": False,
}
"""Options of a task whose results are in the run storage, not in Prefect's."""


def tag_task_run(run_tag: str) -> TaskRun:
    """The current task run, tagged with its run.

    Tagged only now, not on the task: for a task run that has tags when it starts, Prefect asks the server for a concurrency
    slot, one request a line. The tag reaches the server with the run's last state.
    """
    task_run = _context().task_run
    if run_tag not in task_run.tags:
        task_run.tags.append(run_tag)
    return task_run


def task_parameter(name: str) -> Any:
    """What the current task run was called with; for the function that names it."""
    return _context().parameters[name]


def in_memory_result(value: Any) -> Any:
    """A value as the data of a task run's state: handed on as it is, and never written.

    Prefect takes a result that is made already as it is; for a plain value it would look up its default storage each time.
    """
    return _store().create_result_record(value)


@functools.cache
def _store() -> ResultStore:
    # A store that names a storage asks no server for the default one.
    return ResultStore(result_storage=LocalFileSystem(), cache_result_in_memory=False)


def jittered(delay_sec: float, jitter: float) -> float:
    """A delay spread at random around itself, as Prefect does for the retries of a task: both granularities wait alike."""
    return clamped_poisson_interval(delay_sec, jitter) if jitter and delay_sec else delay_sec


def _context() -> TaskRunContext:
    context = TaskRunContext.get()
    assert context is not None, "called inside a task run only"
    return context
