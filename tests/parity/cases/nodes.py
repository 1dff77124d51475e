"""DAG flows of Python nodes: references, outputs, order, literals, generators, async tools, values that are odd."""

from __future__ import annotations

from typing import Any

from declared import cases_of, dag, node

case = cases_of("nodes")

TEXT = {"text": "string"}
ROWS = [{"text": "one"}, {"text": "two"}]
GIVEN = {"x": "${inputs.text}"}


def after(code: str, reference: str = "${first.output}") -> dict[str, Any]:
    """Two nodes: `first` as in `code`, and one that gives on what it refers to."""
    return {"first": node(code, GIVEN), "last": node("def last(x): return x", {"x": reference})}


case("one_node", dag(TEXT, {"out": "${up.output}"}, up=node("def up(x): return x.upper()", GIVEN)), ROWS)
case(
    "nodes_written_in_any_order",
    dag(
        TEXT,
        {"out": "${last.output}"},
        last=node("def last(x): return x + '!'", {"x": "${first.output}"}),
        first=node("def first(x): return x + '?'", GIVEN),
    ),
    ROWS,
)
case(
    "a_diamond_of_nodes",
    dag(
        TEXT,
        {"out": "${join.output}"},
        head=node("def head(x): return x", GIVEN),
        left=node("def left(x): return x + 'l'", {"x": "${head.output}"}),
        right=node("def right(x): return x + 'r'", {"x": "${head.output}"}),
        join=node("def join(a, b): return [a, b]", {"a": "${left.output}", "b": "${right.output}"}),
    ),
    ROWS,
)
case("reference_to_a_whole_node", dag(TEXT, {"out": "${last}"}, **after("def f(x): return [x]", "${first}")), ROWS)
case(
    "reference_to_dictionary_keys",
    dag(TEXT, {"out": "${last.output}"}, **after("def f(x): return {'a': {'b c': x}}", "${first.output.a['b c']}")),
    ROWS,
)
case(
    "reference_to_list_items",
    dag(TEXT, {"out": "${last.output}"}, **after("def f(x): return [[x, 'z']]", "${first.output[0][1]}")),
    ROWS,
)
case(
    "reference_to_attributes",
    dag(
        TEXT,
        {"out": "${last.output}"},
        **after(
            """
            from dataclasses import dataclass

            @dataclass
            class Pair:
                left: str
                right: list

            def f(x): return Pair(x, [x])
            """,
            "${first.output.right[0]}",
        ),
    ),
    ROWS,
)
case(
    "reference_to_what_is_not_there",
    dag(TEXT, {"out": "${last.output}"}, **after("def f(x): return {'a': x}", "${first.output.b}")),
    ROWS,
)
case(
    "reference_into_none",
    dag(TEXT, {"out": "${last.output}"}, **after("def f(x): return None", "${first.output.b}")),
    ROWS,
)
case(
    "reference_into_none_of_some_lines",
    dag(
        TEXT,
        {"out": "${last.output}"},
        **after("def f(x): return {'b': x} if x == 'one' else None", "${first.output.b}"),
    ),
    ROWS,
)
case(
    "output_that_refers_into_a_node",
    dag(TEXT, {"out": "${f.output.a}"}, f=node("def f(x): return {'a': x}", GIVEN)),
    ROWS,
)
case(
    "output_that_refers_to_what_is_not_there",
    dag(TEXT, {"out": "${f.output.b}"}, f=node("def f(x): return {'a': x}", GIVEN)),
    ROWS,
)
case(
    "outputs_of_inputs_and_literals",
    dag(
        TEXT, {"in": "${inputs.text}", "plain": "as it is", "node": "${f.output}"}, f=node("def f(x): return 1", GIVEN)
    ),
    ROWS,
)
case("a_flow_without_outputs", dag(TEXT, {}, f=node("def f(x): return x", GIVEN)), ROWS)
case(
    "a_node_that_nobody_needs_runs_too",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(x): return x", GIVEN), extra=node("def g(x): return x", GIVEN)),
    ROWS,
)
case(
    "literals_become_the_parameters_types",
    dag(
        TEXT,
        {"out": "${f.output}"},
        f=node(
            """
            def f(x, i: int, d: float, b: bool, s: str, l: list, o: dict, n: int = 7, e: str = "default"):
                return [i, d, b, s, l, o, n, e]
            """,
            {
                **GIVEN,
                "i": "3",
                "d": "2",
                "b": "false",
                "s": 4,
                "l": "[1, 2.5]",
                "o": '{"k": null}',
                "n": None,
                "e": "",
            },
        ),
    ),
    ROWS,
)
case(
    "a_parameter_with_a_default_may_be_left_out",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(x, times=2): return x * times", GIVEN)),
    ROWS,
)
case(
    "an_input_that_the_tool_does_not_have",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(x): return x", {**GIVEN, "y": 3})),
    ROWS,
)
case(
    "a_parameter_that_nobody_gives",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(x, y): return x", GIVEN)),
    ROWS,
)
case(
    "any_keyword_arguments",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(**given): return given", {**GIVEN, "y": 3})),
    ROWS,
)
case(
    "a_tool_of_a_module_with_helpers",
    dag(
        TEXT,
        {"out": "${f.output}"},
        f=node("from helper import shout\ndef other(x): return x\ndef f(x): return other(shout(x))", GIVEN),
    )
    | {"helper.py": "def shout(x): return x + '!'\n"},
    ROWS,
)
case(
    "a_tool_with_a_name_in_its_decorator",
    dag(TEXT, {"out": "${f.output}"}, f=node("@tool(name='shown')\ndef f(x): return x", GIVEN)),
    ROWS,
)
case(
    "the_module_of_a_tool_is_run_once_a_worker",
    dag(
        TEXT,
        {"out": "${f.output}"},
        f=node("seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)", GIVEN),
    ),
    [{"text": "a"}, {"text": "b"}, {"text": "c"}],
)
case(
    "a_class_of_tools",
    dag(
        TEXT,
        {"out": "${f.output}"},
        f=node(
            """
            from promptflow.core import ToolProvider

            class Shout(ToolProvider):
                def __init__(self, mark: str):
                    super().__init__()
                    self.mark = mark

                @tool
                def shout(self, x: str):
                    return x + self.mark
            """,
            {**GIVEN, "mark": "!!"},
        ),
    ),
    ROWS,
)
case(
    "async_tools",
    dag(
        TEXT,
        {"out": "${g.output}"},
        f=node("import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + '1'", GIVEN),
        g=node("async def g(x): return x + '2'", {"x": "${f.output}"}),
    ),
    ROWS,
)
case(
    "async_and_sync_tools",
    dag(
        TEXT,
        {"out": "${g.output}"},
        f=node("async def f(x): return x + '1'", GIVEN),
        g=node("def g(x): return x + '2'", {"x": "${f.output}"}),
    ),
    ROWS,
)
case(
    "an_async_tool_that_raises",
    dag(
        TEXT,
        {"out": "${f.output}"},
        f=node("async def f(x):\n    if x == 'one': raise KeyError(x)\n    return x", GIVEN),
    ),
    ROWS,
)
case(
    "a_generator_as_an_output_is_joined",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(x):\n    yield x\n    yield 1\n    yield None", GIVEN)),
    ROWS,
)
case(
    "an_async_generator_as_an_output_is_joined",
    dag(TEXT, {"out": "${f.output}"}, f=node("async def f(x):\n    yield x\n    yield 2", GIVEN)),
    ROWS,
)
case(
    "a_generator_between_nodes",
    dag(
        TEXT,
        {"out": "${g.output}"},
        f=node("def f(x):\n    yield x\n    yield 1", GIVEN),
        g=node("def g(x): return list(x)", {"x": "${f.output}"}),
    ),
    ROWS,
)
case(
    "a_generator_that_raises",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(x):\n    yield x\n    raise ValueError('late')", GIVEN)),
    ROWS,
)
case(
    "an_output_that_is_no_json",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(x): return {1, 2} if x == 'one' else x", GIVEN)),
    ROWS,
)
case(
    "an_object_between_nodes",
    dag(TEXT, {"out": "${last.output}"}, **after("def f(x): return {x}", "${first.output}"))
    | {"last.py": "from promptflow.core import tool\n\n@tool\ndef last(x): return sorted(x)\n"},
    ROWS,
)
case(
    "nan_and_infinity",
    dag({"x": "double"}, {"out": "${f.output}"}, f=node("def f(x): return [x, -x, x != x]", {"x": "${inputs.x}"})),
    [{"x": float("nan")}, {"x": float("inf")}],
)
case(
    "numbers_stay_what_they_are",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(x): return [1, 1.0, True, 2**70, 1e-9, None, '']", GIVEN)),
    ROWS,
)
case(
    "keys_that_are_no_text",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(x): return {1: x, None: x, True: 2}", GIVEN)),
    ROWS,
)
case(
    "tuples_become_lists",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(x): return (x, (1, 2))", GIVEN)),
    ROWS,
)
case(
    "text_that_is_not_english",
    dag(TEXT, {"täxt": "${größe.output}"}, größe=node("def größe(x): return x + '好'", GIVEN)),
    [{"text": "Žluťoučký"}, {"text": "שלום 🎉\u2028x"}, {"text": 'quo"te\\\n'}],
)
case(
    "line_number_is_not_seen",
    dag(TEXT, {"out": "${f.output}"}, f=node("def f(**given): return sorted(given)", GIVEN)),
    [{"text": "a", "line_number": 4}, {"text": "b", "line_number": 2}],
)
