"""Times of records and results when somebody sets the clock of the machine."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_batchflow.results import records
from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.records import Clock
from prefect_batchflow.results.tally import Tally
from prefect_batchflow.run import state as state_module
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.run.state import RunState
from prefect_batchflow.run.stopping import Stop


class SetClock(datetime):
    """A wall clock that jumps."""

    jump = timedelta(0)

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.jump


@pytest.mark.parametrize("days", [-1, 1, 400], ids=lambda days: f"{days} days")
def test_the_end_of_a_line_is_its_start_plus_its_duration(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    monkeypatch.setattr(records, "datetime", SetClock)
    monkeypatch.setattr(SetClock, "jump", timedelta(0))
    clock = Clock()
    monkeypatch.setattr(SetClock, "jump", timedelta(days=days))

    start, end, duration_sec = clock.span()

    assert 0 <= duration_sec < 60
    took = datetime.fromisoformat(end) - datetime.fromisoformat(start)
    assert took == timedelta(seconds=duration_sec)


@pytest.mark.parametrize("days", [-1, 1], ids=lambda days: f"{days} days")
def test_a_run_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    taken: list[datetime] = []
    monkeypatch.setattr(BatchResult, "of", lambda *given, **_: taken.extend(given[2:4]))
    monkeypatch.setattr(state_module, "datetime", SetClock)
    state = RunState.__new__(RunState)
    state.start_time = datetime.now(UTC)
    state.clock = time.monotonic() - 3.0
    state.tally = Tally()
    state.stop = Stop(LiveRun(), None, state.clock)
    monkeypatch.setattr(SetClock, "jump", timedelta(days=days))

    state.batch_result(0)

    start, end = taken
    assert 3.0 <= (end - start).total_seconds() < 60
