"""F13: a run that is told to end does so in time, with what it has, and goes on with the same command."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest
from faulted_run import FLOW, FaultedRun
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from waiting import wait_until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(120)]

ENDS_WITHIN_SEC = 10.0
CANCELED = 130
HUNG = ["", "", "hang in C", "hang with a grandchild", *[""] * 8]
WAITING = [*[""] * 6, "wait", "wait", *[""] * 4]
LINES = 12


@pytest.fixture(params=["line", "chunk"])
def granularity(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def started(run: FaultedRun) -> subprocess.Popen[bytes]:
    """A run whose two workers both have a line that does not end of itself."""
    process = run.start()
    held = {fault: 2 if fault == "hang with a grandchild" else 1 for fault in (*HUNG, *WAITING) if fault}
    expected = sum(held.get(fault, 0) for fault in run.faults)
    wait_until(
        lambda: run.held() == expected or process.poll() is not None, description="both are held up", timeout_sec=60
    )
    return process


@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGINT],
        [signal.SIGINT, signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGHUP],
        [signal.SIGINT, signal.SIGTERM],
    ],
    ids=lambda numbers: " ".join(number.name for number in numbers),
)
def test_a_signal_ends_the_run_with_what_it_has(
    numbers: list[signal.Signals], granularity: str, tmp_path: Path
) -> None:
    run = FaultedRun(tmp_path, HUNG, "--granularity", granularity)
    process = started(run)
    begun = len(run.begun())
    began = time.monotonic()
    for number in numbers:
        process.send_signal(number)

    assert run.ended(process, ENDS_WITHIN_SEC) == CANCELED

    seconds = time.monotonic() - began
    result = run.result()
    counts = (result["completed_lines"], result["canceled_lines"], result["not_started_lines"])
    assert (result["status"], *counts) == ("Canceled", begun - 2, 2, LINES - begun)
    if numbers == [signal.SIGINT]:
        assert seconds > 4, "lines that run had time to end"
    assert state_in_prefect() == "CANCELLED"
    run.check_invariants()


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGINT SIGINT", "limit"])
def test_an_async_run_whose_loop_does_not_answer_ends_too(ending: str, tmp_path: Path) -> None:
    faults = ["hang in C" if n == 30 else "" for n in range(60)]
    options = ["--max-concurrency", "8", *(["--batch-timeout", "6"] if ending == "limit" else [])]
    run = FaultedRun(tmp_path, faults, *options, flow=FLOW.replace(":main", ":main_async"))
    process = started(run)
    for name in ending.split() if ending != "limit" else []:
        process.send_signal(signal.Signals[name])

    assert run.ended(process, ENDS_WITHIN_SEC) == (1 if ending == "limit" else CANCELED)

    result = run.result()
    assert result["canceled_lines"] >= 1
    assert result["failed_lines"] == 0
    if ending == "limit":
        assert 6 <= seconds_of(result) <= 8
    run.check_invariants()


def state_in_prefect() -> str:
    """The type of the last flow run's state, as the server shows it."""
    with get_client(sync_client=True) as client:
        (flow_run,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
    assert flow_run.state is not None
    return flow_run.state.type.value


def test_the_first_ctrl_c_lets_lines_that_run_end_and_begins_no_other(granularity: str, tmp_path: Path) -> None:
    run = FaultedRun(tmp_path, WAITING, "--granularity", granularity)
    process = started(run)
    begun = run.begun()
    process.send_signal(signal.SIGINT)
    wait_until(
        lambda: "get some seconds to finish" in (tmp_path / "log").read_text(), description="it drains", timeout_sec=4
    )
    (tmp_path / "go").touch()

    assert run.ended(process, ENDS_WITHIN_SEC) == CANCELED

    result = run.result()
    counts = (result["completed_lines"], result["canceled_lines"], result["not_started_lines"])
    assert (result["status"], *counts) == ("Canceled", len(begun), 0, LINES - len(begun))
    assert run.begun() == begun
    run.check_invariants()


def test_the_end_of_the_workers_parent_is_theirs(granularity: str, tmp_path: Path) -> None:
    run = FaultedRun(tmp_path, HUNG, "--granularity", granularity)
    process = started(run)

    process.kill()
    process.wait()

    run.check_invariants()


def test_the_runs_limit_ends_it_within_two_seconds(granularity: str, tmp_path: Path) -> None:
    run = FaultedRun(tmp_path, HUNG, "--granularity", granularity, "--batch-timeout", "6")
    process = started(run)

    assert run.ended(process) == 1

    result = run.result()
    assert result["error_summary"]["batch_error_dict"]["innerError"]["code"] == "BatchRunTimeoutError"
    assert 6 <= seconds_of(result) <= 8
    run.check_invariants()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_run_that_still_loads_its_flow_ends_and_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    loading = tmp_path / "loading"
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(loading)!r}).touch()\n"
        f"while not os.path.exists({str(tmp_path / 'mended')!r}): time.sleep(0.01)\n"
        "def main(n: int, fault: str, folder: str):\n    return {'square': n * n}\n"
    )
    run = FaultedRun(tmp_path, [""] * LINES, flow=f"{tmp_path / 'slow.py'}:main")
    process = run.start()
    wait_until(loading.exists, description="the flow is being loaded", timeout_sec=60)

    process.send_signal(number)

    assert run.ended(process, ENDS_WITHIN_SEC) == CANCELED
    assert not run.run.exists()
    run.check_invariants()


def seconds_of(result: dict[str, str]) -> float:
    """From the start of a run to its end, as its result has it."""
    from datetime import datetime

    return (datetime.fromisoformat(result["end_time"]) - datetime.fromisoformat(result["start_time"])).total_seconds()
