"""Completed lines of another run, or of a storage the caller brings, become records of this one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from outcomes import outcome_of, record_of

from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.lines import Line, input_hash
from prefect_batchflow.results.models import FlowRunInfo, RunInfo
from prefect_batchflow.results.records import Status
from prefect_batchflow.storage import takeover
from prefect_batchflow.storage.custom import AbstractBatchRunStorage
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.matching import History
from prefect_batchflow.storage.records import RunRecords
from prefect_batchflow.storage.takeover import take_over_run, take_over_storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect_batchflow.blocks import RunStorageBlock

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 2, tzinfo=UTC)
HISTORY = History(since=0, renumbered=(), unfinished=frozenset())


@pytest.fixture
def into(local: RunStorageBlock) -> RunRecords:
    return RunRecords(local, RunKeys("new"), session=0)


def lines_of(contents: Iterable[int]) -> list[Line]:
    """Lines with the inputs of `outcome_of` these numbers."""
    return [Line(number, {"n": content}) for number, content in enumerate(contents)]


async def records_in(records: RunRecords) -> dict[int, Any]:
    return {stored.receipt.line_number: record async for stored, record in records.newest()}


class Brought(AbstractBatchRunStorage):
    """A storage of the caller's, with what it knows by line number."""

    def __init__(self, lines: dict[int, FlowRunInfo], nodes: dict[int, list[RunInfo]] | None = None) -> None:
        self.lines = lines
        self.nodes = nodes or {}

    def persist_node_run(self, run_info: RunInfo) -> None:
        raise NotImplementedError

    def persist_flow_run(self, run_info: FlowRunInfo) -> None:
        raise NotImplementedError

    def load_node_run_info_for_line(self, line_number: int) -> Sequence[RunInfo]:
        return self.nodes.get(line_number, ())

    def load_flow_run_info(self, line_number: int) -> FlowRunInfo | None:
        return self.lines.get(line_number)


def info_of(number: int, status: Status = Status.Completed, **facts: Any) -> FlowRunInfo:
    known = {"run_id": f"old_{number}", "output": {"n": number}, "index": number, "start_time": NOW, "end_time": NOW}
    return FlowRunInfo(status=status, **{**known, **facts})


class TestARun:
    async def test_its_newest_completed_lines_are_copied(self, remote: RunStorageBlock, into: RunRecords) -> None:
        old = RunKeys("old")
        await RunRecords(remote, old, session=1).append([outcome_of(n) for n in range(3)] + [outcome_of(3, error="no")])
        await RunRecords(remote, old, session=2).append([outcome_of(1, error="again"), outcome_of(3, attempt=2)])

        taken = await take_over_run(RunRecords(remote, old, session=0), HISTORY, lines_of(range(4)), into)

        assert taken == 3
        assert await records_in(into) == {0: record_of(0), 2: record_of(2), 3: record_of(3, attempt=2)}

    async def test_a_run_of_its_own_is_newer_than_what_it_took_over(
        self, local: RunStorageBlock, remote: RunStorageBlock, into: RunRecords
    ) -> None:
        await RunRecords(remote, RunKeys("old"), session=7).append([outcome_of(0, attempt=5, output={"a": "old"})])
        await take_over_run(RunRecords(remote, RunKeys("old"), session=0), HISTORY, lines_of([0]), into)

        await RunRecords(local, RunKeys("new"), session=1).append([outcome_of(0, output={"a": "new"})])

        assert (await records_in(into))[0]["output"] == {"a": "new"}

    async def test_many_lines_become_segments_of_a_bounded_size(
        self, remote: RunStorageBlock, into: RunRecords, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(takeover, "_LINES_A_SEGMENT", 10)
        await RunRecords(remote, RunKeys("old"), session=1).append([outcome_of(n) for n in range(25)])

        assert (
            await take_over_run(RunRecords(remote, RunKeys("old"), session=0), HISTORY, lines_of(range(25)), into) == 25
        )

        assert [(name.first, name.last) for name in await into.segments()] == [(0, 9), (10, 19), (20, 24)]

    async def test_a_line_is_found_by_its_inputs_wherever_it_stood(
        self, remote: RunStorageBlock, into: RunRecords
    ) -> None:
        old = RunRecords(remote, RunKeys("old"), session=1)
        await old.append([outcome_of(n) for n in range(3)])

        assert await take_over_run(old, HISTORY, lines_of([9, 2, 0]), into, total_before=3) == 2

        records = await records_in(into)
        assert {number: record["output"] for number, record in records.items()} == {1: {"n": 2}, 2: {"n": 0}}
        assert {number: record["line_number"] for number, record in records.items()} == {1: 1, 2: 2}

    async def test_an_empty_run_gives_nothing(self, remote: RunStorageBlock, into: RunRecords) -> None:
        assert await take_over_run(RunRecords(remote, RunKeys("old"), session=0), HISTORY, lines_of([0]), into) == 0
        assert await into.segments() == []


class TestAStorage:
    async def test_lines_are_looked_up_by_number_and_get_this_runs_inputs(self, into: RunRecords) -> None:
        brought = Brought(
            {
                4: info_of(4, system_metrics={"duration": 1.5, "total_tokens": 9}),
                7: info_of(7, Status.Failed),
                9: info_of(9),
            },
            {4: [RunInfo(node="grade", run_id="x", status=Status.Completed, output=[1], start_time=NOW, end_time=NOW)]},
        )
        lines = [Line(number, {"q": f"q{number}"}) for number in (2, 4, 7)]

        assert await take_over_storage(brought, lines, into) == 1

        index, _ = await into.scan()
        receipt = index.completed(4, input_hash({"q": "q4"}))
        assert receipt is not None
        assert (receipt.duration_sec, receipt.tokens.total, receipt.nodes) == (1.5, 9, (("grade", Status.Completed),))
        record = (await records_in(into))[4]
        assert record["inputs"] == {"q": "q4"}
        assert record["output"] == {"n": 4}
        assert record["aggregation_inputs"] == {"${grade.output}": [1]}
        assert index.lines.keys() == {4}

    async def test_times_that_it_does_not_know_are_filled_in(self, into: RunRecords) -> None:
        await take_over_storage(Brought({0: info_of(0, start_time=None, end_time=None)}), [Line(0, {})], into)

        record = (await records_in(into))[0]
        assert datetime.fromisoformat(record["start_time"]) == datetime.fromisoformat(record["end_time"])

    @pytest.mark.parametrize("known", [KeyError("lost"), "no run info"], ids=["it raises", "it answers nonsense"])
    async def test_a_storage_that_cannot_tell_stops_the_run(self, into: RunRecords, known: Any) -> None:
        class Broken(Brought):
            def load_flow_run_info(self, line_number: int) -> FlowRunInfo | None:
                if line_number == 1:
                    if isinstance(known, Exception):
                        raise known
                    return known  # type: ignore[no-any-return]
                return super().load_flow_run_info(line_number)

        with pytest.raises(StorageError, match=r"Broken could not give line 1: .*Nothing was run"):
            await take_over_storage(Broken({0: info_of(0)}), [Line(0, {}), Line(1, {})], into)

    async def test_lines_with_other_inputs_are_left_and_told(self, into: RunRecords) -> None:
        brought = Brought({n: info_of(n, inputs={"q": f"q{n}", "line_number": n}) for n in range(3)})
        lines = [Line(0, {"q": "q0", "added": 1}), Line(1, {"q": "other"}), Line(2, {"q": "q2"})]
        others: list[int] = []

        assert await take_over_storage(brought, lines, into, others.append) == 2

        assert (sorted(await records_in(into)), others) == ([0, 2], [1])
