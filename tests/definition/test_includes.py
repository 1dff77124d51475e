"""A flow's additional includes are merged with its folder, and what is included counts as there."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import pytest

from prefect_batchflow.definition import includes
from prefect_batchflow.definition.flow import Dag
from prefect_batchflow.definition.load import load_flow, merged_copy
from prefect_batchflow.exceptions import FlowDefinitionError, InvalidOptionError
from prefect_batchflow.storage.flow_print import flow_print

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DAG = """
inputs: {x: {type: string}}
outputs: {out: {type: string, reference: "${a.output}"}}
nodes: [{name: a, type: python, source: {path: %s}, inputs: {x: "yes"}}]
additional_includes: [%s]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flow's folder beside a file and a folder to include."""
    flow = tmp_path / "flow"
    (flow / ".hidden").mkdir(parents=True)
    (flow / ".hidden" / "secret.py").touch()
    (flow / "own.py").write_text("own")
    shared = tmp_path / "shared"
    (shared / "deep" / "__pycache__").mkdir(parents=True)
    (shared / "deep" / "tool.py").write_text("deep")
    (shared / "deep" / "__pycache__" / "tool.pyc").touch()
    (shared / "data.txt").write_text("data")
    (tmp_path / "tool.py").write_text("beside")
    return flow


def write(folder: Path, source: str, *paths: str) -> Path:
    (folder / "flow.dag.yaml").write_text(DAG % (source, ", ".join(paths)))
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_and_folders_are_merged_under_their_own_names(folder: Path, tmp_path: Path) -> None:
    flow = load_flow(write(folder, "shared/deep/tool.py", "../tool.py", "../shared"))
    copy = tmp_path / "copy"
    copy.mkdir()

    merged, notes = merged_copy(flow, copy)

    assert files(copy) == ["flow.dag.yaml", "own.py", "shared/data.txt", "shared/deep/tool.py", "tool.py"]
    assert notes == []
    assert (merged.working_dir, merged.name, merged.source) == (copy, "flow", str(folder))
    assert isinstance(merged.program, Dag)
    assert merged.program.nodes == flow.program.nodes
    assert merged.additional_includes == ()


def test_the_place_of_the_copy_is_not_in_its_fingerprint(folder: Path, tmp_path: Path) -> None:
    flow = load_flow(write(folder, "tool.py", "../tool.py"))

    def print_of(name: str) -> Mapping[str, str]:
        (tmp_path / name).mkdir()
        merged, _ = merged_copy(flow, tmp_path / name)
        return flow_print(merged).parts

    before = print_of("one")
    assert print_of("two") == before
    (tmp_path / "tool.py").write_text("changed")
    assert print_of("three") != before


def test_an_include_replaces_a_file_and_that_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "tool.py").write_text("own tool")
    flow = load_flow(write(folder, "tool.py", "../tool.py"))
    (tmp_path / "copy").mkdir()

    _, notes = merged_copy(flow, tmp_path / "copy")

    assert (tmp_path / "copy" / "tool.py").read_text() == "beside"
    assert notes == [
        f"The additional include {tmp_path}/tool.py replaces tool.py from the flow's folder or an earlier include."
    ]


def test_a_zip_that_is_not_there_is_made_of_the_folder(folder: Path, tmp_path: Path) -> None:
    flow = load_flow(write(folder, "own.py", "../shared.zip"))
    (tmp_path / "copy").mkdir()

    merged_copy(flow, tmp_path / "copy")

    with zipfile.ZipFile(tmp_path / "copy" / "shared.zip") as archive:
        assert archive.namelist() == ["shared/data.txt", "shared/deep/tool.py"]


def test_a_zip_that_is_there_is_copied_as_it_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shared.zip").write_bytes(b"any")
    flow = load_flow(write(folder, "own.py", "../shared.zip"))
    (tmp_path / "copy").mkdir()

    merged_copy(flow, tmp_path / "copy")

    assert (tmp_path / "copy" / "shared.zip").read_bytes() == b"any"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("../nowhere", r"names '\.\./nowhere', but /\S+/nowhere does not exist\."),
        ("..", r"names '\.\.', which contains the flow's folder itself"),
        (".", r"names '\.', which contains the flow's folder itself"),
        ("5", r"should be a list of paths, found \[5\]"),
    ],
)
def test_what_cannot_be_included_is_refused_on_load(folder: Path, entry: str, told: str) -> None:
    with pytest.raises(FlowDefinitionError, match=f"'additional_includes' {told}"):
        load_flow(write(folder, "own.py", entry))


def test_a_copy_has_limits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = load_flow(write(folder, "own.py", "../shared"))
    monkeypatch.setattr(includes, "MOST_FILES", 3)
    (tmp_path / "copy").mkdir()

    with pytest.raises(FlowDefinitionError, match="exceed 3 files"):
        merged_copy(flow, tmp_path / "copy")


def test_another_working_dir_cannot_be_merged(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    flow = load_flow(write(folder, "tool.py", "../tool.py"), tmp_path)

    with pytest.raises(InvalidOptionError, match="Leave the working_dir out"):
        merged_copy(flow, tmp_path / "copy")


@pytest.mark.parametrize("entry", ["tool:run", "tool.py:run", "shared.deep.tool:run", "shared/deep/tool.py:run"])
def test_an_entry_may_be_included(folder: Path, tmp_path: Path, entry: str) -> None:
    (folder / "flow.flex.yaml").write_text(f"entry: {entry}\nadditional_includes: [../tool.py, ../shared]\n")
    (tmp_path / "copy").mkdir()

    merged, _ = merged_copy(load_flow(folder), tmp_path / "copy")

    assert merged.program.file is not None  # type: ignore[union-attr]
    assert merged.program.file.is_relative_to(tmp_path / "copy")  # type: ignore[union-attr]
