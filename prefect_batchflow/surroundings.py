"""What is around a run: signals, a cancel in the Prefect UI, and a server that must hear of all task runs in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import get_current_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DRAIN_FLOOR_SEC = 5.0
DRAIN_TASK_RUNS_PER_SEC = 20.0


@contextlib.contextmanager
def signals_cancel(cancel: Callable[[str], None]) -> Iterator[None]:
    """Let the first signal cancel the run; the second one finds the caller's own handlers again.

    Only in the main thread: elsewhere signals reach nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if handler is not None:
                signal.signal(number, handler)

    def on_signal(number: signal.Signals) -> None:
        restore()
        cancel(f"Canceled by {number.name}.")

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        restore()


async def is_cancelled_in_prefect(flow_run_id: UUID) -> bool:
    """Whether somebody cancelled the flow run through the API; a server that does not answer has not said so."""
    try:
        async with asyncio.timeout(5), get_client() as client:
            state = (await client.read_flow_run(flow_run_id)).state
    except Exception:  # noqa: BLE001 - asked again soon; the run does not depend on the answer
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def has_own_server() -> bool:
    """Whether this process started its own, ephemeral server, which ends with it."""
    return not get_current_settings().api.url


async def wait_until_recorded(flow_run_id: UUID, task_runs: int) -> int | None:
    """Wait until the ephemeral server has all task runs of a flow run, for a bounded time.

    An ephemeral server ends with the process and takes what it has not written with it.

    Returns:
        How many are missing; `None` when the server did not say.
    """
    deadline = time.monotonic() + DRAIN_FLOOR_SEC + task_runs / DRAIN_TASK_RUNS_PER_SEC
    recorded: int | None = None
    run_filter = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            async with get_client() as client:
                response = await client._client.post(
                    "/task_runs/count", json={"flow_runs": run_filter.model_dump(mode="json", exclude_unset=True)}
                )
                recorded = int(response.json())
                if recorded >= task_runs:
                    return 0
        await asyncio.sleep(0.1)
    return None if recorded is None else task_runs - recorded


def quiet_own_server() -> None:
    """Keep the end of an ephemeral server, which is abrupt, out of the output."""
    for name in ("prefect.events.clients", "prefect.server", "prefect._internal", "websockets", "uvicorn", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


__all__ = [
    "has_own_server",
    "is_cancelled_in_prefect",
    "quiet_own_server",
    "signals_cancel",
    "wait_until_recorded",
]
