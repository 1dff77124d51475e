"""Plain Prefect: a task mapped over the lines on a pool of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from job import Job, measure
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

if TYPE_CHECKING:
    from collections.abc import Callable


def prepare(job: Job) -> Callable[[], int]:
    """The code that a Prefect user writes first."""
    line = task(cache_policy=NO_CACHE)(job.line_function())

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=job.at_once))  # type: ignore[arg-type]  # Prefect's is invariant
    def mapped() -> int:
        return len(line.map(job.texts()).result())

    return mapped


if __name__ == "__main__":
    measure(prepare)
