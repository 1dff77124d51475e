"""Waiting for something to become true: bounded, and with a word on what did not happen."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_EVERY_SEC = 0.01


def wait_until(predicate: Callable[[], object], *, description: str, timeout_sec: float = 60.0) -> None:
    """Return as soon as `predicate()` is true; fail with the description when it never is."""
    deadline = time.monotonic() + timeout_sec
    while not predicate():
        assert time.monotonic() < deadline, f"after {timeout_sec:g} s still not: {description}"
        time.sleep(_LOOK_EVERY_SEC)


async def eventually(predicate: Callable[[], object], *, description: str, timeout_sec: float = 60.0) -> None:
    """`wait_until` on an event loop."""
    deadline = time.monotonic() + timeout_sec
    while not predicate():
        assert time.monotonic() < deadline, f"after {timeout_sec:g} s still not: {description}"
        await asyncio.sleep(_LOOK_EVERY_SEC)
