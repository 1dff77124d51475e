"""A run's chunks on a cluster, and what runs them there, with the cluster left out: its tasks are threads of this process."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import signal
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fake_cluster import FakeCluster
from outcomes import outcome_of
from pools import flow_of
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import Crashed
from waiting import eventually

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.cluster import node
from prefect_batchflow.cluster.clusters import DaskCluster, LostTaskError, RayCluster, cluster_of
from prefect_batchflow.cluster.feed import SUBMISSIONS, ClusterFeed, Shares
from prefect_batchflow.cluster.work import Assignment, RunDescription
from prefect_batchflow.exceptions import (
    ClusterError,
    FlowNotFoundError,
    InvalidOptionError,
    RunInUseError,
    StorageError,
)
from prefect_batchflow.execution.line_feed import LineEvents
from prefect_batchflow.execution.workers.pool import WorkerPool
from prefect_batchflow.lines import Line
from prefect_batchflow.results.records import Status
from prefect_batchflow.settings import LinePolicy
from prefect_batchflow.storage.control import Driver
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from prefect_batchflow.exceptions import BatchflowException
    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.results.records import Receipt

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("prefect_server", "_without_logs")]


@pytest.fixture
def _without_logs() -> Iterator[None]:
    """Task runs that belong to no flow run send no logs."""
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield


KEYS = RunKeys("r")
SECRET = "a secret of the run"  # noqa: S105 - it is none
COUNT = """
import os, time
from pathlib import Path

def main(n: int, folder: str = ".") -> int:
    with open("witness", "a") as witness:
        witness.write(f"{n}\\n")
    if n < 0:
        raise ValueError(n)
    if n == 99:
        Path("held").touch()
        time.sleep(600)
    return n
"""


class ARun:
    """The parts of a run that its chunks touch."""

    def __init__(self, folder: Path, driver: Driver, pool: WorkerPool, flow: Any, **options: Any) -> None:
        self.cluster = FakeCluster()
        self.folder = folder
        self.settled: dict[int, Receipt] = {}
        self.persisted: list[int] = []
        files = RunStorageBlock(url=str(folder / "runs"))
        facts: dict[str, Any] = {
            "run_id": "r",
            "session": 1,
            "since": 0,
            "owner": driver.owner,
            "storage_url": files.url,
            "storage_options": {},
            "flow": flow,
            "given": pool.given(),
            "policy": LinePolicy(),
            "ends_on_failure": False,
            "lines_at_once": 1,
            "line_memory_mb": None,
        }
        self.description = RunDescription(**{**facts, **options})
        self.records = RunRecords(files, KEYS, 1)
        self.failures: list[BatchflowException] = []
        events = LineEvents(
            settled=lambda receipt: self.settled.update({receipt.line_number: receipt}),
            persisted=self._persist,
            failed=self.failures.append,
        )
        shares = Shares(self.description.lines_at_once, 1, 1)
        self.feed = ClusterFeed(self.cluster, driver, self.description, self.records, shares, events)

    def _persist(self, outcomes: Sequence[LineOutcome]) -> None:
        self.persisted += [outcome.receipt.line_number for outcome in outcomes]

    async def run(self, *numbers: int) -> None:
        await self.feed.run([Line(abs(n), {"n": n}) for n in numbers])

    def witness(self) -> list[int]:
        path = self.folder / "witness"
        return list(map(int, path.read_text().split())) if path.exists() else []


@pytest.fixture
def a_run(tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def make(**options: Any) -> AsyncIterator[ARun]:
        flow = flow_of(tmp_path, COUNT)
        pool = WorkerPool(flow, environment_variables={"KEY": SECRET})
        async with Driver(RunStorageBlock(url=str(tmp_path / "runs")), KEYS, options.get("session", 1)) as driver:
            yield ARun(tmp_path, driver, pool, flow, **options)
        await eventually(lambda: not node._runs, description="the workers of the run are gone", timeout_sec=10)

    return make


class TestChunks:
    async def test_receipts_come_back_and_records_are_in_the_storage(self, a_run: Callable[..., Any]) -> None:
        async with a_run() as run:
            await run.run(0, -1, 2)

        assert {n: receipt.status for n, receipt in run.settled.items()} == {
            0: Status.Completed,
            1: Status.Failed,
            2: Status.Completed,
        }
        index, _ = await run.records.scan()
        assert {n: stored.receipt.status for n, stored in index.lines.items()} == {
            n: receipt.status for n, receipt in run.settled.items()
        }
        assert sorted(run.persisted) == [0, 1, 2]

    async def test_a_chunk_that_is_run_again_runs_only_what_the_storage_lacks(self, a_run: Callable[..., Any]) -> None:
        async with a_run() as run:
            await run.run(0, -1)
            await run.run(0, -1, 2)

        assert run.witness() == [0, -1, 2]
        assert run.settled.keys() == {0, 1, 2}
        assert sorted(run.persisted) == [0, 1, 2], "each record is handed on once"

    async def test_retries_go_on_where_the_lost_task_was(self, a_run: Callable[..., Any]) -> None:
        async with a_run() as run:
            await run.run(-1)
        async with a_run(policy=LinePolicy(retries=2)) as again:
            await again.run(-1)

        assert again.witness() == [-1, -1, -1]
        assert again.settled[1].attempt == 3

    async def test_failing_fast_ends_the_chunk(self, a_run: Callable[..., Any]) -> None:
        async with a_run(ends_on_failure=True) as run:
            await run.run(-1, *range(2, 60))

        assert len(run.settled) < 59
        assert run.settled[1].status is Status.Failed

    async def test_a_stop_ends_lines_that_run(self, a_run: Callable[..., Any]) -> None:
        async with a_run() as run:
            running = asyncio.ensure_future(run.run(0, 99, 100))
            await eventually((run.folder / "held").exists, description="line 99 hangs")
            run.feed.stop()
            await asyncio.wait_for(running, timeout=5)

        assert run.settled.keys() == {0}
        assert run.feed.canceled == {99}


class TestLostTasks:
    async def test_a_lost_chunk_is_submitted_again(self, a_run: Callable[..., Any]) -> None:
        async with a_run() as run:
            run.cluster.losses = [LostTaskError("its worker died"), Crashed(message="SIGTERM")]
            await run.run(0, 1)

        assert (run.cluster.submitted, run.settled.keys()) == (3, {0, 1})

    async def test_one_that_is_lost_again_and_again_ends_the_run(self, a_run: Callable[..., Any]) -> None:
        async with a_run() as run:
            run.cluster.losses = [LostTaskError("its worker died")] * SUBMISSIONS
            await run.run(0, 1)

        [failure] = run.failures
        assert isinstance(failure, ClusterError)
        assert f"lines 0 to 1> {SUBMISSIONS} times" in str(failure)
        assert run.settled == {}

    async def test_what_a_chunk_without_report_has_done_is_counted(self, a_run: Callable[..., Any]) -> None:
        async with a_run() as run:
            await run.run(0, -1)
            run.settled.clear()
            run.feed._unanswered[0] = [Line(0, {"n": 0}), Line(1, {"n": -1}), Line(2, {"n": 2})]
            await run.feed.written(5)

        assert run.settled.keys() == {0, 1}


class TestRefusals:
    """What is no line's fault comes back as the failure of the run."""

    async def test_a_storage_that_is_not_shared(self, a_run: Callable[..., Any], tmp_path: Path) -> None:
        async with a_run(storage_url=str(tmp_path / "elsewhere")) as run:
            await run.run(0)
        assert isinstance(run.failures[0], StorageError)
        assert "does not see the run's file" in str(run.failures[0])

    async def test_a_flow_that_is_not_there(self, a_run: Callable[..., Any], tmp_path: Path) -> None:
        async with a_run() as run:
            (tmp_path / "gone").mkdir()
            gone = flow_of(tmp_path / "gone", COUNT)
            (tmp_path / "gone" / "flow_code.py").unlink()
            (tmp_path / "gone").rmdir()
            other = ARun(tmp_path, run.feed._driver, WorkerPool(gone), gone)
            await other.run(0)
        assert isinstance(other.failures[0], FlowNotFoundError)

    async def test_another_version_of_the_package(self, a_run: Callable[..., Any]) -> None:
        async with a_run(version="0.0.1") as run:
            await run.run(0)
        assert isinstance(run.failures[0], InvalidOptionError)

    async def test_a_task_of_an_earlier_start_writes_nothing(self, a_run: Callable[..., Any]) -> None:
        async with a_run() as run:
            running = asyncio.ensure_future(run.run(0, 99))
            await eventually((run.folder / "held").exists, description="line 99 hangs")
            files = RunStorageBlock(url=run.description.storage_url)
            [of_first_start] = node._runs.values()
            async with Driver(files, KEYS, 2):
                await asyncio.wait_for(running, timeout=5)
            assert of_first_start._is_fenced, "what its tasks write from here on is refused"
        index, _ = await run.records.scan()
        assert 99 not in index.lines

    async def test_nor_what_it_had_not_written_yet(self, a_run: Callable[..., Any]) -> None:
        async with a_run() as run:
            files = RunStorageBlock(url=run.description.storage_url)
            late = node.RemoteRun(run.description)  # its process has just woken up: it has not looked yet
            records = node._ChunkRecords(files, KEYS, run.description, late._check_writer)
            async with Driver(files, KEYS, 2):
                with pytest.raises(RunInUseError, match="started again elsewhere"):
                    await records.append([outcome_of(0)])
        assert await run.records.segments() == []

    def test_a_cluster_without_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("prefect_dask", "ray", "prefect_ray"):
            monkeypatch.setitem(__import__("sys").modules, name, None)
        for kind in ("dask", "ray"):
            with pytest.raises(InvalidOptionError, match=rf"pip install 'prefect-batchflow\[{kind}\]'"):
                cluster_of(kind, "", 1)

    def test_each_cluster_is_found_by_its_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for cluster in (DaskCluster, RayCluster):
            monkeypatch.setattr(cluster, "_task_runner", lambda _: None)
        assert [type(cluster_of(kind, "", 1)) for kind in ("dask", "ray")] == [DaskCluster, RayCluster]


class TestSignals:
    @pytest.fixture
    def heard(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        """The SIGTERMs that this process's own handler was called for."""
        monkeypatch.setattr(RayCluster, "_task_runner", lambda _: None)
        heard: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        yield heard
        signal.signal(signal.SIGTERM, before)

    @staticmethod
    def take_sigterm() -> int:
        """What Ray does to SIGTERM, when it is connected; its places."""
        ignore = 1  # SIG_IGN of the C library
        ctypes.CDLL(None).signal(int(signal.SIGTERM), ignore)
        return 2

    async def test_what_ray_does_to_sigterm_is_undone(self, heard: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        """Its handler is in C, so that Python's own goes on saying what it was."""
        monkeypatch.setattr(RayCluster, "_connect", lambda _: self.take_sigterm())
        cluster = RayCluster("", 2)

        assert await cluster.connect() == 2
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: heard, description="SIGTERM is heard", timeout_sec=5)
        await cluster.close()

    async def test_also_when_the_run_waits_no_more_for_its_connect(
        self, heard: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connects, answers = threading.Event(), threading.Event()

        def connect(_: RayCluster) -> int:
            connects.set()
            answers.wait()
            return self.take_sigterm()

        monkeypatch.setattr(RayCluster, "_connect", connect)
        cluster = RayCluster("", 2)
        try:
            connecting = asyncio.create_task(cluster.connect())
            await eventually(connects.is_set, description="it connects")
            connecting.cancel()
            closing = asyncio.create_task(cluster.close())
            await eventually(cluster._is_closing.is_set, description="it closes")
            answers.set()
            await closing
            os.kill(os.getpid(), signal.SIGTERM)
            await eventually(lambda: heard, description="SIGTERM is heard", timeout_sec=5)
        finally:
            answers.set()


class TestSecrets:
    async def test_no_repr_shows_what_a_run_was_given(self, a_run: Callable[..., Any]) -> None:
        """Dask logs the repr of what it could not run."""
        async with a_run() as run:
            assignment = Assignment("r", "r/1", pickle.dumps(run.description), [Line(3, {"n": SECRET}), Line(4, {})])
        shown = f"{assignment!r} {run.description!r} {run.description.given!r}"
        assert SECRET not in shown
        assert "<lines 3 to 4>" in shown
