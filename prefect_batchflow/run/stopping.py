"""What ends a run before its lines have ended: a cancel, its time limit, or a failure that is not the fault of a line."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_batchflow.exceptions import BatchflowException, BatchRunTimeoutError, error_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from prefect_batchflow.execution.line_feed import LineFeed
    from prefect_batchflow.run.handle import LiveRun

T = TypeVar("T")

DRAIN_SEC = 5.0
"""How long running lines may continue after the first Ctrl-C. With what follows, the run ends within 10 s."""


class Stop:
    """Whether and why a run is stopped, and how to stop what it is doing.

    The run can take `limit_sec` seconds after `clock`, a time of the monotonic clock; `None` means no limit.
    """

    def __init__(self, live: LiveRun, limit_sec: float | None, clock: float) -> None:
        self._live = live
        self._limit_sec = limit_sec
        self._clock = clock
        self._error: BatchflowException | None = None
        self._failure: BatchflowException | None = None
        self._stop_now: Callable[[], object] = lambda: None
        self.is_stopped = False
        """Stopped by a person, by a limit of the run, or by a failure that is not the fault of a line."""
        self.feed: LineFeed | None = None
        """What runs the lines, once they run."""

    @property
    def is_canceled(self) -> bool:
        """Whether a person stopped it, not a limit of its own."""
        return self.is_stopped and self._error is None

    @property
    def error_dict(self) -> dict[str, Any] | None:
        """The limit that ended the run, as promptflow's error dictionary."""
        return error_dict(self._error) if self._error else None

    def fail(self, exc: BatchflowException) -> None:
        """End the run, whatever it is doing, for a reason that leaves no result. The first reason stays."""
        if self._failure is None:
            self._failure = exc
            self._stop_now()

    def raise_failure(self) -> None:
        """Raise the reason for which there is no result, if there is one."""
        if self._failure is not None:
            raise self._failure

    def on_failure_limit(self, exc: BatchflowException) -> None:
        """End the run with a partial result, because too many lines failed. The first reason stays."""
        if self._error is None:
            self._error = exc
            self._stop_now()

    async def unless_stopped(self, stage: Coroutine[Any, Any, T]) -> T | None:
        """The result of a stage; `None` if the run is stopped before the stage ends.

        Raises:
            BatchflowException: The stage's own, or the one that ended the run without a result.
        """
        work = asyncio.ensure_future(stage)
        try:
            with self.stops(work.cancel):
                await asyncio.wait({work})
        finally:
            work.cancel()
        failed = None if work.cancelled() else work.exception()
        self.raise_failure()
        if failed is not None:
            raise failed
        return None if work.cancelled() else work.result()

    @contextlib.contextmanager
    def stops(self, also: Callable[[], object]) -> Iterator[None]:
        """Let a cancel, the run's time limit or a failure stop the lines, and call `also`."""
        feed, loop = self.feed, asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []

        def stop() -> None:
            self.is_stopped = True
            if feed is not None:
                feed.stop()
            also()

        def drain() -> None:
            if feed is None:
                stop()
                return
            self.is_stopped = True
            feed.stop(drain=True)
            timers.append(loop.call_later(DRAIN_SEC, stop))

        def on_limit() -> None:
            if not self.is_stopped:
                self._error = BatchRunTimeoutError(
                    f"The batch run exceeded its limit of {self._limit_sec:g} seconds. To run the remaining lines, resume it "
                    "with a longer batch_timeout_sec."
                )
            stop()

        if self._limit_sec is not None:
            left = self._limit_sec - (time.monotonic() - self._clock)
            timers.append(loop.call_later(max(left, 0), on_limit))
        self._stop_now = stop
        self._live.when_cancelled(lambda drains: loop.call_soon_threadsafe(drain if drains else stop))
        try:
            yield
        finally:
            self._live.when_cancelled(lambda _: None)
            self._stop_now = lambda: None
            for timer in timers:
                timer.cancel()
