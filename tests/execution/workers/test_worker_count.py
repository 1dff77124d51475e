"""How many workers a run has when nobody gives a number: many for lines that wait, one per processor for those that compute."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import flow_of, run, running_pool
from waiting import eventually

from prefect_batchflow.execution.workers import autoscaling
from prefect_batchflow.execution.workers.measuring import free_bytes, private_bytes, usable_cpus, usage_of
from prefect_batchflow.execution.workers.worker_count import (
    BEGIN_WITH,
    CALM_SEC,
    MOST_WORKERS,
    Measured,
    WorkerCount,
    begin_with,
    worth_having,
)

if TYPE_CHECKING:
    from pathlib import Path


def seen(
    count: WorkerCount, cpu: float = 0.0, queued: float = 0.0, *, busy: float = 1.0, now: float = 0.0, **more: Any
) -> Measured:
    """What a quarter of a second shows, with the share of lines' time on a processor and in line for one."""
    workers = more.pop("workers", count.wanted)
    line_sec = 0.25 * workers * busy
    known: dict[str, Any] = {
        "now": now,
        "elapsed_sec": 0.25,
        "workers": workers,
        "line_sec": line_sec,
        "cpu_sec": cpu * line_sec,
        "queued_sec": queued * line_sec,
        "warm_share": cpu + queued,
    }
    return Measured(**known | more)


def counts(count: WorkerCount, looks: int, *args: float, **more: Any) -> list[int]:
    return [count.look(seen(count, *args, **more)) for _ in range(looks)]


@pytest.mark.parametrize(
    ("most", "wanted"),
    [(64, [8, 16, 32, 64, 64]), (50, [8, 16, 32, 50, 50]), (5, [5, 5, 5, 5, 5]), (2, [2] * 5), (1, [1] * 5)],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_lines_that_wait_get_more_workers_up_to_the_limit(most: int, wanted: list[int]) -> None:
    count = WorkerCount(most, cpus=2)

    assert count.wanted == min(BEGIN_WITH, most)
    assert counts(count, 5, 0.02) == wanted


@pytest.mark.parametrize(
    ("cpu", "queued", "cpus", "wanted"),
    [
        (1.0, 0.0, 2, 2),
        (0.5, 0.5, 2, 2),
        (0.05, 0.95, 2, 2),
        (0.6, 0.0, 2, 4),
        (1.0, 0.0, 0.5, 1),
        (1.0, 0.0, 16, 16),
        (4.0, 0.0, 16, 4),
        (16.0, 0.0, 16, 1),
    ],
    ids=[
        "computing",
        "computing, two workers a processor",
        "computing, on a machine that others use",
        "half computing",
        "half a processor",
        "more processors than workers",
        "lines with four threads",
        "lines with all processors",
    ],
)
def test_lines_that_compute_get_as_many_as_there_are_processors(
    cpu: float, queued: float, cpus: float, wanted: int
) -> None:
    count = WorkerCount(64, cpus)

    assert counts(count, 12, cpu, queued)[-1] == wanted


NO_MORE: dict[str, dict[str, Any]] = {
    "no line waits": {"lines_wait": False},
    "workers have nothing to do": {"busy": 0.3},
    "further workers are still loading": {"workers": 3},
    "lines use a fifth of their time": {"cpu": 0.2},
    "the processors are taken": {"cpu": 0.19, "elapsed_sec": 0.08},
    "memory for none": {"room": 0},
    "few lines are left": {"worth": 4},
    "workers stand in line for a processor": {"cpu": 0.05, "queued": 0.3},
}


@pytest.mark.parametrize("why", NO_MORE)
def test_no_worker_is_added_when(why: str) -> None:
    count = WorkerCount(64, cpus=2)

    assert counts(count, 3, **NO_MORE[why]) == [BEGIN_WITH] * 3


def test_memory_bounds_the_workers() -> None:
    count = WorkerCount(64, cpus=2)

    assert counts(count, 1, room=3) == [7]
    assert counts(count, 2, room=0) == [7, 7]
    assert counts(count, 3, room=-1) == [6, 5, 4]
    assert "memory" in count.why


def test_a_service_that_refuses_calls_gets_fewer_workers_and_then_a_rest() -> None:
    count = WorkerCount(64, cpus=2)
    counts(count, 4)

    assert counts(count, 3, was_refused=True, now=100.0) == [48, 36, 27]
    assert "rate" in count.why
    assert counts(count, 4, now=100.0 + CALM_SEC - 1) == [27] * 4
    assert counts(count, 1, now=100.0 + CALM_SEC) == [54]
    assert counts(count, 40, was_refused=True, now=200.0)[-1] == BEGIN_WITH


@pytest.mark.parametrize(
    ("left_sec", "start_cpu_sec", "cpus", "workers"),
    [(200, 0.4, 2, 32), (200, 1.5, 2, 16), (60, 1.3, 2, 10), (6_000, 1.5, 2, 89), (200, 1.5, 16, 46), (0, 1, 2, 1)],
)
def test_a_worker_is_worth_its_start_only_for_enough_work(
    left_sec: float, start_cpu_sec: float, cpus: float, workers: int
) -> None:
    assert worth_having(left_sec, start_cpu_sec, cpus) == workers

    def seconds(count: int) -> float:
        return left_sec / count + count * start_cpu_sec / cpus

    assert seconds(workers) <= min(seconds(count) for count in range(1, 200)) * 1.01


@pytest.mark.parametrize(("cpus", "workers"), [(0.5, 2), (1, 2), (2, 2), (2.6, 3), (4, 4), (64, 4)])
def test_a_run_begins_with_a_worker_per_processor_two_to_four(cpus: float, workers: int) -> None:
    assert begin_with(cpus) == workers


def test_a_quick_start_is_always_worth_it() -> None:
    assert worth_having(1, 0.1, 2) == MOST_WORKERS


@pytest.mark.parametrize("most", [1, 2, 3])
def test_refused_calls_and_little_memory_never_add_workers(most: int) -> None:
    count = WorkerCount(most, cpus=2)

    assert counts(count, 2, was_refused=True) == counts(count, 2, room=-5) == [most] * 2


def test_the_first_line_of_a_worker_ends_no_worker() -> None:
    """It often imports and connects, and computes only for that."""
    count = WorkerCount(64, cpus=2)

    assert counts(count, 8, 1.0, warm_share=None) == [BEGIN_WITH] * 8


def test_one_look_is_not_enough_to_end_workers() -> None:
    count = WorkerCount(64, cpus=2)

    assert [counts(count, 1, cpu)[0] for cpu in (1.0, 0.3, 1.0, 0.3, 1.0)] == [BEGIN_WITH] * 5


@given(
    looks=st.lists(
        st.tuples(st.floats(0, 20), st.floats(0, 1), st.floats(0, 1), st.booleans(), st.integers(-9, 99)), max_size=30
    ),
    most=st.integers(1, 64),
    cpus=st.floats(0.1, 128),
)
def test_the_number_is_always_between_one_and_the_limit(
    looks: list[tuple[float, float, float, bool, int]], most: int, cpus: float
) -> None:
    count = WorkerCount(most, cpus)
    for cpu, queued, busy, was_refused, room in looks:
        before = count.wanted
        wanted = count.look(seen(count, cpu, queued, busy=busy, was_refused=was_refused, room=room))
        assert 1 <= wanted <= most
        assert wanted <= max(before, 2 * before, before + room)


@given(share=st.floats(0.0, 1.0), cpus=st.integers(1, 64))
def test_a_run_whose_lines_stay_the_same_comes_to_rest(share: float, cpus: int) -> None:
    """A machine that lets workers wait for a processor once they need more than there are."""
    count = WorkerCount(64, cpus)

    def look() -> int:
        running = min(share, cpus / count.wanted)  # of a worker's time
        queued = max(0.0, 1 - running - (1 - share) * running / share) if share > 0 else 0.0
        return count.look(seen(count, running, queued))

    for _ in range(40):
        look()
    assert len({look() for _ in range(20)}) == 1


# --- measured --------------------------------------------------------------------------------------------------------


def test_usage_counts_threads_and_children_that_run_and_that_have_ended() -> None:
    code = """
import subprocess, sys, threading, time
def compute(sec=0.3):
    end = time.thread_time() + sec
    while time.thread_time() < end: pass
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"], check=True)
waits = "import time\\nwhile time.process_time() < 0.3: pass\\nprint(flush=True)\\ntime.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE)
child.stdout.readline()
thread = threading.Thread(target=compute); thread.start(); thread.join()
print(flush=True)
sys.stdin.read()
child.kill()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        usage = usage_of(process.pid)
        memory = private_bytes(process.pid)
        process.communicate()

    assert usage.cpu_sec >= 0.85
    assert usage.queued_sec >= 0
    assert memory > 1_000_000
    assert usage_of(process.pid) == (0, 0)
    assert private_bytes(process.pid) == 0


def test_waiting_uses_no_processor() -> None:
    before = usage_of(os.getpid()).cpu_sec
    time.sleep(0.2)
    assert usage_of(os.getpid()).cpu_sec - before < 0.1


def machine(folder: Path, group: str, **files: str) -> tuple[str, str]:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(group)
    (folder / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n")
    for name, content in files.items():
        file = folder / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return str(folder / "cgroup"), str(folder / "proc")


KB = 1024
MEMORY: dict[str, tuple[str, dict[str, str], tuple[int, int]]] = {
    "no limit": ("0::/\n", {}, (600 * KB, 1000 * KB)),
    "version 2, unlimited": ("0::/a\n", {"cgroup__a__memory_dot_max": "max\n"}, (600 * KB, 1000 * KB)),
    "version 2": (
        "0::/a\n",
        {
            "cgroup__a__memory_dot_max": f"{400 * KB}\n",
            "cgroup__a__memory_dot_current": f"{300 * KB}\n",
            "cgroup__a__memory_dot_stat": f"anon 5\ninactive_file {50 * KB}\n",
        },
        (150 * KB, 400 * KB),
    ),
    "version 1, in a container": (
        "4:memory:/docker/x\n",
        {
            "cgroup__memory__memory_dot_limit_in_bytes": f"{400 * KB}\n",
            "cgroup__memory__memory_dot_usage_in_bytes": f"{390 * KB}\n",
        },
        (10 * KB, 400 * KB),
    ),
    "version 1, unlimited": (
        "4:memory:/\n",
        {"cgroup__memory__memory_dot_limit_in_bytes": "9223372036854771712\n"},
        (600 * KB, 1000 * KB),
    ),
}


@pytest.mark.parametrize("kind", MEMORY)
def test_free_memory_is_that_of_the_control_group(kind: str, tmp_path: Path) -> None:
    group, files, expected = MEMORY[kind]

    assert free_bytes(*machine(tmp_path, group, **files)) == expected


@pytest.mark.parametrize(
    ("group", "files", "cpus"),
    [
        ("0::/\n", {"cgroup__cpu_dot_max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cgroup__cpu_dot_max": "max 100000\n"}, None),
        (
            "4:cpu,cpuacct:/x\n",
            {"cgroup__cpu__x__cpu_dot_cfs_quota_us": "25000", "cgroup__cpu__x__cpu_dot_cfs_period_us": "100000"},
            0.25,
        ),
        ("4:cpu:/\n", {"cgroup__cpu__cpu_dot_cfs_quota_us": "-1"}, None),
    ],
    ids=["version 2", "version 2, unlimited", "version 1", "version 1, unlimited"],
)
def test_processors_are_those_of_the_control_group(
    group: str, files: dict[str, str], cpus: float | None, tmp_path: Path
) -> None:
    assert usable_cpus(*machine(tmp_path, group, **files)) == (cpus or len(os.sched_getaffinity(0)))


# --- in a pool -------------------------------------------------------------------------------------------------------

WAITS = """
import time
from pathlib import Path

def main(n):
    Path(f"begun-{n}").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return n
"""
COMPUTES = """
import time
from pathlib import Path

def main(n):
    end = time.process_time() + 0.05
    while time.process_time() < end and not Path("go").exists():
        pass
    return n
"""


ASYNC = "1 worker process with up to 30 lines at once, because the flow's code is async"


@pytest.mark.anyio
class TestAPool:
    async def test_lines_that_wait_run_all_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(autoscaling, "usable_cpus", lambda: 4.0)
        async with running_pool(flow_of(tmp_path, WAITS), worker_count=0, max_concurrency=9) as pool:
            assert (pool.slots, pool.most_slots) == (BEGIN_WITH, 9)
            changed: list[int] = []
            pool.on_slots = lambda: changed.append(pool.slots)
            lines = [asyncio.ensure_future(run(pool, number, n=number)) for number in range(12)]
            await eventually(lambda: len(pool.running()) == 9, description="nine lines run at once")
            (tmp_path / "go").touch()
            outcomes = await asyncio.gather(*lines)

        assert [outcome.receipt.error for outcome in outcomes] == [None] * 12
        assert changed == [8, 9]
        assert "9 worker processes, because lines spent" in pool.told()
        assert "MB of memory that only they used" in pool.told()

    async def test_a_flow_that_imports_much_gets_few_workers_for_few_lines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(autoscaling, "usable_cpus", lambda: 1.0)
        slow = "import time\nwhile time.process_time() < 2: pass\n" + WAITS
        async with running_pool(flow_of(tmp_path, slow), worker_count=0) as pool:
            pool.lines_left = lambda: 1  # so that it holds when the machine is busy and lines wait long
            lines = [asyncio.ensure_future(run(pool, number, n=number)) for number in range(12)]
            await eventually(lambda: len(pool.running()) == 2, description="two lines run")
            assert pool._autoscaler is not None
            for _ in range(3):
                await asyncio.sleep(0.05)
                pool._autoscaler._look()
            assert pool.slots == 2
            (tmp_path / "go").touch()
            await asyncio.gather(*lines)

    async def test_as_few_lines_as_there_are_start_as_few_workers(self, tmp_path: Path) -> None:
        async with running_pool(flow_of(tmp_path, WAITS), worker_count=0) as pool:
            lines = [asyncio.ensure_future(run(pool, number, n=number)) for number in range(2)]
            await eventually(lambda: len(pool.running()) == 2, description="both run")
            for _ in range(5):
                assert pool._autoscaler is not None
                pool._autoscaler._look()
            assert len(pool._workers) == 2
            (tmp_path / "go").touch()
            await asyncio.gather(*lines)

    async def test_lines_that_compute_leave_a_worker_per_processor(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(autoscaling, "usable_cpus", lambda: 1.0)
        monkeypatch.setattr(autoscaling, "begin_with", lambda _cpus: 4)
        async with running_pool(flow_of(tmp_path, COMPUTES), worker_count=0) as pool:

            async def feed(first: int) -> list[Any]:
                return [await run(pool, n, n=n) for n in range(first, 100_000, 8) if pool.slots > 2]

            outcomes = await asyncio.gather(*(feed(first) for first in range(8)))
            await eventually(lambda: len(pool._workers) <= pool.slots, description="the other workers have ended")

        assert {str(o.receipt.error) for some in outcomes for o in some} == {"None"}, "no line is lost with its worker"
        assert "on a processor" in pool.told()

    async def test_a_number_that_is_given_stays(self, tmp_path: Path) -> None:
        async with running_pool(flow_of(tmp_path, WAITS), worker_count=2) as pool:
            lines = [asyncio.ensure_future(run(pool, number, n=number)) for number in range(6)]
            await eventually(lambda: len(pool.running()) == 2, description="two run")
            assert pool._autoscaler is None
            (tmp_path / "go").touch()
            await asyncio.gather(*lines)

        assert pool.told() == ""

    async def test_a_refused_call_holds_the_number(self, tmp_path: Path) -> None:
        code = """
        class RateLimitError(Exception):
            status_code = 429
        def main(n):
            raise RateLimitError("slow down")
        """
        async with running_pool(flow_of(tmp_path, code), worker_count=0) as pool:
            await run(pool, n=1)
            assert pool._autoscaler is not None
            assert pool._autoscaler._measured().was_refused
            assert not pool._autoscaler._measured().was_refused, "once"

    async def test_async_code_needs_no_more_processes(self, tmp_path: Path) -> None:
        async with running_pool(
            flow_of(tmp_path, "async def main(n):\n    return n\n"), worker_count=0, max_concurrency=30
        ) as pool:
            await run(pool, n=1)
            assert (pool.slots, pool.most_slots) == (30, 30)
            assert pool.told() == ASYNC

    @pytest.mark.parametrize("given", [0, 2], ids=["auto", "a number that is given"])
    async def test_code_that_turns_out_to_be_async_is_told(self, tmp_path: Path, given: int) -> None:
        code = "async def later(n):\n    return n\ndef main(n):\n    return later(n)\n"
        async with running_pool(flow_of(tmp_path, code), worker_count=given, max_concurrency=30) as pool:
            assert pool.slots < 30
            await run(pool, n=1)
            assert (pool.slots, pool.told()) == (30, ASYNC)

    async def test_a_number_that_is_given_for_async_code_is_not_told(self, tmp_path: Path) -> None:
        async with running_pool(flow_of(tmp_path, "async def main(n):\n    return n\n"), worker_count=2) as pool:
            assert pool.told() == ""

    async def test_there_are_never_more_than_the_limit(self, tmp_path: Path) -> None:
        async with running_pool(flow_of(tmp_path, WAITS), worker_count=0, max_concurrency=1_000) as pool:
            assert pool.most_slots == MOST_WORKERS

    async def test_a_pool_among_others_begins_with_one(self, tmp_path: Path) -> None:
        async with running_pool(flow_of(tmp_path, WAITS), worker_count=0, max_concurrency=8, alone=False) as pool:
            assert (pool.slots, pool.most_slots) == (1, 8)
