"""Constants that were meant as references, in every spelling that people type, and values that are none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_batchflow.inputs.lookalikes import meant_reference

COLUMNS = {"data": ("q", "answer", "a.b", "my col"), "run.outputs": ("line_number", "score")}

MEANT = {
    "no sigil": "{data.q}",
    "no braces": "$data.q",
    "not closed": "${data.q",
    "not opened": "$data.q}",
    "parentheses": "$(data.q)",
    "jinja": "{{data.q}}",
    "jinja with blanks": "{{ data.q }}",
    "jinja filter in blanks": "{{- data.q -}}",
    "double braces behind the sigil": "${{data.q}}",
    "github": "${{ data.q }}",
    "percent": "%{data.q}",
    "windows": "%data.q%",
    "square": "$[data.q]",
    "angle": "<data.q>",
    "bare": "data.q",
    "bare, other case": "Data.q",
    "quoted": "'${data.q}'",
    "quoted twice": "\"'${data.q}'\"",
    "backticks": "`data.q`",
    "blank before": " ${data.q}",
    "blank behind": "${data.q} ",
    "line break": "${data.q}\n",
    "blank inside": "$ {data.q}",
    "comma behind": "${data.q},",
    "equals before": "=${data.q}",
    "escaped": "\\${data.q}",
    "escaped everywhere": "\\$\\{data.q\\}",
    "fullwidth": "\uff04\uff5bdata.q\uff5d",
    "subscript": "data['q']",
    "subscript without quotes": "${data[q",
    "subscript in braces": '{data["q"]}',
    "json path": "$.data.q",
    "json path to the column": "$.q",
    "rest that a shell leaves": ".q",
    "column as a variable": "$q",
    "column in braces": "{q}",
    "column in jinja": "{{q}}",
    "column in parentheses": "$(q)",
    "column not closed": "${q",
    "another first name": "{row.q}",
    "a node's": "$inputs.q",
    "another source": "{run.inputs.q}",
    "a node's output": "${step.output.q}",
    "inside a text": "Question: ${data.q}",
    "text behind": "${data.q}!",
    "two of them": "${data.q} ${data.answer}",
    "in a list": ["x", "${data.q}"],
    "in an object": {"messages": [{"role": "user", "content": "${data.q}"}]},
}


@pytest.mark.parametrize("value", MEANT.values(), ids=MEANT)
def test_a_meant_reference_is_found(value: Any) -> None:
    assert meant_reference(value, COLUMNS) == "${data.q}"


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        ("{run.outputs.score}", "${run.outputs.score}"),
        ("$run.outputs.score", "${run.outputs.score}"),
        ("run.outputs.score", "${run.outputs.score}"),
        ("$score", "${run.outputs.score}"),
        ("{data.a.b}", "${data.a.b}"),
        ("{data.my col}", "${data.my col}"),
        ("{data.qestion}", "${data.qestion}"),
        ("$data.nowhere", "${data.nowhere}"),
    ],
)
def test_other_sources_and_columns_are_found(value: str, reference: str) -> None:
    assert meant_reference(value, COLUMNS) == reference


@pytest.mark.parametrize(
    "value",
    [
        *[
            "",
            " ",
            "q",
            "text",
            "gpt-4o",
            "data",
            "data.csv",
            "data.csv.",
            "see data.q2",
            "$5",
            "$",
            "${}",
            "${HOME}",
            "5%",
        ],
        *[
            "a sentence about data.q and more",
            "what is {x}?",
            '{"q": 1}',
            "Q: {{question}}",
            "<answer>",
            "(q)",
            "...",
            "a.q",
        ],
        *["${other.x} and more", "e.g. data. q", "https://data.q.example/?a=$q2", "SELECT q FROM data", "q" * 2_000],
        *[3, 2.5, None, True, [], {}, {"q": 1}, {"${data.q}": 1}, [["q"]]],
    ],
    ids=repr,
)
def test_a_value_is_none(value: Any) -> None:
    assert meant_reference(value, COLUMNS) is None


@given(st.text(alphabet="ab .$", max_size=30))
def test_a_text_without_a_source_or_column_is_none(text: str) -> None:
    assert meant_reference(text, {"data": ("q",)}) is None


@given(
    st.sampled_from(["data.q", "run.outputs.score"]),
    st.text(alphabet="${ \\'\"%@=", max_size=5),
    st.text(alphabet="}) '\",;%", max_size=5),
)
def test_a_column_of_a_source_is_found_whatever_is_around_it(name: str, before: str, behind: str) -> None:
    assert meant_reference(before + name + behind, COLUMNS) == f"${{{name}}}"
