"""promptflow's own BatchEngine, run by the interpreter of its own virtual environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from job import Job, measure
from promptflow.batch import BatchEngine  # type: ignore[import-not-found]  # is in its own environment only

if TYPE_CHECKING:
    from collections.abc import Callable


def prepare(job: Job) -> Callable[[], int]:
    """The engine as its users call it, with its default storage, which stores nothing."""
    flow = Path(job.flow)
    engine = BatchEngine(flow / "flow.dag.yaml", working_dir=flow, worker_count=job.at_once)

    def run() -> int:
        result = engine.run({"data": job.data}, {"text": "${data.text}"}, Path(job.output_dir))
        return int(result.completed_lines)

    return run


if __name__ == "__main__":
    measure(prepare)
