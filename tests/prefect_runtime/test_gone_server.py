"""Events and logs that wait for a server that does not take them: few enough for the memory, and none when it is given up."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from prefect._internal.concurrency.services import QueueService
from waiting import wait_until

from prefect_batchflow.prefect_runtime import gone_server
from prefect_batchflow.prefect_runtime.gone_server import drop_excess, let_go_of_server

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stuck(QueueService[int]):
    """Sends nothing, as to a frozen server."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.sends = threading.Event()
        self.dropped: list[int] = []

    async def _handle(self, item: int) -> None:
        self.sends.set()
        await asyncio.Event().wait()

    def _on_item_dropped(self, item: int) -> None:
        self.dropped.append(item)


@pytest.fixture
def stuck(request: pytest.FixtureRequest) -> Iterator[Any]:
    service = Stuck.instance(request.node.name)
    for number in range(10):
        service.send(number)
    service.sends.wait(30)
    yield service
    let_go_of_server()


def test_the_oldest_are_dropped_when_too_many_wait(stuck: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drop_excess() == 0
    monkeypatch.setattr(gone_server, "MOST_WAITING", 4)

    assert drop_excess() == 5

    assert stuck.dropped == [1, 2, 3, 4, 5], "0 is being sent"
    assert drop_excess() == 0


@pytest.mark.parametrize("is_ending", [False, True])
def test_nothing_waits_once_the_server_is_given_up(stuck: Any, is_ending: bool) -> None:
    if is_ending:
        stuck._stop()

    let_go_of_server()

    assert stuck.dropped == list(range(1, 10))
    wait_until(stuck._done_event.is_set, description="the item that was being sent is dropped, too")
