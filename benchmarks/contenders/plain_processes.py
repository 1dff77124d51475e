"""No engine: the node's function in a loop, in `at_once` processes. This is the ideal, the machine's limit."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

from job import Job, measure

if TYPE_CHECKING:
    from collections.abc import Callable

_FORK = multiprocessing.get_context("fork")


def prepare(job: Job) -> Callable[[], int]:
    """Processes that have started and wait, because the clock of the ideal covers only the lines."""
    function, texts = job.line_function(), job.texts()
    start, done = _FORK.Barrier(job.at_once + 1), _FORK.SimpleQueue()

    def work(mine: list[str]) -> None:
        start.wait()
        for text in mine:
            function(text)
        done.put(len(mine))

    for number in range(job.at_once):
        _FORK.Process(target=work, args=(texts[number :: job.at_once],), daemon=True).start()

    def run() -> int:
        start.wait()
        return sum(done.get() for _ in range(job.at_once))

    return run


if __name__ == "__main__":
    measure(prepare)
