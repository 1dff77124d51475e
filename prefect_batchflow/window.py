"""A sliding window of work on the event loop: so many at once, the next begun when one ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


CANCEL_WITHIN_SEC = 5.0
"""How long cancelled work may take to end."""


class Window:
    """Holds at most `width` pieces of work that count.

    Args:
        width: How many at once.
        not_counted: How many of those begun are not to count, such as lines that wait for a retry.
    """

    def __init__(self, width: int, not_counted: Callable[[], int] = lambda: 0) -> None:
        self._width = width
        self._not_counted = not_counted
        self._active: set[asyncio.Task[Any]] = set()
        self._ended = asyncio.Event()
        self._error: BaseException | None = None

    async def begin(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Begin work as soon as there is room; an error of earlier work is raised here."""
        while len(self._active) - self._not_counted() >= self._width and self._error is None:
            await self._next_end()
        self._raise_error()
        task = asyncio.ensure_future(work())
        self._active.add(task)
        task.add_done_callback(self._on_end)

    async def drain(self) -> None:
        """Wait until all work has ended; the first error is raised then."""
        while self._active:
            await self._next_end()
        self._raise_error()

    async def end(self, grace_sec: float) -> None:
        """Let work that is ending end, then cancel what is left and let it keep what it has; no error is raised."""
        if self._active:
            await asyncio.wait(self._active, timeout=grace_sec)
        for task in self._active:
            task.cancel()
        if self._active:
            await asyncio.wait(self._active, timeout=CANCEL_WITHIN_SEC)

    def wake(self) -> None:
        """Look again whether there is room: what does not count may have changed."""
        self._ended.set()

    async def _next_end(self) -> None:
        self._ended.clear()
        await self._ended.wait()

    def _on_end(self, task: asyncio.Task[Any]) -> None:
        self._active.discard(task)
        if not task.cancelled() and task.exception() is not None and self._error is None:
            self._error = task.exception()
        self._ended.set()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
