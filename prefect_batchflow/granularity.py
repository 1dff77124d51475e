"""How many lines each task run of a run gets. Values in, values out: no clock, no Prefect."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prefect_batchflow.settings import Granularity

TASK_RUN_SEC: Final = 1.0
"""The work of lines that `auto` puts into one task run."""
SINGLE_LINES_FIRST: Final = 4
"""`auto` begins with this many task runs of one line each, before it knows how long lines take."""
MOST_AT_FIRST: Final = 200
"""Task runs of a run of short lines, and of any run before it asks how far the server is behind. A person can look through
these, and a server takes them in within seconds."""
MOST_BEHIND: Final = 100
"""Task runs that a server may still have to take in, from then on."""
SMALLEST_CHUNK: Final = 50
LARGEST_BY_TIME: Final = 200
"""However short its lines are, a task run gets no more for their time alone. Lines of a task run are in memory together."""
_SMOOTHING: Final = 0.1
_SHORTEST_SEC: Final = 1e-4


class TaskRunSizes:
    """Decides how many lines the next task run gets.

    `line` and `chunk` stay the same for a whole run. `auto` goes by the time that lines take: each task run gets about
    `TASK_RUN_SEC` of work, and at least one line. Its task runs get larger while the server falls behind.
    """

    def __init__(self, granularity: Granularity, total_lines: int) -> None:
        self.is_auto = granularity == "auto"
        self._fewest_lines = math.ceil(total_lines / MOST_AT_FIRST)
        """Lines per task run with which `MOST_AT_FIRST` task runs are enough."""
        self._fixed = 1 if granularity == "line" else max(SMALLEST_CHUNK, self._fewest_lines)
        self._begun = 0
        self._log_sec: float | None = None
        """Logarithm of the time of a line, smoothed. One line of a minute among short ones changes little."""
        self._times = 1
        """How many times larger task runs are because the server is behind."""

    @property
    def next(self) -> int:
        """Lines for the next task run."""
        if not self.is_auto:
            return self._fixed
        if self._begun < SINGLE_LINES_FIRST:
            return 1
        if self._log_sec is None:
            return max(1, self._fewest_lines)
        by_time = min(round(TASK_RUN_SEC / math.exp(self._log_sec)), LARGEST_BY_TIME)
        if by_time > 1:
            return max(by_time * self._times, self._fewest_lines)
        return self._times

    @property
    def asks_server(self) -> bool:
        """Whether it matters now how far the server is behind."""
        return self.is_auto and self._begun >= MOST_AT_FIRST

    def begun(self) -> None:
        """Count a task run."""
        self._begun += 1

    def took(self, line_sec: float) -> None:
        """Learn how long a line took."""
        log_sec = math.log(max(line_sec, _SHORTEST_SEC))
        before = log_sec if self._log_sec is None else self._log_sec
        self._log_sec = before + _SMOOTHING * (log_sec - before)

    def server_is_behind(self, task_runs: int | None) -> None:
        """Learn how many ended task runs the server does not know yet; `None` if it does not answer."""
        if task_runs is None or task_runs > MOST_BEHIND:
            self._times = min(2 * self._times, LARGEST_BY_TIME)
        elif task_runs < MOST_BEHIND / 2:
            self._times = max(1, self._times // 2)
