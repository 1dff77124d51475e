"""A flow's yaml: read as YAML 1.2, within limits, and every problem told at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from prefect_batchflow.definition.document import (
    SIZE_LIMIT,
    Problems,
    environment_texts,
    read_document,
    read_inputs,
    refuse_other_keys,
)
from prefect_batchflow.definition.flow import NO_DEFAULT, FlowInput
from prefect_batchflow.exceptions import (
    FlowDefinitionError,
    InputNotFound,
    InvalidFlowRequest,
    InvalidOptionError,
    UnsupportedFeatureError,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    return tmp_path / "flow.dag.yaml"


@pytest.fixture
def problems(yaml_file: Path) -> Problems:
    return Problems(yaml_file)


def refusal(file: Path, content: str | bytes) -> str:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(FlowDefinitionError) as caught:
        read_document(file)
    assert str(caught.value).startswith(str(file))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("FALSE", False),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("~", None),
        ("", None),
        ("Null", None),
        ("2001-01-01", "2001-01-01"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("=", "="),
    ],
)
def test_scalars_mean_what_they_mean_to_promptflow(yaml_file: Path, text: str, value: object) -> None:
    yaml_file.write_text(f"key: {text}\n")

    found = read_document(yaml_file)["key"]

    assert (found, type(found)) == (value, type(value))


def test_aliases_and_merges_work(yaml_file: Path) -> None:
    yaml_file.write_text("base: &base {type: string}\none: *base\ntwo: {<<: *base, default: x}\n")

    assert read_document(yaml_file) == {
        "base": {"type": "string"},
        "one": {"type": "string"},
        "two": {"type": "string", "default": "x"},
    }


def test_a_byte_order_mark_is_no_part_of_the_first_key(yaml_file: Path) -> None:
    yaml_file.write_bytes(b"\xef\xbb\xbfnodes: []\n")

    assert read_document(yaml_file) == {"nodes": []}


def test_a_syntax_error_names_line_and_column(yaml_file: Path) -> None:
    assert "line 2, column 11" in refusal(yaml_file, "inputs:\n  a: {b: [}\n")


def test_a_key_given_twice_is_refused(yaml_file: Path) -> None:
    assert "line 3, column 1: not valid YAML: the key 'nodes' twice" in refusal(
        yaml_file, "nodes: []\ninputs: {}\nnodes: []\n"
    )


@pytest.mark.parametrize(
    "reference", ["[*{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}]", "{{<<: [*{0}, *{0}]}}"]
)
def test_few_aliases_cannot_mean_billions_of_values(yaml_file: Path, reference: str) -> None:
    levels = [f"l{n}: &l{n} " + reference.format(f"l{n - 1}") for n in range(1, 30)]

    assert "once aliases are expanded" in refusal(yaml_file, "\n".join(["l0: &l0 {a: 1}", *levels]))


def test_an_alias_of_itself_is_refused(yaml_file: Path) -> None:
    assert "an alias inside the value that it names" in refusal(yaml_file, "a: &a [*a]\n")


def test_deep_nesting_is_refused(yaml_file: Path) -> None:
    assert "nested too deeply" in refusal(yaml_file, "a: " + "[" * 600)


def test_python_tags_make_no_objects(yaml_file: Path) -> None:
    assert "line 1" in refusal(yaml_file, "a: !!python/object/apply:os.getcwd []\n")


def test_a_large_file_is_not_read(yaml_file: Path) -> None:
    assert "1,048,577 bytes" in refusal(yaml_file, b"#" * (SIZE_LIMIT + 1))


def test_another_encoding_is_refused(yaml_file: Path) -> None:
    assert "not UTF-8 at byte 3" in refusal(yaml_file, b"a: \xe9\n")


def test_two_documents_are_refused(yaml_file: Path) -> None:
    assert "line 2" in refusal(yaml_file, "a: 1\n---\nb: 2\n")


@pytest.mark.parametrize(("text", "found"), [("", "an empty file"), ("- a\n", "a list"), ("text\n", "a str")])
def test_what_is_no_mapping_is_no_flow(yaml_file: Path, text: str, found: str) -> None:
    assert found in refusal(yaml_file, text)


def test_one_problem_is_raised_as_its_own_class(problems: Problems) -> None:
    problems.add("top level", "no 'inputs'.", InputNotFound)

    with pytest.raises(InputNotFound, match=r"flow\.dag\.yaml: top level: no 'inputs'\."):
        problems.raise_any()


def test_several_problems_of_one_class_keep_it(problems: Problems) -> None:
    problems.add("node 'a'", "one", UnsupportedFeatureError)
    problems.add("node 'b'", "two", UnsupportedFeatureError)

    with pytest.raises(UnsupportedFeatureError, match="has 2 problems:\n- node 'a': one\n- node 'b': two"):
        problems.raise_any()


def test_mixed_problems_share_the_base_class_and_are_a_list_too(problems: Problems) -> None:
    problems.add("a", "one", InputNotFound)
    problems.add("b", "two", UnsupportedFeatureError)

    with pytest.raises(InvalidFlowRequest) as caught:
        problems.raise_any()

    assert type(caught.value) is InvalidFlowRequest
    assert caught.value.problems == ["a: one", "b: two"]  # type: ignore[attr-defined]


def test_no_problem_raises_nothing(problems: Problems) -> None:
    problems.raise_any()


@pytest.mark.parametrize("nothing", [None, False, "", [], {}])
def test_a_key_that_says_nothing_is_as_good_as_none(problems: Problems, nothing: object) -> None:
    refuse_other_keys({"activate": nothing}, {"name"}, "node 'a'", problems)

    assert problems.found == []


def test_an_unknown_key_is_refused_by_name_with_the_nearest_known_one(problems: Problems) -> None:
    refuse_other_keys({"agregation": True}, {"aggregation"}, "node 'a'", problems)

    assert problems.found == [
        (UnsupportedFeatureError, "node 'a': the key 'agregation' is not supported. Did you mean 'aggregation'?")
    ]


def test_inputs_have_types_defaults_and_descriptions(problems: Problems) -> None:
    given = {
        "a": {"type": "int"},
        "b": {"type": "list", "default": [1], "description": "some numbers"},
        "c": {"type": "string", "default": "", "is_chat_input": True},
        "d": {"type": "bool", "default": None},
    }

    inputs = read_inputs({"inputs": given}, "inputs", problems)

    assert inputs == {
        "a": FlowInput("a", "int", NO_DEFAULT),
        "b": FlowInput("b", "list", [1], "some numbers"),
        "c": FlowInput("c", "string", ""),
        "d": FlowInput("d", "bool", NO_DEFAULT),
    }
    assert problems.found == []


def test_an_empty_default_is_none_in_a_flex_flow(problems: Problems) -> None:
    given = {"init": {"key": {"type": "string", "default": ""}}}

    assert read_inputs(given, "init", problems, empty_is_none=True)["key"].required


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [
        ({"type": "picture"}, UnsupportedFeatureError, "the type 'picture' is not supported"),
        ({"type": "AzureOpenAIConnection"}, UnsupportedFeatureError, "the type 'AzureOpenAIConnection'"),
        ({"type": ["string"]}, UnsupportedFeatureError, "the type '['string']'"),
        ({"type": "string", "ui_hints": {"a": 1}}, UnsupportedFeatureError, "the key 'ui_hints'"),
        ({"default": 1}, FlowDefinitionError, "expected `type: …`"),
        ("string", FlowDefinitionError, "expected `type: …`"),
    ],
)
def test_an_input_that_is_not_understood_is_named(problems: Problems, spec: object, kind: type, text: str) -> None:
    # The input is there all the same: what refers to it is no further problem.
    assert list(read_inputs({"inputs": {"x": spec}}, "inputs", problems)) == ["x"]

    ((found_kind, message),) = problems.found
    assert found_kind is kind
    assert message.startswith("inputs 'x': ")
    assert text in message


def test_inputs_that_are_no_mapping_are_refused(problems: Problems) -> None:
    assert read_inputs({"inputs": ["a"]}, "inputs", problems) == {}
    assert [kind for kind, _ in problems.found] == [FlowDefinitionError]


def test_an_input_name_that_is_no_text_is_refused(problems: Problems) -> None:
    read_inputs({"inputs": {1: {"type": "int"}}}, "inputs", problems)

    assert "has the name 1. Write it in quotes" in problems.found[0][1]


@pytest.mark.parametrize("name", ["", "A=B", "=", "A\0", "\ud800"], ids=ascii)
def test_a_name_that_no_variable_can_have_is_refused(name: str) -> None:
    """`LEVEL=1` would pass for `LEVEL` where only some names are allowed."""
    with pytest.raises(InvalidOptionError, match=r"environment_variables: .* cannot be the name of a variable"):
        environment_texts({name: "1"})


@pytest.mark.parametrize("value", ["my-secret\0", "my-secret\ud800"], ids=ascii)
def test_a_value_that_no_variable_can_hold_is_refused_unseen(value: str) -> None:
    with pytest.raises(InvalidOptionError, match="the value of KEY has a NUL or is no valid text") as caught:
        environment_texts({"KEY": value})
    assert "my-secret" not in str(caught.value)
