"""Lines and the run storage: none begins while it fails, and what has ended is kept however its task ends."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any, cast

import pytest
from outcomes import outcome_of
from scripted_storage import Script, scripted
from waiting import eventually

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.execution.line_feed import LineEvents
from prefect_batchflow.line_runner import ChunkRun, LineRunner
from prefect_batchflow.lines import Line
from prefect_batchflow.settings import LinePolicy
from prefect_batchflow.storage import retries
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from prefect_batchflow.exceptions import BatchflowException
    from prefect_batchflow.execution.executor import Executor, LineOutcome

pytestmark = pytest.mark.anyio


class OneWorker:
    """An executor with one slot, whose lines end when the test lets them."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.steps = asyncio.Semaphore(0)
        self._slot = asyncio.Semaphore(1)
        self._running: set[int] = set()

    async def run_line(self, line: Line, *, attempt: int, timeout_sec: float) -> LineOutcome:
        async with self._slot:
            self.begun.append(line.line_number)
            self._running = {line.line_number}
            try:
                await self.steps.acquire()
                return outcome_of(line.line_number, attempt=attempt)
            finally:
                self._running = set()

    def running(self) -> set[int]:
        return set(self._running)


class AFeed:
    """Six lines in one chunk on one worker, whose records are kept on a storage with a script."""

    def __init__(self) -> None:
        self.settled: list[int] = []
        self.failures: list[BatchflowException] = []
        self.worker = OneWorker()
        files = RunStorageBlock(url=f"scripted://{uuid.uuid4().hex}/runs")
        self.records = RunRecords(files, RunKeys("run-1"), session=1)
        self.runner = LineRunner(
            cast("Executor", self.worker),
            self.records,
            LinePolicy(),
            LineEvents(settled=lambda receipt: self.settled.append(receipt.line_number), failed=self.failures.append),
        )
        lines = [Line(n, {"n": n}) for n in range(6)]
        self.runner.open_lines += len(lines)
        self.chunk = asyncio.ensure_future(ChunkRun(self.runner).run(lines))

    async def until_failing(self) -> None:
        """Let line 0 end; its record meets the error."""
        await eventually(lambda: self.worker.begun == [0], description="line 0 runs")
        self.worker.steps.release()
        await eventually(lambda: not self.runner._storage_works.is_set(), description="the storage fails")


@pytest.fixture(autouse=True)
def _chunks_write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_batchflow.line_runner.FLUSH_EVERY_SEC", 0.01)


async def test_lines_that_no_worker_has_begun_wait_until_the_storage_works(monkeypatch: pytest.MonkeyPatch) -> None:
    working = asyncio.Event()
    monkeypatch.setattr(retries, "asyncio", _WaitsFor(working))
    with scripted(Script("503", 1, "write")):
        feed = AFeed()
        await feed.until_failing()
        feed.worker.steps.release()  # line 1, which a worker has
        await eventually(lambda: feed.worker.running() == set(), description="line 1 has ended")
        assert feed.worker.begun == [0, 1]

        working.set()
        for _ in range(4):
            feed.worker.steps.release()
        await feed.chunk

    assert sorted(feed.settled) == sorted(feed.worker.begun) == list(range(6)), "each line ran once"
    assert feed.failures == []


async def test_a_stop_does_not_wait_for_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    working = asyncio.Event()
    monkeypatch.setattr(retries, "asyncio", _WaitsFor(working))
    with scripted(Script("503", 1, "write", lasts=True)):
        feed = AFeed()
        await feed.until_failing()
        feed.runner.stop()
        working.set()
        with pytest.raises(Exception, match="Please reduce your request rate"):
            await feed.chunk

    assert feed.worker.begun == [0, 1], "no line begins after the stop"
    assert len(feed.failures) >= 1


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
async def test_lines_that_have_ended_are_kept_when_their_chunk_ends_early(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("prefect_batchflow.line_runner.FLUSH_EVERY_SEC", 600.0)
    feed = AFeed()
    for _ in range(2):
        feed.worker.steps.release()
    await eventually(lambda: feed.worker.begun == [0, 1, 2], description="two lines have ended, and the third one runs")
    assert feed.settled == []

    if how == "cancelled":
        feed.chunk.cancel()
    else:
        feed.runner.stop()
    await asyncio.wait({feed.chunk})

    assert sorted(feed.settled) == [0, 1]
    index, _ = await feed.records.scan()
    assert set(index.lines) == {0, 1}


class _WaitsFor:
    """`asyncio`, but a sleep lasts until an event."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    async def sleep(self, _: float) -> None:
        await self._event.wait()

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)
