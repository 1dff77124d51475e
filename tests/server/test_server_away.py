"""A Prefect server that goes away in the middle of a run: no line is lost, and the run comes to its end in time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from prefect_api import wait_for
from prefect_processes import LocalRun, prefect_home, start_server
from steering import Steering

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

LINES = 60
DONE = 20


def test_a_run_ends_without_its_server(tmp_path: Path) -> None:
    # Both at once: waiting for a server that does not come back takes its time.
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(_run_that_lost_its_server(tmp_path / how.name, how))
            for how in (signal.SIGKILL, signal.SIGSTOP)
        ]
        for steered, run, outputs in runs:
            # Many times less than Prefect's own attempts would take, with the end of the process. Alone, a run takes 26 s.
            result = run.result(limit_sec=45)
            assert (result["status"], result["completed_lines"]) == ("Completed", LINES)
            assert steered.executed() == dict.fromkeys(range(LINES), 1)
            assert [json.loads(line)["number"] for line in outputs.read_text().splitlines()] == list(range(LINES))
            said = run.log.read_text()
            assert "It does not know that the run has ended as Completed" in said
            assert "Traceback" not in said


@contextlib.contextmanager
def _run_that_lost_its_server(folder: Path, how: signal.Signals) -> Iterator[tuple[Steering, LocalRun, Path]]:
    """A run whose server was killed or frozen in its middle, and where its outputs will be."""
    folder.mkdir()
    with prefect_home() as home:
        server = start_server(home)
        steered = Steering.over(folder, LINES)
        steered.wait_from(DONE)
        run = home.local_run(steered, run_id="alone", direct=how == signal.SIGSTOP)
        wait_for(lambda: len(steered.executed()) == DONE + 2, "two lines wait, the ones before them are done")
        os.kill(server.pid, how)
        steered.wait_from(None)
        yield steered, run, home.runs / "alone" / "outputs.jsonl"
