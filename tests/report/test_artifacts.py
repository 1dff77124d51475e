"""Artifacts reach Prefect, keep their keys, and never fail or delay a run."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow, get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from prefect_batchflow.report import artifacts
from prefect_batchflow.report.artifacts import (
    PROGRESS_INTERVAL_SEC,
    ProgressArtifact,
    artifact_key,
    write_failed_lines,
    write_summary,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect.client.schemas.objects import Artifact as StoredArtifact


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeArtifacts:
    """Stands in for Prefect's progress functions: notes what is written, waits or fails when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.created: list[tuple[float, str]] = []
        self.updated: list[tuple[float, str]] = []
        self.id = uuid4()
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        monkeypatch.setattr(artifacts, "acreate_progress_artifact", self.create)
        monkeypatch.setattr(artifacts, "aupdate_progress_artifact", self.update)

    async def create(self, progress: float, key: str, description: str) -> UUID:
        await self._answer()
        assert key == artifact_key("run", "progress")
        self.created.append((progress, description))
        return self.id

    async def update(self, artifact_id: UUID, progress: float, description: str) -> UUID:
        await self._answer()
        assert artifact_id == self.id
        self.updated.append((progress, description))
        return self.id

    async def _answer(self) -> None:
        await self.gate.wait()
        if self.error:
            raise self.error


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeArtifacts:
    return FakeArtifacts(monkeypatch)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings written, whatever Prefect does to its loggers meanwhile."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.Logger("report-test")
    logger.addHandler(handler)
    monkeypatch.setattr(artifacts, "_logger", lambda: logger)
    return messages


async def settle() -> None:
    """Let tasks that are ready run until they wait for something else."""
    for _ in range(10):
        await asyncio.sleep(0)


class TestKey:
    @given(st.text(), st.sampled_from(["summary", "failed-lines", "progress"]))
    def test_it_is_what_prefect_allows_and_short(self, run_id: str, kind: Any) -> None:
        key = artifact_key(run_id, kind)

        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)
        assert len(key) <= 80
        assert Artifact(key=key).key == key

    @given(st.text(max_size=3), st.text(max_size=3))
    def test_two_runs_never_share_one(self, one: str, other: str) -> None:
        assert (artifact_key(one, "summary") == artifact_key(other, "summary")) == (one == other)

    @pytest.mark.parametrize(
        ("one", "other"), [("run.1", "run-1"), ("Run", "run"), ("a" * 50, "a" * 51), ("é", "è")], ids=str
    )
    def test_ids_with_one_slug_have_two_keys(self, one: str, other: str) -> None:
        assert artifact_key(one, "progress") != artifact_key(other, "progress")

    def test_it_stays_the_same_and_can_be_recognised(self) -> None:
        assert artifact_key("Nightly 2026/11", "summary") == "batchflow-nightly-2026-11-073af94565c5-summary"


async def stored(key: str) -> list[StoredArtifact]:
    async with get_client() as client:
        # By key: unasked, the server gives the first page of all that the session's tests have written.
        found = await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return sorted(found, key=lambda artifact: str(artifact.created))


def run_in_flow(body: Callable[[], Awaitable[Any]]) -> Any:
    @flow(name="report-test")
    async def report_test() -> Any:
        return await body()

    return asyncio.run(report_test())


@pytest.mark.usefixtures("prefect_server")
class TestInPrefect:
    """Against a real server."""

    def test_the_summary_belongs_to_the_flow_run(self) -> None:
        async def body() -> tuple[bool, list[StoredArtifact]]:
            return await write_summary("run.1", "# done"), await stored(artifact_key("run.1", "summary"))

        written, (artifact,) = run_in_flow(body)

        assert written
        assert (artifact.type, artifact.data) == ("markdown", "# done")
        assert artifact.description == "Summary of batch run run.1"
        assert artifact.flow_run_id is not None

    def test_failed_lines_are_a_table(self) -> None:
        rows = [{"line_number": 3, "error": "InputTypeError", "message": "no int", "attempts": 1}]

        async def body() -> list[StoredArtifact]:
            await write_failed_lines("run_2", rows, failed_lines=7)
            return await stored(artifact_key("run_2", "failed-lines"))

        (artifact,) = run_in_flow(body)

        assert json.loads(str(artifact.data)) == rows
        assert artifact.description == r"The first 1 of 7 failed lines of batch run run\_2"

    def test_a_resumed_run_can_clear_the_table(self) -> None:
        async def body() -> list[StoredArtifact]:
            await write_failed_lines("run_3", [{"line_number": 3}], failed_lines=1)
            await write_failed_lines("run_3", [], failed_lines=0)
            return await stored(artifact_key("run_3", "failed-lines"))

        first, last = run_in_flow(body)

        assert json.loads(str(first.data)) == [{"line_number": 3}]
        assert json.loads(str(last.data)) == []
        assert last.description == r"0 failed lines of batch run run\_3"

    def test_progress_is_one_artifact_that_ends_with_the_last_numbers(self) -> None:
        async def body() -> list[StoredArtifact]:
            clock = Clock()
            async with ProgressArtifact("run_4", 8, clock=clock) as progress:
                for ended in range(1, 9):
                    clock.now += 1.5
                    progress.update(ended, failed_lines=ended // 4)
                    await settle()
            return await stored(artifact_key("run_4", "progress"))

        (artifact,) = run_in_flow(body)

        assert (artifact.type, artifact.data) == ("progress", 100.0)
        assert artifact.description == "8 of 8 lines ended, 2 failed"

    def test_warnings_go_to_the_flow_runs_own_log(self) -> None:
        async def body() -> str:
            return str(artifacts._logger().name)

        assert run_in_flow(body) == "prefect.flow_runs"


def test_warnings_outside_a_run_go_to_a_prefect_logger() -> None:
    assert artifacts._logger().name == "prefect.prefect_batchflow.report.artifacts"


class TestProgress:
    def test_it_begins_at_zero_and_writes_at_most_every_two_seconds(self, fake: FakeArtifacts) -> None:
        async def scenario() -> None:
            clock = Clock()
            async with ProgressArtifact("run", 100, clock=clock) as progress:
                await settle()
                assert fake.created == [(0.0, "0 of 100 lines ended")]
                clock.now += PROGRESS_INTERVAL_SEC - 0.01
                progress.update(10)
                await settle()
                assert fake.updated == []
                clock.now += 0.01
                progress.update(11)
                await settle()
                progress.update(12)
                await settle()
                assert fake.updated == [(11.0, "11 of 100 lines ended")]
                progress.update(50, failed_lines=3)
            assert fake.updated[1:] == [(50.0, "50 of 100 lines ended, 3 failed")]
            assert len(fake.created) == 1

        asyncio.run(scenario())

    def test_the_end_writes_nothing_twice(self, fake: FakeArtifacts) -> None:
        async def scenario() -> None:
            async with ProgressArtifact("run", 4):
                await settle()
            assert (len(fake.created), len(fake.updated)) == (1, 0)

        asyncio.run(scenario())

    def test_a_slow_server_gets_one_request_at_a_time_and_delays_nothing(self, fake: FakeArtifacts) -> None:
        async def scenario() -> None:
            clock = Clock()
            fake.gate.clear()
            async with ProgressArtifact("run", 100, clock=clock) as progress:
                for ended in range(100):
                    clock.now += 10
                    progress.update(ended)
                    await settle()
                assert fake.created == []
                fake.gate.set()
            assert len(fake.created) == 1
            assert (fake.created + fake.updated)[-1] == (99.0, "99 of 100 lines ended")

        asyncio.run(scenario())

    def test_a_server_that_never_answers_costs_a_bounded_time(
        self, fake: FakeArtifacts, monkeypatch: pytest.MonkeyPatch, told: list[str]
    ) -> None:
        monkeypatch.setattr(artifacts, "PROGRESS_TIMEOUT_SEC", 0.01)
        fake.gate.clear()

        async def scenario() -> None:
            async with ProgressArtifact("run", 100):
                pass
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

        asyncio.run(scenario())

        (warning,) = told
        assert "progress of run 'run'" in warning
        assert "no answer within 0.01 s" in warning

    def test_errors_are_told_once_and_never_reach_the_run(self, fake: FakeArtifacts, told: list[str]) -> None:
        fake.error = ConnectionError("server is gone")

        async def scenario() -> None:
            clock = Clock()
            async with ProgressArtifact("run", 4, clock=clock) as progress:
                for ended in range(4):
                    clock.now += 10
                    progress.update(ended)
                    await settle()

        asyncio.run(scenario())

        (warning,) = told
        assert "ConnectionError: server is gone" in warning
        assert "The run continues" in warning

    def test_it_recovers_when_the_server_comes_back(self, fake: FakeArtifacts) -> None:
        async def scenario() -> None:
            clock = Clock()
            fake.error = ConnectionError("away")
            async with ProgressArtifact("run", 4, clock=clock) as progress:
                await settle()
                fake.error = None
                clock.now += 10
                progress.update(1)
                await settle()
                assert fake.created == [(25.0, "1 of 4 lines ended")]

        asyncio.run(scenario())

    def test_cancellation_passes_and_leaves_no_task(self, fake: FakeArtifacts) -> None:
        async def scenario() -> None:
            fake.gate.clear()
            inside = asyncio.Event()

            async def run() -> None:
                async with ProgressArtifact("run", 4):
                    inside.set()
                    await asyncio.Event().wait()

            running = asyncio.create_task(run())
            await inside.wait()
            running.cancel()
            await settle()
            assert not running.done(), "the last write is given its bounded time"
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

        asyncio.run(scenario())

    def test_an_error_of_the_run_passes(self, fake: FakeArtifacts) -> None:
        async def scenario() -> None:
            async with ProgressArtifact("run", 4):
                raise KeyError("theirs")

        with pytest.raises(KeyError, match="theirs"):
            asyncio.run(scenario())
        assert fake.created == [(0.0, "0 of 4 lines ended")]

    @pytest.mark.parametrize(("total", "ended", "percent"), [(0, 0, 100.0), (3, 1, 100 / 3), (2, 5, 100.0)])
    def test_percents_stay_between_0_and_100(self, fake: FakeArtifacts, total: int, ended: int, percent: float) -> None:
        async def scenario() -> None:
            async with ProgressArtifact("run", total) as progress:
                progress.update(ended)

        asyncio.run(scenario())

        assert (fake.created + fake.updated)[-1][0] == pytest.approx(percent)


@pytest.mark.parametrize("write", [lambda: write_summary("run", "# x"), lambda: write_failed_lines("run", [], 0)])
class TestWhenPrefectIsGone:
    def test_a_failed_write_is_a_warning(
        self,
        write: Callable[[], Awaitable[bool]],
        monkeypatch: pytest.MonkeyPatch,
        told: list[str],
    ) -> None:
        async def fail(*args: object, **kwargs: object) -> None:
            raise ConnectionError("server is gone")

        monkeypatch.setattr(artifacts, "acreate_markdown_artifact", fail)
        monkeypatch.setattr(artifacts, "acreate_table_artifact", fail)

        assert asyncio.run(write()) is False  # type: ignore[arg-type]

        (warning,) = told
        assert "run 'run' as an artifact (ConnectionError: server is gone)" in warning

    def test_a_server_that_never_answers_is_left_in_time(
        self, write: Callable[[], Awaitable[bool]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def hang(*args: object, **kwargs: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(artifacts, "acreate_markdown_artifact", hang)
        monkeypatch.setattr(artifacts, "acreate_table_artifact", hang)
        monkeypatch.setattr(artifacts, "WRITE_TIMEOUT_SEC", 0.01)

        assert asyncio.run(write()) is False  # type: ignore[arg-type]
