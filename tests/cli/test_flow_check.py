"""`batchflow check`: what a flow needs is said, and none of its code is run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.cli.commands import main
from prefect_batchflow.cli.flow_check import FlowCheck, check_flow
from prefect_batchflow.exceptions import FlowNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

DAG = """
inputs: {text: {type: string}, times: {type: int, default: 2}}
outputs: {loud: {reference: "${shout.output}"}}
nodes:
- name: shout
  type: python
  source: {type: code, path: shout.py}
  inputs: {text: "${inputs.text}"}
"""
TOOL = "from promptflow.core import tool\n@tool\ndef shout(text: str) -> str:\n    return text.upper()\n"
LLM = """
- name: ask
  type: llm
  source: {type: code, path: ask.jinja2}
  inputs: {model: m, text: "${inputs.text}"}
  connection: my_ai
  api: chat
"""


def flow(folder: Path, more: str = "", **files: str) -> Path:
    """A flow that can run, with more nodes or other sources."""
    sources = {"shout.py": TOOL, **{f"{name}.py": text for name, text in files.items()}}
    for name, text in {"flow.dag.yaml": DAG + more, "ask.jinja2": "# user:\n{{ text }}\n", **sources}.items():
        (folder / name).write_text(text)
    return folder


def found(checked: FlowCheck) -> list[tuple[str, str]]:
    return [(finding.level, finding.place) for finding in checked.findings]


def test_a_flow_that_can_run_has_no_findings_and_runs_no_code(tmp_path: Path) -> None:
    checked = check_flow(str(flow(tmp_path, shout=TOOL + "open('witness', 'w')\nraise SystemExit\n")))

    assert (checked.runs, checked.findings, checked.kind) == (True, [], "DAG flow")
    assert [(item.name, item.type, item.required) for item in checked.inputs] == [
        ("text", "string", True),
        ("times", "int", False),
    ]
    assert [(node.name, node.type, node.source) for node in checked.nodes] == [("shout", "python", "shout.py")]
    assert not (tmp_path / "witness").exists()


def test_a_connection_is_to_be_given_and_says_how(tmp_path: Path) -> None:
    (finding,) = check_flow(str(flow(tmp_path, LLM))).findings

    assert (finding.level, finding.place) == ("needs", "node 'ask'")
    assert "--connection my_ai=BLOCK" in finding.text


@pytest.mark.parametrize("annotation", ["AzureOpenAIConnection", "Optional[CustomConnection]", "'MyConnection | None'"])
def test_a_connection_of_a_python_tool_is_known_by_its_annotation(tmp_path: Path, annotation: str) -> None:
    tool = TOOL.replace("text: str", f"text: str, service: {annotation}, other: str = ''")
    folder = flow(tmp_path, "environment_variables: {KEY: '${their.api_key}', MORE: '${mine.api_key}'}\n", shout=tool)
    yaml = folder / "flow.dag.yaml"
    given = '"${inputs.text}", service: mine, other: word}'
    yaml.write_text(yaml.read_text().replace('"${inputs.text}"}', given))

    checked = check_flow(str(folder))

    assert [(f.level, f.place) for f in checked.findings] == [
        ("needs", "node 'shout', environment variable MORE"),
        ("needs", "environment variable KEY"),
    ]
    assert ["'mine'" in checked.findings[0].text, "'their'" in checked.findings[1].text] == [True, True]


def test_what_a_constructor_takes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.py").write_text("class C:\n    def __init__(self, ai, n): ...\n    def __call__(self, q): ...\n")
    (tmp_path / "flow.flex.yaml").write_text(
        "entry: m:C\ninputs: {q: {type: string}, k: {type: int, default: 4}}\n"
        "init: {ai: {type: OpenAIConnection}, n: {type: int, default: 3}}\n"
    )

    assert main(["check", str(tmp_path)]) == 0

    shown = " ".join(capsys.readouterr().out.split())
    assert "init 'ai' The constructor takes the name of a connection. Run with --init ai=…." in shown
    assert "n int, 3 unless it is given" in shown
    assert "k int, 4 unless it is mapped" in shown
    assert "--data ROWS.jsonl --map 'k=${data.k}' --init ai=…" in shown


def test_the_sample_of_a_constructor_gives_its_arguments_and_names_connections(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "class C:\n    def __init__(self, config, ai): ...\n    def __call__(self, q): ...\n"
    )
    (tmp_path / "flow.flex.yaml").write_text(
        "entry: m:C\ninit: {ai: {type: OpenAIConnection}}\n"
        "sample: {init: {ai: mine, config: {connection: theirs, model: m}}}\n"
    )

    checked = check_flow(str(tmp_path))

    assert [item.default for item in checked.init] == ["mine"]
    assert found(checked) == [("needs", "init 'ai'"), ("needs", "init 'config'")]
    assert ["'mine'" in checked.findings[0].text, "'theirs'" in checked.findings[1].text] == [True, True]


def test_a_tool_of_a_package_that_is_not_there_stops_it(tmp_path: Path) -> None:
    node = "- {name: see, type: python, source: {type: package, tool: TOOL}, inputs: {connection: mine}}\n"
    checked = check_flow(str(flow(tmp_path, node.replace("TOOL", "promptflow.tools.embedding.embedding"))))

    assert found(checked) == [("stops", "node 'see'"), ("needs", "node 'see'")]
    assert "pip install --no-deps promptflow-tools" in checked.findings[0].text
    checked = check_flow(str(flow(tmp_path, node.replace("TOOL", "yaml.something"))))
    assert found(checked) == [("stops", "node 'see'"), ("needs", "node 'see'")]
    assert "No installed package has the tool 'yaml.something'" in checked.findings[0].text


def test_a_missing_extra_stops_it_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_batchflow.errors.packages.PathFinder.find_spec", lambda *_: None)

    checked = check_flow(str(flow(tmp_path, LLM)))

    assert not checked.runs
    assert any("pip install 'prefect-batchflow[llm]'" in finding.text for finding in checked.of("stops"))


@pytest.mark.parametrize(
    ("source", "level", "place", "said"),
    [
        ("import nowhere_to_be_found\n" + TOOL, "stops", "shout.py, line 1", "'nowhere_to_be_found' is not installed"),
        (
            f"try:\n    import nowhere_at_all\nexcept ImportError: pass\n{TOOL}",
            "note",
            "shout.py, line 2",
            "nowhere_at_all",
        ),
        ("from promptflow.tools import serp\n" + TOOL, "stops", "shout.py, line 1", "the openai package"),
        ("from promptflow.client import PFClient\n" + TOOL, "note", "shout.py, line 1", "batchflow run"),
        ("def shout(text): return text\n", "stops", "node 'shout'", "shout.py has no function with @tool"),
        (
            TOOL + TOOL.replace("def shout", "def other"),
            "stops",
            "node 'shout'",
            "2 functions with @tool: other, shout",
        ),
        ("def shout(:\n", "stops", "shout.py", "SyntaxError"),
    ],
    ids=["module", "optional module", "promptflow's tools", "client", "no tool", "two tools", "syntax"],
)
def test_what_is_wrong_in_a_source_is_said_with_its_place(
    tmp_path: Path, source: str, level: str, place: str, said: str
) -> None:
    (finding,) = check_flow(str(flow(tmp_path, shout=source))).findings

    assert (finding.level, finding.place) == (level, place)
    assert said in finding.text


def test_a_helper_of_the_flow_is_followed_and_types_are_not(tmp_path: Path) -> None:
    tool = (
        f"from helper import loud\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import only_types\n{TOOL}"
    )

    checked = check_flow(str(flow(tmp_path, shout=tool, helper="import not_to_be_had\ndef loud(): ...\n")))

    assert found(checked) == [("stops", "helper.py, line 1")]


def test_all_that_is_wrong_with_the_definition_is_said(tmp_path: Path) -> None:
    flow(tmp_path, "- {name: late, type: python, source: {type: code, path: late.py}, inputs: {x: '${gone.output}'}}\n")

    (finding,) = check_flow(str(tmp_path)).findings

    assert finding.level == "stops"
    assert "late.py" in finding.text
    assert "${gone.output}" in finding.text


def test_a_variable_of_the_environment_that_is_not_set_is_to_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "k")
    front = "model: {configuration: {type: openai, model: m, api_key: '${env:THE_KEY}', base_url: '${env:THE_URL}'}}"
    (tmp_path / "ask.prompty").write_text(f"---\n{front}\ninputs: {{q: {{type: string}}}}\n---\nuser:\n{{{{q}}}}\n")

    checked = check_flow(str(tmp_path / "ask.prompty"))

    assert checked.kind == "prompty"
    assert found(checked) == [("needs", "ask.prompty")]
    assert "base_url is ${env:THE_URL}, but the environment variable THE_URL is not set" in checked.findings[0].text


def test_nothing_there_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(FlowNotFoundError):
        check_flow(str(tmp_path / "gone"))


@pytest.mark.parametrize(("source", "status"), [(TOOL, 0), ("import nowhere_to_be_found\n" + TOOL, 1)])
def test_the_command_tells_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, status: int
) -> None:
    folder = str(flow(tmp_path, LLM, shout=source))

    assert main(["check", folder]) == status
    shown = capsys.readouterr().out
    assert "connection my_ai" in shown
    assert ("nowhere_to_be_found" in shown) == bool(status)

    assert main(["check", folder, "--json"]) == status
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (document["runs"], document["kind"]) == (status == 0, "DAG flow")
    assert [node["name"] for node in document["nodes"]] == ["shout", "ask"]
