"""A control group of the system's with little memory, where these tests may make one."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def little_memory(name: str, mib: int) -> Iterator[Path]:
    """A group below the one of this process, whose processes together may have so much; skips where none can be made."""
    group = _made(name, mib * 1024 * 1024)
    if group is None:
        pytest.skip(
            "no control group can be made here: it takes root, and a group with memory below this process's own"
        )
    try:
        yield group
    finally:
        wait_until(lambda: _is_removed(group), description="nothing is left in the group", timeout_sec=10)


def _made(name: str, limit: int) -> Path | None:
    for parent, setting in _parents():
        group = parent / name
        try:
            group.mkdir()
            (group / setting).write_text(str(limit))
        except OSError:
            with suppress(OSError):
                group.rmdir()
            continue
        # Where there is swap, the group has none.
        for swap, most in (("memory.memsw.limit_in_bytes", limit), ("memory.swap.max", 0)):
            with suppress(OSError):
                (group / swap).write_text(str(most))
        return group
    return None


def _parents() -> Iterator[tuple[Path, str]]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            yield ROOT / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
        elif not controllers:
            yield ROOT / path.lstrip("/"), "memory.max"


def _is_removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()
