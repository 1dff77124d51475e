"""F8: whole runs on a storage whose n-th call goes wrong, for each kind of call and every n until none does.

A fault of one call costs nothing: the run completes, and no line is executed once more. An outage, or a lie, that begins at
any call and lasts is one clear error, and the same command completes the run later, without a line that has a record.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from bare_run import bare_run, without_prefect
from scripted_storage import CALLS, ERRORS, Script, content_of, keep, kept, scripted

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import BatchflowException, UnexpectedError
from prefect_batchflow.storage import lease, retries
from prefect_batchflow.storage.care import verify_run
from prefect_batchflow.storage.earlier import require_manifest
from prefect_batchflow.storage.keys import RunKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from prefect_batchflow.results.models import BatchResult

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

LINES = 3
ALL_FAULTS = "BATCHFLOW_TEST_ALL_FAULTS"
"""Set in the environment to try each error at each call, which takes minutes. Otherwise the errors take turns:
tests/storage/test_retries.py has each of them at each call of a run's storage. Each lie is always tried at each call."""


def faults_of(kind: str, errors: Iterable[str]) -> list[tuple[str, ...]]:
    """All that can go wrong at a kind of call; errors that take turns are together."""
    turns = [(error,) for error in errors] if os.environ.get(ALL_FAULTS) else [tuple(errors)]
    return [*turns, *((lie,) for lie in CALLS[kind] if lie not in ERRORS)]


class Run:
    """A run of a few lines; the witness counts in `begun` which lines were executed."""

    def __init__(self, folder: Path, lines: int = LINES) -> None:
        self.lines = lines
        self.root = uuid.uuid4().hex
        self.begun: list[int] = []
        self.fails: set[int] = set()
        self._flow = folder / "squares.py"
        self._flow.write_text("def main(n: int) -> dict: ...\n")
        self._data = folder / "rows.jsonl"
        self._data.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(lines)))

    def start(self, **options: Any) -> BatchResult:
        """The same command each time."""
        return bare_run(
            self._line,
            flow=f"{self._flow}:main",
            data=str(self._data),
            inputs_mapping={"n": "${data.n}"},
            storage=f"scripted://{self.root}",
            **options,
        )

    def _line(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        n = inputs["n"]
        self.begun.append(n)
        if n in self.fails:
            raise RuntimeError("not yet")
        return {"square": n * n}

    def segments(self) -> list[str]:
        """The segments, past the package; those that were set aside not."""
        return sorted(path for path in kept(self.root) if path.startswith(f"/{self.root}/r1/records/00"))

    def completed(self) -> set[int]:
        """The lines with a record that was written whole."""
        texts = [text for path in self.segments() if (text := content_of(path)).endswith(b"\n")]
        rows = [json.loads(row) for text in texts for row in text.splitlines()[1:]]
        return {row["line_number"] for row in rows if row["status"] == "Completed"}

    def check_whole(self, name: str, *, damaged: bool = False) -> None:
        """I1, I2 and I5: each line counts once, has one sound record, and is in the outputs once, sorted.

        With `damaged`, a damaged segment can be there, too, because it was not listed or could not be moved.
        """
        rows = [json.loads(row) for row in content_of(f"/{self.root}/r1/outputs.jsonl").splitlines()]
        assert rows == [{"line_number": n, "square": n * n} for n in range(self.lines)], name
        result = json.loads(content_of(f"/{self.root}/r1/batch_result.json"))
        assert (result["completed_lines"], result["total_lines"]) == (self.lines, self.lines), name
        found = asyncio.run(self._verified())
        assert (found.completed, found.is_finished) == (self.lines, True), name
        assert len(found.wrong) <= damaged, f"{name}: {found.wrong}"

    async def _verified(self) -> Any:
        files = RunStorageBlock(url=f"scripted://{self.root}")
        return await verify_run(files, await require_manifest(files, RunKeys("r1")))


@dataclass(frozen=True)
class Scenario:
    """What has happened before, how the run is started then, and which lines that start has to execute."""

    before: Callable[[Run], object]
    options: Mapping[str, Any]
    executes: frozenset[int]


def _one_failed(run: Run) -> None:
    run.fails = {1}
    run.start()
    run.fails = set()


def _one_damaged(run: Run) -> None:
    run.start(max_lines_count=1)
    run.start()
    path = run.segments()[0]
    keep(run.root, {**kept(run.root), path: content_of(path)[:-9]})


SCENARIOS = {
    "fresh": Scenario(lambda _: None, {}, frozenset({0, 1, 2})),
    "resume": Scenario(lambda run: run.start(max_lines_count=2), {}, frozenset({2})),
    "rerun": Scenario(_one_failed, {"rerun": "failed"}, frozenset({1})),
    "damaged": Scenario(_one_damaged, {}, frozenset({0})),
}
HAPPENS = [(kind, name) for kind in CALLS for name in SCENARIOS if kind != "delete" or name == "damaged"]
"""The kinds of calls that each scenario makes."""


@dataclass(frozen=True)
class Case:
    """One start with a fault."""

    run: Run
    fault: str
    name: str
    result: BatchResult | None
    error: BatchflowException | None


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retries, "DELAYS_SEC", (0.0,) * 7)
    monkeypatch.setattr(retries, "LOOK_AGAIN_SEC", (0.0,) * 3)
    for name in ("ABSENT_AGAIN_SEC", "CREATE_AGAIN_SEC", "WATCH_SEC"):
        monkeypatch.setattr(lease, name, 0.0)
    # The next start is another process, which sees that the holder of a lease that stayed behind is gone.
    monkeypatch.setattr(lease, "is_dead", lambda _: True)
    with without_prefect():
        yield


def each_call(folder: Path, name: str, kind: str, faults: tuple[str, ...], *, lasts: bool = False) -> Iterator[Case]:
    """The scenario with a fault at call 1, 2, 3 … of the kind, until it strikes none. Each case begins anew.

    The faults take turns, beginning with another one in each scenario.
    """
    turn = list(SCENARIOS).index(name)
    run, scenario = Run(folder), SCENARIOS[name]
    scenario.before(run)
    files = kept(run.root)
    struck = list[str]()
    for n in itertools.count(1):
        keep(run.root, files)
        run.begun.clear()
        result, error, fault = None, None, faults[(turn + n) % len(faults)]
        with scripted(Script(fault, n, kind, lasts=lasts)) as script:
            try:
                result = run.start(**scenario.options)
            except BatchflowException as exc:
                error = exc
        if not script.fired:
            break
        place = script.struck.removeprefix(f"/{run.root}/r1/")
        struck.append(f"{n} {place} {fault}")
        yield Case(run, fault, f"{name}: {fault} at {kind} {n} of {place}", result, error)
    print(f"{name}, {kind}{' for ever' * lasts}: {', '.join(struck)}")  # noqa: T201 - the matrix
    assert struck, f"{name} has no {kind} that went wrong"


@pytest.mark.parametrize(("kind", "name"), HAPPENS)
def test_a_fault_of_one_call_costs_nothing(tmp_path: Path, kind: str, name: str) -> None:
    for faults in faults_of(kind, ERRORS):
        for case in each_call(tmp_path, name, kind, faults):
            assert case.error is None, f"{case.name}: {case.error}"
            assert Counter(case.run.begun) == Counter(SCENARIOS[name].executes), case.name
            case.run.check_whole(case.name)


@pytest.mark.parametrize(("kind", "name"), HAPPENS)
def test_a_fault_that_lasts_is_one_clear_error_and_the_same_command_goes_on(
    tmp_path: Path, kind: str, name: str
) -> None:
    scenario = SCENARIOS[name]
    for faults in faults_of(kind, ("403", "503")):
        for case in each_call(tmp_path, name, kind, faults, lasts=True):
            run, fault = case.run, case.fault
            # A listing that says the same each time is believed. What is not in it runs again.
            if "listing" not in fault:
                assert Counter(run.begun) <= Counter(scenario.executes), f"{case.name}: a line with a record ran"
            assert (case.error is None) == (case.result is not None)
            assert not isinstance(case.error, UnexpectedError), case.name
            if case.result is not None:
                assert case.result.completed_lines == LINES, case.name
                run.check_whole(case.name, damaged=name == "damaged")
            elif fault in ERRORS:
                assert "tried " in str(case.error), f"{case.name}: {case.error}"
            completed = run.completed()
            run.begun.clear()

            result = run.start(**scenario.options)

            assert result.completed_lines == LINES, case.name
            assert completed.isdisjoint(run.begun), f"{case.name}: a line with a record ran again"
            run.check_whole(case.name)
