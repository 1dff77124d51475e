"""Notices a Prefect server that is gone, and does not wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
from typing import Any

from prefect._internal.concurrency.services import QueueService
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker

GONE_AFTER_SEC = 10.0
"""A server that takes this long for the simplest answer counts as gone. A busy one took 1.1 s at most."""
SILENT_AFTER_SEC = 5.0
"""The same for a server that has just left another request without an answer."""


async def server_answers(within_sec: float = GONE_AFTER_SEC) -> bool:
    """Whether the Prefect server answers now, within this time."""
    try:
        async with asyncio.timeout(within_sec), get_client() as client:
            return await client.api_healthcheck() is None
    except Exception:  # noqa: BLE001 - any error means no answer
        return False


def let_go_of_server() -> None:
    """Drop the events and logs that wait for a server that is gone.

    Prefect would wait at the end of the process until each of them was sent or had failed about ten times. For the events of
    one run, that can take an hour.
    """
    with EventsWorker._instance_cache_lock:
        # It has services of all kinds, also those for logs.
        services: list[Any] = list(EventsWorker._instances.values())  # type: ignore[misc] # their types do not matter
    for service in services:
        if not isinstance(service, QueueService):
            continue  # someone waits for its answers
        with contextlib.suppress(queue.Empty):
            while True:
                service._on_item_dropped(service._queue.get_nowait())
        # The item that it is sending now.
        if service._loop is not None and service._task is not None:
            service._loop.call_soon_threadsafe(service._task.cancel)


async def give_up(flow_run: asyncio.Future[Any]) -> None:
    """End the call of a Prefect flow that cannot report its end to the server. Each cancel makes it try once more."""
    logger = logging.getLogger("prefect.flow_runs")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        for _ in range(3):
            flow_run.cancel()
            await asyncio.wait({flow_run}, timeout=1)
            if flow_run.done():
                return
    finally:
        logger.setLevel(level)
