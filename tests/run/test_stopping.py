"""What may end a run, and what that ends."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast

import pytest
from waiting import eventually

from prefect_batchflow.exceptions import BatchFailureLimitError, RunInUseError
from prefect_batchflow.run import stopping
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.run.stopping import Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_batchflow.execution.line_feed import LineFeed

pytestmark = pytest.mark.anyio


class Lines:
    """What runs lines, as far as a stop knows it: notes how it is stopped."""

    def __init__(self) -> None:
        self.stops: list[str] = []
        self.is_stopped = asyncio.Event()

    def stop(self, *, drain: bool = False) -> None:
        self.stops.append("drain" if drain else "stop")
        self.is_stopped.set()


async def never() -> str:
    await asyncio.Event().wait()
    return "ended"


async def some() -> str:
    return "ended"


def a_stop(live: LiveRun | None = None, limit_sec: float | None = None) -> Stop:
    return Stop(live or LiveRun(), limit_sec, time.monotonic())


def with_lines(stop: Stop) -> Lines:
    lines = Lines()
    stop.feed = cast("LineFeed", lines)
    return lines


TAKEN = RunInUseError("taken over", run_id="r")
TOO_MANY = BatchFailureLimitError("too many failed")


class TestAStage:
    async def test_that_ends_gives_what_it_gives(self) -> None:
        stop = a_stop()
        assert await stop.unless_stopped(some()) == "ended"
        assert not stop.is_stopped

    @pytest.mark.parametrize("cancelled", ["before", "meanwhile"])
    async def test_is_ended_by_a_cancel(self, cancelled: str) -> None:
        live = LiveRun()
        if cancelled == "before":
            live.cancel()
        else:
            asyncio.get_running_loop().call_soon(live.cancel)
        stop = a_stop(live)

        assert await stop.unless_stopped(never()) is None
        assert (stop.is_canceled, stop.error_dict) == (True, None)

    async def test_is_ended_by_the_runs_limit(self) -> None:
        stop = a_stop(limit_sec=0.01)

        assert await stop.unless_stopped(never()) is None
        assert (stop.is_stopped, stop.is_canceled) == (True, False)
        assert stop.error_dict is not None
        assert "exceeded its limit of 0.01 seconds" in stop.error_dict["message"]

    async def test_is_ended_by_what_leaves_no_result_and_raises_it(self) -> None:
        stop = a_stop()
        asyncio.get_running_loop().call_soon(stop.fail, TAKEN)

        with pytest.raises(RunInUseError, match="taken over"):
            await stop.unless_stopped(never())

    async def test_raises_what_left_no_result_before_it(self) -> None:
        """Between two stages nobody hears of it; it must not be lost."""
        stop = a_stop()
        stop.fail(TAKEN)

        with pytest.raises(RunInUseError):
            await stop.unless_stopped(some())
        with pytest.raises(RunInUseError):
            stop.raise_failure()


class TestLines:
    @pytest.mark.parametrize(
        ("does", "stopped"),
        [
            (lambda live, _: live.cancel(), ["stop"]),
            (lambda live, _: live.cancel(drain=True), ["drain"]),
            (lambda live, _: [live.cancel(drain=True), live.cancel()], ["drain", "stop"]),
            (lambda _, stop: stop.on_failure_limit(TOO_MANY), ["stop"]),
            (lambda _, stop: stop.fail(TAKEN), ["stop"]),
        ],
        ids=["cancel", "drain", "drain, then cancel", "too many failed", "lease lost"],
    )
    async def test_are_stopped_by(self, does: Callable[[LiveRun, Stop], Any], stopped: list[str]) -> None:
        live = LiveRun()
        stop = a_stop(live)
        lines, woken = with_lines(stop), asyncio.Event()

        with stop.stops(woken.set):
            does(live, stop)
            async with asyncio.timeout(10):
                await lines.is_stopped.wait()
                await asyncio.sleep(0)

        assert lines.stops == stopped
        assert woken.is_set() is (stopped != ["drain"])
        assert stop.is_stopped

    async def test_that_drain_are_stopped_after_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stopping, "DRAIN_SEC", 0.01)
        live = LiveRun()
        stop = a_stop(live)
        lines, woken = with_lines(stop), asyncio.Event()

        with stop.stops(woken.set):
            live.cancel(drain=True)
            await asyncio.wait_for(woken.wait(), 10)

        assert lines.stops == ["drain", "stop"]

    async def test_are_stopped_no_more_once_they_have_ended(self) -> None:
        live = LiveRun()
        stop = a_stop(live)
        lines = with_lines(stop)
        with stop.stops(lambda: None):
            pass

        live.cancel()
        await asyncio.sleep(0)

        assert (lines.stops, stop.is_stopped) == ([], False)


class TestTheFirstReason:
    async def test_stays_when_the_limit_passes_while_lines_end(self) -> None:
        live = LiveRun()
        stop = a_stop(live, limit_sec=0.02)
        lines = with_lines(stop)
        with stop.stops(lambda: None):
            live.cancel()
            await eventually(lambda: len(lines.stops) == 2, description="it is cancelled, and the limit passes")

        assert (stop.is_canceled, stop.error_dict) == (True, None)

    async def test_stays_when_more_lines_fail(self) -> None:
        stop = a_stop()
        with_lines(stop)
        stop.on_failure_limit(TOO_MANY)
        stop.on_failure_limit(BatchFailureLimitError("even more"))

        assert stop.error_dict is not None
        assert stop.error_dict["message"] == "too many failed"
