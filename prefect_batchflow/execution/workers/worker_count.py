"""How many workers a run of sync code should have, by what its lines do. Values in, values out: no clock, no process.

Lines that wait, as for a model, get more workers, because a waiting worker costs memory only. Lines that compute get as many
as there are processors to run them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

BEGIN_WITH: Final = 4
"""The most workers that a run begins with."""
MOST_WORKERS: Final = 64
WAITS_BELOW: Final = 0.2
"""Lines that spend less of their time on a processor, or waiting for one, get more workers."""
COMPUTES_ABOVE: Final = 0.5
"""Lines that spend more of it do not need the workers that the processors cannot run."""
BUSY_FROM: Final = 0.5
"""Workers that have a line for less of the time are enough: something else holds the run up."""
JUDGED_FROM: Final = 0.25
"""Workers that have a line for less of the time show nothing about their lines."""
SURE_AFTER: Final = 2
"""This many times in a row, lines must compute before workers go."""
CALM_SEC: Final = 30.0
"""How long no worker is added after a service has refused a call for its rate, or after memory was short."""
QUICK_START_SEC: Final = 0.3
"""A start that takes less processor time is not weighed against the lines that are left."""
FULL_SHARE: Final = 0.9
"""Lines that use this share of all processors leave none for more workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the workers did since they were last looked at."""

    now: float
    """On a monotonic clock."""
    elapsed_sec: float
    workers: int
    """Workers that have loaded the flow."""
    line_sec: float
    """The time that lines ran, all workers together."""
    cpu_sec: float
    """The part of it on a processor, with everything the lines started."""
    queued_sec: float = 0.0
    """The part of it in which a worker was ready to run and had no processor."""
    warm_share: float | None = None
    """The share of time on a processor or waiting for one, of workers that have ended a line before; `None` without one. The
    first line of a worker often imports and connects."""
    lines_wait: bool = True
    """Whether lines wait for a worker."""
    room: int = MOST_WORKERS
    """Further workers for which there is memory; negative if there is too little for those that run."""
    worth: int = MOST_WORKERS
    """The number of workers that `worth_having` gives for the lines that are left."""
    was_refused: bool = False
    """Whether a service refused a call for its rate."""

    @property
    def share(self) -> float:
        """The share of the lines' time on a processor, or waiting for one."""
        return (self.cpu_sec + self.queued_sec) / max(self.line_sec, 1e-9)

    @property
    def busy(self) -> float:
        """The share of the time in which workers had a line."""
        return self.line_sec / max(self.elapsed_sec * self.workers, 1e-9)


def worth_having(left_sec: float, start_cpu_sec: float, cpus: float) -> int:
    """The number of workers with which lines that wait end first.

    N workers end `left_sec` seconds of lines in left/N seconds, and need N x start/cpus seconds to start. Workers that start
    quickly are always worth it.

    Args:
        left_sec: The time that the lines that are left take, all together.
        start_cpu_sec: The processor time until a worker has ended its first line, with all imports.
        cpus: The processors that workers can use to start.
    """
    if start_cpu_sec < QUICK_START_SEC:
        return MOST_WORKERS
    return max(1, round(math.sqrt(left_sec * cpus / start_cpu_sec)))


def begin_with(cpus: float) -> int:
    """The number of workers that a run begins with: one per processor, 2 to `BEGIN_WITH`.

    Lines that compute need no more than one per processor, and each worker takes processor time to start. Lines that wait get
    more after a quarter of a second.
    """
    return min(BEGIN_WITH, max(2, round(cpus)))


class WorkerCount:
    """The number of workers that a run should have now, and why.

    Args:
        most: The upper limit.
        cpus: The processors that this process can use.
        begin: The number to begin with, at most `most`.
    """

    def __init__(self, most: int, cpus: float, begin: int = BEGIN_WITH) -> None:
        self.most = most
        self.wanted = self._begin = self.highest = min(begin, most)
        """The number now, at the beginning, and the highest so far."""
        self.why = ""
        """Why it is not the number at the beginning."""
        self._cpus = cpus
        self._computed = 0
        self._calm_until = -math.inf

    def look(self, seen: Measured) -> int:
        """Decide by what was measured; gives the number that is wanted now."""
        if seen.was_refused:
            self._calm_until = seen.now + CALM_SEC
            self._set(
                min(self.wanted, max(self._begin, self.wanted * 3 // 4)), "the service refused calls for their rate"
            )
        elif seen.room < 0:
            self._calm_until = seen.now + CALM_SEC
            self._set(
                max(1, min(self.wanted, max(self._begin, seen.workers + seen.room))), "the machine is short of memory"
            )
        else:
            self._follow_lines(seen)
        self.highest = max(self.highest, self.wanted)
        return self.wanted

    def _follow_lines(self, seen: Measured) -> None:
        share = seen.share if seen.warm_share is None else seen.warm_share
        is_judged = seen.busy >= JUDGED_FROM
        self._computed = (
            self._computed + 1 if is_judged and share > COMPUTES_ABOVE and seen.warm_share is not None else 0
        )
        can_grow = (
            seen.lines_wait
            and seen.busy >= BUSY_FROM
            and seen.workers >= self.wanted
            and seen.now >= self._calm_until
            and seen.cpu_sec < FULL_SHARE * self._cpus * seen.elapsed_sec
        )
        larger = min(2 * self.wanted, self.most, seen.workers + seen.room, seen.worth)
        if seen.share < WAITS_BELOW:
            if can_grow and larger > self.wanted:
                self._set(larger, f"lines spent {100 * seen.share:.0f} % of their time on a processor")
        elif self._computed >= SURE_AFTER:
            needed = self._needed(seen)
            told = f"lines spent {100 * min(share, 1):.0f} % of their time on a processor or waiting for one"
            if needed < self.wanted:
                self._set(needed, told)
            elif can_grow and min(needed, larger) > self.wanted:
                self._set(min(needed, larger), told)

    def _needed(self, seen: Measured) -> int:
        """The number of workers that keeps all processors busy."""
        per_worker = seen.cpu_sec / max(seen.line_sec - seen.queued_sec, 1e-9)
        return max(1, min(math.ceil(self._cpus / max(per_worker, 0.01) - 0.1), self.most))

    def _set(self, wanted: int, why: str) -> None:
        if wanted != self.wanted:
            self.wanted, self.why, self._computed = wanted, why, 0
