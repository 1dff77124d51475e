"""A run whose process was killed, begun again: by Retry in the UI, by the same command."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from prefect_api import FINAL, wait_for
from prefect_processes import command_of, processes_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_api import PrefectAPI
    from prefect_processes import Home
    from steering import Steering

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

LINES = 40
DONE = 25
"""Lines that are done when the process is killed; two others run then, one on each worker."""


def test_retry_of_a_killed_run_goes_on_where_it_was(
    api: PrefectAPI, deployed: Home, steering: Callable[[int], Steering]
) -> None:
    steered = steering(LINES)
    steered.wait_from(DONE)
    flow_run_id = api.start("ad-hoc", steered.parameters(granularity="line"))
    wait_for(lambda: len(steered.executed()) == DONE + 2, "two lines wait, the ones before them are done")
    waiting = set(steered.executed()) - set(range(DONE))
    api.ended_task_runs(flow_run_id, DONE)

    os.kill(_engine_of(flow_run_id), signal.SIGKILL)

    assert api.ended(flow_run_id)["type"] == "CRASHED"
    wait_for(lambda: not processes_with("PREFECT__FLOW_RUN_ID", flow_run_id), "no process of the run is left", 10)
    steered.wait_from(None)
    state = _retried(api, flow_run_id)
    assert (state["type"], state["message"]) == ("COMPLETED", f"{LINES} of {LINES} lines completed")
    assert api.flow_run(flow_run_id)["run_count"] == 2
    assert steered.executed() == Counter({n: 2 if n in waiting else 1 for n in range(LINES)})
    assert len((deployed.runs / flow_run_id / "outputs.jsonl").read_text().splitlines()) == LINES

    # The UI has the task runs of both starts, each under its own name, and in the end none that seems to go on.
    names = [f"line-{number:06d}" for number in range(LINES)]
    wait_for(lambda: _names(api, flow_run_id, "COMPLETED") == names, "every line has a completed task run")
    assert {run["state_type"] for run in api.task_runs(flow_run_id)} == {"COMPLETED", "CRASHED"}
    crashed = _names(api, flow_run_id, "CRASHED")
    assert crashed == names[DONE : DONE + len(crashed)]


def test_a_killed_local_run_shows_as_crashed_once_it_is_resumed(
    api: PrefectAPI, server: Home, steering: Callable[[int], Steering]
) -> None:
    steered = steering(10)
    steered.wait_from(4)
    run = server.local_run(steered, run_id="killed-locally")
    wait_for(lambda: len(steered.executed()) == 6, "two lines wait, the ones before them are done")
    waiting = set(steered.executed()) - set(range(4))
    os.kill(run.process.pid, signal.SIGKILL)
    steered.wait_from(None)

    result = server.local_run(steered, run_id="killed-locally").result()

    assert (result["status"], result["completed_lines"]) == ("Completed", 10)
    assert steered.executed() == Counter({n: 2 if n in waiting else 1 for n in range(10)})
    body = {"flow_runs": {"name": {"any_": ["steered-killed-locally"]}}, "sort": "START_TIME_ASC"}
    assert [flow_run["state"]["type"] for flow_run in api.post("/flow_runs/filter", body)] == ["CRASHED", "COMPLETED"]


def _names(api: PrefectAPI, flow_run_id: str, state_type: str) -> list[str]:
    return [run["name"] for run in api.task_runs(flow_run_id) if run["state_type"] == state_type]


def _engine_of(flow_run_id: str) -> int:
    """The process that runs a flow run: the worker's child, not the children it has itself."""
    processes = processes_with("PREFECT__FLOW_RUN_ID", flow_run_id)
    engines = [
        pid for pid in processes if "prefect.engine" in command_of(pid) or "prefect.flow_engine" in command_of(pid)
    ]
    assert len(engines) == 1, [command_of(pid) for pid in processes]
    return engines[0]


def _retried(api: PrefectAPI, flow_run_id: str) -> dict[str, object]:
    """Press Retry until the run has run again.

    The worker reports a killed run as crashed twice, a second apart. When the second report arrives after a Retry, the run
    is Crashed again and was never started: its count of starts tells.
    """
    before = api.flow_run(flow_run_id)["run_count"]

    def is_over() -> bool:
        flow_run = api.flow_run(flow_run_id)
        if flow_run["state"]["type"] not in FINAL:
            return False
        if flow_run["run_count"] == before:
            api.retry(flow_run_id)
            return False
        return True

    wait_for(is_over, "the retried run has ended")
    return api.state(flow_run_id)
