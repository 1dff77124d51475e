"""Inspect AI: a solver that calls the node's function, run by the interpreter of its own virtual environment.

Its log is written, as ours and always by Inspect; there is no model call and no scorer.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from inspect_ai import Task, eval  # type: ignore[import-not-found]  # noqa: A004 - is in its own environment only
from inspect_ai.dataset import Sample  # type: ignore[import-not-found]
from inspect_ai.solver import solver  # type: ignore[import-not-found]
from job import Job, measure

if TYPE_CHECKING:
    from collections.abc import Callable


def prepare(job: Job) -> Callable[[], int]:
    """The evaluation as its users call it, without the display."""
    function = job.line_function()

    @solver  # type: ignore[untyped-decorator]
    def line() -> Callable[..., Any]:
        async def solve(state: Any, generate: Any) -> Any:
            answer = function(state.input_text)
            state.output.completion = await answer if inspect.isawaitable(answer) else answer
            return state

        return solve

    def run() -> int:
        dataset = [Sample(input=text) for text in job.texts()]
        task = Task(dataset=dataset, solver=line(), name="lines")
        (log,) = eval(
            task, model="mockllm/model", max_samples=job.on_event_loop, log_dir=job.output_dir, display="none"
        )
        return int(log.results.completed_samples)

    return run


if __name__ == "__main__":
    measure(prepare)
