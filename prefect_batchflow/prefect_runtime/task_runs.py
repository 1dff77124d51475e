"""The current task run, as Prefect's context knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.context import TaskRunContext

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun


def tag_task_run(run_tag: str) -> TaskRun:
    """The current task run, tagged with its run.

    Tagged only now, not on the task: for a task run that has tags when it starts, Prefect asks the server for a concurrency
    slot, one request a line. The tag reaches the server with the run's last state.
    """
    context = TaskRunContext.get()
    assert context is not None, "called by a task only"
    if run_tag not in context.task_run.tags:
        context.task_run.tags.append(run_tag)
    return context.task_run
