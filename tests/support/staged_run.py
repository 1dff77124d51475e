"""A run through its stages from the records to the outputs, without Prefect, workers and a data file.

The lease, the storage, resuming, feeding and ending are the real ones. A row is a letter, the input `q` of its line. What
becomes of a line is scripted by its letter.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from outcomes import outcome_of

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.lines import Line
from prefect_batchflow.run import ending, feeding, resuming
from prefect_batchflow.run import state as state_module
from prefect_batchflow.run.ending import Ending
from prefect_batchflow.run.feeding import Feeding
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.run.resuming import Resuming
from prefect_batchflow.run.state import RunState
from prefect_batchflow.settings import BatchRequest, RunOptions
from prefect_batchflow.storage.flow_print import FlowPrint
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    import pytest

    from prefect_batchflow.execution.line_feed import LineEvents
    from prefect_batchflow.results.models import BatchResult
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.run.preparation import Prepared
    from prefect_batchflow.storage.records import RunRecords


FAILS, STOPS, VANISHES = "fails", "stops", "vanishes"
"""What a line does, if it does not complete: it stops the run before it ends, or never ends."""


class ScriptedFeed:
    """Runs one line after the other, and ends each as the script says."""

    how = "as a script says"
    stop_grace_sec = 0.0
    group, width, task_runs = 1, 1, 0

    def __init__(self, run: StagedRun, records: RunRecords, events: LineEvents) -> None:
        self._staged, self._records, self._events = run, records, events
        self.on_room: Callable[[], None] = lambda: None
        self.canceled: set[int] = set()
        self.unsettled: dict[int, Receipt] = {}
        self._stopped = False
        self._open = 0

    def load(self) -> int:
        return self._open

    def running(self) -> int:
        return 0

    def waits(self) -> list[Any]:
        return []

    async def look(self) -> None:
        """There is no server."""

    async def written(self, limit_sec: float) -> None:
        """Each line is, before the next one begins."""

    def stop(self, *, drain: bool = False) -> None:
        self._stopped = True

    def run(self, lines: Sequence[Line]) -> Coroutine[Any, Any, None]:
        self._open += 1
        return self._run_lines(lines)

    async def _run_lines(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if self._stopped:
                break
            run, letter = self._staged, line.inputs["q"]
            run.begun.append(letter)
            does = run.script.get(letter, "completes")
            if does == STOPS:
                self.canceled.add(line.line_number)
                self._stopped = True
                run.live.cancel()
            elif does != VANISHES:
                run.made[letter] += 1
                outcome = outcome_of(
                    line.line_number,
                    inputs=line.inputs,
                    output={"q": letter, "made": run.made[letter]},
                    error="no" if does == FAILS else None,
                )
                await self._records.append([outcome])
                run.acknowledged[letter] += does != FAILS
                self._events.ended(outcome.receipt)
                self._events.settled(outcome.receipt)
        self._open -= 1
        self.on_room()


class _NoProgress:
    """In place of the artifact in Prefect."""

    def __init__(self, *_: object) -> None: ...

    async def __aenter__(self) -> _NoProgress:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def update(self, ended_lines: int, failed_lines: int = 0) -> None: ...


async def nothing(*_: object) -> None:
    """In place of a call that would reach Prefect."""


@dataclass
class StagedRun:
    """A run that can be started again and again.

    Args:
        monkeypatch: Takes Prefect out of the stages.
        files: The run storage; a new one in memory by default.
        run_id: The run.
    """

    monkeypatch: pytest.MonkeyPatch
    files: RunStorageBlock = field(default_factory=lambda: RunStorageBlock(url=f"memory://{uuid.uuid4().hex}/runs"))
    run_id: str = "r"
    script: Mapping[str, str] = field(default_factory=dict)
    """What the lines with a letter do."""
    before_report: Callable[[], Awaitable[object]] = nothing
    """What happens between the last line and the outputs."""
    flow: str = "flow"
    """The content of the flow's only file."""

    def __post_init__(self) -> None:
        self.keys = RunKeys(self.run_id)
        self.live = LiveRun()
        self.begun: list[str] = []
        """The letters of the lines that the last start ran, in order."""
        self.made: Counter[str] = Counter()
        """How often a line with a letter has ended, in all starts."""
        self.acknowledged: Counter[str] = Counter()
        """How many lines with a letter the last start has completed, with their records safe."""
        self.shown: list[str] = []
        """The artifacts of the last start."""

        async def show(run_id: str, *_: object) -> bool:
            self.shown.append(run_id)
            return True

        def fed(_: object, records: RunRecords, __: object, events: LineEvents, **___: object) -> ScriptedFeed:
            return ScriptedFeed(self, records, events)

        async def printed(_: Resuming) -> FlowPrint:
            return FlowPrint({"flow.py": self.flow}, {})

        for place, name, instead in (
            (state_module, "get_run_logger", logging.getLogger),
            (state_module, "current_flow_run", lambda: SimpleNamespace(id=uuid.uuid4(), deployment_id="a deployment")),
            (resuming, "set_right", nothing),
            (Resuming, "_flow_print", printed),
            (feeding, "ProgressArtifact", _NoProgress),
            (feeding, "LocalFeed", fed),
            (ending, "write_summary", show),
            (ending, "write_failed_lines", show),
            (ending, "summary_markdown", lambda *_, **__: ""),
            (ending, "_hand_in", nothing),
        ):
            self.monkeypatch.setattr(place, name, instead)

    async def start(self, rows: str, script: Mapping[str, str] | None = None, **given: Any) -> BatchResult:
        """Start the run, again. `given` are options, and `resume_from`.

        Raises:
            BatchflowException: The run's.
        """
        self.live, self.begun, self.shown, self.script = LiveRun(), [], [], script or {}
        self.acknowledged = Counter()
        resume_from = given.pop("resume_from", "")
        request = BatchRequest(
            flow="f",
            run_id=self.run_id,
            storage=self.files.url,
            data="rows.jsonl",
            resume_from=resume_from,
            options=RunOptions(**given),
        )
        state = RunState(request, self.live)
        async with Lease(self.files, self.keys, state.stop.fail) as lease:
            prepared = self._prepared(rows, self.files.fenced(lease.check))
            opening = Resuming(state, prepared)
            await opening.check_before_writing()
            opened = await opening.open(prepared.files)
            assert opened is not None, "stopped before it was open"
            feed = Feeding(state, prepared, opened, 0)
            await feed.run()
            await self.before_report()
            return await Ending(state, prepared, opened, feed.counts).report()

    def _prepared(self, rows: str, files: RunStorageBlock) -> Prepared:
        lines = [Line(number, {"q": letter}) for number, letter in enumerate(rows)]
        flow = SimpleNamespace(
            name="f",
            service=None,
            working_dir="/f",
            message_format="basic",
            source="/f",
            program=SimpleNamespace(loads_images=False, nodes=()),
            environment_variables={},
        )
        digest = sha256(rows.encode()).hexdigest()
        prepared = SimpleNamespace(
            flow=flow,
            loaded_flow=flow,
            executor=SimpleNamespace(slots=1, most_slots=1, told=lambda: ""),
            cluster=None,
            connections={},
            environ={},
            files=files,
            sources=(),
            inventory=SimpleNamespace(
                total_lines=len(lines), sources=[SimpleNamespace(name="data", sha256=digest, own_numbers=False)]
            ),
            lines=lambda: iter(lines),
            output_dir=None,
            image_roots=(),
            has_aggregation=False,
        )
        return cast("Prepared", prepared)

    async def rows(self, name: str = "outputs") -> list[dict[str, Any]]:
        """The rows of `outputs` or `failed`, sorted by their numbers, each number once."""
        text = await self.files.read_path(f"{self.run_id}/{name}.jsonl")
        rows = [json.loads(line) for line in text.splitlines()]
        numbers = [row["line_number"] for row in rows]
        assert numbers == sorted(set(numbers)), f"{name} is not sorted, or has a number twice: {numbers}"
        return rows

    async def outputs(self) -> dict[int, str]:
        """By line number: the letter, and how often a line with it had ended when this output was made."""
        return {row["line_number"]: f"{row['q']}{row['made']}" for row in await self.rows()}

    async def failed(self) -> dict[int, str]:
        """By line number: the letters of failed lines."""
        return {row["line_number"]: row["q"] for row in await self.rows("failed")}

    async def names(self) -> set[str]:
        """What is in the run's folder."""
        return {*await self.files.list_names(self.run_id)}

    @property
    def notes(self) -> list[str]:
        """What the last start has said."""
        return self.live.notes


class Dies(BaseException):
    """In place of a kill."""


async def dies_at(run: StagedRun, write: int, rows: str, script: Mapping[str, str] | None = None, **given: Any) -> bool:
    """Start a run and let it die just before its n-th write; whether it had so many. Its lease is released."""
    count = 0
    really_write = RunStorageBlock.write_path

    async def write_path(self: RunStorageBlock, path: str, content: bytes) -> None:
        nonlocal count
        count += "/leases/" not in path
        if count >= write and "/leases/" not in path:
            raise Dies
        await really_write(self, path, content)

    with run.monkeypatch.context() as dying:
        dying.setattr(RunStorageBlock, "write_path", write_path)
        try:
            await run.start(rows, script, **given)
        except Dies:
            return True
    return False
