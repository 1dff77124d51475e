"""Flow runs as the Prefect server knows them: the current one, cancelled ones, ones that were killed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from prefect.states import Completed, Crashed
from prefect.utilities.urls import url_for

from prefect_batchflow.prefect_runtime.own_server import has_own_server

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun, State

ANSWER_SEC = 5.0


async def is_cancelled_in_prefect(flow_run_id: UUID) -> bool:
    """Whether someone cancelled the flow run through the API; `False` if the server does not answer."""
    try:
        async with asyncio.timeout(ANSWER_SEC), get_client() as client:
            state = (await client.read_flow_run(flow_run_id)).state
    except Exception:  # noqa: BLE001 - the next check comes soon; the run does not depend on it
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


async def set_right(
    flow_run_id: UUID, ended: State[Any] | None, current: UUID | None = None, within_sec: float = 2 * ANSWER_SEC
) -> bool:
    """Set flow and task runs of an earlier start, as far as they still run in Prefect, to the state that they ended in.

    Nobody else does it if the process was killed or the server was away. Call it only when nothing of that start is alive. It
    only corrects what Prefect shows, so it takes `within_sec` at most and fails silently.

    Args:
        flow_run_id: The flow run of the earlier start.
        ended: How that start ended; `None` if it was killed.
        current: The flow run of the start that continues the run, which after a Retry is the same one; `None` if none does.
        within_sec: The longest time that it takes.

    Returns:
        Whether the flow run has another state now.
    """
    killed: State[Any] = Crashed(message="Its process was gone before the run had ended.")
    unseen: State[Any] = Completed(message="It ended while the server was away. The run's records have its lines.")
    of_flow_run = FlowRunFilter.model_validate({"id": {"any_": [flow_run_id]}})
    going_on = TaskRunFilter.model_validate({"state": {"type": {"any_": ["PENDING", "RUNNING"]}}})
    with contextlib.suppress(Exception), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        async with asyncio.timeout(within_sec), get_client() as client:
            state = (await client.read_flow_run(flow_run_id)).state
            is_wrong = state is not None and (state.is_running() or (ended is not None and state.is_crashed()))
            if not is_wrong and current is None:
                return False  # its task runs can be on their way to a busy server
            # The server returns one page at a time.
            while task_runs := await client.read_task_runs(flow_run_filter=of_flow_run, task_run_filter=going_on):
                for task_run in task_runs:
                    await client.set_task_run_state(task_run.id, killed if ended is None else unseen, force=True)
            if is_wrong and flow_run_id != current:
                await client.set_flow_run_state(flow_run_id, killed if ended is None else ended, force=True)
                return True
    return False


def current_flow_run() -> FlowRun:
    """The current Prefect flow run, from the context: `prefect.runtime` asks the server for parts of it."""
    context = FlowRunContext.get()
    assert context is not None, "call it inside the Prefect flow only"
    assert context.flow_run is not None, "Prefect sets it before it calls the flow"
    return context.flow_run


def flow_run_url(flow_run_id: str | None) -> str | None:
    """The page of a flow run in the UI; `None` without a server that keeps running and has one."""
    if has_own_server() or flow_run_id is None or not get_current_settings().ui_url:
        return None
    return url_for("flow-run", obj_id=flow_run_id)
