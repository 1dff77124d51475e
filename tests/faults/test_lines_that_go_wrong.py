"""F3, F4, F5: lines that crash, hang and eat memory cost themselves only, each in its own class, and leave nothing behind."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from control_groups import little_memory
from faulted_run import FLOW, FaultedRun
from pools import is_alive
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterState, TaskRunFilterStateType, TaskRunFilterTags
from prefect.client.schemas.objects import StateType
from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(240)]

LIMIT_SEC = 2.0
GONE_AFTER_LIMIT_SEC = 2.0
CRASHED, HUNG, OUT_OF_MEMORY = "ProcessCrashError", "LineExecutionTimeoutError", "LineOutOfMemoryError"
CODES = {
    "segfault": CRASHED,
    "exit": CRASHED,
    "stack": CRASHED,
    "kill": CRASHED,
    "hang in C": HUNG,
    "hang with a grandchild": HUNG,
    "stop": HUNG,
    "memory": OUT_OF_MEMORY,
    "raise": "ScriptExecutionError",
}
STATES = {CRASHED: "ProcessCrashed", HUNG: "TimedOut", OUT_OF_MEMORY: "OutOfMemory", "ScriptExecutionError": "Failed"}


class Hanging:
    """The processes that are to be ended by the limit, and how long each of them lived."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "held"
        self.lived: dict[int, float] = {}
        self._began: dict[int, float] = {}

    def look(self) -> None:
        """Take in which have begun, and which are gone since the last look."""
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            self._began = {int(pid): float(moment) for pid, moment in map(str.split, lines)}
        for pid, moment in self._began.items():
            if pid not in self.lived and not is_alive(pid):
                self.lived[pid] = time.monotonic() - moment


@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_each_line_fails_in_its_own_class_and_no_other_line_fails(granularity: str, tmp_path: Path) -> None:
    faults = [*CODES, *[""] * 11] * 5
    options = ["--granularity", granularity, "--line-timeout", str(LIMIT_SEC), "--line-memory-mb", "64"]
    run = FaultedRun(tmp_path, faults, *options)
    hanging = Hanging(tmp_path)

    def ended() -> bool:
        hanging.look()
        return process.poll() is not None

    process = run.start()
    wait_until(ended, description="the run ends", timeout_sec=100)
    hanging.look()

    assert process.returncode == 3, "lines failed"
    assert run.codes() == {n: CODES[fault] for n, fault in enumerate(faults) if fault}
    assert len(hanging.lived) == 4 * 5
    assert max(hanging.lived.values()) < LIMIT_SEC + GONE_AFTER_LIMIT_SEC
    printed = {n: record["logs"] for n, record in run.records().items() if faults[n]}
    assert all(f"line {n} does: {faults[n]}\n" in text for n, text in printed.items()), printed
    if granularity == "line":
        expected = Counter(STATES[CODES[fault]] if fault else "Completed" for fault in faults)
        wait_until(lambda: task_runs_ended(run.run_id) == len(faults), description="Prefect has them all")
        assert task_run_states(run.run_id) == expected
    run.check_invariants()


@pytest.mark.parametrize("fault", ["exit", "hang in C", "memory"])
def test_an_async_line_that_takes_the_others_with_it_fails_alone(fault: str, tmp_path: Path) -> None:
    faults = [fault if n == 30 else "waits for ever" if n == 45 else "" for n in range(60)]
    flow = FLOW.replace(":main", ":main_async")
    options = ["--line-timeout", str(LIMIT_SEC), "--max-concurrency", "8", "--line-memory-mb", "64"]
    run = FaultedRun(tmp_path, faults, *options, flow=flow)

    assert run.ended(run.start()) == 3

    assert run.codes() == {30: CODES[fault], 45: HUNG}
    records = run.records()
    assert {record["attempt"] for record in records.values()} == {1}
    assert [f"line {n} does: {faults[n]}\n" in records[n]["logs"] for n in (30, 45)] == [True, True]
    run.check_invariants()


def test_a_line_that_takes_the_last_memory_of_the_machine_fails_and_the_run_lives(tmp_path: Path) -> None:
    faults = ["system memory" if n in (3, 11) else "kill" if n == 7 else "" for n in range(16)]
    with little_memory(f"batchflow-test-{os.getpid()}", mib=500) as group:
        # The system only counts: of two processes that end at once, it does not say which one it took.
        run = FaultedRun(tmp_path, faults, control_group=group, workers=1)

        assert run.ended(run.start()) == 3

        assert run.codes() == {3: OUT_OF_MEMORY, 7: CRASHED, 11: OUT_OF_MEMORY}
        message = run.records()[3]["error"]["message"]
        assert "the system's out-of-memory killer ended its process" in message
        run.check_invariants()


def task_runs_ended(run_id: str) -> int:
    """How many task runs of a run the server knows to have ended."""
    tagged = TaskRunFilter(
        tags=TaskRunFilterTags(all_=[f"run:{run_id}"]),
        state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.COMPLETED, StateType.FAILED])),
    )
    with get_client(sync_client=True) as client:
        response = client.request("POST", "/task_runs/count", json={"task_runs": tagged.model_dump(mode="json")})
        return int(response.json())


def task_run_states(run_id: str) -> Counter[str]:
    """How many task runs of a run the server shows in each state."""
    tagged = TaskRunFilter(tags=TaskRunFilterTags(all_=[f"run:{run_id}"]))
    found: Counter[str] = Counter()
    with get_client(sync_client=True) as client:
        while page := client.read_task_runs(task_run_filter=tagged, limit=200, offset=found.total()):
            found.update(str(task_run.state_name) for task_run in page)
    return found
