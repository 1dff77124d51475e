"""The check after every fault finds a violation of each invariant, and nothing in a run that is whole."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from invariants import MARK, Watch, square
from outcomes import outcome_of
from stored_run import STARTED, manifest_of

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.tally import Tally
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.manifest import Session, write_manifest
from prefect_batchflow.storage.outputs import write_outputs
from prefect_batchflow.storage.records import RunRecords

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from prefect_batchflow.results.records import LineRecord

LINES = 6
AGAIN = datetime.fromisoformat("2026-01-03T00:00:00+00:00")


class Story:
    """A run that is told, not run: what its starts have written, and which lines say that they were executed."""

    def __init__(self, folder: Path) -> None:
        self.files, self.keys = RunStorageBlock(url=str(folder / "runs")), RunKeys("r")
        self.watch = Watch(folder / "runs" / "r", {n: {"n": n} for n in range(LINES)}, folder / "witness", in_flight=1)
        self.sessions: list[Session] = []

    def start(self, numbers: Sequence[int], *, ends: bool = True, **facts: Any) -> None:
        """One start, which executes these lines; without `ends` it is killed before its end."""
        self.execute(numbers)
        moment = STARTED if not self.sessions else AGAIN
        self.sessions.append(Session(started_at=moment.isoformat(), prefect_flow_run_id=None, versions={}))
        asyncio.run(self._write(numbers, moment if ends else None, facts))

    def execute(self, numbers: Sequence[int]) -> None:
        with self.watch.witness.open("a") as file:
            file.write("".join(f"{n}\n" for n in numbers))

    async def _write(self, numbers: Sequence[int], ended: datetime | None, facts: dict[str, Any]) -> None:
        manifest = manifest_of("r", total_lines=LINES, sessions=self.sessions, identity="r/1", **facts)
        await write_manifest(self.files, self.keys, manifest)
        records = RunRecords(self.files, self.keys, len(self.sessions), manifest.records_since, "r/1")
        for n in numbers:
            await records.append([outcome_of(n, inputs={"n": n}, output=square({"n": n}))])
        if ended is None:
            return
        tally = Tally()
        index, _ = await records.scan()
        for stored in index.lines.values():
            tally.add(stored.receipt)

        async def newest() -> AsyncIterator[LineRecord]:
            async for _, record in records.newest():
                yield record

        await write_outputs(self.files, self.keys, newest(), BatchResult.of(tally, LINES, ended, ended), None)


def segment(run: Path, number: int) -> Path:
    (path,) = (run / "records").glob(f"{number:012d}-*")
    return path


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run of three lines that was killed, and of the other ones, which came to its end."""
    told = Story(tmp_path)
    told.watch.begin()
    told.start(range(3), ends=False)
    told.watch.check(None)
    told.watch.begin()
    return told


def test_a_whole_run_has_no_violation(story: Story) -> None:
    story.start(range(3, LINES))

    story.watch.check(0)

    assert (story.watch.kills, story.watch.starts, story.watch.executed_again) == (1, 2, 0)


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def of_result(**counts: int) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **counts})


def without_row(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[1:])


def turned(text: str) -> str:
    return "".join(reversed(text.splitlines(keepends=True)))


VIOLATIONS: dict[str, tuple[str, Callable[[Story], object]]] = {
    "a count too few": ("I1", lambda s: edit(s.watch.run / "batch_result.json", of_result(completed_lines=5))),
    "a count moved": (
        "I1",
        lambda s: edit(s.watch.run / "batch_result.json", of_result(completed_lines=5, failed_lines=1)),
    ),
    "a negative count": (
        "I1",
        lambda s: edit(s.watch.run / "batch_result.json", of_result(not_started_lines=-1, canceled_lines=1)),
    ),
    "a kept record is gone": ("I2", lambda s: segment(s.watch.run, 1).unlink()),
    "a kept record is damaged": ("I2", lambda s: edit(segment(s.watch.run, 1), lambda t: t.replace('"n"', '"m"'))),
    "a new record is gone": ("I4", lambda s: segment(s.watch.run, 4).unlink()),
    "a record of other inputs": ("I7", lambda s: setattr(s.watch, "lines", {**s.watch.lines, 4: {"n": 9}})),
    "a kept line is executed": ("I3", lambda s: s.execute([1])),
    "a line that is not in the data is executed": ("I3", lambda s: s.execute([77])),
    "a line is executed twice": ("I3", lambda s: s.execute([4])),
    "no outputs": ("I5", lambda s: (s.watch.run / "outputs.jsonl").unlink()),
    "half a row": ("I5", lambda s: edit(s.watch.run / "outputs.jsonl", lambda text: text[:-9])),
    "a row without its end": ("I5", lambda s: edit(s.watch.run / "outputs.jsonl", lambda text: text[:-1])),
    "a row is missing": ("I5", lambda s: edit(s.watch.run / "outputs.jsonl", without_row)),
    "rows are not sorted": ("I5", lambda s: edit(s.watch.run / "outputs.jsonl", turned)),
    "another output": ("I5", lambda s: edit(s.watch.run / "outputs.jsonl", lambda text: text.replace("16", "17"))),
    "no output folder": ("I5", lambda s: setattr(s.watch, "output_dir", s.watch.run.parent / "outputs")),
    "no result": ("I7", lambda s: (s.watch.run / "batch_result.json").unlink()),
    "the result of an earlier start": (
        "I7",
        lambda s: edit(s.watch.run / "batch_result.json", lambda text: text.replace("01-03", "01-02")),
    ),
}


@pytest.mark.parametrize(("invariant", "violate"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_a_violation_is_found(story: Story, invariant: str, violate: Callable[[Story], object]) -> None:
    story.start(range(3, LINES))
    violate(story)

    found = list(story.watch.violations(0))

    assert [text for text in found if text.startswith(f"{invariant}:")], found


def test_lines_in_flight_can_be_without_record_after_a_kill_and_no_others(story: Story) -> None:
    story.execute([3])
    story.start([4], ends=False)
    story.watch.check(None)
    assert story.watch.worst == 1

    story.execute([5])

    assert [text[:2] for text in story.watch.violations(None)] == ["I4"]


def test_a_run_that_does_not_go_on_is_found(story: Story) -> None:
    assert [text[:2] for text in story.watch.violations(2)] == ["I7"]


def test_a_start_that_should_be_refused_and_is_not_is_found(story: Story) -> None:
    story.start(range(3, LINES))

    assert {text[:2] for text in story.watch.violations(0, refused=True)} == {"I3", "I7"}


def test_a_process_that_stays_alive_is_found(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invariants.GONE_WITHIN_SEC", 0.2)
    story.watch.mark = str(story.watch.run)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], env={**os.environ, MARK: story.watch.mark}, stdin=subprocess.PIPE
    ) as process:
        found = list(story.watch.violations(None))
        process.kill()

    assert len(found) == 1
    assert found[0].startswith(f"I6: processes [{process.pid}] are alive")


def test_lines_that_were_to_run_again_may(story: Story) -> None:
    story.start(range(3, LINES))
    story.watch.check(0)
    story.watch.begin()
    story.execute([2])

    assert [text[:2] for text in story.watch.violations(None)] == ["I3"]
    story.watch.check(None, asked_again={2: 1})
