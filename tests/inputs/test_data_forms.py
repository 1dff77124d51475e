"""Data as tools write it: csv with columns without names, and JSON that is not one object per line."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.exceptions import InputMappingError, InvalidUserData
from prefect_batchflow.inputs.check import Checker
from prefect_batchflow.inputs.readers import open_source

if TYPE_CHECKING:
    from pathlib import Path


def rows_of(path: Path) -> list[Any]:
    """The values of each row, or `...` for a bad one."""
    return [... if row.error else row.values for row in open_source(path, name="data").rows()]


QA = [{"q": "x", "a": "y"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q,a,,\nx,y,,\n", QA),
        ("q,a,,\nx,y\n", QA),
        ("q,a,,\nx,y,,,,\n", QA),
        ("q,a\nx,y,,\n", QA),
        ("q,a,,\r\nx,y,,\r\n", QA),
        ("q,a, ,\nx,y, ,\n", QA),
        ('q,a,"",""\n"x","y","",""\n', QA),
        ("q,,a\nx,,y\n", [{"q": "x", "a": "y"}]),
        (",q,a\n0,x,y\n1,z,w\n", [{"Unnamed: 0": "0", "q": "x", "a": "y"}, {"Unnamed: 0": "1", "q": "z", "a": "w"}]),
        ("q,a,,\nx,y,,note\nz,w,,\n", [{"q": "x", "a": "y", "Unnamed: 3": "note"}, {"q": "z", "a": "w"}]),
        ("q,a,,\nx\n", [...]),
        ("q,a\nx,y,z\n", [...]),
        ("q,a\nx,y,,z\n", [...]),
        ("q,a,,\nx,y,,,z\n", [...]),
        ("q,a,,\n,,,\n", [{"q": "", "a": ""}]),
    ],
    ids=[
        *["trailing", "short record", "long record", "record beyond the header", "crlf", "blanks", "quoted", "middle"],
        *[
            "index of pandas",
            "with a value",
            "too short",
            "too long",
            "a value beyond",
            "a value beyond empty ones",
            "empty",
        ],
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_columns_without_a_name(text: str, expected: list[Any], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"d{suffix}"
    path.write_bytes((text if suffix == ".csv" else text.replace(",", "\t")).encode())

    assert rows_of(path) == expected


def test_a_name_that_a_column_without_one_gets_cannot_be_used_twice(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("q,Unnamed: 2,\nx,y,z\n")

    with pytest.raises(InvalidUserData, match=r"more than once: \['Unnamed: 2'\]"):
        rows_of(tmp_path / "d.csv")


OBJECTS = [{"q": f"question {n}", "more": [1, {"a": None}]} for n in range(30)]
PRETTY = {
    "array": (json.dumps(OBJECTS, indent=2), ".json"),
    "array, one object per line": ("[\n" + ",\n".join(map(json.dumps, OBJECTS)) + "\n]\n", ".json"),
    "array of one object": ("[\n" + json.dumps(OBJECTS[0]) + "\n]\n", ".json"),
    "array that begins with its object": ("[{\n" + json.dumps(OBJECTS, indent=1)[4:], ".json"),
    "objects, as jq writes them": ("\n".join(json.dumps(one, indent=2) for one in OBJECTS), "jq -c"),
    "one object": (json.dumps(OBJECTS[0], indent=4), "jq -c"),
    "object that begins with a key": ('{"q": "x",\n "a": "y"}\n{"q": "z",\n "a": "w"}\n', "jq -c"),
    "blank lines first": ("\n\n" + json.dumps(OBJECTS, indent=2), ".json"),
    "crlf": (json.dumps(OBJECTS, indent=2).replace("\n", "\r\n"), ".json"),
    "bom": ("\ufeff" + json.dumps(OBJECTS, indent=2), ".json"),
}


@pytest.mark.parametrize("name", ["d.jsonl", "d.ndjson", "d.jsonl.gz"])
@pytest.mark.parametrize(("text", "advice"), PRETTY.values(), ids=PRETTY)
def test_pretty_printed_json_is_one_error(text: str, advice: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())

    for options in ({}, {"bad_rows": "fail"}):
        with pytest.raises(InvalidUserData) as caught:
            Checker([open_source(path, name="data")], ["q"], [], {}, **options).run(None)  # type: ignore[arg-type]

        assert caught.value.problem_count == 1  # type: ignore[attr-defined]
        assert "the JSON that starts here spans several lines" in str(caught.value)
        assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"q": 1\n{"q": 2}\n{"q": 3}\n', [..., {"q": 2}, {"q": 3}]),
        ('{"q": \n\n{"q": 2}\n', [..., {"q": 2}]),
        ('{"q": 1}\n{"q": \n2}\n{"q": 3}\n', [{"q": 1}, ..., ..., {"q": 3}]),
        ('{"q": 1}\n{"q": \n{"q": 3}\n[4]\n', [{"q": 1}, ..., {"q": 3}, ...]),
        ('{"q": ', [...]),
        ("[1]\n", [...]),
        ("broken\nbroken\n", [..., ...]),
        ('{"q": "text\nmore"}\n{"q": 2}\n', [..., ..., {"q": 2}]),
        ("", []),
    ],
    ids=[
        "cut",
        "cut, blank line",
        "later",
        "later, cut",
        "cut at the end",
        "array on a line",
        "no json",
        "line break in a text",
        "empty",
    ],
)
def test_a_broken_line_is_still_a_broken_line(text: str, expected: list[Any], tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(text)

    assert rows_of(tmp_path / "d.jsonl") == expected


def test_lines_in_a_json_file_get_the_advice_to_rename_it(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text("\n".join(map(json.dumps, OBJECTS)))

    with pytest.raises(InvalidUserData, match=r"Extra data.*If the file has one object per line, rename it to \.jsonl"):
        rows_of(tmp_path / "d.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"q,a\nx,y\nz,w\n", "not JSON"),
        ('{"q": 1}\n{"q": 2}\n{"q": 3}\n'.encode("utf-16"), "UTF-16"),
        (gzip.compress(b'{"q": 1}\n' * 5).replace(b"\n", b"") + b"\nx\ny\n", "gzip"),
        (b"{'q': 1}\n" * 30, "not JSON"),
        (b'[{"q": 1}]\n[{"q": 2}]\n[]\n', "expected an object"),
    ],
    ids=["csv", "utf-16", "gzip", "python", "arrays"],
)
def test_a_file_of_another_format_is_one_error(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)

    with pytest.raises(InvalidUserData, match=why) as caught:
        Checker([open_source(path, name="data")], ["q"], [], {}).run(None)

    assert caught.value.problem_count == 1  # type: ignore[attr-defined]
    assert "rows can be read, so check the format of the data." in str(caught.value)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("q;a\nx;y\n", "separated by ';'. Save the file with commas."),
        ("q\ta\nx\ty\n", "separated by '\\t'. Rename the file to .tsv."),
        ("q|a\nx|y\n", "separated by '|'"),
        ("sep=;\nq;a\n", "separated by ';'"),
        (" q ,a\nx,y\n", "Did you mean ${data. q }?"),
        ("Q,a\nx,y\n", "Did you mean ${data.Q}?"),
    ],
    ids=["semicolons", "tabs", "bars", "excel", "blanks", "case"],
)
def test_a_header_that_was_meant_otherwise_gets_advice(text: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(text)

    with pytest.raises(InputMappingError) as caught:
        Checker([open_source(tmp_path / "d.csv", name="data")], ["q"], [], {}).run(None)

    assert advice in str(caught.value)


@pytest.mark.parametrize("column", ["Question", " question", "QUESTION ", "ques-tion", "ques_tion"])
def test_a_column_that_is_almost_an_input_with_a_default_is_noted(column: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(f"{column},a\nx,y\n")

    for mapping, is_noted in (({}, True), ({"question": f"${{data.{column}}}"}, False)):
        inventory = Checker([open_source(tmp_path / "d.csv", name="data")], [], ["question"], mapping).run(None)

        assert any(f"--map 'question=${{data.{column}}}'" in note for note in inventory.notes) is is_noted
