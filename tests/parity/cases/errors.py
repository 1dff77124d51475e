"""Lines that fail, flows that are refused, and what codes that gives."""

from __future__ import annotations

from declared import cases_of, dag, node

case = cases_of("errors")

TEXT = {"text": "string"}
GIVEN = {"x": "${inputs.text}"}
ROWS = [{"text": "good"}, {"text": "bad"}, {"text": "good"}]
SAME = "def f(x): return x"
OUT = {"out": "${f.output}"}


def refuses(code: str) -> dict[str, str | bytes]:
    """A flow of one node that fails on `bad`."""
    return dag(TEXT, OUT, f=node(f"def f(x):\n    if x == 'bad':\n        {code}\n    return x", GIVEN))


case("a_tool_that_raises", refuses("raise ValueError('no')"), ROWS)
case("an_error_of_the_flows_own_class", refuses("raise type('OddError', (LookupError,), {})('odd', 2)"), ROWS)
case("an_error_without_a_message", refuses("raise RuntimeError"), ROWS)
case("an_error_that_is_not_english", refuses("raise ValueError('größe 好')"), ROWS)
case("an_error_with_a_cause", refuses("raise ValueError('outer') from KeyError('inner')"), ROWS)
case(
    "an_error_of_promptflow",
    refuses("from promptflow.exceptions import UserErrorException as E; raise E('mine')"),
    ROWS,
)
case("an_exit_of_a_tool", refuses("raise SystemExit(3)"), ROWS)
case("a_tool_that_recurses", refuses("return f(x)"), ROWS)
case(
    "nodes_behind_a_failed_one_do_not_run",
    dag(
        TEXT,
        {"out": "${g.output}"},
        f=node("def f(x): return 1 / 0 if x == 'bad' else x", GIVEN),
        g=node(SAME, {"x": "${f.output}"}),
    ),
    ROWS,
)
case("every_line_fails", dag(TEXT, OUT, f=node("def f(x): raise ValueError(x)", GIVEN)), ROWS)
case("line_failures_are_raised", refuses("raise ValueError('no')"), ROWS, run={"raise_on_line_failure": True})
case("no_line_failure_to_raise", refuses("raise ValueError('no')"), ROWS[:1], run={"raise_on_line_failure": True})
case(
    "errors_of_lines_that_did_not_begin",
    dag({"n": "int"}, OUT, f=node("def f(x): return x", {"x": "${inputs.n}"})),
    [{"n": 1}, {"n": "x"}],
)

case("refused_no_inputs", dag({}, OUT, f=node("def f(): return 1")), ROWS)
case("refused_unknown_input", dag(TEXT, OUT, f=node(SAME, {"x": "${inputs.other}"})), ROWS)
case("refused_unknown_node", dag(TEXT, OUT, f=node(SAME, {"x": "${g.output}"})), ROWS)
case("refused_unknown_output_node", dag(TEXT, {"out": "${g.output}"}, f=node(SAME, GIVEN)), ROWS)
case("refused_unknown_output_input", dag(TEXT, {"out": "${inputs.other}"}, f=node(SAME, GIVEN)), ROWS)
case("refused_empty_output", dag(TEXT, {"out": ""}, f=node(SAME, GIVEN)), ROWS)
case(
    "refused_cycle",
    dag(TEXT, OUT, f=node(SAME, {"x": "${g.output}"}), g=node(SAME, {"x": "${f.output}"})),
    ROWS,
)
case(
    "refused_cycle_through_activate",
    dag(
        TEXT,
        OUT,
        f=node(SAME, GIVEN, activate={"when": "${g.output}", "is": 1}),
        g=node(SAME, {"x": "${f.output}"}),
    ),
    ROWS,
)
case(
    "refused_duplicate_node",
    dag(
        TEXT,
        OUT,
        f=node(SAME, GIVEN),
        g={**node(SAME, GIVEN).keys, "name": "f", "type": "python", "source": {"type": "code", "path": "f.py"}},
    ),
    ROWS,
)
case(
    "refused_aggregation_in_a_line",
    dag(
        TEXT,
        OUT,
        total=node("def total(xs): return 1", {"xs": "${inputs.text}"}, aggregation=True),
        f=node(SAME, {"x": "${total.output}"}),
    ),
    ROWS,
)
case("refused_unknown_section", dag(TEXT, OUT, g=node(SAME, GIVEN), f=node(SAME, {"x": "${g.input}"})), ROWS)
case(
    "refused_missing_source",
    dag(TEXT, OUT, f={"type": "python", "source": {"type": "code", "path": "no.py"}, "inputs": GIVEN}),
    ROWS,
)
case("refused_no_tool", dag(TEXT, OUT, f=node("VALUE = 1  # @tool", GIVEN)), ROWS)
case("refused_two_tools", dag(TEXT, OUT, f=node("@tool\ndef f(x): return x\n\n@tool\ndef g(x): return x", GIVEN)), ROWS)
case("refused_syntax", dag(TEXT, OUT, f=node("@tool\ndef f(x): return (", GIVEN)), ROWS)
case("refused_import", dag(TEXT, OUT, f=node("import not_there_at_all\ndef f(x): return x", GIVEN)), ROWS)
case(
    "refused_module_that_raises",
    dag(TEXT, OUT, f=node("raise RuntimeError('at import')\ndef f(x): return x", GIVEN)),
    ROWS,
)
case(
    "refused_node_type",
    dag(TEXT, OUT, f={"type": "magic", "source": {"type": "code", "path": "f.py"}, "inputs": GIVEN}),
    ROWS,
)
case(
    "refused_literal_of_the_wrong_type",
    dag(TEXT, OUT, f=node("def f(x, n: int): return x", {**GIVEN, "n": "three"})),
    ROWS,
)
case("refused_input_type", dag({"text": "magic"}, OUT, f=node(SAME, GIVEN)), ROWS)
case("refused_yaml", {"flow.dag.yaml": "inputs: [\n"}, ROWS)
case("refused_flow_that_is_not_there", {"other.yaml": "inputs: {}\n"}, ROWS)
case("refused_before_bad_data", dag(TEXT, OUT, f=node("import not_there_at_all\ndef f(x): return x", GIVEN)), [])
