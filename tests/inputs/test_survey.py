"""Survey: what one pass over a source tells."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from prefect_batchflow.inputs.readers import RowsSource, open_source
from prefect_batchflow.inputs.survey import MAX_LISTED, Faults, Survey

if TYPE_CHECKING:
    from pathlib import Path


def rows_source(*rows: dict[str, Any]) -> RowsSource:
    return RowsSource("data", rows)


class TestSurvey:
    def test_it_counts_rows_and_names_columns_in_order(self) -> None:
        survey = Survey(rows_source({"b": 1, "a": 2}, {"c": 3, "a": 4}), ["a", "b"]).read()

        summary = survey.summary
        assert (summary.rows, summary.columns, summary.own_numbers, summary.cut) == (2, ("b", "a", "c"), False, False)
        assert list(survey.numbers) == [0, 1]
        assert {column: list(numbers) for column, numbers in survey.lacking.items()} == {"a": [], "b": [1]}

    def test_numbers_of_their_own_replace_positions_and_leave_rows_out(self) -> None:
        survey = Survey(rows_source({"x": 1}, {"line_number": 4}, {"y": 1}, {"line_number": "9", "x": 1}), ["x"]).read()

        assert survey.summary.own_numbers
        assert survey.summary.rising
        assert list(survey.numbers) == [4, 9]
        assert survey.unnumbered == 2
        assert list(survey.lacking["x"]) == [4]

    def test_only_rising_numbers_are_rising(self) -> None:
        for numbers, rising in [((1, 2, 9), True), ((1, 1), False), ((2, 1), False)]:
            source = rows_source(*({"line_number": number} for number in numbers))
            assert Survey(source, []).read().summary.rising is rising

    def test_bad_rows_are_told_and_do_not_end_it(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text('{"line_number": 0}\n{"line_number": -1}\nbroken\n{"line_number": 2}\n')

        survey = Survey(open_source(path, name="data"), []).read()

        assert survey.summary.rows == 4
        assert list(survey.numbers) == [0, 2]
        assert survey.misnumbered.texts == [
            f"{path}, line 2 (byte 19): line_number is -1, expected a whole number from 0 to 999999999999."
        ]
        assert survey.unreadable.count == 1
        assert "line 3 (byte 39): not JSON" in survey.unreadable.texts[0]

    def test_a_cut_source_is_hashed_as_far_as_it_is_read(self, tmp_path: Path) -> None:
        lines = [json.dumps({"n": n}).encode() + b"\n" for n in range(5)]
        path = tmp_path / "d.jsonl"
        path.write_bytes(b"".join(lines) + b"\n\n")
        source = open_source(path, name="data")

        cut, exact = Survey(source, []).read(3).summary, Survey(source, []).read(5).summary

        assert (cut.rows, cut.cut, cut.sha256) == (3, True, hashlib.sha256(b"".join(lines[:3])).hexdigest())
        assert (exact.rows, exact.cut, exact.sha256) == (5, False, hashlib.sha256(path.read_bytes()).hexdigest())

    def test_columns_that_never_end_are_not_all_kept(self) -> None:
        survey = Survey(rows_source(*({f"c{n}-{k}": 0 for k in range(100)} for n in range(150))), []).read()

        assert len(survey.summary.columns) == 10_000

    def test_places_are_found_by_number(self) -> None:
        source = rows_source(
            {"line_number": 4}, {"x": 0}, {"line_number": 7}, {"line_number": "4"}, {"line_number": []}
        )

        assert Survey(source, []).read().places([4]) == {4: ["data, row 1", "data, row 4"]}


class TestFaults:
    def test_one_problem_is_a_sentence(self) -> None:
        problems = Faults()
        problems.add("It is broken.")

        assert str(problems) == "It is broken."

    def test_many_are_listed_up_to_a_limit_and_all_counted(self) -> None:
        problems, more = Faults(), Faults()
        for number in range(15):
            problems.add(f"one {number}")
            more.add(f"two {number}")

        problems.extend(more)

        assert problems.count == 30
        assert len(problems.texts) == MAX_LISTED
        assert str(problems).splitlines()[0] == "30 problems:"
        assert str(problems).splitlines()[-1] == "- and 10 more."
