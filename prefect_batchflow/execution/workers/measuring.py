"""What processes use, as the system tells: processor time, time in line for a processor, memory. For Linux, without psutil."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from prefect_batchflow.execution.workers.memory import content, group_files

_TICK_SEC: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_NO_LIMIT: Final = 1 << 60


class Usage(NamedTuple):
    """What a process has used since its start."""

    cpu_sec: float = 0.0
    """With all its threads, and the processes that it started."""
    queued_sec: float = 0.0
    """Time in which it was ready to run and had no processor; 0 if the system does not count it."""


def usage_of(pid: int) -> Usage:
    """What a process has used; nothing if it is gone."""
    return Usage(_cpu_sec(pid), sum(_queued_sec(pid, task) for task in _names(f"/proc/{pid}/task")))


def private_bytes(pid: int) -> int:
    """The memory of a process that it shares with no other."""
    pages = content(f"/proc/{pid}/statm").split()
    return max(0, int(pages[1]) - int(pages[2])) * _PAGE if len(pages) > 2 else 0


def usable_cpus(cgroups: str = "/sys/fs/cgroup", proc: str = "/proc") -> float:
    """The processors that this process can use: those that exist for it, within the limit of its control group."""
    cpus = float(len(os.sched_getaffinity(0)))
    for file in group_files("cpu", "cpu.max", "cpu.cfs_quota_us", proc, cgroups):
        quota = content(file).split()
        if len(quota) == 1:
            quota += content(file.replace("quota", "period")).split()
        if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
            cpus = min(cpus, int(quota[0]) / int(quota[1]))
    return max(cpus, 0.1)


def free_bytes(cgroups: str = "/sys/fs/cgroup", proc: str = "/proc") -> tuple[int, int]:
    """The memory that processes can still take, and all memory, within the limit of the control group."""
    machine = dict(line.split(b":", 1) for line in content(f"{proc}/meminfo").splitlines() if b":" in line)
    free, total = (int((machine.get(name) or b"0").split()[0]) * 1024 for name in (b"MemAvailable", b"MemTotal"))
    if not total:
        return _NO_LIMIT, _NO_LIMIT
    for file in group_files("memory", "memory.max", "memory.limit_in_bytes", proc, cgroups):
        limit = content(file).strip()
        if not limit.isdigit() or int(limit) >= total:
            continue
        folder = file.rpartition("/")[0]
        used = content(f"{folder}/memory.current") or content(f"{folder}/memory.usage_in_bytes") or b"0"
        stat = dict(line.split(b" ", 1) for line in content(f"{folder}/memory.stat").splitlines() if b" " in line)
        cached = stat.get(b"inactive_file") or stat.get(b"total_inactive_file") or b"0"
        total = int(limit)
        free = min(free, max(0, total - int(used) + int(cached)))
    return free, total


def _cpu_sec(pid: int) -> float:
    fields = content(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(fields) < 15:
        return 0.0
    own = sum(map(int, fields[11:15])) * _TICK_SEC
    children = [int(child) for task in _names(f"/proc/{pid}/task") for child in _children(pid, task)]
    return own + sum(map(_cpu_sec, children))


def _children(pid: int, task: str) -> list[bytes]:
    return content(f"/proc/{pid}/task/{task}/children").split()


def _queued_sec(pid: int, task: str) -> float:
    fields = content(f"/proc/{pid}/task/{task}/schedstat").split()
    return int(fields[1]) / 1e9 if len(fields) > 1 else 0.0


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names, many times a second
    except OSError:
        return []
