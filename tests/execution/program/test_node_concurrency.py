"""Nodes of a line that need not wait for each other: two at once, in threads and on an event loop alike."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import innermost_code
from prefect_batchflow.execution.program.loader import load_program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefect_batchflow.execution.program.program import Program

    Load = Callable[..., Program]
    Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("fresh_imports")

MEETING = """\
import asyncio, threading
here = threading.Barrier(2)
arrived = []
both = asyncio.Event()


async def meet(name):
    arrived.append(name)
    if len(arrived) == 2:
        both.set()
    await asyncio.wait_for(both.wait(), 30)
"""
"""A module of the flow, by which two nodes wait for each other."""


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a line through either door."""

    def run_line(program: Program, **inputs: Any) -> Any:
        if request.param == "sync":
            return program.run_line(7, inputs)
        return asyncio.run(asyncio.wait_for(program.run_line_async(7, inputs), 60))

    return run_line


@pytest.fixture
def dag(tmp_path: Path) -> Load:
    """Load a DAG flow: nodes as keyword arguments, yaml of the inputs beside the source of each."""

    def load(outputs: str = "{}", **nodes: tuple[str, str]) -> Program:
        (tmp_path / "meeting.py").write_text(MEETING)
        lines = [f"inputs: {{x: {{type: object}}}}\noutputs: {outputs}\nnodes:\n"]
        for name, (spec, source) in nodes.items():
            head = "import asyncio, meeting, threading\nfrom promptflow.core import log_metric, tool\n"
            (tmp_path / f"{name}.py").write_text(f"{head}@tool\n{source}")
            lines.append(f"- {{name: {name}, type: python, source: {{path: {name}.py}}, {spec}}}\n")
        (tmp_path / "flow.dag.yaml").write_text("".join(lines))
        return load_program(load_flow(tmp_path))

    return load


def statuses(line: dict[str, Any]) -> dict[str, str]:
    return {node["node"]: node["status"] for node in line["nodes"]}


def meets(name: str, result: str = "'{}'") -> tuple[str, str]:
    """A sync node that completes only while another one runs."""
    return "inputs: {x: '${inputs.x}'}", f"def {name}(x):\n    meeting.here.wait(30)\n    return {result.format(name)}"


def meets_async(name: str) -> tuple[str, str]:
    return "inputs: {x: '${inputs.x}'}", f"async def {name}(x):\n    await meeting.meet('{name}')\n    return '{name}'"


JOIN = ("inputs: {a: '${a.output}', b: '${b.output}'}", "def c(a, b): return a + b")
OUTPUT = "{o: {type: string, reference: '${c.output}'}}"


def test_two_sync_nodes_run_at_once(dag: Load, run: Run) -> None:
    line = run(dag(OUTPUT, a=meets("a"), b=meets("b"), c=JOIN), x=1)

    assert line["error"] is None
    assert line["output"] == {"o": "ab"}
    assert [node["node"] for node in line["nodes"]] == ["a", "b", "c"]


def test_two_async_nodes_run_at_once(dag: Load) -> None:
    program = dag(OUTPUT, a=meets_async("a"), b=meets_async("b"), c=JOIN)

    line: Any = asyncio.run(asyncio.wait_for(program.run_line_async(7, {"x": 1}), 60))

    assert (line["error"], line["output"]) == (None, {"o": "ab"})


def test_an_async_node_runs_beside_a_sync_one(dag: Load) -> None:
    b = "async def b(x):\n    await asyncio.to_thread(meeting.here.wait, 30)\n    return 'b'"
    program = dag(OUTPUT, a=meets("a"), b=("inputs: {x: '${inputs.x}'}", b), c=JOIN)

    line: Any = asyncio.run(asyncio.wait_for(program.run_line_async(7, {"x": 1}), 60))

    assert (line["error"], line["output"]) == (None, {"o": "ab"})


def test_no_more_than_two_run_at_once(dag: Load, run: Run) -> None:
    # Four that count who is there; each waits until a second one has come or none is left to come.
    source = """\
def {name}(x):
    with meeting.lock:
        meeting.inside += 1
        meeting.most = max(meeting.most, meeting.inside)
    try:
        meeting.here.wait(30)
        return meeting.most
    finally:
        with meeting.lock:
            meeting.inside -= 1
"""
    nodes = {name: ("inputs: {x: '${inputs.x}'}", source.format(name=name)) for name in "abcd"}
    program = dag("{o: {type: int, reference: '${d.output}'}}", **nodes)
    import meeting

    meeting.lock, meeting.inside, meeting.most = threading.Lock(), 0, 0

    line = run(program, x=1)

    assert line["error"] is None
    assert meeting.most == 2


def test_a_node_begins_when_what_it_refers_to_is_done(dag: Load, run: Run) -> None:
    """`after` needs only `quick`, and `slow` needs `after` to have begun: no wave of nodes waits for its slowest."""
    program = dag(
        "{o: {type: string, reference: '${slow.output}'}}",
        quick=("inputs: {x: '${inputs.x}'}", "def quick(x): return 'quick'"),
        slow=meets("slow"),
        after=("inputs: {q: '${quick.output}'}", "def after(q):\n    meeting.here.wait(30)\n    return q"),
    )

    line = run(program, x=1)

    assert (line["error"], line["output"]) == (None, {"o": "slow"})


def test_a_failure_lets_what_runs_end_and_begins_no_more(dag: Load, run: Run) -> None:
    program = dag(
        a=("inputs: {x: '${inputs.x}'}", "def a(x):\n    meeting.here.wait(30)\n    raise ValueError('of a')"),
        b=meets("b"),
        after=("inputs: {b: '${b.output}'}", "def after(b): return b"),
        c=JOIN,
    )

    line = run(program, x=1)

    assert "of a" in line["error"]["message"]
    states = statuses(line)
    assert (states["a"], states["b"]) == ("Failed", "Completed")
    assert "c" not in states


def test_a_failure_cancels_an_async_node_that_runs(dag: Load) -> None:
    a = "async def a(x):\n    await meeting.meet('a')\n    raise ValueError('of a')"
    b = (
        "async def b(x):\n    log_metric('begun', 1)\n    await meeting.meet('b')\n"
        "    await asyncio.Event().wait()\n    return 'b'"
    )
    program = dag(a=("inputs: {x: '${inputs.x}'}", a), b=("inputs: {x: '${inputs.x}'}", b), c=JOIN)

    line: Any = asyncio.run(asyncio.wait_for(program.run_line_async(7, {"x": 1}), 60))

    assert statuses(line) == {"a": "Failed", "b": "Canceled"}
    assert "of a" in line["error"]["message"]
    assert line["metrics"] == {"begun": 1}


def test_of_two_failures_the_line_has_one_and_the_nodes_both(dag: Load, run: Run) -> None:
    def failing(name: str) -> tuple[str, str]:
        source = f"def {name}(x):\n    meeting.here.wait(30)\n    raise ValueError('of {name}')"
        return "inputs: {x: '${inputs.x}'}", source

    line = run(dag(a=failing("a"), b=failing("b"), c=JOIN), x=1)

    assert statuses(line) == {"a": "Failed", "b": "Failed"}
    assert line["error"] in [node["error"] for node in line["nodes"]]


def test_a_task_that_cancels_itself_fails_its_node(dag: Load) -> None:
    a = "async def a(x):\n    asyncio.current_task().cancel()\n    await asyncio.sleep(0)"
    program = dag(a=("inputs: {x: '${inputs.x}'}", a), b=("inputs: {x: '${inputs.x}'}", "async def b(x): return 'b'"))

    line: Any = asyncio.run(asyncio.wait_for(program.run_line_async(7, {"x": 1}), 60))

    assert statuses(line)["a"] == "Failed"
    assert "CancelledError" in line["error"]["message"]


def test_metrics_belong_to_the_node_that_logged_them(dag: Load, run: Run) -> None:
    def logging(name: str) -> tuple[str, str]:
        source = (
            f"def {name}(x):\n    meeting.here.wait(30)\n    log_metric('{name}', x)\n    meeting.here.wait(30)\n"
            f"    log_metric('last of {name}', x)\n    return '{name}'"
        )
        return "inputs: {x: '${inputs.x}'}", source

    line = run(dag(OUTPUT, a=logging("a"), b=logging("b"), c=JOIN), x=3)

    assert line["error"] is None
    assert {node["node"]: node["metrics"] for node in line["nodes"]} == {
        "a": {"a": 3, "last of a": 3},
        "b": {"b": 3, "last of b": 3},
        "c": {},
    }
    assert line["metrics"] == {"a": 3, "last of a": 3, "b": 3, "last of b": 3}


def test_bypassed_nodes_begin_what_waits_for_them(dag: Load, run: Run) -> None:
    when = "activate: {when: '${inputs.x}', is: 'other'}"
    program = dag(
        OUTPUT,
        a=("inputs: {x: '${inputs.x}'}", "def a(x): return 'a'"),
        skipped=(f"inputs: {{x: '${{inputs.x}}'}}, {when}", "def skipped(x): return 'no'"),
        also=("inputs: {s: '${skipped.output}'}", "def also(s): return 'no'"),
        b=("inputs: {x: '${inputs.x}'}", "def b(x): return 'b'"),
        c=("inputs: {a: '${a.output}', b: '${b.output}', s: '${skipped.output}'}", "def c(a, b, s): return a + b"),
    )

    line = run(program, x="this")

    assert line["error"] is None
    assert line["output"] == {"o": "ab"}
    assert statuses(line) == {
        "a": "Completed",
        "skipped": "Bypassed",
        "also": "Bypassed",
        "b": "Completed",
        "c": "Completed",
    }


def test_a_reference_that_finds_nothing_fails_the_line_and_keeps_what_was_done(dag: Load, run: Run) -> None:
    program = dag(
        a=("inputs: {x: '${inputs.x}'}", "def a(x): return {'k': 1}"),
        b=("inputs: {x: '${inputs.x}'}", "def b(x): return 'b'"),
        c=("inputs: {k: '${a.output.other}', b: '${b.output}'}", "def c(k, b): return k"),
    )

    line = run(program, x=1)

    assert innermost_code(line["error"]) == "InvalidReferenceProperty"
    assert statuses(line) == {"a": "Completed", "b": "Completed"}


def test_records_of_nodes_stand_in_the_order_of_the_flow_whatever_ends_first(dag: Load, run: Run) -> None:
    first = "def a(x):\n    meeting.done.wait(30)\n    return 'a'"
    second = "def b(x):\n    meeting.done.set()\n    return 'b'"
    program = dag(OUTPUT, a=("inputs: {x: '${inputs.x}'}", first), b=("inputs: {x: '${inputs.x}'}", second), c=JOIN)
    import meeting

    meeting.done = threading.Event()

    line = run(program, x=1)

    assert [node["node"] for node in line["nodes"]] == ["a", "b", "c"]


def test_a_line_that_is_cancelled_takes_its_nodes_with_it(dag: Load) -> None:
    hang = "async def {0}(x):\n    await meeting.meet('{0}')\n    try:\n"
    hang += "        await asyncio.Event().wait()\n    finally:\n        meeting.ended.append('{0}')"
    program = dag(**{name: ("inputs: {x: '${inputs.x}'}", hang.format(name)) for name in "ab"})
    import meeting

    meeting.ended = []

    async def cancel_when_both_hang() -> None:
        line = asyncio.create_task(program.run_line_async(7, {"x": 1}))
        await asyncio.wait_for(meeting.both.wait(), 30)
        line.cancel()
        with pytest.raises(asyncio.CancelledError):
            await line
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(cancel_when_both_hang())

    assert sorted(meeting.ended) == ["a", "b"]


def test_lines_share_their_threads(dag: Load) -> None:
    program = dag(OUTPUT, a=meets("a"), b=meets("b"), c=JOIN)
    program.run_line(0, {"x": 1})
    before = set(threading.enumerate())

    for number in range(1, 4):
        program.run_line(number, {"x": 1})

    assert set(threading.enumerate()) == before


def test_an_interrupt_in_a_thread_reaches_the_line(dag: Load) -> None:
    a = "def a(x):\n    meeting.here.wait(30)\n    raise KeyboardInterrupt"
    program = dag(a=("inputs: {x: '${inputs.x}'}", a), b=meets("b"), c=JOIN)

    with pytest.raises(KeyboardInterrupt):
        program.run_line(7, {"x": 1})


def test_streams_reach_nodes_beside_each_other_whole(dag: Load, run: Run) -> None:
    program = dag(
        "{o: {type: string, reference: '${d.output}'}}",
        a=("inputs: {x: '${inputs.x}'}", "def a(x):\n    yield from x"),
        b=("inputs: {s: '${a.output}'}", "def b(s): return ''.join(s)"),
        c=("inputs: {s: '${a.output}'}", "def c(s): return ''.join(s)"),
        d=("inputs: {b: '${b.output}', c: '${c.output}'}", "def d(b, c): return b + c"),
    )

    line = run(program, x=["1", "2"])

    assert (line["error"], line["output"]) == (None, {"o": "1212"})
