"""flow.dag.yaml: what it may say, what is refused by name, and the order of its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from prefect_batchflow.definition.dag import parse_value
from prefect_batchflow.definition.flow import Activate, Constant, Dag, Flow, FlowOutput, Reference, Service
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import (
    DuplicateNodeName,
    EmptyOutputReference,
    FlowDefinitionError,
    InputNotFound,
    InputReferenceNotFound,
    InvalidFlowRequest,
    InvalidNodeReference,
    InvalidSource,
    NodeCircularDependency,
    NodeReferenceNotFound,
    OutputReferenceNotFound,
    UnsupportedFeatureError,
)

if TYPE_CHECKING:
    from pathlib import Path


def node(name: str, inputs: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": "python",
        "source": {"type": "code", "path": "tool.py"},
        "inputs": inputs or {},
        **more,
    }


def load(folder: Path, *nodes: dict[str, Any], outputs: dict[str, str] | None = None, **top: Any) -> Flow:
    """Load a flow with one input `x` and these nodes, whose tool is there."""
    (folder / "tool.py").touch()
    document = {
        "inputs": {"x": {"type": "string"}},
        "outputs": {name: {"type": "string", "reference": text} for name, text in (outputs or {}).items()},
        "nodes": list(nodes) or [node("a", {"x": "${inputs.x}"})],
        **top,
    }
    (folder / "flow.dag.yaml").write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))
    return load_flow(folder)


def order(flow: Flow) -> str:
    assert isinstance(flow.program, Dag)
    return "".join(n.name for n in flow.program.nodes)


class TestValues:
    @pytest.mark.parametrize(
        ("text", "reference"),
        [
            ("${inputs.x}", Reference("${inputs.x}", "inputs", "x")),
            ("${flow.x}", Reference("${flow.x}", "inputs", "x")),
            ("${inputs.a.b}", Reference("${inputs.a.b}", "inputs", "a.b")),
            ("${n}", Reference("${n.output}", "node", "n")),
            ("${n.output}", Reference("${n.output}", "node", "n")),
            ("${my node.output.a}", Reference("${my node.output.a}", "node", "my node", ("a",))),
            (
                "${n.output.a.b[0]['k'][\"l m\"].c}",
                Reference("${n.output.a.b[0]['k'][\"l m\"].c}", "node", "n", ("a", "b", 0, "k", "l m", "c")),
            ),
            ("${n.output[1]}", Reference("${n.output[1]}", "node", "n", (1,))),
        ],
    )
    def test_references_name_an_input_or_a_node(self, text: str, reference: Reference) -> None:
        assert parse_value(text) == reference

    @pytest.mark.parametrize(
        "value", ["text", "$", "${", "a ${inputs.x}", "${inputs.x} b", "$inputs.x", 5, None, ["${n}"]]
    )
    def test_anything_else_is_a_literal(self, value: object) -> None:
        assert parse_value(value) == Constant(value)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("${n.input}", "refers to 'input' of 'n'"),
            ("${n.output.}", "cannot read '.'"),
            ("${n.output.a-b}", "cannot read '-b'"),
            ("${n.output[x]}", r"cannot read '\[x\]'"),
            ("${}", "is not a reference"),
            ("${n[0]}", "is not a reference"),
        ],
    )
    def test_what_looks_like_a_reference_but_is_none_is_refused(self, text: str, expected: str) -> None:
        with pytest.raises(ValueError, match=expected):
            parse_value(text)


class TestSound:
    def test_a_flow_has_inputs_nodes_and_outputs(self, tmp_path: Path) -> None:
        flow = load(
            tmp_path,
            node("a", {"x": "${inputs.x}", "n": 3}),
            node("b", {"y": "${a.output.k}"}, aggregation=True, comment="counts"),
            outputs={"out": "${a.output}", "same": "${inputs.x}", "fixed": "text"},
        )

        assert isinstance(flow.program, Dag)
        assert flow.name == tmp_path.name
        assert flow.language == "python"
        a, b = flow.program.nodes
        assert (a.source, a.inputs["n"], a.aggregation) == ("tool.py", Constant(3), False)
        assert (b.inputs["y"], b.aggregation) == (Reference("${a.output.k}", "node", "a", ("k",)), True)
        assert flow.program.line_nodes == (a,)
        assert flow.program.aggregation_nodes == (b,)
        assert flow.program.outputs[1:] == (
            FlowOutput("out", Reference("${a.output}", "node", "a")),
            FlowOutput("same", Reference("${inputs.x}", "inputs", "x")),
        )
        assert flow.program.outputs[0] == FlowOutput("fixed", Constant("text"))

    def test_the_old_name_of_aggregation_is_understood(self, tmp_path: Path) -> None:
        flow = load(tmp_path, node("a", reduce=True))

        assert isinstance(flow.program, Dag)
        assert flow.program.nodes[0].aggregation

    def test_keys_for_display_are_taken(self, tmp_path: Path) -> None:
        display: dict[str, Any] = {
            "$schema": "https://example.org/Flow.schema.json",
            "id": "one",
            "name": "one",
            "type": "evaluation",
            "display_name": "One",
            "description": "first",
            "tags": {"a": "b"},
            "environment": {"python_requirements_txt": "requirements.txt"},
            "message_format": "basic",
            "language": "python",
        }

        assert order(load(tmp_path, **display)) == "a"

    def test_a_source_may_lie_beside_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "shared.py").touch()
        folder = tmp_path / "flow"
        folder.mkdir()

        assert order(load(folder, node("a", source={"path": "../shared.py"}))) == "a"

    def test_an_output_of_an_aggregation_node_is_left_out_with_a_warning(self, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match="output 'score' is left out"):
            flow = load(tmp_path, node("a", aggregation=True), outputs={"score": "${a.output}"})

        assert isinstance(flow.program, Dag)
        assert flow.program.outputs == ()


class TestOrder:
    def test_nodes_come_after_what_they_refer_to_and_otherwise_as_written(self, tmp_path: Path) -> None:
        flow = load(
            tmp_path,
            node("d", {"p": "${b.output}", "q": "${c}"}),
            node("e"),
            node("c", {"p": "${a.output.k}"}),
            node("b", {"p": "${a.output}", "q": "${a.output.k}"}),
            node("a"),
        )

        assert order(flow) == "eacbd"

    def test_nodes_come_after_what_their_condition_asks(self, tmp_path: Path) -> None:
        flow = load(tmp_path, node("a", activate={"when": "${b.output}", "is": True}), node("b"))
        assert order(flow) == "ba"
        assert isinstance(flow.program, Dag)
        assert flow.program.nodes[1].activate == Activate(Reference("${b.output}", "node", "b"), True)

    def test_a_circle_is_refused_and_shown(self, tmp_path: Path) -> None:
        with pytest.raises(NodeCircularDependency, match="'b' → 'c' → 'b'"):
            load(tmp_path, node("a", {"p": "${b}"}), node("b", {"p": "${c}"}), node("c", {"p": "${b}"}))

    def test_a_node_that_waits_for_itself_is_a_circle(self, tmp_path: Path) -> None:
        with pytest.raises(NodeCircularDependency, match="'a' → 'a'"):
            load(tmp_path, node("a", {"p": "${a.output}"}))


class TestRefused:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("message_format", "html"),
            ("nodse", [1]),
        ],
    )
    def test_a_top_level_key_that_is_not_honoured(self, tmp_path: Path, key: str, value: Any) -> None:
        with pytest.raises(UnsupportedFeatureError, match=rf"flow\.dag\.yaml: top level: the key '{key}'"):
            load(tmp_path, **{key: value})

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("conection", "open_ai"),
            ("activates", {"when": "${inputs.x}", "is": 1}),
        ],
    )
    def test_a_key_of_a_node_that_is_not_honoured(self, tmp_path: Path, key: str, value: Any) -> None:
        with pytest.raises(UnsupportedFeatureError, match=f"node 'a': the key '{key}' is not supported"):
            load(tmp_path, node("a", **{key: value}))

    @pytest.mark.parametrize(
        "keys",
        [
            {"enable_cache": True},
            {"connection": "open_ai", "provider": "OpenAI", "api": "chat", "module": "promptflow.tools.openai"},
            {"skip": {"when": "${inputs.x}", "is": 1}},
            {"tool": "old_name", "comment": "a note"},
        ],
    )
    def test_keys_that_promptflow_ignores_of_a_python_node_are_ignored(
        self, tmp_path: Path, keys: dict[str, Any]
    ) -> None:
        assert order(load(tmp_path, node("a", **keys), tools=[{"name": "old_name"}])) == "a"

    @pytest.mark.parametrize(
        ("given", "carried"), [(None, "basic"), ("basic", "basic"), ("openai-vision", "openai-vision")]
    )
    def test_the_message_format_is_carried(self, tmp_path: Path, given: str | None, carried: str) -> None:
        assert load(tmp_path, message_format=given).message_format == carried

    @pytest.mark.parametrize("kind", ["csharp", "typescript", 5])
    def test_a_node_of_another_type(self, tmp_path: Path, kind: str) -> None:
        with pytest.raises(UnsupportedFeatureError, match=f"node 'a': the type '{kind}' is not supported"):
            load(tmp_path, node("a", type=kind))

    def test_a_node_without_type(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedFeatureError, match="node 'a': no 'type'"):
            load(tmp_path, node("a", type=None))

    def test_a_tool_with_a_prompt_of_its_own(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedFeatureError, match="the source type 'package_with_prompt' is not supported"):
            load(tmp_path, node("a", source={"type": "package_with_prompt", "tool": "some.tool"}))

    @pytest.mark.parametrize(
        ("kind", "source"),
        [("prompt", "package"), ("llm", "package"), ("custom_llm", "code"), ("custom_llm", "package")],
    )
    def test_a_source_of_a_type_that_the_node_cannot_have(self, tmp_path: Path, kind: str, source: str) -> None:
        with pytest.raises(UnsupportedFeatureError, match=f"the source type '{source}' is not supported"):
            load(
                tmp_path, node("a", type=kind, connection="c", source={"type": source, "tool": "t", "path": "tool.py"})
            )

    def test_a_model_without_connection(self, tmp_path: Path) -> None:
        with pytest.raises(
            FlowDefinitionError, match="node 'a': expected 'connection' with the name of one, found None"
        ):
            load(tmp_path, node("a", type="llm", api="chat"))

    def test_a_template_that_is_not_there_and_what_is(self, tmp_path: Path) -> None:
        (tmp_path / "other.jinja2").touch()
        with pytest.raises(InvalidSource, match=r"no file 'ask.jinja2' in .*, which contains other.jinja2"):
            load(tmp_path, node("a", type="prompt", source={"type": "code", "path": "ask.jinja2"}))

    @pytest.mark.parametrize("tool", [None, "", 5])
    def test_a_package_without_a_tool(self, tmp_path: Path, tool: object) -> None:
        with pytest.raises(FlowDefinitionError, match="expected 'source' with the 'tool' of a package"):
            load(tmp_path, node("a", source={"type": "package", "tool": tool}))

    @pytest.mark.parametrize("source", [None, {"type": "code"}, {"type": "code", "path": 5}])
    def test_a_node_without_a_file(self, tmp_path: Path, source: object) -> None:
        with pytest.raises(FlowDefinitionError, match="expected 'source' with the 'path' of a file"):
            load(tmp_path, node("a", source=source))

    def test_a_source_that_is_not_there_and_what_is(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSource, match=r"node 'a': no file 'tol\.py' in .* which contains tool\.py"):
            load(tmp_path, node("a", source={"path": "tol.py"}))

    def test_no_inputs_since_a_batch_runs_over_them(self, tmp_path: Path) -> None:
        with pytest.raises(InputNotFound, match="no 'inputs'"):
            load(tmp_path, node("a"), inputs=None)

    def test_no_nodes(self, tmp_path: Path) -> None:
        with pytest.raises(FlowDefinitionError, match="no 'nodes'"):
            load(tmp_path, nodes=[])

    @pytest.mark.parametrize("nodes", ["a", {"a": 1}])
    def test_nodes_that_are_no_list(self, tmp_path: Path, nodes: object) -> None:
        with pytest.raises(FlowDefinitionError, match="'nodes' should be a list"):
            load(tmp_path, nodes=nodes)

    @pytest.mark.parametrize("entry", ["text", {"type": "python"}, {"name": ""}, None])
    def test_a_node_without_name(self, tmp_path: Path, entry: object) -> None:
        with pytest.raises(FlowDefinitionError, match="node 2 of the list: expected a 'name'"):
            load(tmp_path, nodes=[node("a"), entry])

    def test_two_nodes_of_one_name(self, tmp_path: Path) -> None:
        with pytest.raises(DuplicateNodeName, match="node 'a': two nodes have this name"):
            load(tmp_path, node("a"), node("a"))

    def test_an_unknown_input(self, tmp_path: Path) -> None:
        with pytest.raises(InputReferenceNotFound, match=r"node 'a', input 'p': \$\{inputs\.y\}.*Existing: 'x'"):
            load(tmp_path, node("a", {"p": "${inputs.y}"}))

    def test_an_unknown_node(self, tmp_path: Path) -> None:
        with pytest.raises(NodeReferenceNotFound, match=r"node 'a', input 'p': \$\{b\.output\}.*Existing: 'a'"):
            load(tmp_path, node("a", {"p": "${b}"}))

    def test_a_line_node_that_needs_an_aggregation_node(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidNodeReference, match="Make 'b' an aggregation node too"):
            load(tmp_path, node("a", aggregation=True), node("b", {"p": "${a.output}"}))

    @pytest.mark.parametrize("reference", ["${b.output}", "${inputs.y}"])
    def test_an_output_of_something_unknown(self, tmp_path: Path, reference: str) -> None:
        with pytest.raises(OutputReferenceNotFound, match="output 'o'"):
            load(tmp_path, outputs={"o": reference})

    @pytest.mark.parametrize("reference", ["", None])
    def test_an_output_of_nothing(self, tmp_path: Path, reference: Any) -> None:
        with pytest.raises(EmptyOutputReference, match="output 'o'"):
            load(tmp_path, outputs={"o": reference})

    def test_a_reference_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(FlowDefinitionError, match=r"node 'a', input 'p': .*refers to 'score'"):
            load(tmp_path, node("a", {"p": "${b.score}"}))

    @pytest.mark.parametrize(
        ("activate", "error", "said"),
        [
            (
                {"when": "${inputs.x}"},
                FlowDefinitionError,
                "node 'a', activate: expected 'when', a reference, and 'is'",
            ),
            ({"is": 1}, FlowDefinitionError, "expected 'when'"),
            ("${inputs.x}", FlowDefinitionError, "activate"),
            ({"when": "${b.score}", "is": 1}, FlowDefinitionError, "refers to 'score'"),
            ({"when": "${inputs.x}", "is": 1, "else": 2}, UnsupportedFeatureError, "the key 'else' is not supported"),
            (
                {"when": "${inputs.y}", "is": 1},
                InputReferenceNotFound,
                r"activate: \$\{inputs.y\} refers to the input 'y'",
            ),
            ({"when": "${c.output}", "is": 1}, NodeReferenceNotFound, "refers to the node 'c'"),
            ({"when": "${a.output}", "is": 1}, NodeCircularDependency, "'a' → 'a'"),
        ],
        ids=["no is", "no when", "no mapping", "no reference", "a further key", "no input", "no node", "itself"],
    )
    def test_a_condition_that_cannot_be(self, tmp_path: Path, activate: Any, error: type[Exception], said: str) -> None:
        with pytest.raises(error, match=said):
            load(tmp_path, node("a", activate=activate))

    @pytest.mark.parametrize(("condition_of", "aggregation"), [("a", "b"), ("b", "b")], ids=["line", "aggregation"])
    def test_a_condition_on_a_node_that_runs_at_another_time(
        self, tmp_path: Path, condition_of: str, aggregation: str
    ) -> None:
        other = "b" if condition_of == "a" else "a"
        nodes = {name: node(name, aggregation=name == aggregation) for name in "ab"}
        nodes[condition_of]["activate"] = {"when": f"${{{other}.output}}", "is": 1}
        with pytest.raises(InvalidNodeReference, match=f"node '{condition_of}', activate"):
            load(tmp_path, *nodes.values())

    def test_all_that_is_wrong_is_told_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidFlowRequest) as caught:
            load(
                tmp_path,
                node("a", {"p": "${inputs.y}", "q": "${nowhere.output}"}, nokey=True),
                node("b", type="csharp", apis="chat"),
                outputs={"o": "${c.output}"},
                nodse=[1],
            )

        message = str(caught.value)
        assert "has 7 problems" in message
        for name in (
            "'nodse'",
            "'nokey'",
            "'csharp'",
            "'apis'",
            "${inputs.y}",
            "${nowhere.output}",
            "output 'o'",
        ):
            assert name in message


def test_nodes_with_a_template_say_what_they_ask(tmp_path: Path) -> None:
    flow = load(
        tmp_path,
        node("p", type="prompt"),
        node("l", type="llm", api="chat", connection="c", provider="OpenAI", module="promptflow.tools.openai"),
        node("k", type="custom_llm", source={"type": "package_with_prompt", "tool": "t.f", "path": "tool.py"}),
    )

    assert isinstance(flow.program, Dag)
    assert [(n.type, n.source, n.package_tool, n.api, n.connection) for n in flow.program.nodes] == [
        ("prompt", "tool.py", "", "", ""),
        ("llm", "tool.py", "", "chat", "c"),
        ("custom_llm", "tool.py", "t.f", "", ""),
    ]


class TestOtherLanguages:
    def test_only_inputs_and_outputs_are_read(self, tmp_path: Path) -> None:
        flow = load(
            tmp_path,
            {"name": "a", "type": "csharp", "source": {"path": "A.cs"}, "activate": {"when": 1, "is": 2}},
            outputs={"o": "${a.output}"},
            language="csharp",
        )

        assert flow.language == "csharp"
        assert list(flow.inputs) == ["x"]
        assert flow.program == Dag((), (FlowOutput("o", Reference("${a.output}", "node", "a")),))

    @pytest.mark.parametrize("aggregates", [True, False])
    def test_a_node_may_say_that_there_is_an_aggregation(self, tmp_path: Path, aggregates: bool) -> None:
        flow = load(tmp_path, {"name": "a", "aggregation": aggregates}, language="go", service={"command": ["./main"]})

        assert flow.service == Service(("./main",), aggregation=aggregates)

    def test_they_need_inputs_too(self, tmp_path: Path) -> None:
        with pytest.raises(InputNotFound):
            load(tmp_path, language="csharp", inputs=None)

    def test_a_language_is_a_name(self, tmp_path: Path) -> None:
        with pytest.raises(FlowDefinitionError, match="'language' should be a name"):
            load(tmp_path, language=["python"])
