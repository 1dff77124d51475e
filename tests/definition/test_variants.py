"""A node with variants is the one that was chosen for the run, else its default."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from prefect_batchflow.definition.flow import Constant, Dag, Flow
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.definition.variants import parse_variant
from prefect_batchflow.exceptions import FlowDefinitionError, InvalidFlowRequest, InvalidOptionError

if TYPE_CHECKING:
    from pathlib import Path

YAML = """
inputs: {x: {type: string}}
outputs: {out: {type: string, reference: "${b.output}"}}
nodes:
- {name: a, type: python, source: {path: one.py}, inputs: {x: "${inputs.x}"}}
- {name: b, use_variants: true}
- {name: c, use_variants: true, type: python, source: {path: gone.py}}
node_variants:
  b:
    default_variant_id: variant_0
    variants:
      variant_0: {node: {type: python, source: {path: one.py}, inputs: {x: "${a.output}", n: 0}}}
      variant_1: {node: {type: python, source: {path: two.py}, inputs: {x: "${inputs.x}", n: 1}, name: other}}
  c:
    default_variant_id: only
    variants: {only: {node: {type: python, source: {path: one.py}, inputs: {n: 2}}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flow of three nodes, two of them with variants."""
    (tmp_path / "one.py").touch()
    (tmp_path / "two.py").touch()
    (tmp_path / "flow.dag.yaml").write_text(YAML)
    return tmp_path


def node_b(flow: Flow) -> tuple[str, object]:
    assert isinstance(flow.program, Dag)
    node = next(node for node in flow.program.nodes if node.name == "b")
    return node.source, node.inputs["n"]


def test_each_node_has_its_default(folder: Path) -> None:
    flow = load_flow(folder)

    assert node_b(flow) == ("one.py", Constant(0))
    assert flow.variant == ""


@pytest.mark.parametrize("text", ["${b.variant_1}", "b.variant_1", " ${b.variant_1} "])
def test_the_one_that_was_chosen(folder: Path, text: str) -> None:
    flow = load_flow(folder, variant=text)

    assert node_b(flow) == ("two.py", Constant(1))
    assert flow.variant == text


@pytest.mark.parametrize("text", ["b", "${b.variant_1", "b.variant_1}", "", "${.variant_1}"])
def test_a_text_that_names_no_variant(text: str) -> None:
    with pytest.raises(
        InvalidOptionError, match=r"should name a node and its variant, such as '\$\{node\.variant_1\}'"
    ):
        parse_variant(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("${b.variant_2}", "the node 'b' has no variant 'variant_2'. It has 'variant_0', 'variant_1'."),
        ("${a.variant_1}", "no node 'a' has `use_variants: true`. Nodes that have it: 'b', 'c'."),
        ("${z.variant_1}", "no node 'z' has `use_variants: true`. Nodes that have it: 'b', 'c'."),
    ],
)
def test_one_that_the_flow_has_not_is_refused_with_those_it_has(folder: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        load_flow(folder, variant=text)

    assert told in str(caught.value)


def test_what_has_no_nodes_has_no_variants(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def run(x): ...\n")
    (tmp_path / "flow.flex.yaml").write_text("entry: m:run\n")

    with pytest.raises(InvalidOptionError, match=r"'\$\{a\.b\}' was chosen, but .* is not a flow\.dag\.yaml"):
        load_flow(tmp_path, variant="${a.b}")


@pytest.mark.parametrize(
    ("find", "put", "told"),
    [
        (
            "default_variant_id: variant_0",
            "default_variant_id: v",
            "'default_variant_id' is 'v', expected one of 'vari",
        ),
        ("default_variant_id: variant_0", "x: 1", "'default_variant_id' is None"),
        ("\n  b:", "\n  d:", "node 'b': it has `use_variants`, but .* has no variants for it, only for: 'd', 'c'"),
        ("variant_0: {node: ", "variant_0: {noed: ", "node_variants of 'b', 'variant_0': expected 'node'"),
    ],
)
def test_what_is_wrong_with_the_yaml_is_told(folder: Path, find: str, put: str, told: str) -> None:
    (folder / "flow.dag.yaml").write_text(YAML.replace(find, put))

    with pytest.raises(InvalidFlowRequest, match=told):
        load_flow(folder)


def test_a_variants_own_faults_are_the_nodes(folder: Path) -> None:
    (folder / "two.py").unlink()

    load_flow(folder)
    with pytest.raises(FlowDefinitionError, match=r"node 'b': no file 'two\.py'"):
        load_flow(folder, variant="${b.variant_1}")
