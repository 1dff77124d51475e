"""What is around a run: signals, a cancel in the Prefect UI, what an earlier start left there, a server that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import signal
import threading
from typing import TYPE_CHECKING, Any

from prefect._internal.concurrency.services import QueueService
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.events.worker import EventsWorker
from prefect.states import Crashed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALS_UNTIL_GIVEN_UP = 3
ANSWER_SEC = 5.0
GONE_AFTER_SEC = 10.0
"""A server that takes so long for the simplest answer counts as gone; a busy one took 1.1 s at most."""


@contextlib.contextmanager
def signals_cancel(cancel: Callable[[str, bool], None], abandon: Callable[[], object]) -> Iterator[None]:
    """Let signals end the run, each one more firmly.

    The first Ctrl-C drains: lines that run may end, for some seconds. A second signal, or SIGTERM and SIGHUP at once, ends
    the lines too, still with a partial result. The third gives the run up, and the fourth finds the caller's own handlers.
    Only in the main thread, since elsewhere signals reach nothing; signals that are ignored, as under `nohup`, stay so.

    Args:
        cancel: Ends the run with a partial result; given why, and whether it drains.
        abandon: Ends it without.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) is not signal.SIG_IGN}
    heard = 0

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if handler is not None:
                signal.signal(number, handler)

    def on_signal(number: signal.Signals) -> None:
        nonlocal heard
        heard += 1
        if heard == SIGNALS_UNTIL_GIVEN_UP:
            restore()
            abandon()
        cancel(f"Canceled by {number.name}.", heard == 1 and number == signal.SIGINT)

    for number in before:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        restore()


async def is_cancelled_in_prefect(flow_run_id: UUID) -> bool:
    """Whether somebody cancelled the flow run through the API; a server that does not answer has not said so."""
    try:
        async with asyncio.timeout(ANSWER_SEC), get_client() as client:
            state = (await client.read_flow_run(flow_run_id)).state
    except Exception:  # noqa: BLE001 - asked again soon; the run does not depend on the answer
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


async def end_abandoned(flow_run_id: UUID, current: UUID) -> None:
    """Show as Crashed what an earlier start of the run left going on when it was killed: nobody else does.

    To be called by who holds the run's lease, before the first line: nothing of an earlier start is alive then. It is for
    the eye only: it takes 10 s at most, and its failure is silent.

    Args:
        flow_run_id: The flow run of the earlier start.
        current: The flow run that goes on now, the same one after a Retry.
    """
    killed: State[Any] = Crashed(message="Its process was gone when the run was started again.")
    going_on = TaskRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
    with contextlib.suppress(Exception):
        async with asyncio.timeout(2 * ANSWER_SEC), get_client() as client:
            # The server gives a page of them at a time.
            while task_runs := await client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
                task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=going_on)),
            ):
                for task_run in task_runs:
                    await client.set_task_run_state(task_run.id, killed, force=True)
            state = (await client.read_flow_run(flow_run_id)).state
            if flow_run_id != current and state is not None and state.is_running():
                await client.set_flow_run_state(flow_run_id, killed, force=True)


async def server_answers() -> bool:
    """Whether the Prefect server answers now, within `GONE_AFTER_SEC`."""
    try:
        async with asyncio.timeout(GONE_AFTER_SEC), get_client() as client:
            return await client.api_healthcheck() is None
    except Exception:  # noqa: BLE001 - whatever it is, it is no answer
        return False


def let_go_of_server() -> None:
    """Drop the events and logs that wait for a server that is gone.

    Prefect's own way is to wait at the end of the process until each of them was sent, or has failed some ten times, which
    for the events of one run may take an hour.
    """
    with EventsWorker._instance_cache_lock:
        # All kinds of services are in it, those for logs too.
        services: list[Any] = list(EventsWorker._instances.values())  # type: ignore[misc] # their types do not matter
    for service in services:
        if not isinstance(service, QueueService):
            continue  # somebody waits for its answers
        with contextlib.suppress(queue.Empty):
            while True:
                service._on_item_dropped(service._queue.get_nowait())
        # What it is sending just now.
        if service._loop is not None and service._task is not None:
            service._loop.call_soon_threadsafe(service._task.cancel)


async def give_up(flow_run: asyncio.Future[Any]) -> None:
    """End a call of a Prefect flow that cannot tell the server how it ended; a cancelled one tries once more to tell."""
    with _muted("prefect.flow_runs"):
        for _ in range(3):
            flow_run.cancel()
            await asyncio.wait({flow_run}, timeout=1)
            if flow_run.done():
                return


@contextlib.contextmanager
def _muted(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


__all__ = [
    "end_abandoned",
    "give_up",
    "is_cancelled_in_prefect",
    "let_go_of_server",
    "server_answers",
    "signals_cancel",
]
