"""The group commit: one segment at a time, and everything that ends meanwhile in the next one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from outcomes import outcome_of
from waiting import eventually

from prefect_batchflow.exceptions import StorageError, UnexpectedError
from prefect_batchflow.storage.writer import RecordWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.exceptions import BatchflowException
    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.storage.records import RunRecords

pytestmark = pytest.mark.anyio


def numbers(outcomes: Sequence[LineOutcome]) -> list[int]:
    return [outcome.receipt.line_number for outcome in outcomes]


class SlowRecords:
    """Records whose writes end when they are told to."""

    def __init__(self) -> None:
        self.segments: list[list[int]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def append(self, outcomes: Sequence[LineOutcome]) -> None:
        self.segments.append(numbers(outcomes))
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    def check_space(self) -> None:
        """There is room."""


class AWriter:
    """A writer, and what it calls."""

    def __init__(self) -> None:
        self.records = SlowRecords()
        self.kept: list[list[int]] = []
        self.failures: list[BatchflowException] = []
        self.writer = RecordWriter(cast("RunRecords", self.records), self._keep, self.failures.append)

    def _keep(self, outcomes: Sequence[LineOutcome]) -> None:
        self.kept.append(numbers(outcomes))

    async def begin(self, *line_numbers: int) -> list[asyncio.Task[None]]:
        """Keep the outcomes of some lines, each by itself, one after the other."""
        keeping = [asyncio.create_task(self.writer.keep([outcome_of(number)])) for number in line_numbers]
        await eventually(lambda: self.records.segments, description="a segment is being written")
        return keeping


async def test_what_ends_while_a_segment_is_written_becomes_one_more_segment() -> None:
    a = AWriter()
    keeping = await a.begin(0)
    keeping += await a.begin(1, 2, 3)
    await asyncio.sleep(0)
    assert a.kept == []

    a.records.gate.set()
    await asyncio.gather(*keeping)

    assert a.records.segments == a.kept == [[0], [1, 2, 3]]


@pytest.mark.parametrize(
    ("error", "reported"),
    [(StorageError("full"), StorageError), (OSError("odd"), UnexpectedError)],
    ids=["ours", "any"],
)
async def test_everyone_who_waits_for_a_segment_hears_that_it_failed(error: Exception, reported: Any) -> None:
    a = AWriter()
    a.records.error = error
    keeping = await a.begin(0, 1)
    a.records.gate.set()

    raised = await asyncio.gather(*keeping, return_exceptions=True)

    assert [type(exc) for exc in raised] == [reported, reported]
    assert [type(exc) for exc in a.failures] == [reported]
    assert a.kept == []


async def test_a_caller_that_is_cancelled_does_not_end_the_write() -> None:
    a = AWriter()
    [keeping] = await a.begin(0)
    keeping.cancel()
    await asyncio.wait({keeping})
    a.records.gate.set()

    await a.writer.wait(5)

    assert a.kept == [[0]]


async def test_waiting_for_a_write_ends_with_its_limit() -> None:
    a = AWriter()
    [keeping] = await a.begin(0)

    await a.writer.wait(0.01)

    assert a.kept == []
    a.records.gate.set()
    await keeping
