"""What ends a run before its lines have ended: a cancel, its time limit, a failure that is no line's."""

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
"""How long lines that run may go on after the first Ctrl-C; with what follows, the run ends within 10 s of it."""


class Stop:
    """Whether a run is stopped and why, and the way to stop what it does.

    Args:
        live: Where its caller cancels it.
        limit_sec: Seconds that the run may take; `None` is no limit.
        clock: When it started, on the monotonic clock.
    """

    def __init__(self, live: LiveRun, limit_sec: float | None, clock: float) -> None:
        self._live = live
        self._limit_sec = limit_sec
        self._clock = clock
        self._error: BatchflowException | None = None
        self._failure: BatchflowException | None = None
        self._stop_now: Callable[[], object] = lambda: None
        self.is_stopped = False
        """By somebody, by the run's time limit, or by a failure that is no line's."""
        self.feed: LineFeed | None = None
        """What runs the lines, as soon as they do."""

    @property
    def is_canceled(self) -> bool:
        """Whether it was stopped by somebody, not by a limit of its own."""
        return self.is_stopped and self._error is None

    @property
    def error_dict(self) -> dict[str, Any] | None:
        """The limit that ended the run, as promptflow's error dictionary."""
        return error_dict(self._error) if self._error else None

    def fail(self, exc: BatchflowException) -> None:
        """End the run, whatever it does now, for a reason that leaves no result. The first reason stays."""
        if self._failure is None:
            self._failure = exc
            self._stop_now()

    def raise_failure(self) -> None:
        """Raise what leaves no result, if there is anything."""
        if self._failure is not None:
            raise self._failure

    def on_failure_limit(self, exc: BatchflowException) -> None:
        """End the run with what it has: more failed than it bears. The first reason stays."""
        if self._error is None:
            self._error = exc
            self._stop_now()

    async def unless_stopped(self, stage: Coroutine[Any, Any, T]) -> T | None:
        """What a stage gives; `None` when the run is stopped before it ends.

        Raises:
            BatchflowException: The stage's own, or what ended the run without a result.
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
        """Let a cancel, the run's time limit or a failing storage stop the lines, and what `also` stops."""
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
                    f"The batch run exceeded its limit of {self._limit_sec:g} seconds. Resume it, with a longer "
                    "batch_timeout_sec, to run the lines that are left."
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
