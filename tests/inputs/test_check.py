"""Check: everything that is wrong with data and mapping, told at once and by name."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.exceptions import EmptyInputsData, InputMappingError, InvalidUserData
from prefect_batchflow.inputs.check import Checker, Inventory
from prefect_batchflow.inputs.readers import RowsSource, open_source

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from prefect_batchflow.inputs.readers import Source

Rows = list[dict[str, Any]]


def check(
    sources: dict[str, Rows] | list[Source],
    mapping: dict[str, Any] | None = None,
    *,
    required: Iterable[str] = (),
    optional: Iterable[str] = (),
    max_rows: int | None = None,
    **options: Any,
) -> Inventory:
    made: list[Source] = [RowsSource(n, r) for n, r in sources.items()] if isinstance(sources, dict) else sources
    return Checker(made, list(required), list(optional), mapping or {}, **options).run(max_rows)


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(InputMappingError) as caught:
        check(*args, **options)
    return str(caught.value)


def numbered(*numbers: int, **values: Any) -> Rows:
    return [{"line_number": number, **values} for number in numbers]


class TestSound:
    def test_the_inventory_counts_lines_and_describes_sources(self) -> None:
        inventory = check({"data": [{"q": 1}, {"q": 2}], "run.outputs": numbered(0, 1, a=1)}, {"q": "${data.q}"})

        assert inventory.total_lines == 2
        assert [(s.name, s.rows, s.columns, s.own_numbers) for s in inventory.sources] == [
            ("data", 2, ("q",), False),
            ("run.outputs", 2, ("line_number", "a"), True),
        ]

    def test_nothing_odd_gives_no_notes(self) -> None:
        inventory = check({"data": [{"q": 1, "k": 2}]}, required=["q"], optional=["k", "l"])

        assert inventory.notes == ()
        assert inventory.unmapped == ("q", "k")

    def test_unmapped_inputs_read_the_column_of_their_name(self) -> None:
        assert check({"data": [{"q": 1}]}, required=["q", "line_number"], optional=["k"]).total_lines == 1

    def test_a_column_may_come_from_either_source_a_reference_can_mean(self) -> None:
        sources = {"run": [{"outputs.x": 1}, {}], "run.outputs": [{}, {"x": 2}]}

        assert check(sources, {"x": "${run.outputs.x}"}).total_lines == 2
        assert "1 of 2 lines have no column 'y'" in refusal(
            {"run": [{"outputs.y": 1}, {}], "run.outputs": [{"x": 1}, {}]}, {"y": "${run.outputs.y}"}
        )


class TestColumns:
    def test_a_column_that_is_nowhere_is_told_with_those_there_are(self) -> None:
        said = refusal({"data": [{"question": 1, "answer": 2}]}, {"q": "${data.qestion}"}, required=["q"])

        assert said == (
            "inputs_mapping does not match the data: input 'q' = ${data.qestion}: "
            "no row of 'data' has a column 'qestion'; its columns are 'question', 'answer'. "
            "Did you mean ${data.question}?"
        )

    def test_an_unmapped_input_says_so(self) -> None:
        said = refusal({"data": [{"question": 1}]}, required=["query"])

        assert "input 'query' (not mapped, so ${data.query}): no row of 'data' has a column 'query'" in said

    def test_rows_without_a_column_are_counted_and_the_first_is_named(self) -> None:
        said = refusal({"data": [{"q": 1}, {"q": None}, {}, {"q": 1}, {}]}, required=["q"])

        assert "2 of 5 lines have no column 'q' (first: data, row 3). Add the column to these rows" in said

    def test_an_input_with_a_default_takes_it_where_the_column_lacks(self) -> None:
        inventory = check({"data": [{"k": 1}, {}]}, {"k": "${data.k}"}, optional=["k"])

        assert inventory.notes == (
            "input 'k' = ${data.k}: 1 of 2 lines have no column 'k' (first: data, row 2); "
            "they get the input's default.",
        )
        assert "no row of 'data' has a column 'z'" in refusal({"data": [{}]}, {"k": "${data.z}"}, optional=["k"])

    def test_only_rows_that_become_lines_need_the_column(self) -> None:
        sources = {"data": [{"q": 1}, {}, {"q": 3}], "run.outputs": numbered(0, 2)}

        assert check(sources, required=["q"]).total_lines == 2
        assert "1 of 2 lines have no column 'q' (first: data, row 2)" in refusal(
            {**sources, "run.outputs": numbered(1, 2)}, required=["q"]
        )

    def test_only_the_rows_within_the_limit_need_the_column(self) -> None:
        assert check({"data": [{"q": 1}, {}]}, required=["q"], max_rows=1).total_lines == 1


class TestMapping:
    def test_an_unknown_source_is_told_with_those_there_are(self) -> None:
        said = refusal({"data": [{"q": 1}], "run.outputs": [{"q": 1}]}, {"a": "${dta.q}", "b": "${q}"})

        assert "input 'a' = ${dta.q}: there is no source 'dta'; the sources are 'data', 'run.outputs'." in said
        assert "Did you mean ${data.q}?" in said
        assert "input 'b' = ${q}: the reference has no column; expected ${source.column}." in said

    def test_a_literal_that_is_no_json_is_refused(self) -> None:
        said = refusal({"data": [{}]}, {"day": date(2026, 1, 2)})

        assert "input 'day': the value datetime.date(2026, 1, 2) is not JSON" in said

    def test_what_may_be_a_slip_is_noted(self) -> None:
        mapping = {"extra": "${data.q}", "line_number": "${data.q}", "text": "${HOME}!"}
        sources = {"data": [{"q": 1, "k": 2}]}

        notes = check(sources, mapping, required=["text"], optional=["k"], inputs_with_default="default").notes

        assert notes == (
            "inputs_mapping: 'extra' is not an input of the flow; its inputs are 'text', 'k'.",
            "inputs_mapping: 'line_number' is ignored, because this input always gets the number of its line.",
            "inputs_mapping: 'text' gets the text '${HOME}!' as it is. "
            "A reference must be exactly ${source.column}, with nothing before or after it.",
            "source 'data': column 'k' is not read, because input 'k' has a default, which wins as in promptflow. "
            "To read the column, map the input to ${data.k}, or set inputs_with_default='column'.",
        )

    def test_constants_are_noted_with_their_values(self) -> None:
        rows = {"data": [{"q": 1, "k": 2}]}

        assert check(rows, {"t": 0.3, "s": "x"}, required=["t", "s"]).notes == (
            "inputs_mapping: every line gets the same value: t = 0.3, s = 'x'.",
        )
        assert check(rows, {"q": ""}, required=["q"]).notes == (
            "inputs_mapping: every line gets the same value: q = ''. To read a column, write a reference, on the command line "
            "in single quotes: --map 'q=${data.q}'.",
        )
        [note] = check(rows, {"question": "q"}, required=["question"]).notes
        assert note.endswith("--map 'question=${data.q}'.")

    @pytest.mark.parametrize("optional", [[], ["a"]], ids=["required", "optional"])
    def test_what_looks_like_a_reference_is_refused(self, optional: list[str]) -> None:
        said = refusal({"data": [{"q": 1}]}, {"a": "{data.q}"}, required=[] if optional else ["a"], optional=optional)

        assert said == (
            "inputs_mapping does not match the data: input 'a' = '{data.q}': this looks like a reference, but every line would "
            "get this text. A reference is the whole value, written exactly ${data.q} (on the command line in single quotes: "
            "--map 'a=${data.q}'). To put a column into a longer text, give the flow an input for the column."
        )

    def test_an_extra_key_must_still_fit_the_data(self) -> None:
        assert "input 'extra' = ${data.z}" in refusal({"data": [{"q": 1}]}, {"extra": "${data.z}"}, required=["q"])


class TestJoin:
    def test_sources_without_numbers_must_be_equally_long(self) -> None:
        said = refusal({"data": [{}, {}], "b": [{}], "c": numbered(0, 1)})

        assert "must have the same number of rows, but data has 2, b has 1" in said

    def test_the_limit_cuts_each_source_before_they_are_joined(self) -> None:
        inventory = check({"data": [{}, {}, {}], "b": [{}, {}]}, max_rows=2)

        assert inventory.total_lines == 2
        assert inventory.notes == ("source 'data': only the first 2 rows are read (max_lines_count).",)

    def test_rows_left_out_by_the_join_are_counted(self) -> None:
        inventory = check({"data": [{}] * 5, "run.outputs": [*numbered(0, 3, 9), {"x": 1}]})

        assert inventory.total_lines == 2
        assert inventory.notes == (
            "source 'run.outputs': 1 of 4 rows are left out, because they have no line_number.",
            "source 'data': 3 of 5 rows are left out, because other sources do not have their line_number (first: 1).",
            "source 'run.outputs': 1 of 3 rows are left out, because other sources do not have their line_number (first: 9).",
        )

    def test_nothing_in_common_is_refused(self) -> None:
        assert "the sources have no line_number in common ('a', 'b')" in refusal({"a": numbered(1), "b": numbered(2)})

    def test_numbers_that_stand_twice_are_told_with_both_places(self) -> None:
        with pytest.raises(InvalidUserData) as caught:
            check({"data": numbered(4, 2, 4)})

        assert str(caught.value) == (
            "The data cannot be read: source 'data': line_number 4 is not unique: data, row 1 and data, row 3. A number "
            "identifies its line. Make it unique. If this column does not number the rows, set line_number_column='none' "
            "(--line-number-column none), or name the column that does."
        )

    def test_numbers_need_not_rise(self) -> None:
        assert check({"data": numbered(4, 2, 9), "b": numbered(9, 4)}).total_lines == 2


class TestData:
    def test_no_rows_at_all_is_empty_data(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text("\n")

        with pytest.raises(EmptyInputsData, match=rf"at least one row in the sources \('data': {path}; 'b': b\)"):
            check([open_source(path, name="data"), RowsSource("b", [])], required=["q"])
        with pytest.raises(EmptyInputsData, match="no source was given"):
            check([])

    def test_one_empty_source_is_refused(self) -> None:
        assert "source 'b' is empty (b), so no line is complete" in refusal({"a": numbered(1), "b": []})

    def test_all_that_is_wrong_is_told_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text('{"q": 1}\n{"q": \n[]\n{"q": 1}\n')

        with pytest.raises(InvalidUserData) as caught:
            check([open_source(path, name="data")], {"z": "${data.z}"}, required=["q"])

        error = caught.value
        said = str(error).splitlines()
        assert said[0] == "The data cannot be read: 3 problems:"
        assert said[1].startswith(f"- {path}, line 2 (byte 15): not JSON")
        assert said[2].startswith(f"- {path}, line 3 (byte 16): expected an object")
        assert said[3].startswith("- input 'z' = ${data.z}: no row of 'data' has a column 'z'")
        assert error.problem_count == 3  # type: ignore[attr-defined]

    def test_sources_that_cannot_be_opened_are_all_told(self, tmp_path: Path) -> None:
        sources = [open_source(tmp_path / f"{name}.csv", name=name) for name in ("one", "two")]

        with pytest.raises(InvalidUserData) as caught:
            check(sources, {"z": "${three.z}"})

        for said in ("one.csv not found", "two.csv not found", "there is no source 'three'"):
            assert said in str(caught.value)

    def test_many_problems_are_listed_in_part(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text("broken\n" * 500 + '{"q": 1}\n')

        with pytest.raises(InvalidUserData) as caught:
            check([open_source(path, name="data")])

        said = str(caught.value).splitlines()
        assert len(said) == 23
        assert said[-2:] == ["- and 480 more.", "Or set bad_rows='fail' to turn such rows into failed lines."]

    def test_a_bad_line_number_is_told_with_its_place(self) -> None:
        with pytest.raises(InvalidUserData, match=r"data, row 2: line_number is 'x', expected a whole number from 0"):
            check({"data": [{"line_number": 1}, {"line_number": "x"}]})


class TestBadRows:
    def test_bad_rows_may_become_failed_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text('{"q": 1}\nbroken\n{}\n')

        inventory = check([open_source(path, name="data")], required=["q"], bad_rows="fail")

        assert inventory.total_lines == 3
        assert [note[:70] for note in inventory.notes] == [
            f"source 'data': rows that cannot be read become failed lines: {path}"[:70],
            "input 'q' (not mapped, so ${data.q}): 1 of 2 lines have no column 'q' (first"[:70],
        ]

    def test_a_column_that_no_row_has_is_still_refused(self) -> None:
        assert "no row of 'data' has a column 'q'" in refusal({"data": [{}]}, required=["q"], bad_rows="fail")

    def test_a_bad_row_among_numbered_ones_is_still_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text('{"line_number": 1}\nbroken\n')

        with pytest.raises(InvalidUserData, match="line 2 "):
            check([open_source(path, name="data")], bad_rows="fail")
