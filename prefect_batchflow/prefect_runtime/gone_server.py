"""Notices a Prefect server that is gone, and does not wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
from typing import Any

import httpx
from prefect._internal.concurrency.services import QueueService, _active_services
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from prefect_batchflow.prefect_runtime.own_server import own_server_url

GONE_AFTER_SEC = 10.0
"""A server that takes this long for the simplest answer counts as gone. A busy one took 1.1 s at most."""
SILENT_AFTER_SEC = 5.0
"""The same for a server that has just left another request without an answer."""

MOST_WAITING = 30_000
"""Events, and log records, that may wait for the server: 130 MB of events, of 10,000 task runs."""


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
    for service in _sending():
        with contextlib.suppress(queue.Empty):
            while (item := service._queue.get_nowait()) is not None:
                service._on_item_dropped(item)
            service._queue.put_nowait(None)  # the sign to end
        # The item that it is sending now. A service that is to end has forgotten its task.
        for task in asyncio.all_tasks(service._loop):
            frame = getattr(task.get_coro(), "cr_frame", None)  # of a task that has just ended there is none
            if frame is not None and frame.f_code.co_name == "_run" and frame.f_locals.get("self") is service:
                service._loop.call_soon_threadsafe(task.cancel)


def drop_excess() -> int:
    """Drop the oldest events and logs that wait, if they are too many for the memory; their number."""
    dropped = 0
    for service in _sending():
        with contextlib.suppress(queue.Empty):
            while service._queue.qsize() > MOST_WAITING and (item := service._queue.get_nowait()) is not None:
                service._on_item_dropped(item)
                dropped += 1
    return dropped


def _sending() -> list[Any]:
    """Prefect's services that send events and logs. Of those that give an answer, someone waits for it."""
    return [
        service
        for service in list(_active_services)
        if isinstance(service, QueueService) and service._done_event is not None and not service._done_event.is_set()
    ]


@functools.cache
def exit_without_waiting() -> None:
    """At the end of this process, do not wait for a server that does not answer then."""
    threading.Thread(target=_watch_exit, name="server-at-exit", daemon=True).start()


def _watch_exit() -> None:
    while True:
        time.sleep(1)
        # Prefect stops its services when the process ends, and waits until they have sent everything.
        if any(service._stopped for service in _sending()) and not _answers_at_exit():
            let_go_of_server()


def _answers_at_exit() -> bool:
    """Whether the server answers at all. `server_answers` would need threads, which cannot begin now."""
    url = get_current_settings().api.url or own_server_url()
    try:
        httpx.get(f"{url}/health", timeout=SILENT_AFTER_SEC, verify=False)  # noqa: S501 - it sends nothing
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return True
