"""load_flow finds the flow that is meant, says what is there instead, and knows the flow's files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from prefect_batchflow.definition import flow_files
from prefect_batchflow.definition.flow import NO_DEFAULT, Dag, Entry, Flow, FlowDescription, FlowInput
from prefect_batchflow.definition.flow_files import files_of
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import FlowDefinitionError, FlowNotFoundError

DAG = """
inputs: {x: {type: string}}
nodes:
- {name: a, type: python, source: {type: code, path: a.py}, inputs: {x: "${inputs.x}"}}
"""
FLEX = "entry: main:run\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flow folder with the parts of either kind of flow, but no yaml."""
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "a.py").touch()
    (folder / "main.py").write_text("def run(x): ...\n")
    return folder


def refusal(kind: type[Exception], *args: Any) -> str:
    with pytest.raises(kind) as caught:
        load_flow(*args)
    return str(caught.value)


class TestFinding:
    @pytest.mark.parametrize("as_type", [str, Path])
    def test_a_folder_with_a_dag(self, folder: Path, as_type: Any) -> None:
        (folder / "flow.dag.yaml").write_text(DAG)

        flow = load_flow(as_type(folder))

        assert isinstance(flow.program, Dag)
        assert (flow.name, flow.working_dir, flow.source) == ("sample", folder, str(folder))
        assert flow.definition_file == folder / "flow.dag.yaml"

    def test_a_folder_with_a_flex_flow(self, folder: Path) -> None:
        (folder / "flow.flex.yaml").write_text(FLEX)

        flow = load_flow(folder)

        assert isinstance(flow.program, Entry)
        assert (flow.name, flow.source) == ("sample", str(folder))

    @pytest.mark.parametrize(("content", "kind"), [(DAG, Dag), (FLEX, Entry)], ids=["dag", "flex"])
    def test_a_yaml_of_any_name_is_what_its_keys_say(self, folder: Path, content: str, kind: type) -> None:
        file = folder / "some.yml"
        file.write_text(content)

        flow = load_flow(file)

        assert isinstance(flow.program, kind)
        assert flow.source == str(file)

    def test_a_relative_path_becomes_absolute(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "flow.dag.yaml").write_text(DAG)
        monkeypatch.chdir(folder.parent)

        flow = load_flow("sample/../sample")

        assert (flow.source, flow.working_dir) == (str(folder), folder)

    def test_a_yaml_is_looked_for_in_the_working_directory(self, folder: Path) -> None:
        (folder / "flow.dag.yaml").write_text(DAG)

        assert load_flow("flow.dag.yaml", folder).definition_file == folder / "flow.dag.yaml"

    def test_sources_are_looked_for_in_the_working_directory(self, folder: Path, tmp_path: Path) -> None:
        yaml = tmp_path / "elsewhere.yaml"
        yaml.write_text(DAG)

        flow = load_flow(yaml, folder)

        assert flow.working_dir == folder
        assert set(files_of(flow).files) == {yaml, folder / "a.py", folder / "main.py"}

    def test_a_file_whose_path_has_a_colon_is_that_file(self, tmp_path: Path) -> None:
        folder = tmp_path / "a:b"
        folder.mkdir()
        (folder / "flow.flex.yaml").write_text(FLEX)
        (folder / "main.py").touch()

        assert load_flow(folder).working_dir == folder


class TestNotFound:
    def test_nothing_at_the_path_tells_what_the_folder_holds(self, folder: Path) -> None:
        message = refusal(FlowNotFoundError, folder / "flow.yaml")

        assert f"No flow at {folder / 'flow.yaml'}" in message
        assert f"{folder} contains a.py, main.py." in message

    def test_a_folder_without_flow_tells_what_it_holds(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / ".hidden").mkdir()
        (tmp_path / "data.jsonl").touch()

        assert f"No flow in {tmp_path}" in (message := refusal(FlowNotFoundError, tmp_path))
        assert message.endswith("the folder contains sample/.")

    def test_the_nearest_folder_that_exists_is_shown(self, folder: Path) -> None:
        assert f"{folder} contains" in refusal(FlowNotFoundError, folder / "no" / "such" / "flow.yaml")

    def test_many_candidates_are_cut(self, tmp_path: Path) -> None:
        for number in range(15):
            (tmp_path / f"{number:02}.yaml").touch()

        assert "09.yaml and 5 more" in refusal(FlowNotFoundError, tmp_path)

    def test_an_empty_folder_is_said_to_be_one(self, tmp_path: Path) -> None:
        assert "contains no yaml or Python file" in refusal(FlowNotFoundError, tmp_path)

    @pytest.mark.parametrize("text", ["a\0b", "x" * 5000, "no such module", "module"])
    def test_what_can_be_no_path_is_not_found_either(self, text: str) -> None:
        refusal(FlowNotFoundError, text)

    def test_two_flows_in_one_folder_ask_which(self, folder: Path) -> None:
        (folder / "flow.dag.yaml").write_text(DAG)
        (folder / "flow.flex.yaml").write_text(FLEX)

        assert "flow.dag.yaml and flow.flex.yaml" in refusal(FlowDefinitionError, folder)

    def test_a_python_file_asks_for_a_name(self, folder: Path) -> None:
        assert f"{folder / 'main.py'}:my_flow" in refusal(FlowDefinitionError, folder / "main.py")

    @pytest.mark.parametrize("name", ["notes.txt", "Makefile"])
    def test_any_other_file_is_no_flow(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()

        assert "expected a flow folder" in refusal(FlowDefinitionError, tmp_path / name)

    def test_what_is_neither_path_nor_callable_is_no_flow(self) -> None:
        assert "5 is not a flow" in refusal(FlowDefinitionError, 5)


class TestOtherLanguages:
    def test_a_dll_is_a_csharp_flow(self, tmp_path: Path) -> None:
        (tmp_path / "Flow.dll").touch()

        flow = load_flow(tmp_path / "Flow.dll")

        assert (flow.language, flow.name, flow.definition_file) == ("csharp", "Flow", tmp_path / "Flow.dll")
        assert (flow.is_python, flow.kind) == (False, "flow in csharp")

    @pytest.mark.parametrize(
        ("name", "content", "kind"),
        [
            ("flow.dag.yaml", f"language: Python\n{DAG}", "DAG flow"),
            ("flow.flex.yaml", f"language: Python\n{FLEX}", "flex flow"),
            ("ask.prompty", "---\nlanguage: Python\n---\nuser:\n{{x}}\n", "prompty"),
            ("flow.dag.yaml", f"language: ' python '\n{DAG}", "DAG flow"),
            ("flow.flex.yaml", f"language: ' Python'\n{FLEX}", "flex flow"),
            ("flow.flex.yaml", f"language: ' '\n{FLEX}", "flex flow"),
        ],
        ids=["dag", "flex", "prompty", "dag, spaces", "flex, spaces", "flex, only spaces"],
    )
    def test_python_may_be_written_in_capitals(self, folder: Path, name: str, content: str, kind: str) -> None:
        (folder / name).write_text(content)

        flow = load_flow(folder / name)

        assert (flow.language, flow.is_python, flow.kind) == ("python", True, kind)

    def test_other_languages_are_known_in_lower_case(self, folder: Path) -> None:
        (folder / "flow.flex.yaml").write_text("entry: a.js\nlanguage: JavaScript\n")

        assert load_flow(folder).language == "javascript"


class TestFiles:
    def test_a_flow_folder_counts_its_sources_and_templates(self, folder: Path) -> None:
        (folder / "flow.dag.yaml").write_text(DAG)
        for name in ("helpers/h.py", "p.jinja2", "p.prompty", ".git/x.py", "__pycache__/c.py", "data.jsonl", "a.pyc"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        (folder / "env").mkdir()
        (folder / "env" / "pyvenv.cfg").touch()
        (folder / "env" / "site.py").touch()

        names = [str(file.relative_to(folder)) for file in files_of(load_flow(folder)).files]

        assert names == ["a.py", "flow.dag.yaml", "helpers/h.py", "main.py", "p.jinja2", "p.prompty"]

    def test_a_source_beside_the_folder_counts(self, folder: Path) -> None:
        shared = folder.parent / "shared.py"
        shared.touch()
        (folder / "flow.dag.yaml").write_text(DAG.replace("a.py", "../shared.py"))

        assert shared in files_of(load_flow(folder)).files

    def test_another_language_counts_its_own_sources_and_what_its_command_names(self, tmp_path: Path) -> None:
        service = "{command: [bin/main, --port, '{port}', data]}"
        (tmp_path / "flow.flex.yaml").write_text(f"entry: main\nlanguage: go\nservice: {service}\n")
        for name in ("bin/main", "main.go", "lib/a.ts", "node_modules/b.js", "data/rows.jsonl", "README.md"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()

        names = [str(file.relative_to(tmp_path)) for file in files_of(load_flow(tmp_path)).files]

        assert names == ["bin/main", "flow.flex.yaml", "lib/a.ts", "main.go"]

    def test_a_callable_counts_its_file_only(self, folder: Path) -> None:
        assert files_of(load_flow(f"{folder / 'main.py'}:run")).files == (folder / "main.py",)

    def test_a_huge_folder_is_cut_with_a_warning_nearest_first(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(flow_files, "SOURCE_FILE_LIMIT", 4)
        (folder / "flow.dag.yaml").write_text(DAG)
        (folder / "deep").mkdir()
        for name in ("x.py", "y.py"):
            (folder / "deep" / name).touch()
        flow = load_flow(folder)

        with pytest.warns(UserWarning, match="has more than 4 source files"):
            files = files_of(flow).files

        assert [file.name for file in files] == ["a.py", "x.py", "flow.dag.yaml", "main.py"]

    def test_links_to_folders_are_not_followed(self, folder: Path) -> None:
        (folder / "flow.dag.yaml").write_text(DAG)
        (folder / "again").symlink_to(folder, target_is_directory=True)

        assert len(files_of(load_flow(folder)).files) == 3


class TestModel:
    @pytest.mark.parametrize("content", [DAG, FLEX], ids=["dag", "flex"])
    def test_a_flow_travels_by_pickle(self, folder: Path, content: str) -> None:
        (folder / "flow.yaml").write_text(content)
        flow = load_flow(folder / "flow.yaml")

        assert pickle.loads(pickle.dumps(flow)) == flow  # noqa: S301 - made by the test

    def test_no_default_stays_one_object(self) -> None:
        flow_input = pickle.loads(pickle.dumps(FlowInput("x")))  # noqa: S301 - made by the test

        assert flow_input.default is NO_DEFAULT
        assert flow_input.required
        assert repr(NO_DEFAULT) == "NO_DEFAULT"

    def test_null_is_a_default(self) -> None:
        assert not FlowInput("x", default=None).required

    def test_a_worker_adds_the_inputs_it_found(self, tmp_path: Path) -> None:
        flow = Flow("f", tmp_path, Entry("m", "f"))
        inputs = {"x": FlowInput("x", "int")}

        described = flow.described(FlowDescription(inputs, is_async=False, has_aggregation=False))

        assert described.inputs == inputs
        assert flow.inputs == {}
