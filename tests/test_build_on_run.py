"""A run built on another one, with `run`: its outputs and its data are sources, joined by line_number."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import (
    BatchflowException,
    InputMappingError,
    InvalidOptionError,
    InvalidUserData,
    RunChangedError,
    RunNotFoundError,
    RunNotReadyError,
    StorageError,
)
from prefect_batchflow.flows import run_batch
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.storage.earlier import require_manifest
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.manifest import write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

FLOWS = """
def answer(question: str) -> dict:
    if question == "bad":
        raise ValueError("no answer")
    return {"answer": question.upper()}


def grade(answer: str, truth: str) -> dict:
    return {"right": answer == truth}
"""
ROWS: list[dict[str, object]] = [
    {"question": "a", "truth": "A"},
    {"question": "bad", "truth": "B"},
    {"question": "c", "truth": "-"},
]
GRADE_MAPPING = {"answer": "${run.outputs.answer}", "truth": "${run.inputs.truth}"}


class Storage:
    """A storage, and the two flows to run in it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder / "runs"
        self.flows = folder / "flows.py"
        self.data = data
        self.flows.write_text(FLOWS)

    def run(self, attribute: str, run_id: str, **more: Any) -> list[dict[str, Any]]:
        """Run one of the flows, and give its outputs."""
        self.notes: list[str] = []
        live = LiveRun(notes=self.notes)
        flow = f"{self.flows}:{attribute}"
        run_batch({"flow": flow, "run_id": run_id, "storage": str(self.folder), "worker_count": 1, **more}, live)
        return [json.loads(line) for line in (self.folder / run_id / "outputs.jsonl").read_text().splitlines()]

    def answer(self, run_id: str = "base", **more: Any) -> list[dict[str, Any]]:
        return self.run("answer", run_id, **{"data": str(self.data), **more})

    def grade(self, run_id: str = "grades", **more: Any) -> list[dict[str, Any]]:
        return self.run("grade", run_id, **{"run": "base", "inputs_mapping": GRADE_MAPPING, **more})

    def manifest(self, run_id: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.folder / run_id / "manifest.json").read_text())
        return manifest


@pytest.fixture
def storage(tmp_path: Path, write_rows: Callable[..., Path]) -> Storage:
    return Storage(tmp_path, write_rows(ROWS))


def test_outputs_and_data_of_the_other_run_are_joined_by_line_number(storage: Storage) -> None:
    storage.answer()

    graded = storage.grade()

    assert graded == [{"line_number": 0, "right": True}, {"line_number": 2, "right": False}]
    assert any("1 of 3 lines of run base are left out" in note for note in storage.notes)
    manifest = storage.manifest("grades")
    assert (manifest["run"], manifest["data"]) == ("base", {})
    assert {"data:run.outputs", "data:run.inputs"} < manifest["fingerprints"].keys()


def test_data_of_the_runs_own_is_joined_too(storage: Storage, write_rows: Callable[..., Path]) -> None:
    storage.answer()
    truths = write_rows([{"t": "-"}, {"t": "-"}, {"t": "C"}], "truths.jsonl")

    graded = storage.grade(data=str(truths), inputs_mapping={"answer": "${run.outputs.answer}", "truth": "${data.t}"})

    assert graded == [{"line_number": 0, "right": False}, {"line_number": 2, "right": True}]
    assert "data:run.inputs" not in storage.manifest("grades")["fingerprints"]


def test_a_chain_goes_on_and_the_data_is_not_needed_where_no_input_is_mapped_to_it(storage: Storage) -> None:
    storage.answer()
    storage.data.unlink()

    again = storage.answer("again", data="", run="base", inputs_mapping={"question": "${run.outputs.answer}"})

    assert [row["answer"] for row in again] == ["A", "C"]


def test_a_run_of_some_rows_is_joined_with_just_these(storage: Storage) -> None:
    storage.answer(max_lines_count=1)

    assert storage.grade() == [{"line_number": 0, "right": True}]


def test_a_resume_detects_that_the_outputs_have_changed(storage: Storage) -> None:
    storage.answer()
    storage.grade()
    storage.flows.write_text(FLOWS.replace("upper()", "lower()"))
    storage.answer(on_change="rerun")
    storage.flows.write_text(FLOWS)

    with pytest.raises(RunChangedError, match=r"the data of source 'run\.outputs' changed"):
        storage.grade()

    reused = storage.grade(on_change="reuse")
    assert [row["right"] for row in reused] == [False, False]


def test_a_resume_of_the_same_runs_nothing_again(storage: Storage) -> None:
    storage.answer()
    storage.grade()
    segments = sorted((storage.folder / "grades" / "records").iterdir())

    storage.grade()

    assert sorted((storage.folder / "grades" / "records").iterdir()) == segments


def without_result(storage: Storage) -> None:
    (storage.folder / "base" / "batch_result.json").unlink()


def canceled(storage: Storage) -> None:
    file = storage.folder / "base" / "batch_result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "Canceled"}))


def without_outputs_file(storage: Storage) -> None:
    (storage.folder / "base" / "outputs.jsonl").unlink()


def with_damaged_outputs(storage: Storage) -> None:
    (storage.folder / "base" / "outputs.jsonl").write_text('{"line_number": 0, "answer": "A"}\n{"line_num')


def with_other_data(storage: Storage) -> None:
    storage.data.write_text(storage.data.read_text().replace("bad", "good"))


def without_data(storage: Storage) -> None:
    storage.data.unlink()


def with_data_from_standard_input(storage: Storage) -> None:
    files, keys = RunStorageBlock(url=str(storage.folder)), RunKeys("base")
    manifest = asyncio.run(require_manifest(files, keys))
    asyncio.run(write_manifest(files, keys, manifest.model_copy(update={"data": {"data": "-"}})))


@pytest.mark.parametrize(
    ("change", "kind", "part"),
    [
        (without_result, RunNotReadyError, "The run 'base' has no result yet; expected a finished run"),
        (canceled, RunNotReadyError, "The run 'base' ended as Canceled"),
        (without_outputs_file, StorageError, "Cannot read the outputs at"),
        (with_damaged_outputs, StorageError, "are damaged in row 2"),
        (with_other_data, InvalidUserData, "has changed since run 'base' read it"),
        (without_data, InvalidUserData, "not found"),
        (with_data_from_standard_input, InvalidOptionError, "came from standard input"),
    ],
)
def test_a_run_that_cannot_be_built_on_is_told(
    storage: Storage, change: Callable[[Storage], None], kind: type[BatchflowException], part: str
) -> None:
    storage.answer()
    change(storage)

    with pytest.raises(kind) as caught:
        storage.grade()

    assert part in str(caught.value)
    assert not (storage.folder / "grades" / "manifest.json").exists()


def test_a_run_without_a_completed_line_has_no_outputs(storage: Storage, write_rows: Callable[..., Path]) -> None:
    storage.answer(data=str(write_rows([{"question": "bad"}], "bad.jsonl")))

    with pytest.raises(RunNotReadyError, match="none of its 1 lines completed"):
        storage.grade()


@pytest.mark.parametrize(
    ("parameters", "kind", "part"),
    [
        ({"run": "nothing"}, RunNotFoundError, "There is no run 'nothing'"),
        ({"run": "grades"}, InvalidOptionError, "cannot be built on itself"),
        ({"more_data": {"run.outputs": "x.jsonl"}}, InvalidOptionError, "'run.outputs' was given twice: as data"),
        ({"inputs_mapping": {"answer": "${run.outputs.anser}", "truth": "x"}}, InputMappingError, "run.outputs.answer"),
        ({"inputs_mapping": {"answer": "x"}}, InputMappingError, "there is no source 'data'"),
    ],
    ids=["not there", "itself", "twice", "no such column", "no data"],
)
def test_what_does_not_fit_is_told(
    storage: Storage, parameters: dict[str, Any], kind: type[BatchflowException], part: str
) -> None:
    storage.answer()

    with pytest.raises(kind) as caught:
        storage.grade(**parameters)

    assert part in str(caught.value)
