"""A Prefect server that goes away in the middle of a run: no line is lost, and the run comes to its end in time."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from prefect_api import wait_for
from prefect_processes import prefect_home, start_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from steering import Steering

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

LINES = 60
DONE = 20


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_run_ends_without_its_server(number: signal.Signals, steering: Callable[[int], Steering]) -> None:
    with prefect_home() as home:
        server = start_server(home)
        steered = steering(LINES)
        steered.wait_from(DONE)
        run = home.local_run(steered, run_id="alone")
        wait_for(lambda: len(steered.executed()) == DONE + 2, "two lines wait, the ones before them are done")

        os.kill(server.pid, number)
        steered.wait_from(None)

        # Many times less than Prefect's own attempts would take.
        result = run.result(limit_sec=75)
        assert (result["status"], result["completed_lines"]) == ("Completed", LINES)
        assert steered.executed() == dict.fromkeys(range(LINES), 1)
        outputs = (home.runs / "alone" / "outputs.jsonl").read_text().splitlines()
        assert [json.loads(line)["number"] for line in outputs] == list(range(LINES))
        said = run.log.read_text()
        assert "The Prefect server does not answer" in said
        assert "Traceback" not in said
