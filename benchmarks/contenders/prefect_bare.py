"""Bare Prefect: async task runs awaited in a bounded window on one event loop, the least a task run a line costs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from job import Job, measure
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 16
"""Task runs awaited at once; they wait for nothing, so that more brings no speed."""


@task(cache_policy=NO_CACHE, persist_result=False, cache_result_in_memory=False)
async def upper(text: str) -> str:
    """What the trivial flow's node does."""
    return text.upper()


def prepare(job: Job) -> Callable[[], int]:
    """`WINDOW` takers share the lines."""

    @flow
    async def windowed() -> int:
        waiting = iter(job.texts())

        async def take() -> int:
            done = 0
            for text in waiting:
                await upper(text)
                done += 1
            return done

        return sum(await asyncio.gather(*(take() for _ in range(WINDOW))))

    return lambda: asyncio.run(windowed())


if __name__ == "__main__":
    measure(prepare)
