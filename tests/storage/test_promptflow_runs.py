"""A run that promptflow began: its records are read, and a run here goes on with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import BatchEngine
from prefect_batchflow.exceptions import InvalidOptionError, StorageError
from prefect_batchflow.results.models import FlowRunInfo, RunInfo
from prefect_batchflow.results.records import Status
from prefect_batchflow.storage.promptflow_runs import PromptflowRunStorage, is_promptflow_run

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDED = Path(__file__).parent / "promptflow_run"
MAPPING = {"text": "${data.text}", "expected": "${data.expected}"}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A copy of the recorded run, to be changed."""
    return Path(shutil.copytree(RECORDED / "begun", tmp_path / "begun"))


def change(file: Path, **facts: Any) -> None:
    record = json.loads(file.read_text())
    record["run_info"] |= facts
    file.write_text(json.dumps(record) + "\n")


def test_a_completed_line_is_read_with_its_inputs_output_and_times() -> None:
    info = PromptflowRunStorage(RECORDED / "begun").load_flow_run_info(3)

    assert info is not None
    assert (info.run_id, info.status, info.index) == ("begun_3", Status.Completed, 3)
    assert info.inputs == {"text": "Grüße", "expected": "GRÜSSE", "line_number": 3}
    assert info.output == {"shout": "GRÜSSE"}
    assert info.start_time is not None
    assert info.end_time is not None
    assert info.start_time < info.end_time


def test_a_failed_line_is_read_with_its_error() -> None:
    info = PromptflowRunStorage(RECORDED / "begun").load_flow_run_info(1)

    assert info is not None
    assert info.error is not None
    assert (info.status, info.error["innerError"]["code"]) == (Status.Failed, "ToolExecutionError")


def test_a_line_that_never_ended_is_none() -> None:
    storage = PromptflowRunStorage(RECORDED / "begun")

    assert storage.load_flow_run_info(4) is None
    assert storage.load_node_run_info_for_line(4) == []


def test_the_nodes_of_a_line_are_read_without_the_aggregation() -> None:
    """promptflow keeps the aggregation's record in the file of line 0."""
    infos = PromptflowRunStorage(RECORDED / "begun").load_node_run_info_for_line(0)

    assert {info.node: info.output for info in infos} == {"grade": 1, "shout": "ONE"}
    assert {info.index for info in infos} == {0}


def test_of_a_file_of_several_lines_the_last_record_of_the_line_counts(begun: Path) -> None:
    lines = begun / "flow_artifacts"
    change(lines / "000000002_000000002.jsonl", output={"shout": "later"})
    files = sorted(lines.iterdir())
    together = "".join(file.read_text() for file in [*files, files[2]])
    for file in files:
        file.unlink()
    (lines / "000000000_000000024.jsonl").write_text(together)
    storage = PromptflowRunStorage(begun)

    outputs = [info.output for number in (0, 2) if (info := storage.load_flow_run_info(number))]

    assert outputs == [{"shout": "ONE"}, {"shout": "later"}]
    assert storage.load_flow_run_info(30) is None


@pytest.mark.parametrize(
    "content",
    ['{"line_number": 0, "run_in', "[]\n", '{"run_info": {}}\n', '{"line_number": 0, "run_info": {}}\n', "\x00"],
    ids=["cut off", "no mapping", "no number", "no fields", "no text"],
)
def test_a_damaged_record_is_told_with_its_file(begun: Path, content: str) -> None:
    (begun / "flow_artifacts" / "000000000_000000000.jsonl").write_text(content)
    (begun / "node_artifacts" / "grade" / "000000000.jsonl").write_text(content)
    storage = PromptflowRunStorage(begun)

    with pytest.raises(StorageError, match=r"000000000_000000000\.jsonl of promptflow is damaged"):
        storage.load_flow_run_info(0)
    with pytest.raises(StorageError, match=r"grade/000000000\.jsonl of promptflow is damaged"):
        storage.load_node_run_info_for_line(0)


def test_a_run_of_promptflow_is_only_read() -> None:
    storage = PromptflowRunStorage(RECORDED / "begun")

    with pytest.raises(StorageError, match="only read"):
        storage.persist_flow_run(FlowRunInfo(run_id="r", status=Status.Completed))
    with pytest.raises(StorageError, match="only read"):
        storage.persist_node_run(RunInfo(node="n", run_id="r", status=Status.Completed))


@pytest.mark.parametrize(
    ("place", "found"), [("flow", "found a folder without one"), ("nothing", "found no folder")], ids=["other", "none"]
)
def test_another_folder_is_none(place: str, found: str) -> None:
    assert not is_promptflow_run(RECORDED / place)
    with pytest.raises(InvalidOptionError, match=found):
        PromptflowRunStorage(RECORDED / place)


@pytest.mark.usefixtures("prefect_server")
def test_a_run_goes_on_with_the_lines_that_promptflow_completed(begun: Path, tmp_path: Path) -> None:
    """Its lines are not run again: their outputs and node outputs are changed here, and stay so."""
    change(begun / "flow_artifacts" / "000000000_000000000.jsonl", output={"shout": "kept"})
    change(begun / "node_artifacts" / "grade" / "000000000.jsonl", output=0)

    result = BatchEngine(RECORDED / "flow", worker_count=1, run_storage_url=str(tmp_path / "runs")).run(
        {"data": RECORDED / "data.jsonl"},
        MAPPING,
        tmp_path / "out",
        resume_from_run_storage=PromptflowRunStorage(begun),
    )

    assert (result.total_lines, result.completed_lines) == (4, 4)
    outputs = [json.loads(row) for row in (tmp_path / "out" / "output.jsonl").read_text().splitlines()]
    assert [row["shout"] for row in outputs] == ["kept", "?TWO", "THREE", "GRÜSSE"]
    assert result.metrics == {"accuracy": 0.5, "lines": 4}


@pytest.mark.usefixtures("prefect_server")
def test_a_line_whose_inputs_are_others_now_is_run_again(
    begun: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    rows: list[dict[str, object]] = [json.loads(row) for row in (RECORDED / "data.jsonl").read_text().splitlines()]
    data = write_rows([{**rows[0], "text": "other"}, *rows[1:]])
    change(begun / "flow_artifacts" / "000000002_000000002.jsonl", output={"shout": "kept"})

    BatchEngine(RECORDED / "flow", worker_count=1, run_storage_url=str(tmp_path / "runs")).run(
        {"data": data}, MAPPING, tmp_path / "out", resume_from_run_storage=PromptflowRunStorage(begun)
    )

    outputs = [json.loads(row)["shout"] for row in (tmp_path / "out" / "output.jsonl").read_text().splitlines()]
    assert outputs == ["OTHER", "?TWO", "kept", "GRÜSSE"]
