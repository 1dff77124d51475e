"""Cancel in the UI: of a deployment's run, which Prefect ends, and of a local one, which asks."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect_api import wait_for
from prefect_processes import end_group, processes_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_api import PrefectAPI
    from prefect_processes import Home
    from steering import Steering

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

ENDS_WITHIN_SEC = 10.0
LINES = 30
DONE = 12
"""Lines that are done when the run is cancelled; two others run then, one on each worker."""
MESSAGE = f"{DONE} of {LINES} lines completed, 2 canceled, {LINES - DONE - 2} not started. Canceled in Prefect."


def test_cancel_of_a_deployments_run_keeps_what_is_done_and_says_so(
    api: PrefectAPI, deployed: Home, steering: Callable[[int], Steering]
) -> None:
    steered = steering(LINES)
    steered.wait_from(DONE)
    flow_run_id = api.start("ad-hoc", steered.parameters())
    wait_for(lambda: len(steered.executed()) == DONE + 2, "two lines wait, the ones before them are done")

    api.cancel(flow_run_id)

    state = api.ended(flow_run_id)
    assert (state["type"], state["message"]) == ("CANCELLED", MESSAGE)
    result = json.loads((deployed.runs / flow_run_id / "batch_result.json").read_text())
    assert (result["status"], result["completed_lines"], result["total_lines"]) == ("Canceled", DONE, LINES)
    wait_for(lambda: not processes_with("PREFECT__FLOW_RUN_ID", flow_run_id), "no process of the run is left", 15)
    executed = steered.executed()
    assert set(range(DONE)) < set(executed)
    assert list(executed.values()) == [1] * (DONE + 2)
    # Nothing that comes later takes our message away.
    assert api.state(flow_run_id)["message"] == MESSAGE


def test_prefects_own_command_cancels_a_run_of_a_served_deployment(
    api: PrefectAPI, server: Home, steering: Callable[[int], Steering]
) -> None:
    served = server.start("served", [sys.executable, str(Path(__file__).parents[1] / "support" / "served.py")])
    steered = steering(LINES)
    steered.wait_from(DONE)
    try:
        wait_for(lambda: api.has_deployment("served"), "the deployment is served")
        flow_run_id = api.start("served", steered.parameters())
        wait_for(lambda: len(steered.executed()) == DONE + 2, "two lines wait, the ones before them are done")
        waiting = set(steered.executed()) - set(range(DONE))

        server.prefect("flow-run", "cancel", flow_run_id)
        cancelled = time.monotonic()

        state = api.ended(flow_run_id)
        assert time.monotonic() - cancelled < ENDS_WITHIN_SEC
        assert (state["type"], state["message"]) == ("CANCELLED", MESSAGE)
        result = json.loads((server.runs / flow_run_id / "batch_result.json").read_text())
        assert (result["status"], result["completed_lines"], result["total_lines"]) == ("Canceled", DONE, LINES)
        assert set(api.artifacts(flow_run_id)) >= {"markdown", "progress"}
        wait_for(lambda: not processes_with("PREFECT__FLOW_RUN_ID", flow_run_id), "no process of the run is left", 15)
    finally:
        end_group(served)

    steered.wait_from(None)
    again = server.local_run(steered, run_id=flow_run_id)
    assert again.result()["completed_lines"] == LINES
    executed = steered.executed()
    assert {number for number, times in executed.items() if times > 1} <= waiting


def test_cancel_of_a_local_run_ends_it_with_its_result(
    api: PrefectAPI, server: Home, steering: Callable[[int], Steering]
) -> None:
    steered = steering(LINES)
    steered.wait_from(DONE)
    run = server.local_run(steered, run_id="cancelled-locally")
    wait_for(lambda: len(steered.executed()) == DONE + 2, "two lines wait, the ones before them are done")
    (flow_run,) = api.post("/flow_runs/filter", {"flow_runs": {"name": {"any_": ["steered-cancelled-locally"]}}})

    api.cancel(flow_run["id"])

    result = run.result()
    assert (result["status"], result["completed_lines"], result["total_lines"]) == ("Canceled", DONE, LINES)
    state = api.ended(flow_run["id"])
    assert (state["type"], state["message"]) == ("CANCELLED", MESSAGE)
