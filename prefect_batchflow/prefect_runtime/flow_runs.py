"""Flow runs as the Prefect server knows them: the current one, cancelled ones, ones that were killed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings
from prefect.states import Crashed
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


async def end_abandoned(flow_run_id: UUID, current: UUID) -> None:
    """Set flow and task runs of a killed, earlier start to Crashed, because nobody else does.

    Call it with the run's lease held and before the first line: then nothing of an earlier start is alive. It only corrects
    what Prefect shows, so it takes 10 s at most and fails silently. `current` is the flow run of this start, which after a
    Retry is the same one.
    """
    killed: State[Any] = Crashed(message="Its process was gone when the run was started again.")
    of_flow_run = FlowRunFilter.model_validate({"id": {"any_": [flow_run_id]}})
    going_on = TaskRunFilter.model_validate({"state": {"type": {"any_": ["PENDING", "RUNNING"]}}})
    with contextlib.suppress(Exception):
        async with asyncio.timeout(2 * ANSWER_SEC), get_client() as client:
            # The server returns one page at a time.
            while task_runs := await client.read_task_runs(flow_run_filter=of_flow_run, task_run_filter=going_on):
                for task_run in task_runs:
                    await client.set_task_run_state(task_run.id, killed, force=True)
            state = (await client.read_flow_run(flow_run_id)).state
            if flow_run_id != current and state is not None and state.is_running():
                await client.set_flow_run_state(flow_run_id, killed, force=True)


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
