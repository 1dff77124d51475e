"""Follows what the workers of a pool do, and tells the pool how many it should have."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from prefect_batchflow.execution.workers.measuring import Usage, free_bytes, private_bytes, usable_cpus, usage_of
from prefect_batchflow.execution.workers.worker_count import (
    MOST_WORKERS,
    Measured,
    WorkerCount,
    begin_with,
    worth_having,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prefect_batchflow.execution.workers.worker_process import WorkerProcess

LOOK_EVERY_SEC: Final = 0.25
KEPT_FREE: Final = 0.3
"""The share of the free memory that stays free when workers are added, because lines can still grow."""
SHORT_BELOW: Final = 0.05
"""The share of all memory below which workers go."""
SMALLEST_WORKER: Final = 20 * 1024 * 1024
_MB: Final = 1024 * 1024


class Autoscaler:
    """Looks at the workers every `LOOK_EVERY_SEC`, and calls `on_count` with the number that is wanted.

    Args:
        workers: Gives the workers that have loaded the flow and take lines.
        lines_wait: Tells whether lines wait for a worker.
        on_count: Called when another number is wanted.
        most: The most workers.
        line_memory_mb: MiB by which a line can let its worker grow, if there is a limit.
        lines_left: Tells how many lines have not ended; `None` if that is not known.
        alone: Whether this is the only pool of the run on this machine. If not, it begins with one worker and counts on one
            processor.
    """

    def __init__(
        self,
        workers: Callable[[], Iterable[WorkerProcess]],
        lines_wait: Callable[[], bool],
        on_count: Callable[[int], None],
        *,
        most: int,
        line_memory_mb: int | None = None,
        lines_left: Callable[[], int | None] = lambda: None,
        alone: bool = True,
    ) -> None:
        self._workers, self._lines_wait, self._on_count = workers, lines_wait, on_count
        self._lines_left = lines_left
        self._cpus = usable_cpus() if alone else 1.0
        self._count = WorkerCount(most, self._cpus, begin_with(self._cpus) if alone else 1)
        self._line_bytes = (line_memory_mb or 0) * _MB
        self._seen: dict[WorkerProcess, tuple[float, Usage, int]] = {}
        """By worker, what it had done when it was last looked at: seconds of lines, usage, ended lines."""
        self._start_cpu_sec: dict[WorkerProcess, float] = {}
        """By worker, its processor time until its first line ended, or until now."""
        self._ended_sec, self._ended_lines = 0.0, 0
        """The time of lines so far, and how many of them have ended."""
        self._looked = time.monotonic()
        self._was_refused = False
        self._is_short_of_memory = False
        self._largest = SMALLEST_WORKER
        """The most memory that a worker had, without what it shares."""
        self._bytes = 0
        """The most memory that all workers had together, without what they share."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> int:
        """How many workers the pool should have."""
        return self._count.wanted

    def start(self) -> None:
        """Begin to look, from now on."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_SEC, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def refused(self) -> None:
        """Note that a service refused a call for its rate."""
        self._was_refused = True

    def out_of_memory(self) -> None:
        """Note that the system took a worker because memory was short."""
        self._is_short_of_memory = True

    def told(self) -> str:
        """How many workers there were and why, for people."""
        count, before = (
            self._count,
            f" (up to {self._count.highest} before)" * (self._count.highest > self._count.wanted),
        )
        why = f", because {count.why}" if count.why else ""
        memory = f"; up to {self._bytes / _MB:.0f} MB of memory that only they used" if self._bytes else ""
        return f"{count.wanted} worker processes{before}{why}{memory}"

    def _look(self) -> None:
        self.start()
        before = self._count.wanted
        wanted = self._count.look(self._measured())
        if wanted != before:
            self._on_count(wanted)

    def _measured(self) -> Measured:
        now = time.monotonic()
        elapsed, self._looked = now - self._looked, now
        total, warm = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        seen, together = {}, 0
        for worker in self._workers():
            done = worker.line_sec, usage_of(worker.pid), worker.ended_lines
            seen[worker] = done
            size = private_bytes(worker.pid)
            self._largest, together = max(self._largest, size), together + size
            before = self._seen.get(worker)
            if before is None or not before[2]:
                self._start_cpu_sec[worker] = done[1].cpu_sec
            if before is None:
                continue
            self._ended_sec += max(0.0, done[0] - before[0])
            self._ended_lines += done[2] - before[2]
            steps = done[0] - before[0], done[1].cpu_sec - before[1].cpu_sec, done[1].queued_sec - before[1].queued_sec
            for sums in (total, warm) if before[2] else (total,):
                for at, step in enumerate(steps):
                    sums[at] += max(0.0, step)
        self._seen, self._bytes = seen, max(self._bytes, together)
        was_refused, self._was_refused = self._was_refused, False
        return Measured(
            now=now,
            elapsed_sec=elapsed,
            workers=len(seen),
            line_sec=total[0],
            cpu_sec=total[1],
            queued_sec=min(total[2], max(0.0, total[0] - total[1])),
            warm_share=(warm[1] + warm[2]) / warm[0] if warm[0] > 0 else None,
            lines_wait=self._lines_wait(),
            room=self._room(len(seen)),
            worth=self._worth(len(seen)),
            was_refused=was_refused,
        )

    def _worth(self, workers: int) -> int:
        left = self._lines_left()
        if left is None or not self._start_cpu_sec:
            return MOST_WORKERS
        # Before lines have ended, those that run have taken at least the time so far.
        line_sec = self._ended_sec / max(self._ended_lines, workers, 1)
        mean_start = sum(self._start_cpu_sec.values()) / len(self._start_cpu_sec)
        return worth_having(left * line_sec, mean_start, self._cpus)

    def _room(self, workers: int) -> int:
        """Further workers that fit into the memory; below zero, how many should go."""
        free, total = free_bytes()
        if free < SHORT_BELOW * total or self._is_short_of_memory:
            self._is_short_of_memory = False
            return -max(1, workers // 4)
        return int(free * (1 - KEPT_FREE)) // (self._largest + self._line_bytes)
