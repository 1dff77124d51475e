"""An event loop beside sync code: where sync code of a flow calls something async and waits for it.

The loop lives as long as the process, so that clients which belong to it stay usable from call to call.
"""

from __future__ import annotations

import asyncio
import os
from contextvars import ContextVar
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_batchflow.tools.context import travelling

if TYPE_CHECKING:
    from collections.abc import Coroutine

Result = TypeVar("Result")

_depth: ContextVar[int | None] = travelling(ContextVar("side_loop_depth", default=None))
"""How many of these loops wait for the code that runs here."""
_loops: dict[tuple[int, int], asyncio.AbstractEventLoop] = {}
"""By process, because a fork has no threads, and by depth."""
_starting = Lock()


def run_beside(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in another thread, in this context, and wait for it, also from code that runs on an event loop."""
    depth = _depth.get() or 0
    key = os.getpid(), depth
    with _starting:
        if key not in _loops:
            loop = _loops[key] = asyncio.new_event_loop()
            Thread(target=loop.run_forever, name=f"side-loop-{depth}", daemon=True).start()

    async def run() -> Result:
        # A loop whose code waits for a coroutine cannot run that coroutine.
        _depth.set(depth + 1)
        return await coroutine

    return asyncio.run_coroutine_threadsafe(run(), _loops[key]).result()
