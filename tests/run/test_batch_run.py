"""A run that is stopped between its stages: before its lines, and when another process has taken it over."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import Status
from prefect_batchflow.cli.commands import main
from prefect_batchflow.exceptions import BatchflowException, RunInUseError
from prefect_batchflow.flows import run_batch
from prefect_batchflow.run import batch_run, ending
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.run.resuming import Resuming
from prefect_batchflow.storage.lease import Lease
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

TAKEN = RunInUseError("The run was taken over.", run_id="r")


@pytest.fixture
def parameters(tmp_path: Path, storage: Path, write_rows: Callable[..., Path]) -> dict[str, Any]:
    """Of a run whose first start has done its two lines."""
    (tmp_path / "flow.py").write_text("def main(n: int) -> int:\n    return n\n")
    parameters = {
        "flow": f"{tmp_path / 'flow.py'}:main",
        "data": str(write_rows([{"n": 1}, {"n": 2}])),
        "storage": str(storage),
        "run_id": "r",
    }
    assert run_batch(parameters, LiveRun()).completed_lines == 2
    return parameters


class Taken(Lease):
    """A lease that a test can let another process take."""

    lost: Callable[[BatchflowException], None]

    def __init__(self, files: Any, keys: Any, on_lost: Callable[[BatchflowException], None]) -> None:
        super().__init__(files, keys, on_lost)
        type(self).lost = staticmethod(on_lost)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> type[Taken]:
    monkeypatch.setattr(batch_run, "Lease", Taken)
    return Taken


@pytest.mark.parametrize("during", ["scan", "take over"])
def test_a_run_that_is_cancelled_while_its_records_are_read_ends_at_once(
    parameters: dict[str, Any], storage: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    live = LiveRun()

    async def long(*_: Any) -> None:
        live.cancel()
        await asyncio.Event().wait()

    if during == "scan":
        monkeypatch.setattr(RunRecords, "scan", long)
    else:
        monkeypatch.setattr(Resuming, "_take_over", long)
        parameters |= {"run_id": "another", "resume_from": "r"}
    outputs = (storage / "r" / "outputs.jsonl").read_bytes()

    result = run_batch(parameters, live)

    assert (result.status, result.total_lines, result.completed_lines) == (Status.Canceled, 2, 0)
    assert live.notes[-1].startswith("Stopped before the run knew which lines are done. No line has begun")
    assert (storage / "r" / "outputs.jsonl").read_bytes() == outputs
    monkeypatch.undo()
    assert run_batch(parameters, LiveRun()).completed_lines == 2


@pytest.mark.parametrize(
    ("another", "said"),
    [
        (["--run-id", "another", "--resume-from", "r"], "Error: Canceled. Finished lines are kept"),
        (["--run-id", "r"], ""),
    ],
    ids=["of which there is nothing yet", "that had begun before"],
)
def test_the_command_line_ends_as_canceled_too(
    parameters: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    another: list[str],
    said: str,
) -> None:
    async def long(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(Resuming, "_take_over", long)
    monkeypatch.setattr(RunRecords, "scan", long)
    options = [parameters["flow"], "--data", parameters["data"], "--storage", parameters["storage"], *another]

    status = main(["run", *options])

    assert status == 130
    assert said in capsys.readouterr().err


def test_a_run_that_was_taken_over_while_its_records_are_read_runs_no_line(
    parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch, taken: type[Taken]
) -> None:
    live = LiveRun()

    async def long(*_: Any) -> None:
        taken.lost(TAKEN)
        await asyncio.Event().wait()

    monkeypatch.setattr(RunRecords, "scan", long)

    with pytest.raises(RunInUseError, match="taken over"):
        run_batch(parameters, live)
    assert live.tally is not None
    assert live.tally.ended_lines == 0


def test_a_run_that_was_taken_over_while_it_reports_writes_no_outputs(
    parameters: dict[str, Any], storage: Path, monkeypatch: pytest.MonkeyPatch, taken: type[Taken]
) -> None:
    really_report = ending.Ending.report

    async def late(self: ending.Ending) -> Any:
        taken.lost(TAKEN)
        return await really_report(self)

    monkeypatch.setattr(ending.Ending, "report", late)
    (storage / "r" / "outputs.jsonl").unlink()

    with pytest.raises(RunInUseError, match="taken over"):
        run_batch(parameters, LiveRun())
    assert not (storage / "r" / "outputs.jsonl").exists()
