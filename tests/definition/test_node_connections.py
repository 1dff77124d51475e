"""A run may choose other connections, deployments and models for the nodes of a DAG flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.definition.flow import Constant, Dag, Flow, Node
from prefect_batchflow.definition.load import load_flow, merged_copy
from prefect_batchflow.definition.node_connections import check_node_connections
from prefect_batchflow.exceptions import FlowDefinitionError, InvalidOptionError

if TYPE_CHECKING:
    from pathlib import Path

YAML = """
inputs: {q: {type: string}}
outputs: {out: {type: string, reference: "${answer.output}"}}
nodes:
- {name: show, type: prompt, source: {path: show.jinja2}, inputs: {q: "${inputs.q}"}}
- {name: answer, use_variants: true}
- {name: look, type: python, source: {path: look.py}, inputs: {q: "${inputs.q}", ai: own}}
- {name: bare, type: python, source: {path: look.py}}
node_variants:
  answer:
    default_variant_id: long
    variants:
      long: {node: {type: llm, source: {path: show.jinja2}, connection: own, inputs: {q: a, deployment_name: own}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flow of a node of each kind, the one that asks a model with variants."""
    folder = tmp_path / "flow"
    folder.mkdir()
    (folder / "show.jinja2").touch()
    (folder / "look.py").touch()
    (folder / "flow.dag.yaml").write_text(YAML)
    return folder


def node(flow: Flow, name: str) -> Node:
    assert isinstance(flow.program, Dag)
    return next(node for node in flow.program.nodes if node.name == name)


def test_an_llm_node_gets_connection_deployment_and_model(folder: Path) -> None:
    chosen = {"answer": {"connection": "other", "deployment_name": "big", "model": "gpt"}}

    flow = load_flow(folder, node_connections=chosen)

    answer = node(flow, "answer")
    assert answer.connection == "other"
    assert answer.inputs == {"q": Constant("a"), "deployment_name": Constant("big"), "model": Constant("gpt")}
    assert flow.node_connections == chosen


def test_what_was_not_chosen_stays(folder: Path) -> None:
    answer = node(load_flow(folder, node_connections={"answer": {"model": "gpt"}}), "answer")

    assert answer.connection == "own"
    assert answer.inputs["deployment_name"] == Constant("own")


@pytest.mark.parametrize("name", ["look", "bare"])
def test_a_python_node_gets_inputs_also_where_it_had_none(folder: Path, name: str) -> None:
    inputs = node(load_flow(folder, node_connections={name: {"ai": "other"}}), name).inputs

    assert inputs["ai"] == Constant("other")
    assert ("q" in inputs) == (name == "look")


def test_the_merged_copy_of_a_flow_has_them_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").touch()
    (folder / "flow.dag.yaml").write_text(f"{YAML}additional_includes: [../more.txt]\n")
    (tmp_path / "copy").mkdir()

    merged, _ = merged_copy(load_flow(folder, node_connections={"look": {"ai": "other"}}), tmp_path / "copy")

    assert node(merged, "look").inputs["ai"] == Constant("other")


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (
            {"z": {"connection": "c"}},
            "for the node 'z', which does not exist. Nodes: 'show', 'answer', 'look'",
        ),
        (
            {"answer": {"api": "chat"}},
            "node 'answer': 'api' was chosen, but for an llm node only 'connection', 'deploym",
        ),
        ({"show": {"model": "gpt"}}, "node 'show': 'model' was chosen, but a prompt node asks no model"),
    ],
)
def test_what_no_node_takes_is_refused(folder: Path, chosen: dict[str, dict[str, str]], told: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        load_flow(folder, node_connections=chosen)

    assert told in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("given", ["a.b=c", ["a"], {"a": "c"}, {"a": {"b": 3}}, {"a": {"b": ""}}, {1: {"b": "c"}}])
def test_another_form_is_refused_with_its_place(given: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"^here.*expected"):
        check_node_connections(given, "here")


@pytest.mark.parametrize("text", ["entry: m:run\n", "inputs: {q: {type: string}}\nlanguage: csharp\nnodes: []\n"])
def test_what_has_no_python_nodes_has_no_such_choice(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.py").write_text("def run(x): ...\n")
    name = "flow.flex.yaml" if "entry" in text else "flow.dag.yaml"
    (tmp_path / name).write_text(text)

    with pytest.raises(InvalidOptionError, match=r"chosen for the nodes 'a', but .* is not a flow\.dag\.yaml"):
        load_flow(tmp_path, node_connections={"a": {"connection": "c"}})


def test_inputs_that_are_no_mapping_are_the_fault_of_the_yaml(folder: Path) -> None:
    (folder / "flow.dag.yaml").write_text(YAML.replace('inputs: {q: "${inputs.q}", ai: own}', "inputs: [q]"))

    with pytest.raises(FlowDefinitionError, match="node 'look': 'inputs' should map names to values"):
        load_flow(folder, node_connections={"look": {"ai": "other"}})
