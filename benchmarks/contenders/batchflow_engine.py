"""Our own BatchEngine, records and outputs file included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from job import Job, measure

from prefect_batchflow import BatchEngine

if TYPE_CHECKING:
    from collections.abc import Callable


def prepare(job: Job) -> Callable[[], int]:
    """The engine with the given granularity and lines at once, and all other options at their defaults."""
    engine = BatchEngine(job.flow, worker_count=job.at_once, max_concurrency=job.at_once, granularity=job.granularity)

    def run() -> int:
        result = engine.run({"data": job.data}, {"text": "${data.text}"}, job.output_dir, run_id=job.run_id or None)
        return result.completed_lines

    return run


if __name__ == "__main__":
    measure(prepare)
