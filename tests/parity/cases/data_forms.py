"""Data as other tools write it, defaults beside columns, constants beside references, and images in shared folders."""

from __future__ import annotations

from declared import FLEX, cases_of, dag, flex

from cases.images import DOT, IMAGE, OUT, SHOW
from cases.inputs import shows

case = cases_of("data_forms")

TABLE = {"v": "string", "w": "string"}
LINES = '{"v": "a", "w": "b"}\n{"v": "c", "w": "d"}\n'

for suffix in ("ndjson", "jsonlines", "ldjson"):
    case(f"{suffix}_file", shows(**TABLE) | {f"d.{suffix}": LINES}, data={"data": f"d.{suffix}"})

for name, text in {
    "behind": "v,w,,\na,b,,\nc,d,,\n",
    "between": "v,,w\na,,b\nc,,d\n",
    "before": ",v,w\n0,a,b\n1,c,d\n",
    "with_a_value": "v,w,,\na,b,,note\nc,d,,\n",
    "in_quotes": 'v,w,""\n"a","b",""\n',
    "of_short_records": "v,w,,\na,b\nc,d\n",
}.items():
    case(f"csv_columns_without_a_name_{name}", shows(**TABLE) | {"d.csv": text}, data={"data": "d.csv"})
case(
    "tsv_columns_without_a_name",
    shows(**TABLE) | {"d.tsv": "v\tw\t\t\na\tb\t\t\n"},
    data={"data": "d.tsv"},
)
case(
    "csv_index_that_is_mapped",
    shows(**TABLE) | {"d.csv": ",v\n0,a\n1,b\n"},
    mapping={"w": "${data.Unnamed: 0}"},
    data={"data": "d.csv"},
)
case(
    "hidden_files_of_a_folder",
    shows(**TABLE)
    | {"rows/a.jsonl": LINES, "rows/.ipynb_checkpoints/a-checkpoint.jsonl": '{"v": "old", "w": "old"}\n'},
    data={"data": "rows"},
)
case(
    "pretty_printed_jsonl",
    shows(**TABLE) | {"d.jsonl": '[\n {"v": "a", "w": "b"},\n {"v": "c", "w": "d"}\n]\n'},
    data={"data": "d.jsonl"},
)
case("line_numbers_that_repeat", shows(v="string"), [{"v": "a", "line_number": 1}, {"v": "b", "line_number": 1}])

CODE = "def main(v, w='default'): return {'v': v, 'w': w}"
case("flex_default_beside_a_column", flex(CODE), [{"v": "a", "w": "b"}, {"v": "c"}], **FLEX)
case("flex_default_beside_a_mapped_column", flex(CODE), [{"v": "a", "w": "b"}], {"w": "${data.w}"}, **FLEX)
case("flex_default_without_a_column", flex(CODE), [{"v": "a"}], **FLEX)
case(
    "dag_default_beside_a_column_of_null",
    shows(v="string", w={"type": "string", "default": "d"}),
    [{"v": "a", "w": None}, {"v": "b", "w": None}],
)
case("a_constant_that_is_empty", shows(v="string"), [{"v": "a"}, {"v": "b"}], {"v": ""})
case("a_constant_that_names_a_column", shows(v="string"), [{"v": "a"}, {"w": "b", "v": "c"}], {"v": "v"})
case("a_constant_with_another_variable", shows(v="string"), [{"v": "a"}], {"v": "${HOME} and more"})
for name, text in {
    "no_sigil": "{data.v}",
    "no_braces": "$data.v",
    "not_closed": "${data.v",
    "jinja": "{{data.v}}",
    "shell": "$(data.v)",
}.items():
    case(f"a_reference_with_{name}", shows(v="string"), [{"v": "a"}], {"v": text})
case(
    "an_image_in_a_shared_folder",
    dag(IMAGE, OUT, show=SHOW)
    | {"shared/dot.png": DOT, "rows/d.jsonl": '{"image": {"data:image/png;path": "../shared/dot.png"}}\n'},
    data={"data": "rows/d.jsonl"},
    engine={"image_roots": ["shared"]},
)
