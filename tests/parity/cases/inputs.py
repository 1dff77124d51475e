"""Data and mapping: types and defaults of inputs, formats, expressions, several sources, line numbers."""

from __future__ import annotations

from declared import cases_of, dag, node

case = cases_of("inputs")


def shows(**inputs: object) -> dict[str, str | bytes]:
    """A flow that gives its inputs as they came, with their types."""
    return dag(
        inputs,
        {"out": "${show.output}"},
        show=node(
            "def show(**given): return {k: [type(v).__name__, v] for k, v in sorted(given.items())}",
            {name: f"${{inputs.{name}}}" for name in inputs},
        ),
    )


VALUES = [1, 4.7, "5", "4.7", "x", True, None, "", "true", "False", [1], {"a": 1}, "[1]", '{"a": 2}']

for kind in ("int", "double", "string", "bool", "list", "object"):
    # A row each in a list of its own column, for promptflow's reader changes numbers beside other numbers.
    case(f"type_{kind}", shows(v=kind), [{"v": value} for value in VALUES])

case("nan_in_the_data", shows(v="double", w="string"), [{"v": float("nan"), "w": float("nan")}, {"v": 1, "w": "x"}])
case("missing_in_all_rows", shows(v="string", w="string"), [{"v": "a"}, {"v": "b"}])
case("missing_in_some_rows", shows(v="string", w="string"), [{"v": "a", "w": "b"}, {"v": "c"}])
case("default_of_an_absent_input", shows(v="string", w={"type": "int", "default": 3}), [{"v": "a"}])
case("default_beats_an_unmapped_column", shows(v="string", w={"type": "int", "default": 3}), [{"v": "a", "w": 9}])
case(
    "a_mapped_column_beats_the_default",
    shows(v="string", w={"type": "int", "default": 3}),
    [{"v": "a", "w": 9}],
    {"w": "${data.w}"},
)
case(
    "null_is_a_value_and_no_default",
    shows(v="string", w={"type": "object", "default": {"d": 1}}),
    [{"v": "a", "w": None}],
    {"w": "${data.w}"},
)
case("default_of_the_wrong_type", shows(v="string", w={"type": "int", "default": "three"}), [{"v": "a"}])
case("default_of_list_and_dictionary", shows(v="string", w={"type": "list", "default": [1, {"a": None}]}), [{"v": "a"}])

case("mapped_by_other_names", shows(v="string"), [{"question": "q"}], {"v": "${data.question}"})
case("literal_values", shows(v="string", n="int", o="object"), [{"v": "a"}], {"n": 5, "o": {"k": [1]}})
case("text_around_a_reference_is_a_literal", shows(v="string"), [{"v": "a"}], {"v": "x ${data.v}"})
case("blanks_in_a_reference", shows(v="string"), [{"v": "a"}], {"v": "${ data.v }"})
case("a_column_with_dots", shows(v="string"), [{"a.b": "dotted", "a": {"b": "nested"}}], {"v": "${data.a.b}"})
case("no_nested_access", shows(v="string"), [{"a": {"b": "nested"}}], {"v": "${data.a.b}"})
case("a_column_that_is_nowhere", shows(v="string"), [{"v": "a"}], {"v": "${data.w}"})
case("a_source_that_is_not_there", shows(v="string"), [{"v": "a"}], {"v": "${run.outputs.v}"})
case("a_mapping_of_more_than_the_inputs", shows(v="string"), [{"v": "a", "w": "b"}], {"zzz": "${data.w}"})
case("a_column_of_more_than_the_inputs", shows(v="string"), [{"v": "a", "w": "b"}])
case("a_mapping_of_line_number", shows(v="string"), [{"v": "a"}, {"v": "b"}], {"line_number": "${data.v}"})
case("line_number_as_an_input", shows(line_number="int"), [{"line_number": 3}, {"line_number": 7}])

OUTPUTS = [{"line_number": 1, "answer": "b"}, {"line_number": 0, "answer": "a"}]
FROM_BOTH = {"v": "${data.v}", "w": "${run.outputs.answer}"}
case(
    "two_sources_by_position",
    shows(v="string", w="string"),
    data={"data": [{"v": "1"}, {"v": "2"}], "run.outputs": [{"answer": "a"}, {"answer": "b"}]},
    mapping=FROM_BOTH,
)
case(
    "two_sources_by_line_number",
    shows(v="string", w="string"),
    data={"data": [{"v": "1"}, {"v": "2"}], "run.outputs": OUTPUTS},
    mapping=FROM_BOTH,
)
case(
    "lines_missing_in_one_source",
    shows(v="string", w="string"),
    data={"data": [{"v": "1"}, {"v": "2"}, {"v": "3"}], "run.outputs": OUTPUTS[:1]},
    mapping=FROM_BOTH,
)
case(
    "sources_of_different_lengths",
    shows(v="string", w="string"),
    data={"data": [{"v": "1"}, {"v": "2"}], "run.outputs": [{"answer": "a"}]},
    mapping=FROM_BOTH,
)
case(
    "sources_without_a_common_line",
    shows(v="string", w="string"),
    data={"data": [{"v": "1"}], "run.outputs": [{"line_number": 5, "answer": "a"}]},
    mapping=FROM_BOTH,
)
case(
    "one_source_is_empty",
    shows(v="string", w="string"),
    data={"data": [{"v": "1"}], "run.outputs": []},
    mapping=FROM_BOTH,
)
case("no_rows_at_all", shows(v="string"), [])
case("a_file_that_is_not_there", shows(v="string"), data={"data": "nowhere.jsonl"})
case("line_numbers_of_some_rows", shows(v="string"), [{"v": "a", "line_number": 5}, {"v": "b"}])
case("line_numbers_out_of_order", shows(v="string"), [{"v": "a", "line_number": 5}, {"v": "b", "line_number": 2}])
case("max_lines_count", shows(v="int"), [{"v": n} for n in range(5)], run={"max_lines_count": 2})
case("max_lines_count_beyond_the_data", shows(v="int"), [{"v": n} for n in range(2)], run={"max_lines_count": 9})

TABLE = {"v": "string", "w": "string"}
case("csv", shows(**TABLE) | {"d.csv": 'v,w\n1,"a,b"\nNA,\n"x\ny",null\n'}, data={"data": "d.csv"})
case("tsv", shows(**TABLE) | {"d.tsv": "v\tw\n1\ta,b\n2.50\t\n"}, data={"data": "d.tsv"})
case("csv_into_numbers", shows(v="int", w="double") | {"d.csv": "v,w\n1,2\n3,4.5\nx,1\n"}, data={"data": "d.csv"})
case("json_array", shows(**TABLE) | {"d.json": '[{"v": "a", "w": "b"}, {"v": "c", "w": "d"}]'}, data={"data": "d.json"})
case("json_of_columns", shows(**TABLE) | {"d.json": '{"v": ["a", "c"], "w": ["b", "d"]}'}, data={"data": "d.json"})
case("json_of_scalars", shows(**TABLE) | {"d.json": '{"v": "a", "w": "b"}'}, data={"data": "d.json"})
case(
    "a_folder_of_files",
    shows(**TABLE) | {"rows/one.jsonl": '{"v": "a", "w": "b"}\n{"v": "c", "w": "d"}\n'},
    data={"data": "rows"},
)
case("jsonl_of_another_suffix", shows(**TABLE) | {"d.txt": '{"v": "a", "w": "b"}\n'}, data={"data": "d.txt"})
case(
    "jsonl_with_blank_lines",
    shows(**TABLE) | {"d.jsonl": '{"v": "a", "w": "b"}\n\n{"v": "c", "w": "d"}\n'},
    data={"data": "d.jsonl"},
)
case("jsonl_with_a_bom", shows(v="string") | {"d.jsonl": b'\xef\xbb\xbf{"v": "a"}\n'}, data={"data": "d.jsonl"})
case("whole_numbers_beside_fractions", shows(v="object"), [{"v": 1}, {"v": 2.5}])
case("large_whole_numbers", shows(v="object"), [{"v": 10000000000000001}, {"v": 2**70}])
case("columns_named_like_dates", shows(created_at="string", date="object"), [{"created_at": "2024-01-02", "date": 5}])
case("nested_values", shows(v="object", w="list"), [{"v": {"a": [1, None]}, "w": [{"b": 1.5}]}])
