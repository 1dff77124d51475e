"""Connecting to a cluster, and letting go of one that has not answered yet."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from waiting import eventually

from prefect_batchflow.cluster import clusters
from prefect_batchflow.cluster.clusters import DaskCluster
from prefect_batchflow.exceptions import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

SOON_SEC = 10.0


class SlowCluster(DaskCluster):
    """Answers when it is told to."""

    def __init__(self, address: str = "") -> None:
        super().__init__(address, 2)
        self.answers = threading.Event()
        self.connecting = threading.Event()
        self.left_in: threading.Thread | None = None

    def _task_runner(self) -> None:
        """Of no cluster: there need be no Dask to test this."""

    def _connect(self) -> int:
        self.connected_in = threading.current_thread()
        self.connecting.set()
        self.answers.wait()
        self._is_open = True
        return 2

    def _leave(self) -> None:
        self.left_in = threading.current_thread()


@pytest.fixture
def cluster() -> Iterator[SlowCluster]:
    made = SlowCluster("tcp://127.0.0.1:1")
    yield made
    made._is_closing.set()
    made.answers.set()
    if made.connecting.is_set():
        made.connected_in.join(SOON_SEC)
        assert not made.connected_in.is_alive()


async def connecting(cluster: SlowCluster) -> asyncio.Task[int]:
    """A connect that goes on."""
    task = asyncio.create_task(cluster.connect())
    await eventually(cluster.connecting.is_set, description="it connects")
    return task


async def test_a_cluster_is_left_in_the_thread_that_connected_to_it(cluster: SlowCluster) -> None:
    """The system ends the processes of Ray's own cluster with the thread that started them."""
    cluster.answers.set()
    assert await cluster.connect() == 2
    assert cluster.connected_in.is_alive()

    await cluster.close()

    assert cluster.left_in is cluster.connected_in


async def test_a_close_does_not_wait_for_a_connect_that_hangs(
    cluster: SlowCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "CONNECT_ENDS_WITHIN_SEC", 0.05)
    task = await connecting(cluster)
    task.cancel()
    async with asyncio.timeout(SOON_SEC):
        await asyncio.wait({task})
        await cluster.close()
    assert task.cancelled()
    assert cluster.left_in is None

    cluster.answers.set()
    await eventually(lambda: cluster.left_in, description="it is let go of as soon as it is connected")


async def test_a_close_waits_a_moment_for_a_cluster_that_is_being_started(
    cluster: SlowCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "CONNECT_ENDS_WITHIN_SEC", SOON_SEC)
    (await connecting(cluster)).cancel()
    closing = asyncio.create_task(cluster.close())
    await eventually(cluster._is_closing.is_set, description="it closes")
    assert not closing.done()

    cluster.answers.set()
    await asyncio.wait_for(closing, SOON_SEC)

    assert cluster.left_in is not None


async def test_one_that_never_answers_is_an_error_that_says_where(
    cluster: SlowCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "CONNECTED_WITHIN_SEC", 0.05)
    with pytest.raises(ClusterError, match=r"Dask cluster at tcp://127\.0\.0\.1:1 has not answered within 0\.05 s"):
        await cluster.connect()


async def test_a_connect_that_hangs_holds_no_process(cluster: SlowCluster) -> None:
    program = """
import asyncio, threading
from prefect_batchflow.cluster import clusters

clusters.CONNECT_ENDS_WITHIN_SEC = 0.05

class Hung(clusters.DaskCluster):
    def _task_runner(self):
        pass

    def _connect(self):
        threading.Event().wait()

async def main():
    cluster = Hung("tcp://127.0.0.1:1", 1)
    try:
        await asyncio.wait_for(cluster.connect(), 0.05)
    except TimeoutError:
        await cluster.close()
        print("closed")

asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ),
    )
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr


async def test_a_cluster_that_nobody_connected_to_is_closed_too(cluster: SlowCluster) -> None:
    await asyncio.wait_for(cluster.close(), SOON_SEC)
