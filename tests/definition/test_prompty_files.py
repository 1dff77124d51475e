"""`.prompty` files: what the front matter says, whose inputs they have, and what is refused."""

from __future__ import annotations

import pickle
import re
from typing import TYPE_CHECKING

import pytest

from prefect_batchflow.definition import document
from prefect_batchflow.definition.flow import Flow, FlowInput, Prompt
from prefect_batchflow.definition.flow_files import files_of
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import FlowDefinitionError, InvalidFlowRequest, UnsupportedFeatureError

if TYPE_CHECKING:
    from pathlib import Path

ALL = """\
---
name: Grader
description: Grades an answer.
authors: [someone]
tags: [chat]
model:
  api: chat
  configuration:
    type: azure_openai
    azure_deployment: gpt
    api_key: ${env:KEY}
  parameters:
    max_tokens: 128
    response_format: {type: json_object}
  response: first
inputs:
  question: {type: string}
  answer: {type: string, default: none, is_chat_input: true}
  n: {type: number, default: 3}
outputs:
  score: {type: string}
sample:
  question: What is it?
template: jinja2
---
system:
Grade it.

user:
{{question}} {{answer}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path.resolve()


def load(folder: Path, text: str) -> Flow:
    (folder / "ask.prompty").write_text(text, encoding="utf-8")
    return load_flow(folder / "ask.prompty")


def prompt_of(flow: Flow) -> Prompt:
    assert isinstance(flow.program, Prompt)
    return flow.program


def refusal(folder: Path, text: str, kind: type[InvalidFlowRequest] = FlowDefinitionError) -> str:
    with pytest.raises(InvalidFlowRequest) as caught:
        load(folder, text)
    assert type(caught.value) is kind
    return caught.value.message


def test_the_whole_front_matter(folder: Path) -> None:
    flow = load(folder, ALL)

    assert (flow.name, flow.working_dir, flow.source) == ("Grader", folder, str(folder / "ask.prompty"))
    assert flow.inputs == {
        "question": FlowInput("question", "string"),
        "answer": FlowInput("answer", "string", "none"),
        "n": FlowInput("n", "double", 3),
    }
    assert prompt_of(flow) == Prompt(
        file=folder / "ask.prompty",
        template="system:\nGrade it.\n\nuser:\n{{question}} {{answer}}\n",
        model={
            "api": "chat",
            "configuration": {"type": "azure_openai", "azure_deployment": "gpt", "api_key": "${env:KEY}"},
            "parameters": {"max_tokens": 128, "response_format": {"type": "json_object"}},
            "response": "first",
        },
        outputs=("score",),
        sample={"question": "What is it?"},
    )


def test_an_input_that_no_template_can_show_is_refused(folder: Path) -> None:
    text = "---\nmodel: {configuration: {type: openai, model: m}}\ninputs: {self: {type: string}}\n---\nuser:\n{{self}}"

    assert "'self' is a name that jinja2 keeps for itself" in refusal(folder, text)


def test_a_flow_of_a_prompty_travels(folder: Path) -> None:
    flow = load(folder, ALL)

    assert pickle.loads(pickle.dumps(flow)) == flow  # noqa: S301 - made here


def test_the_least_that_a_prompty_is(folder: Path) -> None:
    flow = load(folder, "---\nmodel: {configuration: {type: openai, model: m}}\n---\nuser:\nHello")

    assert (flow.name, flow.inputs, prompt_of(flow).api) == ("ask", {}, "chat")
    assert prompt_of(flow).template == "user:\nHello"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff---\nname: x\n---\nuser:\nA\n---\nB\n",
        "---\r\nname: x\r\n---\r\nuser:\r\nA\r\n---\r\nB\r\n",
        "# A licence\n\n---- \nname: x\n-----\nuser:\nA\n---\nB\n",
    ],
    ids=["byte order mark", "windows line ends", "text before, longer lines"],
)
def test_the_template_begins_at_the_second_line_of_dashes_and_may_have_more(folder: Path, text: str) -> None:
    flow = load(folder, text)

    assert flow.name == "x"
    assert prompt_of(flow).template.splitlines() == ["user:", "A", "---", "B"]


class TestInputs:
    def test_without_inputs_they_are_those_of_the_sample_and_required(self, folder: Path) -> None:
        flow = load(
            folder,
            "---\nsample: {q: a, n: 1, x: 0.5, yes: true, many: [1], one: {a: 1}, none: null}\n---\n{{q}} {{other}}",
        )

        types = {"q": "string", "n": "int", "x": "double", "yes": "bool", "many": "list", "one": "object"}
        assert flow.inputs == {name: FlowInput(name, kind) for name, kind in (types | {"none": "object"}).items()}

    @pytest.mark.parametrize("reference", ["sample.json", "file:sample.json", "${file:sample.json}"])
    def test_a_sample_may_be_a_json_file_beside_the_prompty(self, folder: Path, reference: str) -> None:
        (folder / "sample.json").write_text('{"q": "a"}')

        flow = load(folder, f"---\nsample: {reference}\n---\n{{{{q}}}}")

        assert prompt_of(flow).sample == {"q": "a"}
        assert flow.inputs == {"q": FlowInput("q", "string")}
        assert folder / "sample.json" in files_of(flow).files

    def test_without_inputs_and_sample_they_are_the_templates_variables(self, folder: Path) -> None:
        flow = load(folder, "---\nname: x\n---\n{% for item in items %}{{item}}{% endfor %}{{question}}")

        assert flow.inputs == {"items": FlowInput("items", "any"), "question": FlowInput("question", "any")}

    def test_a_default_of_null_is_a_default(self, folder: Path) -> None:
        flow = load(folder, "---\ninputs: {a: {type: string, default: null}, b: {type: string}}\n---\n{{a}}")

        assert not flow.inputs["a"].required
        assert flow.inputs["b"].required


class TestReferences:
    def test_files_beside_the_prompty_are_read_and_count_as_its_source(self, folder: Path) -> None:
        (folder / "more").mkdir()
        (folder / "more" / "model.json").write_text('{"configuration": {"type": "openai", "model": "m"}}')
        (folder / "parameters.yaml").write_text("max_tokens: 5\n")
        (folder / "stop.txt").write_text("END")

        flow = load(
            folder,
            "---\nmodel: ${file:more/model.json}\nsample: {p: '${file:parameters.yaml}', s: ['${file:stop.txt}']}\n---\n",
        )

        assert prompt_of(flow).model == {"configuration": {"type": "openai", "model": "m"}}
        assert prompt_of(flow).sample == {"p": {"max_tokens": 5}, "s": ["END"]}
        names = {str(path.relative_to(folder)) for path in files_of(flow).files}
        assert names == {"ask.prompty", "more/model.json", "parameters.yaml", "stop.txt"}

    def test_one_outside_of_the_folder_is_refused(self, folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "secret.json").write_text("{}")

        message = refusal(folder / "inner", "---\nmodel: ${file:../secret.json}\n---\n")

        assert f"model: the file '../secret.json' is at {folder / 'secret.json'}. Expected a file inside" in message

    def test_a_link_that_leads_outside_is_refused(self, folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "secret.json").write_text("{}")
        (folder / "inner" / "link.json").symlink_to(folder / "secret.json")

        assert "Expected a file inside" in refusal(folder / "inner", "---\nmodel: ${file:link.json}\n---\n")

    @pytest.mark.parametrize(
        ("name", "content", "told"),
        [
            ("absent.json", None, "No such file"),
            ("bad.json", b"{", "Expecting property name"),
            ("bad.yaml", b"a: [", "not valid YAML"),
            ("bad.txt", b"\xff", "not UTF-8 at byte 0"),
            ("deep.json", b"[" * 200_000, "recursion"),
        ],
    )
    def test_one_that_cannot_be_read_is_named(self, folder: Path, name: str, content: bytes | None, told: str) -> None:
        if content is not None:
            (folder / name).write_bytes(content)

        message = refusal(folder, f"---\nsample: {{a: '${{file:{name}}}'}}\n---\n")

        assert "sample.a: " in message
        assert name in message
        assert told in message

    def test_the_environment_is_not_read_here(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KEY", "canary")

        assert "canary" not in repr(load(folder, ALL))


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "found"),
        [("user:\nHello", "found no line of dashes"), ("---\nname: x\n", "found one line of dashes only")],
    )
    def test_a_file_without_front_matter(self, folder: Path, text: str, found: str) -> None:
        assert found in refusal(folder, text)

    def test_a_yaml_error_names_the_files_line(self, folder: Path) -> None:
        assert "ask.prompty, line 4, column" in refusal(folder, "\n---\nname: x\n  model: y\n---\nuser:\n")

    def test_a_template_error_names_the_files_line(self, folder: Path) -> None:
        message = refusal(folder, "---\nname: x\n---\nuser:\n{{ question }\n")

        assert re.search(r"line 5: no valid template: unexpected '}'", message)

    def test_no_mapping(self, folder: Path) -> None:
        assert "expected a mapping with the keys of a prompty" in refusal(folder, "---\n---\nuser:\n")

    def test_the_limits_of_a_flows_yaml_hold(self, folder: Path) -> None:
        lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
        lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]

        assert "aliases" in refusal(folder, "---\n" + "\n".join(lines) + "\n---\n")
        assert "A prompty's yaml can have at most" in refusal(folder, "---\nname: x\n---\n" + "x" * document.SIZE_LIMIT)

    def test_all_problems_come_in_one_report(self, folder: Path) -> None:
        message = refusal(
            folder,
            "---\n"
            "model: {api: embedding, configuration: [], response: last, parmeters: {}, parameters: 1}\n"
            "inputs: {a: string, b: {type: image2}}\n"
            "sample: 3\n"
            "outputs: []\n"
            "template: handlebars\n"
            "modell: 1\n"
            "---\n"
            "{% if %}",
            InvalidFlowRequest,
        )

        for told in (
            "'api' is 'embedding', expected 'chat' or 'completion'",
            "'response' is 'last', expected 'first' or 'all'",
            "'configuration' should map names to values",
            "'parameters' should map names to values",
            "inputs 'a': expected `type: …` at least, found 'string'",
            "the type 'image2' is not supported",
            "'sample' should map names to values, found 3",
            "'outputs' should map names to values",
            "'template' can only be 'jinja2', found 'handlebars'",
            "the key 'modell' is not supported. Did you mean 'model'?",
            "no valid template",
        ):
            assert told in message

    def test_an_unknown_key_of_the_configuration_is_named_without_its_value(self, folder: Path) -> None:
        message = refusal(
            folder, "---\nmodel: {configuration: {type: openai, apikey: canary}}\n---\n", UnsupportedFeatureError
        )

        assert "model.configuration: the key 'apikey' is not supported. Did you mean 'api_key'?" in message
        assert "canary" not in message
