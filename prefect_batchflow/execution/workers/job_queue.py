"""The jobs that wait for a worker, and the workers that wait for a job.

A job that was sent to a worker ahead is still the run's: if the line before it takes long, it is recalled and waits again.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from prefect_batchflow.execution.workers.worker_process import Job, WorkerProcess

RECALL_AFTER_SEC = 0.1
"""How long a line runs before the jobs that were sent ahead behind it go to other workers."""


class JobQueue:
    """Gives jobs to the pool's workers, in order; calls `on_shortage` when a job waits and no worker is free."""

    def __init__(self, workers: Collection[WorkerProcess], on_shortage: Callable[[], None]) -> None:
        self._closed = False
        self._workers = workers
        self._on_shortage = on_shortage
        self._waiting: collections.deque[Job] = collections.deque()
        """Jobs that were not sent to a worker yet."""
        self._free: dict[WorkerProcess, None] = {}
        """The workers that can begin a job at once; the first has been free the longest."""
        self._recalling: asyncio.TimerHandle | None = None

    @property
    def has_waiting(self) -> bool:
        """Whether a job waits for a worker."""
        return any(not job.answer.done() for job in self._waiting)

    def add(self, job: Job) -> None:
        """Let a job wait behind the others."""
        self._waiting.append(job)
        self.feed()

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait again, before the others: no worker has begun them, or its end was not their fault."""
        self._waiting.extendleft(reversed(jobs))
        if self._closed:
            for job in self._waiting:
                job.answer.cancel()
        self.feed()

    def remove(self, job: Job) -> None:
        """Forget a job whose answer nobody waits for, so that it starts no worker."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)

    def fail(self, error: type[Exception], message: str) -> None:
        """Fail all waiting jobs."""
        for job in self._waiting:
            if not job.answer.done():
                job.answer.set_exception(error(message))
        self._waiting.clear()

    def close(self) -> None:
        """Cancel the waiting jobs, and those that are put back later."""
        self._closed = True
        self.put_back([])

    def feed(self) -> None:
        """Give the waiting jobs to the free workers; if jobs are left, call `on_shortage`."""
        while self._waiting and self._waiting[0].answer.done():
            self._waiting.popleft()  # nobody waits for it, so it must not start a worker
        while self._waiting and self._free:
            self.offer(next(iter(self._free)))
        if self._waiting:
            self._on_shortage()

    def offer(self, worker: WorkerProcess) -> None:
        """Give a worker as many of the waiting jobs as it has room for."""
        room = worker.room(len(self._waiting) // max(len(self._workers), 1))
        jobs: list[Job] = []
        while self._waiting and len(jobs) < room:
            job = self._waiting.popleft()
            if not job.answer.done():
                jobs.append(job)
        if jobs:
            worker.take(jobs)
        if worker.room(0) > 0:
            self._free[worker] = None
        else:
            self._free.pop(worker, None)
        if self._recalling is None and len(worker.jobs) > worker.lines_at_once:
            self._recall_later()

    def withdraw(self, worker: WorkerProcess) -> None:
        """Give a worker no more jobs, unless it is offered again."""
        self._free.pop(worker, None)

    def _recall_later(self) -> None:
        self._recalling = asyncio.get_running_loop().call_later(RECALL_AFTER_SEC, self._recall)

    def _recall(self) -> None:
        """Take back the jobs behind a line that takes long."""
        self._recalling = None
        ahead = [worker for worker in self._workers if len(worker.jobs) > worker.lines_at_once]
        if ahead:
            self._recall_later()
        late = [worker for worker in ahead if worker.running()[0].duration_sec > RECALL_AFTER_SEC]
        self.put_back([job for worker in late for job in worker.recall()])
