"""What a run relies on in whatever runs its lines: a task run per line, a task run per chunk, and a cluster."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from fake_cluster import FakeCluster
from pools import flow_of, running_pool
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from waiting import eventually

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.cluster import node
from prefect_batchflow.cluster.feed import ClusterFeed, Shares
from prefect_batchflow.cluster.work import RunDescription
from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.execution.line_feed import LineEvents
from prefect_batchflow.execution.workers.pool import WorkerPool
from prefect_batchflow.lines import Line
from prefect_batchflow.results.records import Status
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.run.stopping import Stop
from prefect_batchflow.settings import LinePolicy
from prefect_batchflow.storage.control import Driver
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.records import RunRecords
from prefect_batchflow.tasks import LocalFeed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.execution.line_feed import LineFeed
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.settings import Granularity

    Opened = Callable[..., AbstractAsyncContextManager["AFeed"]]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("prefect_server", "_without_logs")]

KEYS = RunKeys("r")
FAILS, WAITS = -1, 99
FLOW = """
import time
from pathlib import Path

def main(n: int) -> int:
    if n < 0:
        raise ValueError(n)
    while n == 99 and not Path("go").exists():
        Path("waits").touch()
        time.sleep(0.01)
    return n
"""


@pytest.fixture
def _without_logs() -> Iterator[None]:
    """Task runs that belong to no flow run send no logs."""
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield


class AFeed:
    """A feed of one line at once, and what it calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = RunStorageBlock(url=str(folder / "runs"))
        self.records = RunRecords(self.files, KEYS, 1)
        self.settled: list[Receipt] = []
        self.ended: list[int] = []
        self.persisted: list[tuple[int, int]] = []
        self.stop = Stop(LiveRun(), None, 0)
        self.events = LineEvents(
            settled=self.settled.append,
            ended=lambda receipt: self.ended.append(receipt.line_number),
            persisted=self._persist,
            failed=self.stop.fail,
        )
        self.feed = cast("LineFeed", None)
        self.in_one_group = True

    def _persist(self, outcomes: Sequence[LineOutcome]) -> None:
        self.persisted += [(outcome.receipt.line_number, outcome.receipt.attempt) for outcome in outcomes]

    def begin(self, *values: int, first: int = 0) -> asyncio.Future[Any]:
        """Run lines with consecutive numbers, in as many groups as the feed has for them."""
        lines = [Line(number, {"n": n}) for number, n in enumerate(values, first)]
        groups = [lines] if self.in_one_group else [[line] for line in lines]
        return asyncio.gather(*(self.feed.run(group) for group in groups))

    async def run(self, *values: int) -> None:
        await self.begin(*values)
        await self.feed.written(5)

    async def waits(self) -> None:
        await eventually((self.folder / "waits").exists, description="a line waits in a worker")

    @property
    def statuses(self) -> dict[int, Status]:
        return {receipt.line_number: receipt.status for receipt in self.settled}


def _local(granularity: Granularity) -> Any:
    @asynccontextmanager
    async def open_feed(a: AFeed, flow: Flow, policy: LinePolicy) -> AsyncIterator[LineFeed]:
        async with running_pool(flow, worker_count=1) as pool:
            yield LocalFeed(pool, a.records, policy, a.events, run_id="r", granularity=granularity, total_lines=12)

    return open_feed


@asynccontextmanager
async def _cluster(a: AFeed, flow: Flow, policy: LinePolicy) -> AsyncIterator[LineFeed]:
    async with Driver(a.files, KEYS, 1) as driver:
        description = RunDescription(
            run_id="r",
            session=1,
            since=0,
            owner=driver.owner,
            storage_url=a.files.url,
            storage_options={},
            flow=flow,
            given=WorkerPool(flow).given(),
            policy=policy,
            ends_on_failure=False,
            lines_at_once=1,
            line_memory_mb=None,
        )
        yield ClusterFeed(FakeCluster(), driver, description, a.records, Shares(1, 1, 12), a.events)
    await eventually(lambda: not node._runs, description="the workers of the run are gone", timeout_sec=10)


KINDS = {"a task run per line": _local("line"), "a task run per chunk": _local("chunk"), "a cluster": _cluster}


class TestLineFeedContract:
    @pytest.fixture(params=KINDS)
    def opened(self, request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
        @asynccontextmanager
        async def make(policy: LinePolicy = LinePolicy()) -> AsyncIterator[AFeed]:  # noqa: B008 - it is frozen
            flow = flow_of(tmp_path, FLOW)
            a = AFeed(tmp_path)
            async with KINDS[request.param](a, flow, policy) as feed:
                a.feed = a.stop.feed = feed
                a.in_one_group = request.param != "a task run per line"
                assert (feed.group > 1) is a.in_one_group
                yield a

        return make

    async def test_every_line_is_settled_once_with_its_record_safe(self, opened: Opened) -> None:
        async with opened() as a:
            await a.run(0, FAILS, 2)

        expected = {0: Status.Completed, 1: Status.Failed, 2: Status.Completed}
        assert a.statuses == expected
        assert sorted(a.ended) == sorted(receipt.line_number for receipt in a.settled) == [0, 1, 2]
        assert sorted(a.persisted) == [(0, 1), (1, 1), (2, 1)]
        index, _ = await a.records.scan()
        assert {number: stored.receipt.status for number, stored in index.lines.items()} == expected
        assert (a.feed.canceled, a.feed.unsettled) == (set(), {})

    async def test_a_retried_line_is_settled_with_its_last_attempt(self, opened: Opened) -> None:
        async with opened(LinePolicy(retries=1)) as a:
            await a.run(0, FAILS)

        assert {receipt.line_number: receipt.attempt for receipt in a.settled} == {0: 1, 1: 2}
        assert len(a.settled) == len(a.ended) == 2
        assert sorted(a.persisted) == [(0, 1), (1, 1), (1, 2)]
        assert a.feed.unsettled == {}

    async def test_lines_count_as_load_from_the_call_until_they_end(self, opened: Opened) -> None:
        async with opened() as a:
            loads: list[int] = []
            a.feed.on_room = lambda: loads.append(a.feed.load())
            work = a.begin(WAITS)
            assert a.feed.load() == 1
            await a.waits()
            assert (a.feed.load(), a.feed.running()) == (1, 1)
            (a.folder / "go").touch()
            await work

            assert (a.feed.load(), loads[-1], a.feed.running()) == (0, 0, 0)

    async def test_a_stop_ends_the_lines_that_run_and_begins_no_more(self, opened: Opened) -> None:
        async with opened() as a:
            await a.begin(0, FAILS)
            work = a.begin(WAITS, WAITS, first=2)
            await a.waits()
            a.feed.stop()
            a.feed.stop()
            await asyncio.wait_for(work, a.feed.stop_grace_sec)
            await a.feed.written(5)

            assert a.feed.load() == 0
        assert a.statuses == {0: Status.Completed, 1: Status.Failed}
        assert (len(a.feed.canceled), a.feed.unsettled) == (1, {}), "one of the two had not begun"
        assert a.feed.canceled < {2, 3}

    async def test_a_drain_lets_the_lines_that_run_end(self, opened: Opened) -> None:
        async with opened() as a:
            work = a.begin(WAITS, WAITS)
            await a.waits()
            a.feed.stop(drain=True)
            chunks = [chunk for run in node._runs.values() for chunk in run._chunks]
            await eventually(lambda: all(chunk.ended_by for chunk in chunks), description="a cluster has heard it")
            (a.folder / "go").touch()
            await asyncio.wait_for(work, a.feed.stop_grace_sec)
            await a.feed.written(5)

        assert [receipt.status for receipt in a.settled] == [Status.Completed]
        assert (a.feed.canceled, a.feed.unsettled) == (set(), {})

    async def test_a_stop_after_a_drain_ends_the_lines(self, opened: Opened) -> None:
        async with opened() as a:
            work = a.begin(WAITS)
            await a.waits()
            a.feed.stop(drain=True)
            a.feed.stop()
            await asyncio.wait_for(work, a.feed.stop_grace_sec)
            await a.feed.written(5)

        assert (a.settled, a.feed.canceled) == ([], {0})

    async def test_a_line_that_waits_for_its_next_attempt_is_unsettled(self, opened: Opened) -> None:
        async with opened(LinePolicy(retries=1, retry_delay_sec=600)) as a:
            work = a.begin(FAILS)
            records = a.folder / "runs" / KEYS.records
            await eventually(lambda: [*records.glob("[!.]*")], description="the first attempt is kept")
            a.feed.stop()
            await asyncio.wait({work}, timeout=a.feed.stop_grace_sec)
            work.cancel()
            await asyncio.wait({work})
            await a.feed.written(5)

        assert (a.settled, a.ended, a.feed.canceled) == ([], [], set())
        assert {number: receipt.status for number, receipt in a.feed.unsettled.items()} == {0: Status.Failed}

    async def test_a_failure_that_is_no_lines_fault_ends_the_run_once(self, opened: Opened) -> None:
        ended: list[bool] = []
        async with opened() as a:
            (a.folder / "runs" / "r").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(a.folder / "runs" / "r" / "records", ignore_errors=True)
            (a.folder / "runs" / "r" / "records").write_text("no folder")
            with a.stop.stops(lambda: ended.append(True)):
                await asyncio.wait({work := a.begin(0, 1, 2)})
                await a.feed.written(5)
            work.exception()

        assert ended == [True]
        assert a.settled == []
        with pytest.raises(StorageError):
            a.stop.raise_failure()
