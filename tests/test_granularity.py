"""How many lines each task run gets: `line` and `chunk` by count, `auto` by the time that lines take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL
from waiting import wait_until

from prefect_batchflow import BatchEngine, tasks
from prefect_batchflow.granularity import LARGEST_BY_TIME, MOST_AT_FIRST, SINGLE_LINES_FIRST, TaskRunSizes
from prefect_batchflow.results.records import Receipt, Status
from prefect_batchflow.tasks import MOST_FAILED_LINES, NAMED_FAILURES, chunk_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from prefect_batchflow.settings import Granularity


def sizes_of(total: int, line_sec: float, granularity: Granularity = "auto", ahead: int = 8) -> list[int]:
    """The sizes of all task runs of a run whose lines take `line_sec`; each size is chosen `ahead` lines too early."""
    sizes, chosen, known, left = TaskRunSizes(granularity, total), [], 0, total
    while left:
        begun = total - left
        for _ in range(max(0, begun - ahead) - known):
            sizes.took(line_sec)
        known = max(known, begun - ahead)
        chosen.append(min(sizes.next, left))
        sizes.begun()
        left -= chosen[-1]
    return chosen


@pytest.mark.parametrize("line_sec", [1.0, 1.2, 30.0])
@pytest.mark.parametrize("total", [1, 8, 20, 200])
def test_lines_of_a_second_and_more_have_a_task_run_each(total: int, line_sec: float) -> None:
    assert sizes_of(total, line_sec) == [1] * total
    assert sizes_of(total, line_sec, ahead=80) == [1] * total


@pytest.mark.parametrize("total", [1_000, 2_000, 5_000, 100_000])
@pytest.mark.parametrize("line_sec", [0.00003, 0.001, 0.015, 0.1, 0.5])
def test_short_lines_make_at_most_two_hundred_task_runs(total: int, line_sec: float) -> None:
    assert len(sizes_of(total, line_sec)) <= MOST_AT_FIRST + SINGLE_LINES_FIRST


@pytest.mark.parametrize(("line_sec", "lines"), [(0.0, 200), (0.00003, 200), (0.02, 50), (0.1, 10), (0.5, 2), (0.9, 1)])
def test_a_task_run_gets_about_a_second_of_work(line_sec: float, lines: int) -> None:
    sizes = sizes_of(300, line_sec)

    assert sizes[:SINGLE_LINES_FIRST] == [1] * SINGLE_LINES_FIRST
    assert sizes[-3] == sizes[-2] == lines if lines < LARGEST_BY_TIME else max(sizes) == lines


@pytest.mark.parametrize(
    ("granularity", "total", "lines"),
    [("line", 100_000, 1), ("chunk", 1, 50), ("chunk", 2_000, 50), ("chunk", 20_000, 100), ("chunk", 1_000_000, 5_000)],
)
def test_line_and_chunk_go_by_count_whatever_lines_take(granularity: Granularity, total: int, lines: int) -> None:
    sizes = TaskRunSizes(granularity, total)
    for line_sec in (0.001, 100.0):
        sizes.took(line_sec)
    sizes.server_is_behind(10_000)

    assert sizes.next == lines
    assert not sizes.asks_server


def test_one_slow_line_among_short_ones_changes_little() -> None:
    sizes = TaskRunSizes("auto", 1_000)
    for _ in range(SINGLE_LINES_FIRST):
        sizes.begun()
    for line_sec in [0.01] * 50 + [60.0]:
        sizes.took(line_sec)

    assert sizes.next > 30


class TestAServerThatIsBehind:
    def sizes(self, line_sec: float = 1.0) -> TaskRunSizes:
        sizes = TaskRunSizes("auto", 5_000)
        for _ in range(MOST_AT_FIRST):
            sizes.took(line_sec)
            sizes.begun()
        return sizes

    def test_is_asked_only_after_the_first_task_runs(self) -> None:
        few = TaskRunSizes("auto", 5_000)

        assert not few.asks_server
        assert self.sizes().asks_server

    @pytest.mark.parametrize("behind", [101, 5_000, None], ids=str)
    def test_gets_larger_task_runs_until_it_has_caught_up(self, behind: int | None) -> None:
        sizes, seen = self.sizes(), []
        for task_runs in [behind, behind, behind, 90, 49, 10, 0, 0]:
            sizes.server_is_behind(task_runs)
            seen.append(sizes.next)

        assert seen == [2, 4, 8, 8, 4, 2, 1, 1]

    def test_never_gets_more_than_a_bound(self) -> None:
        sizes = self.sizes()
        for _ in range(50):
            sizes.server_is_behind(None)

        assert sizes.next == LARGEST_BY_TIME


def receipts(*numbers: int, code: str = "LineExecutionTimeoutError") -> list[Receipt]:
    error: dict[str, Any] = {"code": "UserError", "message": "m", "innerError": {"code": code, "innerError": None}}
    return [Receipt(line_number=number, status=Status.Failed, error=error) for number in numbers]


@pytest.mark.parametrize(
    ("lines", "completed", "failures", "name", "message"),
    [
        (3, 3, [], "Completed", "3 of 3 lines completed"),
        (3, 1, [9, 7], "CompletedWithFailures", "1 of 3 lines completed, 2 failed: line 7 TimedOut, line 9 TimedOut"),
        (
            4,
            1,
            [7],
            "Cancelled",
            "1 of 4 lines completed, 1 failed: line 7 TimedOut; the others were stopped before they",
        ),
    ],
    ids=["all completed", "some failed", "stopped"],
)
def test_a_chunk_names_its_failed_lines(
    lines: int, completed: int, failures: Sequence[int], name: str, message: str
) -> None:
    state = chunk_state(lines, completed, receipts(*failures))

    assert state.name == name
    assert str(state.message).startswith(message)


def test_a_chunk_names_a_bounded_number_of_lines() -> None:
    message = str(chunk_state(900, 0, receipts(*range(900))).message)

    assert message.count("TimedOut") == NAMED_FAILURES
    assert message.endswith(f" and {900 - NAMED_FAILURES} more")


# --- as Prefect shows it ---------------------------------------------------------------------------------------------

QUICK = """
def main(n: int) -> int:
    with open("calls", "a") as calls:
        calls.write(f"{n}\\n")
    if n % 10 == 3:
        raise ValueError(f"{n} is bad " + "x" * 100_000)
    return n
"""


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    folder = tmp_path / "quick"
    folder.mkdir()
    (folder / "quick.py").write_text(QUICK)
    return folder


def task_runs(run_id: str, count: int) -> list[Any]:
    """The task runs of a run, once the server has as many and all have ended."""
    body = {"task_runs": {"tags": {"all_": [f"run:{run_id}"]}}, "limit": 200}
    found: list[Any] = []

    def are_there() -> bool:
        found[:] = httpx.post(f"{PREFECT_API_URL.value()}/task_runs/filter", json=body).json()
        return len(found) >= count and all(run["state_type"] in ("COMPLETED", "FAILED") for run in found)

    wait_until(are_there, description="the server has all task runs", timeout_sec=30)
    return found


@pytest.mark.usefixtures("prefect_server")
class TestFailedLinesOfChunks:
    def run(self, quick: Path, storage: Path, rows: Path, **options: Any) -> Any:
        engine = BatchEngine(f"{quick / 'quick.py'}:main", run_storage_url=str(storage), worker_count=1, **options)
        return engine.run({"data": rows}, run_id=f"shown-{quick.parent.name}"[:60])

    def test_are_red_by_name_and_run_once(self, quick: Path, storage: Path, write_rows: Callable[..., Path]) -> None:
        result = self.run(quick, storage, write_rows([{"n": n} for n in range(60)]), granularity="chunk")

        shown = task_runs(f"shown-{quick.parent.name}"[:60], 8)
        failed = {run["name"]: run for run in shown if run["state_type"] == "FAILED"}
        assert (result.completed_lines, result.failed_lines) == (54, 6)
        assert sorted(failed) == [f"line-{n:06d}" for n in range(3, 60, 10)]
        assert "13 is bad" in failed["line-000013"]["state"]["message"]
        assert Counter(run["name"] for run in shown if run["name"].startswith("lines-")) == {
            "lines-000000-000049": 1,
            "lines-000050-000059": 1,
        }
        calls = (quick / "calls").read_text().split()
        assert sorted(map(int, calls)) == list(range(60)), "no line ran again to be shown"

    def test_are_shown_up_to_a_bound(
        self, quick: Path, storage: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert MOST_FAILED_LINES >= 50
        monkeypatch.setattr(tasks, "MOST_FAILED_LINES", 2)

        self.run(quick, storage, write_rows([{"n": 3}] * 20), granularity="chunk")

        shown = task_runs(f"shown-{quick.parent.name}"[:60], 3)
        assert Counter(run["state_name"] for run in shown) == {"Failed": 2, "CompletedWithFailures": 1}

    def test_short_lines_in_auto_make_few_task_runs(
        self, quick: Path, storage: Path, write_rows: Callable[..., Path]
    ) -> None:
        result = self.run(quick, storage, write_rows([{"n": n} for n in range(0, 4_000, 10)]))

        assert result.completed_lines == 400
        assert len(task_runs(f"shown-{quick.parent.name}"[:60], SINGLE_LINES_FIRST)) < 40

    def test_a_resume_goes_by_the_lines_that_are_left(
        self, quick: Path, storage: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        totals = []

        class Noted(TaskRunSizes):
            def __init__(self, granularity: Granularity, total_lines: int) -> None:
                totals.append(total_lines)
                super().__init__(granularity, total_lines)

        monkeypatch.setattr(tasks, "TaskRunSizes", Noted)
        rows = write_rows([{"n": n} for n in range(40)])

        assert [self.run(quick, storage, rows).completed_lines for _ in range(2)] == [36, 36]
        assert totals == [40, 4]


PRINTS = """
import asyncio
import sys
from prefect_batchflow import BatchEngine, LineFailureError, batch_run

door, flow, data, storage, granularity, retries = sys.argv[1:]
options = {"granularity": granularity, "retries": int(retries)}
if door == "batch_run":
    print(asyncio.run(batch_run(flow=flow, data=data, storage=storage, **options, return_state=True)))
else:
    try:
        BatchEngine(flow, run_storage_url=storage, **options).run({"data": data}, raise_on_line_failure=True)
    except LineFailureError as exc:
        print(exc)
"""


@pytest.mark.programs
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("door", "granularity", "retries"),
    [
        ("engine", "auto", 0),
        ("engine", "line", 1),
        ("batch_run", "auto", 0),
        ("command", "auto", 0),
    ],
)
def test_three_hundred_failing_lines_with_long_messages_print_at_most_a_screen(
    door: str, granularity: str, retries: int, quick: Path, storage: Path, write_rows: Callable[..., Path]
) -> None:
    rows, flow = write_rows([{"n": 3}] * 300), f"{quick / 'quick.py'}:main"
    words = [sys.executable, "-c", PRINTS, door, flow, str(rows), str(storage), granularity, str(retries)]
    if door == "command":
        words = [sys.executable, "-m", "prefect_batchflow.cli", "run", flow, "--data", str(rows)]
        words += ["--storage", str(storage), "--granularity", granularity, "--retries", str(retries)]

    env = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=120)

    printed = done.stdout + done.stderr
    assert "300 failed" in printed or "300 of 300 lines failed" in printed
    assert len(printed.splitlines()) <= 50
    assert len(printed) <= 50 * 200
