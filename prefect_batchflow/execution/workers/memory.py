"""The system's out-of-memory killer: whom it takes first, and that it was the one.

A line beyond the limit of its worker is refused memory, and says so itself. Where the machine, or the container, has no more,
the system kills a process without a word; that it did is in a count of the control group only.
"""

from __future__ import annotations

import contextlib
import os
import re

KILLED_FIRST = 500
"""Added to a worker's standing with the out-of-memory killer, as if it held half of all memory more than it does: of a run and
its workers, a worker ends, which costs its line only."""
_COUNT = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


def be_killed_first() -> None:
    """Let the out-of-memory killer take this process, and what it starts, before the one that started it."""
    with contextlib.suppress(OSError, ValueError):
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
        try:
            standing = int(os.read(fd, 32))
            os.write(fd, str(min(standing + KILLED_FIRST, 1000)).encode())
        finally:
            os.close(fd)


class OomKills:
    """Counts what the out-of-memory killer took of this process's control group; one that is told of counts no more.

    Args:
        proc: Where the system tells of processes.
        cgroups: Where its control groups are.
    """

    def __init__(self, proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> None:
        self._files = [*_counting_files(proc, cgroups), f"{proc}/vmstat"]
        self._told = self._count()

    def took_one(self) -> bool:
        """Whether it took a process more than were told of; asked when one was killed and nobody here did it."""
        if self._count() <= self._told:
            return False
        self._told += 1
        return True

    def _count(self) -> int:
        for path in self._files:
            found = _COUNT.search(_content(path))
            if found is not None:
                return int(found[1])
        return 0


def _counting_files(proc: str, cgroups: str) -> list[str]:
    """Where the count may be: by the group's path as this process knows it, and at the top, as containers see their own."""
    files = []
    for line in _content(f"{proc}/self/cgroup").decode(errors="replace").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            files += [f"{cgroups}{path.rstrip('/')}/memory.events", f"{cgroups}/memory.events"]
        elif "memory" in controllers.split(","):
            files += [f"{cgroups}/memory{path.rstrip('/')}/memory.oom_control", f"{cgroups}/memory/memory.oom_control"]
    return files


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - no pathlib in a worker
            return file.read()
    except OSError:
        return b""
