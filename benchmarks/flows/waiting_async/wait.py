"""A node that waits, as for a model's answer, on an event loop."""

from __future__ import annotations

import asyncio
import os

from promptflow.core import tool

WAIT_SEC = float(os.environ["BENCH_WAIT_SEC"])


@tool
async def wait(text: str) -> str:
    """Give the text after `WAIT_SEC`."""
    await asyncio.sleep(WAIT_SEC)
    return text
