"""Activate conditions, bypassed nodes, aggregation and metrics of DAG flows."""

from __future__ import annotations

from declared import cases_of, dag, node

case = cases_of("walking")

N = {"n": "int"}
GIVEN = {"x": "${inputs.n}"}
ROWS = [{"n": 1}, {"n": 2}, {"n": 3}]
SAME = "def f(x): return x"


def when(reference: str, value: object) -> dict[str, object]:
    return {"activate": {"when": reference, "is": value}}


case(
    "activated_by_an_input",
    dag(N, {"out": "${f.output}"}, f=node(SAME, GIVEN, **when("${inputs.n}", 2))),
    ROWS,
)
case(
    "activated_by_a_node",
    dag(
        N,
        {"odd": "${odd.output}", "even": "${even.output}"},
        rest=node("def f(x): return x % 2", GIVEN),
        odd=node(SAME, GIVEN, **when("${rest.output}", 1)),
        even=node(SAME, GIVEN, **when("${rest.output}", 0)),
    ),
    ROWS,
)
case(
    "activated_by_a_property",
    dag(
        N,
        {"out": "${f.output}"},
        first=node("def f(x): return {'is': [x > 1]}", GIVEN),
        f=node(SAME, GIVEN, **when("${first.output['is'][0]}", True)),
    ),
    ROWS,
)
case(
    "a_condition_of_another_type", dag(N, {"out": "${f.output}"}, f=node(SAME, GIVEN, **when("${inputs.n}", "2"))), ROWS
)
case(
    "one_is_true_in_a_condition", dag(N, {"out": "${f.output}"}, f=node(SAME, GIVEN, **when("${inputs.n}", True))), ROWS
)
case(
    "a_condition_on_null",
    dag(
        N,
        {"out": "${f.output}"},
        first=node("def f(x): return None if x == 1 else x", GIVEN),
        f=node(SAME, GIVEN, **when("${first.output}", None)),
    ),
    ROWS,
)
case(
    "a_node_after_a_bypassed_one_is_bypassed",
    dag(
        N,
        {"out": "${g.output}"},
        f=node(SAME, GIVEN, **when("${inputs.n}", 2)),
        g=node("def g(x): return [x]", {"x": "${f.output}"}),
    ),
    ROWS,
)
case(
    "a_node_after_bypassed_and_other_nodes_runs",
    dag(
        N,
        {"out": "${g.output}"},
        f=node(SAME, GIVEN, **when("${inputs.n}", 2)),
        other=node(SAME, GIVEN),
        g=node("def g(x, y, z=5): return [x, y, z]", {"x": "${f.output}", "y": "${other.output}", "z": "${f.output}"}),
    ),
    ROWS,
)
case(
    "a_condition_on_a_bypassed_node",
    dag(
        N,
        {"out": "${g.output}"},
        f=node(SAME, GIVEN, **when("${inputs.n}", 2)),
        g=node(SAME, GIVEN, **when("${f.output}", 2)),
    ),
    ROWS,
)
case(
    "a_property_of_a_bypassed_node",
    dag(
        N,
        {"out": "${g.output}"},
        f=node("def f(x): return {'a': x}", GIVEN, **when("${inputs.n}", 2)),
        other=node(SAME, GIVEN),
        g=node("def g(x, y): return [x, y]", {"x": "${f.output.a}", "y": "${other.output}"}),
    ),
    ROWS,
)
case(
    "an_output_into_a_bypassed_node",
    dag(N, {"out": "${f.output.a}"}, f=node("def f(x): return {'a': x}", GIVEN, **when("${inputs.n}", 2))),
    ROWS,
)
case(
    "a_condition_with_a_node_that_fails",
    dag(
        N,
        {"out": "${g.output}"},
        f=node("def f(x): return 1 / (x - 2)", GIVEN),
        g=node(SAME, GIVEN, **when("${f.output}", -1.0)),
    ),
    ROWS,
)

SUM = "def total(xs):\n    log_metric('total', sum(x or 0 for x in xs))\n    return xs"
case(
    "aggregation_over_a_node",
    dag(
        N,
        {"out": "${f.output}"},
        f=node("def f(x): return x * 10", GIVEN),
        total=node(SUM, {"xs": "${f.output}"}, aggregation=True),
    ),
    ROWS,
)
case(
    "aggregation_over_inputs_and_literals",
    dag(
        N,
        {"out": "${f.output}"},
        f=node(SAME, GIVEN),
        total=node(
            "def total(xs, k): log_metric('sum', sum(xs) * k); log_metric('text', str(k))",
            {"xs": "${inputs.n}", "k": 2},
            aggregation=True,
        ),
    ),
    ROWS,
)
case(
    "aggregation_by_the_old_key",
    dag(N, {"out": "${f.output}"}, f=node(SAME, GIVEN), total=node(SUM, {"xs": "${f.output}"}, reduce=True)),
    ROWS,
)
case(
    "aggregation_over_completed_lines_only",
    dag(
        N,
        {"out": "${f.output}"},
        f=node("def f(x): return x if x != 2 else 1 / 0", GIVEN),
        total=node(SUM, {"xs": "${f.output}"}, aggregation=True),
    ),
    ROWS,
)
case(
    "aggregation_when_all_lines_failed",
    dag(
        N,
        {"out": "${f.output}"},
        f=node("def f(x): return 1 / 0", GIVEN),
        total=node(SUM, {"xs": "${f.output}"}, aggregation=True),
    ),
    ROWS,
)
case(
    "aggregation_over_bypassed_nodes",
    dag(
        N,
        {"out": "${f.output}"},
        f=node(SAME, GIVEN, **when("${inputs.n}", 2)),
        total=node(
            "def total(xs): log_metric('none', sum(x is None for x in xs))", {"xs": "${f.output}"}, aggregation=True
        ),
    ),
    ROWS,
)
case(
    "aggregation_over_properties",
    dag(
        N,
        {"out": "${f.output.a}"},
        f=node("def f(x): return {'a': [x]}", GIVEN),
        total=node(SUM, {"xs": "${f.output.a[0]}"}, aggregation=True),
    ),
    ROWS,
)
case(
    "aggregation_of_an_aggregation",
    dag(
        N,
        {"out": "${f.output}"},
        f=node(SAME, GIVEN),
        first=node("def first(xs): return {'sum': sum(xs)}", {"xs": "${f.output}"}, aggregation=True),
        second=node("def second(s): log_metric('twice', s * 2)", {"s": "${first.output.sum}"}, aggregation=True),
    ),
    ROWS,
)
case(
    "aggregation_that_raises_keeps_its_metrics",
    dag(
        N,
        {"out": "${f.output}"},
        f=node(SAME, GIVEN),
        total=node(
            "def total(xs):\n    log_metric('before', 1)\n    raise RuntimeError('no sum')",
            {"xs": "${f.output}"},
            aggregation=True,
        ),
    ),
    ROWS,
)
case(
    "an_output_of_an_aggregation_is_dropped",
    dag(
        N,
        {"out": "${f.output}", "sum": "${total.output}"},
        f=node(SAME, GIVEN),
        total=node(SUM, {"xs": "${f.output}"}, aggregation=True),
    ),
    ROWS,
)
case(
    "metrics_of_all_kinds",
    dag(
        N,
        {"out": "${f.output}"},
        f=node(SAME, GIVEN),
        total=node(
            """
            def total(xs):
                log_metric("nan", float("nan"))
                log_metric("inf", float("inf"))
                log_metric("twice", 1)
                log_metric("twice", 2)
                log_metric("v", 1.0, variant_id="variant_1")
                log_metric("größe", 3)
            """,
            {"xs": "${f.output}"},
            aggregation=True,
        ),
    ),
    ROWS,
)
case(
    "metrics_in_the_lines_are_not_the_runs",
    dag(N, {"out": "${f.output}"}, f=node("def f(x):\n    log_metric('in_line', x)\n    return x", GIVEN)),
    ROWS,
)
case(
    "aggregation_of_unsorted_line_numbers",
    dag(
        N,
        {"out": "${f.output}"},
        f=node(SAME, GIVEN),
        total=node(
            "def total(xs, ys): log_metric('differ', sum(x != y for x, y in zip(xs, ys)))",
            {"xs": "${f.output}", "ys": "${inputs.n}"},
            aggregation=True,
        ),
    ),
    [{"n": 1, "line_number": 2}, {"n": 2, "line_number": 0}, {"n": 3, "line_number": 1}],
)
case(
    "an_async_aggregation",
    dag(
        N,
        {"out": "${f.output}"},
        f=node(SAME, GIVEN),
        total=node("async def total(xs): log_metric('sum', sum(xs))", {"xs": "${f.output}"}, aggregation=True),
    ),
    ROWS,
)
case(
    "an_activated_aggregation",
    dag(
        N,
        {"out": "${f.output}"},
        f=node(SAME, GIVEN),
        first=node("def first(xs): return sum(xs)", {"xs": "${f.output}"}, aggregation=True),
        second=node(
            "def second(s): log_metric('seen', s)",
            {"s": "${first.output}"},
            aggregation=True,
            **when("${first.output}", 99),
        ),
    ),
    ROWS,
)
