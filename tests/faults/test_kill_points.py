"""F1: the process of a run is killed at each named step, at its first, second and third passage. All invariants each time."""

from __future__ import annotations

import ast
import base64
import contextlib
import fcntl
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY

import kill_points
import pytest
from forked_runs import ForkedRuns
from invariants import MARK, Watch

import prefect_batchflow
from prefect_batchflow.storage.lease import this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

PACKAGE = Path(prefect_batchflow.__file__).parent
LINES = 6
FAILS, DRAWS = 3, 1
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FLOW = f"""
import os, time
from pathlib import Path
from promptflow.contracts.multimedia import Image

class Squares:
    def __call__(self, n: int) -> dict:
        fd = os.open(Path(__file__).with_name("witness"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{{n}}\\n".encode())
        os.close(fd)
        time.sleep(0.01)
        if n == {FAILS}:
            raise ValueError("not this one")
        return {{"square": n * n, **({{"picture": Image({PIXEL!r}, "image/png")}} if n == {DRAWS} else {{}})}}

    def __aggregate__(self, results: list) -> dict:
        return {{"lines": len(results)}}
"""


def answer(inputs: Mapping[str, Any]) -> dict[str, Any]:
    n = inputs["n"]
    return {"square": n * n, **({"picture": ANY} if n == DRAWS else {})}


class Place:
    """The folder of one case: flow, data, run storage, output folder, witness. A copy of it is another case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.run = folder / "runs" / "r"

    @classmethod
    def made(cls, folder: Path) -> Place:
        folder.mkdir()
        place = cls(folder)
        (folder / "squares.py").write_text(FLOW)
        place.write_rows(range(LINES))
        return place

    def copy(self, folder: Path) -> Place:
        shutil.copytree(self.folder, folder)
        return Place(folder)

    def write_rows(self, keys: Sequence[int]) -> None:
        (self.folder / "rows.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in keys))

    def words(self, *options: str, run_id: str = "r") -> list[str]:
        return [
            "run", f"{self.folder / 'squares.py'}:Squares", "--data", str(self.folder / "rows.jsonl"),
            "--run-id", run_id, "--workers", "1", "--storage", str(self.run.parent), "--granularity", "line",
            "--output-dir", str(self.folder / "outputs"), *options,
        ]  # fmt: skip

    def watch(self, run_id: str = "r") -> Watch:
        keys = [json.loads(row)["n"] for row in (self.folder / "rows.jsonl").read_text().splitlines()]
        run = self.run.with_name(run_id)
        return Watch(
            run, {number: {"n": n} for number, n in enumerate(keys)}, self.folder / "witness", in_flight=LINES,
            answer=answer, output_dir=self.folder / "outputs", failing=[FAILS], mark=str(self.folder),
        )  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """What is killed: a command, in a storage that was prepared for it."""

    words: Callable[[Place], list[str]] = Place.words
    after_a_run: bool = True
    prepare: Callable[[Place], object] = lambda _: None
    asked_again: tuple[int, ...] = ()
    run_id: str = "r"
    after: Callable[[Place], object] | None = None
    """Checks what the command has done, if it is none that runs lines."""
    around: Callable[[Place], contextlib.AbstractContextManager[object]] = lambda _: contextlib.nullcontext()


def damage(place: Place) -> None:
    path = sorted((place.run / "records").glob("*.jsonl"))[0]
    path.write_bytes(path.read_bytes()[:-20])


@contextlib.contextmanager
def holder_that_hangs(place: Place) -> Iterator[None]:
    """A process that lives, has the lock, and has not renewed its lease for long: this one."""
    (place.run / "leases" / "000009.json").write_text(
        json.dumps({"owner": "other", **this_process(), "released": False, "renewed_at": 1.0, "since": 1.0, "beats": 1})
    )
    with (place.run / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def care(*words: str) -> Callable[[Place], list[str]]:
    def made(place: Place) -> list[str]:
        return [*(word.format(place.folder) for word in words), "--storage", str(place.run.parent)]

    return made


def check_deleted(place: Place) -> None:
    assert not place.run.exists()


def check_copy(place: Place) -> None:
    left, there = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("[!.]*") if path.is_file()}
        for root in (place.run, place.folder / "copies" / "r")
    )
    assert there == {name: text for name, text in left.items() if name in there}
    assert {"manifest.json", "outputs.jsonl", "batch_result.json"} < there.keys()
    assert {name for name in left if name.startswith("records")} < there.keys()


SCENARIOS = {
    "start": Scenario(after_a_run=False),
    "insert": Scenario(
        lambda place: place.words("--on-change", "reuse"), prepare=lambda place: place.write_rows([7, 8, *range(LINES)])
    ),
    "rerun": Scenario(lambda place: place.words("--rerun-lines", "0-2"), asked_again=(0, 1, 2)),
    "damage": Scenario(prepare=damage),
    "take over": Scenario(around=holder_that_hangs),
    "resume from": Scenario(lambda place: place.words("--resume-from", "r", run_id="other"), run_id="other"),
    "compact": Scenario(care("compact", "r"), after=lambda _: None),
    "copy": Scenario(care("copy", "r", "{}/copies"), after=check_copy),
    "delete": Scenario(care("delete", "r", "--yes"), after=check_deleted),
}
POINTS: dict[str, tuple[str, ...]] = {
    "damage": tuple(point for point in kill_points.ALL if "damaged" in point),
    "take over": ("before lock replaced", "after lock replaced", "before lease taken", "after lease taken"),
    "insert": tuple(
        f"{step} {kind}" for kind in ("records", "kept manifest", "manifest") for step in ("before", "unfinished", "after")
    ),
    "rerun": ("before records", "after records", "before acknowledged", "before outputs", "after result"),
    "resume from": ("before records", "unfinished records", "after records", "before manifest", "after manifest"),
    "compact": (
        "before records", "unfinished records", "after records", "before deleting records", "after deleting records",
    ),
    "copy": tuple(point for point in kill_points.ALL if "copied" in point),
    "delete": tuple(point for point in kill_points.ALL if "deleting" in point),
}  # fmt: skip
POINTS["start"] = tuple(
    point
    for point in kill_points.ALL
    if not any(point in points for name, points in POINTS.items() if name in ("damage", "copy", "delete"))
    and "lock replaced" not in point
)
CASES = [(scenario, point) for scenario, points in POINTS.items() for point in points]


@pytest.fixture(scope="module")
def forked(prefect_server: None) -> Iterator[ForkedRuns]:
    with ForkedRuns() as runs:
        yield runs


@pytest.fixture(scope="module")
def prepared(
    forked: ForkedRuns, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Place, Counter[str]]]:
    """By scenario: the folder in which its command is killed, and how often the command passes each point."""
    root = tmp_path_factory.mktemp("prepared")
    known: dict[str, tuple[Place, Counter[str]]] = {}

    def done(place: Place) -> Place:
        status = forked.run(place.words(), place.log)
        assert status == 3, place.log.read_text()
        return place

    def prepare(name: str) -> tuple[Place, Counter[str]]:
        scenario = SCENARIOS[name]
        if "done" not in known:
            known["done"] = (done(Place.made(root / "done")), Counter())
        if name not in known:
            place = known["done"][0].copy(root / name) if scenario.after_a_run else Place.made(root / name)
            scenario.prepare(place)
            trial = place.copy(root / f"{name}-trial")
            passages = trial.folder / "passages"
            with scenario.around(trial):
                status = forked.run(scenario.words(trial), trial.log, passages=passages)
            assert status == (3 if scenario.after is None else 0), trial.log.read_text()
            known[name] = (place, Counter(passages.read_text().splitlines()))
        return known[name]

    return prepare


@pytest.mark.parametrize(("name", "point"), CASES, ids=[f"{name}: {point}" for name, point in CASES])
def test_a_kill_at_a_named_step_loses_nothing_and_runs_nothing_twice(
    name: str,
    point: str,
    forked: ForkedRuns,
    prepared: Callable[[str], tuple[Place, Counter[str]]],
    tmp_path: Path,
) -> None:
    scenario = SCENARIOS[name]
    template, passages = prepared(name)
    assert passages[point], f"the command does not pass this point, but {sorted(passages)}"
    place = template.copy(tmp_path / "place")
    watch = place.watch(scenario.run_id)
    asked_again = dict.fromkeys(scenario.asked_again, 1)

    def command(
        words: list[str],
        kill_at: tuple[str, int] = ("", 0),
        around: Callable[[Place], contextlib.AbstractContextManager[object]] = lambda _: contextlib.nullcontext(),
    ) -> int | None:
        watch.begin()
        # The one that hangs holds the run only while the command runs.
        with around(place):
            status = forked.run(words, place.log, environment={MARK: watch.mark}, kill_at=kill_at)
        if scenario.after is None or not kill_at[1]:
            watch.check(status, asked_again=asked_again)
        return status

    # The same command each time. Where it has less left to do, it can come to its end before its second or third passage.
    for n in range(1, min(3, passages[point]) + 1):
        around = scenario.around if n == 1 else lambda _: contextlib.nullcontext()
        status = command(scenario.words(place), (point, n), around)
        assert status is None or n > 1, place.log.read_text()
        if status is not None or not place.run.exists():
            break
    if scenario.after is None:
        command(scenario.words(place))
        return
    is_whole = point == "after copied manifest"  # and so is not copied again
    if place.run.exists() and not is_whole:
        assert forked.run(scenario.words(place), place.log) == 0, place.log.read_text()
    scenario.after(place)
    if name != "delete":
        command(place.words())


CALLS_OF_A_STORAGE = {
    "write_path", "create_path", "put_file", "delete_path", "delete_folder", "awrite", "write_beside",
    "move",
}  # fmt: skip
CALLS_OF_THE_SYSTEM = {
    "unlink", "hardlink_to", "posix_rename", "rename", "write_bytes", "write_text", "rmtree", "mkdir", "makedirs",
    "posix_fallocate", "fsync", "symlink_to", "touch", "truncate", "rm", "rm_file", "pipe_file",
}  # fmt: skip


def writing_functions(path: Path) -> Iterator[str]:
    """The functions of a file that write to a storage, or below `storage`, to a disk: `file:Class.method`."""
    inside = str(path.relative_to(PACKAGE))
    wanted = CALLS_OF_A_STORAGE | (CALLS_OF_THE_SYSTEM if inside.startswith("storage/") else set())
    tree = ast.parse(path.read_text())
    outer = [(node.name, node) for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for cls in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
        outer += [
            (f"{cls.name}.{node.name}", node)
            for node in cls.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    for name, function in outer:
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        names = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
        names |= {getattr(call.func, "id", "") for call in calls}
        writes_beside = any(getattr(call.func, "id", "") == "unfinished" for call in calls)
        # `Path.replace` takes one argument, and `str.replace` two.
        renames = any(
            isinstance(call.func, ast.Attribute)
            and call.func.attr == "replace"
            and len(call.args) == 1
            and not call.keywords
            for call in calls
        )
        handed_on = {node.id for call in calls for node in call.args if isinstance(node, ast.Name)}
        opens = any(
            isinstance(node, ast.Attribute) and node.attr in ("O_CREAT", "O_RDWR") for node in ast.walk(function)
        )
        if writes_beside or (names | handed_on) & wanted or ("storage/" in inside and (renames or opens)):
            yield f"{inside}:{name}"


def test_each_function_that_writes_has_its_points() -> None:
    found = {place for path in sorted(PACKAGE.rglob("*.py")) for place in writing_functions(path)}
    listed = {place for place in found if any(place.startswith(known) for known in kill_points.ELSEWHERE)}

    assert found - listed == set(kill_points.WRITERS)
    assert all(any(place.startswith(known) for place in found) for known in kill_points.ELSEWHERE)


def test_each_point_is_a_case() -> None:
    assert {point for _, point in CASES} == set(kill_points.ALL)
