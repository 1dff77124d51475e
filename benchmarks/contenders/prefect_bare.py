"""Bare Prefect: async task runs awaited in a bounded window on one event loop, the minimum cost of a task run per line."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

from job import Job, measure
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

if TYPE_CHECKING:
    from collections.abc import Callable


def prepare(job: Job) -> Callable[[], int]:
    """`on_event_loop` takers share the lines."""
    function = job.line_function()

    @task(cache_policy=NO_CACHE, persist_result=False, cache_result_in_memory=False)
    async def line(text: str) -> str:
        answer = function(text)
        return str(await answer if inspect.isawaitable(answer) else answer)

    @flow
    async def windowed() -> int:
        waiting = iter(job.texts())

        async def take() -> int:
            done = 0
            for text in waiting:
                await line(text)
                done += 1
            return done

        return sum(await asyncio.gather(*(take() for _ in range(job.on_event_loop))))

    return lambda: asyncio.run(windowed())


if __name__ == "__main__":
    measure(prepare)
