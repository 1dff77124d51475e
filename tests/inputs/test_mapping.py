"""Mapping: promptflow's expressions, and sources joined by line number."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_batchflow.exceptions import InvalidUserData
from prefect_batchflow.inputs.formats import Row
from prefect_batchflow.inputs.mapping import (
    ColumnReference,
    FixedValue,
    complete_mapping,
    join_rows,
    map_inputs,
    number_rows,
    parse_expression,
    parse_line_number,
)

SOURCES = ["data", "run.outputs", "run"]


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(one, "file", number) for number, one in enumerate(values, 1)]


class TestExpressions:
    @pytest.mark.parametrize(
        ("text", "columns"),
        [
            ("${data.question}", [("data", "question")]),
            ("${data.a.b.c}", [("data", "a.b.c")]),
            ("${data. a b }", [("data", " a b ")]),
            ("${run.outputs.x}", [("run", "outputs.x"), ("run.outputs", "x")]),
            ("${data.}", [("data", "")]),
            ("${data}", []),
            ("${ data.x}", []),
            ("${other.x}", []),
        ],
    )
    def test_a_reference_is_cut_where_a_source_is_named(self, text: str, columns: list[tuple[str, str]]) -> None:
        assert parse_expression(text, SOURCES) == ColumnReference(text, tuple(columns))

    @pytest.mark.parametrize(
        "value",
        [
            *["", "text", "${data.x} ", " ${data.x}", "${data.x}\n", "$ {data.x}"],
            *["${}", "${{data.x}}", "${data.{x}}", "$data.x"],
            *[3, 2.5, None, True, ["${data.x}"], {"a": "${data.x}"}],
        ],
    )
    def test_anything_else_is_a_literal(self, value: Any) -> None:
        assert parse_expression(value, SOURCES) == FixedValue(value)

    def test_inputs_without_default_read_the_data_unless_mapped(self) -> None:
        mapping = complete_mapping({"b": "x", "extra": 1, "line_number": "${data.n}"}, ["a", "b", "line_number"])

        assert mapping == {"a": "${data.a}", "b": "x", "extra": 1}
        assert complete_mapping(None, ["a"]) == {"a": "${data.a}"}


class TestMapInputs:
    def map(self, mapping: dict[str, Any], **values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        found = {"data": {}, "run": {}, "run.outputs": {}, **{name.replace("_", "."): v for name, v in values.items()}}
        return map_inputs(found, {name: parse_expression(value, SOURCES) for name, value in mapping.items()})

    def test_references_and_literals_become_inputs_in_the_mappings_order(self) -> None:
        mapping = {"z": "${data.a}", "n": 7, "a": "${run.outputs.a}"}

        inputs, unresolved = self.map(mapping, data={"a": 1}, run_outputs={"a": None})

        assert list(inputs.items()) == [("z", 1), ("n", 7), ("a", None)]
        assert unresolved == []

    def test_the_shortest_source_that_has_the_column_wins(self) -> None:
        mapping = {"x": "${run.outputs.x}"}

        assert self.map(mapping, run={"outputs.x": 1}, run_outputs={"x": 2}) == ({"x": 1}, [])
        assert self.map(mapping, run={"other": 1}, run_outputs={"x": 2}) == ({"x": 2}, [])

    def test_what_fits_no_column_is_named_and_absent(self) -> None:
        mapping = {"a": "${data.a}", "b": "${data.b}", "c": "${nothing.c}"}

        assert self.map(mapping, data={"a": 1, "b.c": 2}) == ({"a": 1}, ["b", "c"])


TOO_LARGE = (10**12, 1e12, "1000000000000", 1700000000000, 2**63 - 1, str(2**63), 1e300)


class TestLineNumbers:
    @pytest.mark.parametrize(
        ("value", "number"),
        [
            (0, 0),
            (7, 7),
            ("3", 3),
            ("007", 7),
            (3.0, 3),
            (10**12 - 1, 10**12 - 1),
            ("999999999999", 10**12 - 1),
            (1e12 - 1, 10**12 - 1),
            ("0000999999999999", 10**12 - 1),
        ],
    )
    def test_whole_numbers_are_taken_as_text_too(self, value: Any, number: int) -> None:
        parsed = parse_line_number(value)

        assert (parsed, type(parsed)) == (number, int)

    @pytest.mark.parametrize(
        "value",
        [
            -1,
            1.5,
            True,
            None,
            "",
            "x",
            "-1",
            "1.0",
            " 3",
            "٣",
            "9" * 30,
            2**63,
            float("nan"),
            float("inf"),
            [1],
            *TOO_LARGE,
        ],
    )
    def test_anything_else_is_refused(self, value: Any) -> None:
        with pytest.raises(InvalidUserData, match=r"expected a whole number from 0 to 999999999999"):
            parse_line_number(value)

    def test_rows_without_a_number_are_left_out_where_others_have_one(self) -> None:
        given = rows({"line_number": "5"}, {"a": 1}, {"line_number": 2})

        assert [number for number, _ in number_rows(given, "line_number")] == [5, 2]
        assert [number for number, _ in number_rows(given, None)] == [0, 1, 2]


class TestJoin:
    def join(self, *sources: list[int], rising: bool) -> list[tuple[int, list[str]]]:
        numbered = [
            iter([(number, Row({}, f"{name}{number}", 1)) for number in numbers])
            for name, numbers in zip("abc", sources, strict=False)
        ]
        return [(number, [row.file for row in found]) for number, found in join_rows(numbered, rising=rising)]

    @pytest.mark.parametrize("rising", [True, False])
    def test_lines_are_those_in_all_sources(self, rising: bool) -> None:
        joined = self.join([0, 2, 3, 7], [1, 2, 3, 4, 7], [2, 7, 9], rising=rising)

        assert joined == [(2, ["a2", "b2", "c2"]), (7, ["a7", "b7", "c7"])]

    def test_the_first_source_gives_the_order(self) -> None:
        assert [number for number, _ in self.join([5, 1, 3], [1, 3, 5], rising=False)] == [5, 1, 3]

    def test_rising_sources_are_read_side_by_side(self) -> None:
        read: list[str] = []

        def source(name: str) -> Any:
            for number in range(100):
                read.append(f"{name}{number}")
                yield number, Row({}, name, 1)

        joined = join_rows([source("a"), source("b")], rising=True)
        for _ in range(3):
            next(joined)

        assert read == ["b0", "a0", "a1", "b1", "a2", "b2"]
