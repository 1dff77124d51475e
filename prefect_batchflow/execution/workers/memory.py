"""The system's out-of-memory killer: it should take workers first, and its kills should be recognized.

A line that exceeds its worker's limit is refused memory and reports that itself. When the machine or container has no memory
left, the system kills a process without a message. Only a counter of the control group shows it.
"""

from __future__ import annotations

import contextlib
import re

KILLED_FIRST = 500
"""Added to a worker's `oom_score_adj`, as if it held half of all memory more than it does. So the system kills a worker, not
the run, and only that worker's line is lost."""
_COUNT = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


def be_killed_first() -> None:
    """Make the out-of-memory killer prefer this process, and what it starts, to the process that started it."""
    with (
        contextlib.suppress(OSError, ValueError),
        open("/proc/self/oom_score_adj", "r+b", buffering=0) as file,  # noqa: PTH123 - no pathlib in a worker
    ):
        file.write(b"%d" % min(int(file.read()) + KILLED_FIRST, 1000))


class OomKills:
    """Counts the processes of this control group that the out-of-memory killer took; each is reported once.

    The system does not say which ones. If another process is killed at the same moment, it can be named instead.
    """

    def __init__(self, proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> None:
        self._files = [
            *group_files("memory", "memory.events", "memory.oom_control", proc, cgroups),
            f"{proc}/vmstat",
        ]
        self._reported = self._count()

    def took_one(self) -> bool:
        """Whether it took one more process than were reported; ask when a process was killed and the run did not do it."""
        if self._count() <= self._reported:
            return False
        self._reported += 1
        return True

    def _count(self) -> int:
        for path in self._files:
            if found := _COUNT.search(content(path)):
                return int(found[1])
        return 0


def group_files(controller: str, name: str, old_name: str, proc: str, cgroups: str) -> list[str]:
    """Where a file of this process's control group can be, `old_name` in version 1.

    It can be under the group's path as this process knows it, and at the top, as in a container.
    """
    files = []
    for line in content(f"{proc}/self/cgroup").decode(errors="replace").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            files += [f"{cgroups}{path.rstrip('/')}/{name}", f"{cgroups}/{name}"]
        elif controller in controllers.split(","):
            files += [f"{cgroups}/{controller}{path.rstrip('/')}/{old_name}", f"{cgroups}/{controller}/{old_name}"]
    return files


def content(path: str) -> bytes:
    """The bytes of a file; none if it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - no pathlib in a worker
            return file.read()
    except OSError:
        return b""
