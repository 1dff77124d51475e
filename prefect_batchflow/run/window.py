"""A sliding window of work on the event loop: the next piece begins when there is room."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


CANCEL_WITHIN_SEC = 5.0
"""How long cancelled work may take to end."""
MOST_BESIDE = 1_000
"""Pieces of work that are allowed beyond the width because they do not count as load, such as those that wait for a retry."""


class Window:
    """Begins work while the load is below the width. `load` counts it, in lines for example; `None` counts pieces of work."""

    def __init__(self, width: Callable[[], int], load: Callable[[], int] | None = None) -> None:
        self._width = width
        self._load = load or (lambda: len(self._active))
        self._active: set[asyncio.Task[Any]] = set()
        self._ended = asyncio.Event()
        self._error: BaseException | None = None

    async def begin(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Begin work as soon as there is room. Raises an error of earlier work."""
        while self._is_full() and self._error is None:
            await self._next_end()
        self._raise_error()
        task = asyncio.ensure_future(work())
        self._active.add(task)
        task.add_done_callback(self._on_end)

    async def drain(self) -> None:
        """Wait until all work has ended, then raise its first error."""
        while self._active:
            await self._next_end()
        self._raise_error()

    async def end(self, grace_sec: float) -> None:
        """Give work some time to end, then cancel the rest and let it save what it has. Raises nothing."""
        if self._active:
            await asyncio.wait(self._active, timeout=grace_sec)
        for task in self._active:
            task.cancel()
        if self._active:
            await asyncio.wait(self._active, timeout=CANCEL_WITHIN_SEC)

    def wake(self) -> None:
        """Check again for room, because the load has changed."""
        self._ended.set()

    def _is_full(self) -> bool:
        width = self._width()
        return self._load() >= width or len(self._active) >= width + MOST_BESIDE

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
