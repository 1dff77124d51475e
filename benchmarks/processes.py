"""Processes that a benchmark starts: their memory while they run, their time, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contenders.job import memory_kb

SAMPLE_EVERY_SEC = 0.1


@dataclass
class Memory:
    """The memory of a process and of what it starts, in kB, as far as samples show it."""

    pid: int
    begun: float = field(default_factory=time.monotonic)
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    """Seconds since the start, resident memory of the process, and of the largest of its descendants."""
    peaks: dict[int, int] = field(default_factory=dict)
    """The peak of each descendant, by the kernel's own count, which includes peaks between two samples."""
    born: set[int] = field(default_factory=set)

    def sample(self) -> None:
        """Take a sample. A descendant counts from its second sample: before it runs its program, it has its parent's memory."""
        there = set(descendants(self.pid))
        children = there & self.born
        self.born = there
        resident = [memory_kb("VmRSS", child) for child in children]
        for child in children:
            self.peaks[child] = max(self.peaks.get(child, 0), memory_kb("VmHWM", child))
        now = time.monotonic() - self.begun
        self.samples.append((now, memory_kb("VmRSS", self.pid), max(resident, default=0)))

    def figures(self, most_samples: int = 200) -> dict[str, Any]:
        """The largest descendant's peak, and evenly thinned samples."""
        step = -(-len(self.samples) // most_samples) or 1
        thinned = [[round(seconds, 2), own, largest] for seconds, own, largest in self.samples[::step]]
        return {"worker_peak": max(self.peaks.values(), default=0), "samples": thinned}


def descendants(pid: int) -> list[int]:
    """All living descendants, in any session."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                born = [int(child) for child in children.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += born
            waiting += born
    return found


def cpu_sec_of_session(session: int) -> float:
    """The processor time of the session's living processes, and of the children they have waited for."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may have spaces: state, ppid, pgrp, session, …, utime, stime, cutime, cstime.
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, with everything it started: ask first, then kill."""
    for number, grace_sec in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(grace_sec)
        except subprocess.TimeoutExpired:
            continue
    process.wait(5)
