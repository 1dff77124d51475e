"""A run whose manifest is damaged or gone, and segments of another run: no changed flow passes, no line is lost or counted."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.cli.commands import main
from prefect_batchflow.exceptions import RunChangedError
from prefect_batchflow.flows import run_batch
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.storage import retries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

FLOW = """
from pathlib import Path

def main(n: int) -> int:
    with (Path(__file__).parent / "calls.log").open("a") as calls:
        calls.write(f"{n}\\n")
    if n >= FAILS:
        raise ValueError(n)
    return n
"""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "LOOK_AGAIN_SEC", (0.0,))


@pytest.fixture
def write_flow(tmp_path: Path) -> Callable[[int], str]:
    def write(fails: int) -> str:
        (tmp_path / "flow.py").write_text(FLOW.replace("FAILS", str(fails)))
        return f"{tmp_path / 'flow.py'}:main"

    return write


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[int]]:
    """The lines that ran since the last call."""

    def read() -> list[int]:
        log = tmp_path / "calls.log"
        numbers = sorted(map(int, log.read_text().split())) if log.exists() else []
        log.write_text("")
        return numbers

    return read


@pytest.fixture
def parameters(
    storage: Path, write_rows: Callable[..., Path], write_flow: Callable[[int], str], calls: Callable[[], list[int]]
) -> dict[str, Any]:
    """Of a run with two starts: lines 4 and 5 failed in both."""
    rows: list[dict[str, object]] = [{"n": number} for number in range(6)]
    parameters = {"flow": write_flow(4), "data": str(write_rows(rows)), "storage": str(storage), "run_id": "r"}
    for _ in range(2):
        assert run_batch(parameters, LiveRun()).completed_lines == 4
    calls()
    return parameters


def lose(run: Path, how: str) -> None:
    """Damage the manifest and, with `all`, its copies too."""
    manifest = run / "manifest.json"
    if how.startswith("all"):
        shutil.rmtree(run / "manifests")
    if how.endswith("gone"):
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[: 0 if how.endswith("empty") else 200])


def rows(storage: Path, name: str) -> list[int]:
    return [json.loads(row)["line_number"] for row in (storage / "r" / name).read_text().splitlines()]


@pytest.mark.parametrize("how", ["torn", pytest.param("gone", marks=pytest.mark.faults)])
def test_the_kept_manifest_resumes_the_run_and_sees_what_changed(
    parameters: dict[str, Any],
    storage: Path,
    write_flow: Callable[[int], str],
    calls: Callable[[], list[int]],
    how: str,
) -> None:
    lose(storage / "r", how)
    write_flow(5)
    with pytest.raises(RunChangedError, match=r"flow.py.* changed"):
        run_batch(parameters, LiveRun())
    write_flow(4)
    live = LiveRun()

    result = run_batch(parameters, live)

    assert (result.completed_lines, result.failed_lines) == (4, 2)
    assert any("manifests/0002.json, is used" in note for note in live.notes)
    assert calls() == [4, 5]
    assert len(json.loads((storage / "r" / "manifest.json").read_text())["sessions"]) == 3


@pytest.mark.parametrize("how", ["all gone", "all torn", pytest.param("all empty", marks=pytest.mark.faults)])
def test_a_lost_manifest_refuses_with_advice_and_is_made_anew_when_told(
    parameters: dict[str, Any],
    storage: Path,
    write_flow: Callable[[int], str],
    calls: Callable[[], list[int]],
    how: str,
) -> None:
    lose(storage / "r", how)
    write_flow(5)
    with pytest.raises(RunChangedError, match=r"nobody can tell whether the flow or the data changed since .*'reuse'"):
        run_batch(parameters, LiveRun())
    assert calls() == []

    result = run_batch({**parameters, "on_change": "reuse"}, LiveRun())

    assert (result.completed_lines, result.failed_lines) == (5, 1)
    assert calls() == [4, 5]
    assert rows(storage, "outputs.jsonl") == [0, 1, 2, 3, 4], "a session number must not come twice"
    assert rows(storage, "failed.jsonl") == [5]
    assert {name.name[26:30] for name in (storage / "r" / "records").iterdir()} == {"0001", "0002", "0003"}
    assert run_batch(parameters, LiveRun()).completed_lines == 5
    assert calls() == [5]


def test_a_lost_manifest_with_rerun_runs_all_lines(
    parameters: dict[str, Any], storage: Path, calls: Callable[[], list[int]]
) -> None:
    lose(storage / "r", "all gone")

    result = run_batch({**parameters, "on_change": "rerun"}, LiveRun())

    assert (result.completed_lines, calls()) == (4, [0, 1, 2, 3, 4, 5])


def test_every_command_tells_a_lost_manifest_from_a_missing_run(
    parameters: dict[str, Any], storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lose(storage / "r", "all gone")

    for words in (["show", "r"], ["resume", "r"]):
        assert main([*words, "--storage", str(storage)]) == 1
        said = capsys.readouterr().err
        assert "manifest.json is gone. To keep its completed lines" in said
        assert "on_change='reuse'" in said


def test_a_segment_of_another_run_is_set_aside(
    parameters: dict[str, Any], storage: Path, write_flow: Callable[[int], str], calls: Callable[[], list[int]]
) -> None:
    write_flow(6)
    run_batch({**parameters, "run_id": "other"}, LiveRun())
    write_flow(4)
    calls()
    copied = [path for path in (storage / "other" / "records").iterdir() if "-0001-" in path.name]
    for path in copied:
        shutil.copy(path, storage / "r" / "records" / path.name)
    live = LiveRun()

    result = run_batch(parameters, live)

    assert (result.completed_lines, result.failed_lines, calls()) == (4, 2, [4, 5])
    assert rows(storage, "outputs.jsonl") == [0, 1, 2, 3]
    assert sum("belong to another run: other/" in note for note in live.notes) == len(copied)
    assert {path.name for path in (storage / "r" / "records" / "damaged").iterdir()} == {path.name for path in copied}


@pytest.mark.parametrize("copies", ["its own", "those of the other run"])
def test_the_manifest_of_another_run_makes_no_line_run_again(
    parameters: dict[str, Any], storage: Path, calls: Callable[[], list[int]], copies: str
) -> None:
    run_batch({**parameters, "run_id": "other"}, LiveRun())
    calls()
    shutil.copy(storage / "other" / "manifest.json", storage / "r" / "manifest.json")
    if copies != "its own":
        shutil.rmtree(storage / "r" / "manifests")
        shutil.copytree(storage / "other" / "manifests", storage / "r" / "manifests")
        with pytest.raises(RunChangedError, match=r"belongs to the run other/.*, but the records belong to r/"):
            run_batch(parameters, LiveRun())
        parameters["on_change"] = "reuse"

    result = run_batch(parameters, LiveRun())

    assert (result.completed_lines, result.failed_lines, calls()) == (4, 2, [4, 5])
    assert not (storage / "r" / "records" / "damaged").exists()


def test_a_renamed_run_keeps_its_records(
    parameters: dict[str, Any], storage: Path, calls: Callable[[], list[int]]
) -> None:
    (storage / "r").rename(storage / "renamed")

    result = run_batch({**parameters, "run_id": "renamed"}, LiveRun())

    assert (result.completed_lines, calls()) == (4, [4, 5])
