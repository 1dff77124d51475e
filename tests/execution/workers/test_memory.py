"""What the system's out-of-memory killer took, as control groups tell it, and who is taken first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prefect_batchflow.execution.workers.memory import KILLED_FIRST, OomKills

GROUPS = {
    "version 2": ("0::/user.slice/a.scope\n", "cgroup/user.slice/a.scope/memory.events"),
    "version 2, in a container": ("0::/\n", "cgroup/memory.events"),
    "version 1": ("9:cpu,cpuacct:/x\n4:memory:/x/y\n0::/\n", "cgroup/memory/x/y/memory.oom_control"),
    "version 1, in a container": ("4:memory:/docker/0a1b\n", "cgroup/memory/memory.oom_control"),
    "no group that tells": ("1:cpu:/\n", "proc/vmstat"),
}


@pytest.fixture(params=GROUPS)
def counting(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The file that has the count."""
    group, place = GROUPS[request.param]
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(group)
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    set_count(file, 4)
    return file


def set_count(file: Path, count: int) -> None:
    file.write_text(f"oom 9\nunder_oom 0\noom_kill {count}\noom_group_kill 7\n")


def test_each_process_that_was_taken_is_told_of_once(counting: Path, tmp_path: Path) -> None:
    kills = OomKills(str(tmp_path / "proc"), str(tmp_path / "cgroup"))
    assert not kills.took_one()

    set_count(counting, 6)

    assert [kills.took_one() for _ in range(3)] == [True, True, False]


def test_a_system_that_counts_nothing_took_nothing(tmp_path: Path) -> None:
    assert not OomKills(str(tmp_path), str(tmp_path)).took_one()


def test_a_process_that_is_to_be_killed_first_stands_before_the_one_that_started_it() -> None:
    program = (
        "from prefect_batchflow.execution.workers.memory import be_killed_first\n"
        "be_killed_first()\n"
        "print(open('/proc/self/oom_score_adj').read())"
    )
    ours = int(Path("/proc/self/oom_score_adj").read_text())

    theirs = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert int(theirs) == min(ours + KILLED_FIRST, 1000)
