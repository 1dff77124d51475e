"""Permits: how a worker of sync code is sent lines ahead that the run can take back.

Such a worker runs one job at a time. It is sent some ahead, so that neither side waits between two short lines. Beside
standard input it has a pipe of permits with one byte per job, and it starts no job before it has taken that job's byte.
Only one side can take a byte. So the run can take back the jobs behind a line that hangs, and it knows for certain which
job a dead worker had begun.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from prefect_batchflow.execution.workers import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

AHEAD_SEC = 0.02
"""How much work a worker is sent ahead, measured by how long its lines take; slow lines are not sent ahead."""
MOST_AHEAD = 32
_SMOOTHING = 0.3


class Permits:
    """The run's side of one worker's pipe of permits."""

    def __init__(self) -> None:
        self._untaken, self._given = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._line_sec: float | None = None
        """How long its lines take, smoothed."""

    @contextlib.contextmanager
    def for_worker(self) -> Iterator[int]:
        """The descriptor to start the worker with; if that fails, the pipe is closed."""
        permits = -1
        try:
            # Opened anew, because the worker's end blocks and ours does not: that belongs to the open file.
            permits = os.open(f"/proc/self/fd/{self._untaken}", os.O_RDONLY | os.O_CLOEXEC)
            yield permits
        except BaseException:
            self.close()
            raise
        finally:
            if permits >= 0:
                os.close(permits)

    def give(self, jobs: int) -> None:
        """Let the worker begin that many more jobs."""
        os.write(self._given, wire.RUN * jobs)

    def took(self, line_sec: float) -> None:
        """Learn how long a line took."""
        before = line_sec if self._line_sec is None else self._line_sec
        self._line_sec = before + _SMOOTHING * (line_sec - before)

    def most_ahead(self, fair_share: int) -> int:
        """How many jobs the worker can be sent ahead: none before its first line, at most its fair share."""
        if self._line_sec is None:
            return 0
        return min(int(AHEAD_SEC / max(self._line_sec, 1e-6)), MOST_AHEAD, fair_share)

    def recall(self, jobs: int) -> int:
        """Take back the permits of all `jobs` that the worker has not begun, except the first job's; how many it keeps.

        That one keeps its permit and its limit, even if the system has not let the worker begin it yet: a worker without
        jobs counts as one that waits for some, and this one could not be told from it.
        """
        untaken = self._take_back()
        begun = jobs - untaken.count(wire.RUN)
        first = untaken.find(wire.RUN) if begun == 0 and jobs else -1
        os.write(self._given, bytes((wire.RUN if at == first else wire.SKIP)[0] for at in range(len(untaken))))
        return max(begun, 1)

    def close(self, jobs: int = 0) -> int:
        """Close the pipe of a worker that is gone; how many of its jobs it had begun."""
        begun = jobs - self._take_back().count(wire.RUN)
        os.close(self._given)
        os.close(self._untaken)
        return begun

    def _take_back(self) -> bytes:
        """All permits that the worker has not taken; it never will."""
        try:
            return os.read(self._untaken, 1 << 16)
        except BlockingIOError:
            return b""
