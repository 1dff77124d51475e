"""Lines that are sent to a worker ahead: each runs once, whatever becomes of the line before it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest
from pools import code_of, flow_of, run, running_pool
from waiting import eventually

from prefect_batchflow.execution.workers.permits import AHEAD_SEC
from prefect_batchflow.execution.workers.worker_process import Job, WorkerProcess

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.execution.workers.pool import WorkerPool

pytestmark = pytest.mark.anyio

LINES = 100
BAD = 50
"""The line that does something else than the others."""


@pytest.fixture
def most_ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs each worker had, each time it was sent some."""
    had: list[int] = []
    take = WorkerProcess.take

    def noted(self: WorkerProcess, jobs: list[Job]) -> None:
        take(self, jobs)
        had.append(len(self.jobs))

    monkeypatch.setattr(WorkerProcess, "take", noted)
    return had


async def run_all(pool: WorkerPool, *, timeout_sec: float = 60.0) -> list[asyncio.Task[LineOutcome]]:
    """Begin all lines at once, after some that show the workers to be quick."""
    await asyncio.gather(*(run(pool, LINES + number, n=-1) for number in range(20)))
    return [asyncio.create_task(run(pool, number, n=number, timeout_sec=timeout_sec)) for number in range(LINES)]


def began(folder: Path) -> list[int]:
    """The lines that have begun, each as often as it did."""
    return sorted(int(number) for number in (folder / "began").read_text().split())


def code(bad: str) -> str:
    """A flow whose lines say that they begin; one of them is bad."""
    return f"""
import os, pathlib, time
def main(n):
    if n >= 0:
        with open("began", "a") as began:
            began.write(f"{{n}}\\n")
    if n == {BAD}:
        {bad}
    return n
"""


@pytest.mark.parametrize("workers", [1, 2])
async def test_short_lines_are_sent_ahead(tmp_path: Path, most_ahead: list[int], workers: int) -> None:
    async with running_pool(flow_of(tmp_path, code("pass")), worker_count=workers) as pool:
        outcomes = await asyncio.gather(*await run_all(pool))

    assert [outcome.parsed()["output"] for outcome in outcomes] == [{"output": number} for number in range(LINES)]
    assert began(tmp_path) == list(range(LINES))
    assert max(most_ahead) > 1


async def test_slow_lines_are_not_sent_ahead(tmp_path: Path, most_ahead: list[int]) -> None:
    slow = f"import time\ndef main(n):\n    time.sleep({2 * AHEAD_SEC})\n"
    async with running_pool(flow_of(tmp_path, slow), worker_count=1) as pool:
        await asyncio.gather(*(run(pool, number, n=number) for number in range(6)))

    assert max(most_ahead) == 1


async def test_a_hanging_line_holds_no_other_up(tmp_path: Path, most_ahead: list[int]) -> None:
    hang = 'while not pathlib.Path("go").exists(): pass'
    async with running_pool(flow_of(tmp_path, code(hang)), worker_count=2) as pool:
        tasks = await run_all(pool)
        bad = tasks.pop(BAD)
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        assert not bad.done()
        assert pool.running() == {BAD}
        (tmp_path / "go").touch()
        await bad

    assert began(tmp_path) == list(range(LINES))
    assert max(most_ahead) > 1


@pytest.mark.parametrize(
    ("bad", "code_of_bad"),
    [
        ("os._exit(3)", "ProcessCrashError"),
        ("while True: pass", "LineExecutionTimeoutError"),
        ("raise MemoryError", "LineOutOfMemoryError"),
    ],
    ids=["crash", "time limit", "out of memory"],
)
async def test_the_end_of_a_worker_costs_no_line_behind_it(
    tmp_path: Path, most_ahead: list[int], bad: str, code_of_bad: str
) -> None:
    async with running_pool(flow_of(tmp_path, code(bad)), worker_count=1) as pool:
        outcomes = await asyncio.gather(*await run_all(pool, timeout_sec=3.0))

    assert {n for n, outcome in enumerate(outcomes) if outcome.receipt.error is not None} == {BAD}
    assert code_of(outcomes[BAD]) == code_of_bad
    assert began(tmp_path) == list(range(LINES))
    assert max(most_ahead) > 1


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[WorkerProcess]:
    """The worker that gets no turn, as on a busy machine: the first that is sent several jobs, before it begins one."""
    workers: list[WorkerProcess] = []
    take = WorkerProcess.take

    def stopping(self: WorkerProcess, jobs: list[Job]) -> None:
        if not workers and not self.jobs and len(jobs) > 1:
            workers.append(self)
            os.kill(self.pid, signal.SIGSTOP)
        take(self, jobs)

    monkeypatch.setattr(WorkerProcess, "take", stopping)
    return workers


async def test_a_worker_that_gets_no_turn_for_a_while_runs_its_lines_then(
    tmp_path: Path, stopped: list[WorkerProcess]
) -> None:
    async with running_pool(flow_of(tmp_path, code("pass")), worker_count=1) as pool:
        tasks = [asyncio.create_task(run(pool, number, n=number)) for number in range(LINES)]
        await eventually(lambda: stopped and len(stopped[0].jobs) <= 1, description="what was sent ahead is taken back")
        os.kill(stopped[0].pid, signal.SIGCONT)
        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*tasks)

    assert [outcome.parsed()["output"] for outcome in outcomes] == [{"output": number} for number in range(LINES)]
    assert began(tmp_path) == list(range(LINES))


async def test_a_worker_that_never_gets_a_turn_is_replaced_at_the_limit_of_its_line(
    tmp_path: Path, stopped: list[WorkerProcess]
) -> None:
    async with running_pool(flow_of(tmp_path, code("pass")), worker_count=1) as pool:
        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*(run(pool, n, n=n, timeout_sec=2.0) for n in range(LINES)))

    assert len(stopped) == 1
    assert [outcome.parsed()["output"] for outcome in outcomes] == [{"output": number} for number in range(LINES)]
    assert began(tmp_path) == list(range(LINES))


async def test_a_line_sent_ahead_is_cancelled_without_its_worker(tmp_path: Path, most_ahead: list[int]) -> None:
    hang = 'while not pathlib.Path("go").exists(): pass'
    async with running_pool(flow_of(tmp_path, code(hang)), worker_count=1) as pool:
        tasks = await run_all(pool)
        await eventually(lambda: pool.running() == {BAD}, description="the bad line runs")
        for task in (cancelled := tasks[BAD + 1 :: 2]):
            task.cancel()
        await asyncio.wait(cancelled)
        (tmp_path / "go").touch()
        ended = await asyncio.gather(*tasks, return_exceptions=True)

    left = [*range(BAD + 1), *range(BAD + 2, LINES, 2)]
    assert [n for n, outcome in enumerate(ended) if not isinstance(outcome, asyncio.CancelledError)] == left
    assert began(tmp_path) == left
    assert max(most_ahead) > 1


@pytest.mark.parametrize("say", ["print(text)", "os.write(2, text.encode())"], ids=["Python", "file descriptor"])
async def test_what_a_killed_line_said_is_its_own(tmp_path: Path, most_ahead: list[int], say: str) -> None:
    bad = f"text = 'the bad line'; {say}; os._exit(3)"
    flow = flow_of(tmp_path, code(bad).replace("    return n", "    print(f'line {n}')"))
    async with running_pool(flow, worker_count=1) as pool:
        outcomes = await asyncio.gather(*await run_all(pool))

    assert outcomes[BAD].parsed()["logs"].split() == ["the", "bad", "line"]
    assert max(most_ahead) > 1


async def test_what_a_line_before_said_past_python_is_not_a_dead_lines(tmp_path: Path, most_ahead: list[int]) -> None:
    source = code("os._exit(7)").replace(
        "    return n", "    os.write(2, b'MemoryError: of another line\\n')\n    return n"
    )
    async with running_pool(flow_of(tmp_path, source), worker_count=1) as pool:
        outcomes = await asyncio.gather(*await run_all(pool))

    assert code_of(outcomes[BAD]) == "ProcessCrashError"
    assert outcomes[BAD].parsed()["logs"] == ""
    assert max(most_ahead) > 1


async def test_a_line_that_ends_whoever_reads_it_is_not_run_for_ever(tmp_path: Path) -> None:
    flow = flow_of(tmp_path, "def main(text):\n    return len(text)\n")
    async with running_pool(flow, worker_count=1, line_memory_mb=32) as pool:
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(run(pool, 0, text="x" * 60_000_000), run(pool, 1, text="short"))

        assert code_of(outcomes[0]) == "LineOutOfMemoryError"
        assert outcomes[0].receipt.duration_sec < 30
        assert outcomes[1].parsed()["output"] == {"output": 5}
        assert pool._supervisor.tokens <= 4


@pytest.mark.parametrize("child", ["sys.exit(3)", "return 'the child'", "raise ValueError"])
async def test_what_a_line_forks_is_no_second_worker(tmp_path: Path, child: str) -> None:
    forks = f"""
        import os, sys
        def main(n):
            if n == 3 and os.fork() == 0:
                {child}
            return os.getpid()
        """
    async with running_pool(flow_of(tmp_path, forks), worker_count=1) as pool:
        outcomes = [await run(pool, number, n=number) for number in range(10)]

    assert [outcome.receipt.error for outcome in outcomes] == [None] * 10
    assert len({outcome.parsed()["output"]["output"] for outcome in outcomes}) == 1
