"""Lines: what a run reads, with defaults and types applied and faults kept to their line."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import logging
import math
import pickle
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_batchflow.definition.flow import NO_DEFAULT, FlowInput
from prefect_batchflow.exceptions import (
    InputMappingError,
    InputParseError,
    InvalidUserData,
    ToolExecutionError,
    error_dict,
    innermost_code,
)
from prefect_batchflow.inputs.formats import Row
from prefect_batchflow.inputs.readers import RowsSource, open_source
from prefect_batchflow.lines import Line, check, chunks, input_hash, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_batchflow.inputs.readers import Source


def flow_input(name: str, type_name: str = "string", default: Any = NO_DEFAULT) -> FlowInput:
    return FlowInput(name, type_name, default)


def inputs_of(*flow_inputs: FlowInput) -> dict[str, FlowInput]:
    return {one.name: one for one in flow_inputs}


def lines_of(
    sources: dict[str, list[dict[str, Any]]] | list[Source],
    flow_inputs: dict[str, FlowInput],
    mapping: dict[str, Any] | None = None,
    max_lines_count: int | None = None,
    **options: Any,
) -> list[Line]:
    made: list[Source] = [RowsSource(n, r) for n, r in sources.items()] if isinstance(sources, dict) else sources
    inventory = check(made, flow_inputs, mapping, max_lines_count, **options)
    lines = list(read_lines(made, flow_inputs, mapping, inventory))
    assert len(lines) == inventory.total_lines
    return lines


class TestInputs:
    def test_unmapped_inputs_come_from_the_data_in_file_order(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text('\n{"q": "one", "more": 1}\n\n{"q": "two"}\n')

        lines = lines_of([open_source(path, name="data")], inputs_of(flow_input("q")))

        assert lines == [Line(0, {"q": "one"}), Line(1, {"q": "two"})]

    def test_what_the_mapping_names_beyond_the_flow_is_passed_on(self) -> None:
        [line] = lines_of({"data": [{"q": "x", "a": 1}]}, inputs_of(flow_input("q")), {"truth": "${data.a}", "k": None})

        assert line.inputs == {"q": "x", "truth": 1, "k": None}

    def test_defaults_fill_what_is_absent_but_not_null(self) -> None:
        a, b, c = flow_input("a", "object", "dflt"), flow_input("b", "int", "7"), flow_input("c", "bool", None)
        mapping = {"a": "${data.a}"}

        lines = lines_of({"data": [{"a": None, "b": 1}, {"c": True}, {"a": 2}]}, inputs_of(a, b, c), mapping)

        assert [line.inputs for line in lines] == [
            {"a": None, "b": 1, "c": None},
            {"a": "dflt", "b": 7, "c": True},
            {"a": 2, "b": 7, "c": None},
        ]

    def test_as_in_promptflow_a_default_can_beat_the_column_of_its_name(self) -> None:
        a, b, c = flow_input("a", "object", "dflt"), flow_input("b", "int", "7"), flow_input("c", "bool", None)
        rows: dict[str, list[dict[str, Any]]] = {"data": [{"a": None, "b": 1}, {"c": True}, {"a": 2}]}

        lines = lines_of(rows, inputs_of(a, b, c), {"a": "${data.a}"}, inputs_with_default="default")

        assert [line.inputs for line in lines] == [
            {"a": None, "b": 7, "c": None},
            {"a": "dflt", "b": 7, "c": None},
            {"a": 2, "b": 7, "c": None},
        ]

    @pytest.mark.parametrize(
        ("declared", "values"),
        [
            (flow_input("k", "string", "dflt"), ["dflt", "", "dflt"]),
            (flow_input("k", "list", [1]), [[1], InputParseError.__name__, [1]]),
            (flow_input("k", "object", 5), [None, "", 5]),
            (flow_input("k", "any", 5), [None, "", 5]),
            (FlowInput("k", "string", "dflt", nullable=True), [None, "", "dflt"]),
        ],
        ids=["string", "list", "object", "any", "nullable"],
    )
    def test_null_in_a_column_that_nobody_mapped_gives_the_default_of_a_type_without_null(
        self, declared: FlowInput, values: list[Any]
    ) -> None:
        lines = lines_of({"data": [{"k": None}, {"k": ""}, {"x": 1}]}, inputs_of(declared))

        assert [line.inputs["k"] if line.error is None else innermost_code(line.error) for line in lines] == values

    def test_lines_share_no_value_that_code_may_change(self) -> None:
        flow_inputs = inputs_of(flow_input("a", "list", []), flow_input("b", "object"))

        one, two = pickle.loads(pickle.dumps(lines_of({"data": [{}, {}]}, flow_inputs, {"b": {"k": []}})))  # noqa: S301
        one.inputs["a"].append(1)
        one.inputs["b"]["k"].append(1)

        assert two.inputs == {"a": [], "b": {"k": []}}

    def test_types_are_applied_to_what_the_flow_declares(self) -> None:
        flow_inputs = inputs_of(
            flow_input("n", "int"), flow_input("s"), flow_input("o", "object"), flow_input("x", "image")
        )

        [line] = lines_of(
            {"data": [{"n": 4.7, "s": None, "o": "[1]", "x": "12", "e": "12"}]}, flow_inputs, {"e": "${data.e}"}
        )

        assert line.inputs == {"n": 4, "s": "None", "o": [1], "x": "12", "e": "12"}

    def test_null_of_an_annotated_parameter_stays_null(self) -> None:
        annotated = [FlowInput(name, type_name, nullable=True) for name, type_name in (("s", "string"), ("n", "int"))]

        lines = lines_of({"data": [{"s": None, "n": None}, {"s": 1, "n": "2"}]}, inputs_of(*annotated))

        assert [line.inputs for line in lines] == [{"s": None, "n": None}, {"s": "1", "n": 2}]

    def test_an_input_called_line_number_gets_the_number(self) -> None:
        source = [{"line_number": "7", "q": "x"}]

        assert lines_of({"data": source}, inputs_of(flow_input("line_number", "string", "none"))) == [
            Line(7, {"line_number": "7"})
        ]
        assert lines_of({"data": source}, inputs_of(flow_input("q"))) == [Line(7, {"q": "x"})]


class TestFailedLines:
    @pytest.mark.parametrize(
        ("type_name", "value", "code", "said"),
        [
            ("int", "4.7", "InputTypeError", "Line 1 (data, row 2): input 'v' is of type int, found str '4.7' ("),
            ("bool", 0, "InputTypeError", "input 'v' is of type bool, found int 0 (expected true or false)"),
            (
                "list",
                "a, b",
                "InputParseError",
                "type list, found text that is not JSON: 'a, b' (Expecting",
            ),
            ("list", "{}", "InputTypeError", "found str '{}' (expected a list)"),
        ],
    )
    def test_a_value_that_does_not_fit_fails_its_line_only(
        self, type_name: str, value: Any, code: str, said: str
    ) -> None:
        good = {"int": 1, "bool": True, "list": []}[type_name]

        before, failed, after = lines_of(
            {"data": [{"v": good}, {"v": value}, {"v": good}]}, inputs_of(flow_input("v", type_name))
        )

        assert (before, after) == (Line(0, {"v": good}), Line(2, {"v": good}))
        assert failed.error is not None
        assert innermost_code(failed.error) == code
        assert failed.error["code"] == "UserError"
        assert said in failed.error["message"]
        assert failed.inputs == {"v": value}

    def test_rows_that_cannot_be_read_fail_their_lines_when_told_so(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text('{"q": "1"}\nbroken\n{"r": 1}\n{"q": "4", "r": 1}\n')

        lines = lines_of(
            [open_source(path, name="data")], inputs_of(flow_input("q")), {"r": "${data.r}"}, bad_rows="fail"
        )

        assert [line.line_number for line in lines] == [0, 1, 2, 3]
        assert [line.error and innermost_code(line.error) for line in lines] == [
            "InputMappingError",
            "InvalidUserData",
            "InputNotFound",
            None,
        ]
        messages = [line.error["message"] for line in lines if line.error]
        assert messages[0].startswith(f"Line 0 ({path}, line 1 (byte 0)): 'r' is mapped to ${{data.r}}, which this row")
        assert messages[1].startswith(f"{path}, line 2 (byte 11): not JSON")
        assert "input 'q' has no value, because this row has no ${data.q}. Add the column" in messages[2]

    @pytest.mark.parametrize("inputs", [[flow_input("q")], [flow_input("q", default="none")]], ids=["", "default"])
    def test_a_row_that_a_former_run_could_not_read_fails_again_as_it_did(
        self, tmp_path: Path, inputs: list[FlowInput]
    ) -> None:
        former = error_dict(InvalidUserData("d.jsonl, line 2 (byte 9): not JSON"))
        code = error_dict(ToolExecutionError("no"))
        rows = [
            {"line_number": 1, "_error": former, "_error_class": "bad_input", "_attempts": 1},
            {"q": "mended", "line_number": 2, "_error": former, "_error_class": "bad_input", "_attempts": 1},
            {"q": "1", "line_number": 4, "_error": code, "_error_class": "user_code", "_attempts": 1},
        ]

        lines = lines_of({"data": rows}, inputs_of(*inputs), {"q": "${data.q}"}, bad_rows="fail")

        assert [(line.line_number, line.inputs) for line in lines] == [(1, {}), (2, {"q": "mended"}), (4, {"q": "1"})]
        assert [line.error for line in lines] == [former, None, None]

    def test_a_failed_line_of_a_flow_without_inputs_runs_again(self) -> None:
        error = error_dict(ToolExecutionError("no"))
        rows = [{"line_number": 1, "_error": error, "_error_class": "user_code", "_attempts": 1}]
        assert lines_of({"data": rows}, {}) == [Line(1, {})]

    def test_a_zipped_file_cut_off_fails_one_line_when_told_so(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl.gz"
        path.write_bytes(gzip.compress(b'{"q": "1"}\n{"q": "2"}\n{"q"')[:-8])

        lines = lines_of([open_source(path, name="data")], inputs_of(flow_input("q")), bad_rows="fail")

        assert [line.error is None for line in lines] == [True, True, False]

    def test_what_is_wrong_before_the_run_is_raised_by_check(self) -> None:
        with pytest.raises(InputMappingError):
            check([RowsSource("data", [{"a": 1}])], inputs_of(flow_input("q")))


class TestSources:
    def test_rows_are_joined_by_position(self) -> None:
        lines = lines_of(
            {"data": [{"q": "a"}, {"q": "b"}], "base": [{"y": 1}, {"y": 2}]},
            inputs_of(flow_input("q")),
            {"y": "${base.y}"},
        )

        assert [(line.line_number, line.inputs["y"]) for line in lines] == [(0, 1), (1, 2)]

    @pytest.mark.parametrize("numbers", [[0, 2], [2, 0]], ids=["rising", "falling"])
    def test_rows_are_joined_by_their_numbers_in_the_first_sources_order(self, numbers: list[int]) -> None:
        outputs = [{"line_number": number, "answer": f"a{number}"} for number in numbers]
        flow_inputs, mapping = inputs_of(flow_input("q")), {"answer": "${run.outputs.answer}"}
        data = [{"q": "q0"}, {"q": "q1"}, {"q": "q2"}]

        data_first = lines_of({"data": data, "run.outputs": outputs}, flow_inputs, mapping)
        outputs_first = lines_of({"run.outputs": outputs, "data": data}, flow_inputs, mapping)

        assert data_first == [Line(0, {"q": "q0", "answer": "a0"}), Line(2, {"q": "q2", "answer": "a2"})]
        assert [line.line_number for line in outputs_first] == numbers
        assert sorted(outputs_first, key=lambda line: line.line_number) == data_first

    def test_the_limit_is_that_of_the_check(self) -> None:
        assert len(lines_of({"data": [{"q": "x"}] * 5}, inputs_of(flow_input("q")), None, 2)) == 2

    def test_what_can_be_read_once_only_is_read_twice(self) -> None:
        sources: list[Source] = [RowsSource("data", ({"q": str(n)} for n in range(3)))]

        assert [line.inputs["q"] for line in lines_of(sources, inputs_of(flow_input("q")))] == ["0", "1", "2"]

    def test_rows_live_no_longer_than_their_line(self) -> None:
        """Memory is bounded: counted are the rows alive, not bytes."""

        alive: weakref.WeakSet[Any] = weakref.WeakSet()

        class Value(float):
            def __init__(self, _: float) -> None:
                alive.add(self)

        class Rows:
            name = url = folder = "data"
            number_columns = notes = ()

            def rows(self, update: Any = None) -> Iterator[Any]:
                for number in range(1000):
                    yield Row({"q": Value(number)}, "data", number + 1)

        flow_inputs = inputs_of(flow_input("q", "any"))
        sources: list[Source] = [Rows(), RowsSource("b", [{}] * 1000)]
        inventory = check(sources, flow_inputs)
        most = 0
        for chunk in chunks(read_lines(sources, flow_inputs, None, inventory), 10):
            assert len(chunk) == 10
            gc.collect(0)
            most = max(most, len(alive))

        assert inventory.total_lines == 1000
        assert most < 25


class TestChangedData:
    def read_after(self, tmp_path: Path, before: str, after: str, max_lines_count: int | None = None) -> list[Line]:
        path = tmp_path / "d.jsonl"
        path.write_text(before)
        sources, flow_inputs = [open_source(path, name="data")], inputs_of(flow_input("q"))
        inventory = check(sources, flow_inputs, None, max_lines_count)
        path.write_text(after)
        return list(read_lines(sources, flow_inputs, None, inventory))

    ROWS = '{"q": "1"}\n{"q": "2"}\n'

    @pytest.mark.parametrize("after", ['{"q": "1"}\n', '{"q": "1"}\n{"q": "x"}\n', ""], ids=["less", "other", "none"])
    def test_data_that_changed_after_the_check_is_refused(self, tmp_path: Path, after: str) -> None:
        with pytest.raises(InvalidUserData, match="has changed since this run checked it"):
            self.read_after(tmp_path, self.ROWS, after)

    def test_rows_appended_after_the_check_are_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            lines = self.read_after(tmp_path, self.ROWS, self.ROWS + '{"q": "3"}\n')

        assert len(lines) == 2
        assert caplog.messages == ["Source 'data' has grown since it was checked: only 2 rows are run."]

    def test_what_lies_behind_the_limit_may_change(self, tmp_path: Path) -> None:
        assert len(self.read_after(tmp_path, self.ROWS, '{"q": "1"}\nother\n', max_lines_count=1)) == 1

    def test_a_change_behind_the_last_line_is_seen(self, tmp_path: Path) -> None:
        path = tmp_path / "b.jsonl"
        path.write_text('{"line_number": 0}\n{"line_number": 9, "x": 1}\n')
        sources = [RowsSource("data", [{"q": "1"}]), open_source(path, name="b")]
        inventory = check(sources, {})
        path.write_text('{"line_number": 0}\n{"line_number": 9, "x": 2}\n')

        with pytest.raises(InvalidUserData, match=r"Source 'b' .* has changed"):
            list(read_lines(sources, {}, None, inventory))


class TestChunks:
    def test_lines_come_in_lists_of_the_size_and_a_rest(self) -> None:
        lines = [Line(number, {}) for number in range(5)]

        assert list(chunks(iter(lines), 2)) == [lines[:2], lines[2:4], lines[4:]]
        assert list(chunks([], 2)) == []

    def test_lines_are_taken_only_as_they_are_asked_for(self) -> None:
        taken: list[int] = []

        def lines() -> Iterator[Line]:
            for number in range(100):
                taken.append(number)
                yield Line(number, {})

        next(chunks(lines(), 3))

        assert taken == [0, 1, 2]

    def test_a_size_below_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="chunks of 0 lines"):
            next(chunks([Line(0, {})], 0))


class TestInputHash:
    def test_it_is_that_of_the_sorted_json(self) -> None:
        expected = hashlib.sha256(b'{"a":[1,{"x":"\\u00e9"}],"b":NaN}').hexdigest()[:16]

        assert input_hash({"b": math.nan, "a": [1, {"x": "é"}]}) == expected

    @given(st.dictionaries(st.text(), st.integers() | st.text(st.characters(exclude_categories=()))))
    def test_order_does_not_matter_and_values_do(self, inputs: dict[str, Any]) -> None:
        backwards = dict(reversed(inputs.items()))

        assert input_hash(inputs) == input_hash(backwards) == input_hash(json.loads(json.dumps(inputs)))
        assert input_hash(inputs) != input_hash({**inputs, "one more": None})
