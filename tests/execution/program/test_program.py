"""A line through a program, sync and async alike: outputs, failures as data, aggregation."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from datetime import datetime
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.definition.flow import FlowDescription
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import InputMappingError, innermost_code
from prefect_batchflow.execution.program.entry import EntryProgram
from prefect_batchflow.execution.program.loader import load_program
from prefect_batchflow.execution.program.record import encode_record
from prefect_batchflow.execution.program.steps import UserFunction
from prefect_batchflow.promptflow_shim.types import AttrDict
from prefect_batchflow.tools.context import current_context, log_metric

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from prefect_batchflow.execution.program.program import Program

    Load = Callable[..., Program]
    Run = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("fresh_imports")


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a line through either door."""

    def run_line(program: Program, **inputs: Any) -> Any:
        if request.param == "sync":
            return program.run_line(7, inputs)
        return asyncio.run(program.run_line_async(7, inputs))

    return run_line


@pytest.fixture(params=["sync", "async"])
def aggregate(request: pytest.FixtureRequest) -> Run:
    """Run an aggregation through either door, over the JSON of line runs, as it comes from storage."""

    def run_aggregation(program: Program, lines: list[dict[str, Any]]) -> Any:
        stored = json.loads(json.dumps(lines))
        if request.param == "sync":
            return program.aggregate(stored)
        return asyncio.run(program.aggregate_async(stored))

    return run_aggregation


@pytest.fixture
def dag(tmp_path: Path) -> Load:
    """Load a DAG flow with the input `x`: nodes as keyword arguments, yaml lines beside the source of each."""

    def load(outputs: str = "{}", **nodes: tuple[str, str]) -> Program:
        lines = [f"inputs: {{x: {{type: object}}, y: {{type: object}}}}\noutputs: {outputs}\nnodes:\n"]
        for name, (spec, source) in nodes.items():
            text = f"from promptflow.core import log_metric, tool\n@tool\n{dedent(source)}"
            (tmp_path / f"{name}.py").write_text(text)
            lines.append(f"- {{name: {name}, type: python, source: {{path: {name}.py}}, {spec}}}\n")
        (tmp_path / "flow.dag.yaml").write_text("".join(lines))
        return load_program(load_flow(tmp_path))

    return load


def callable_program(target: Any) -> Program:
    return load_program(load_flow(target))


def async_program(target: Any) -> Program:
    """A program of an object that shares its state with the test."""
    description = FlowDescription({}, is_async=True, has_aggregation=False)
    return EntryProgram(description, UserFunction(target, "target", is_async=True), parameters=(), takes_any=True)


def node_of(line: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = [node for node in line["nodes"] if node["node"] == name]
    return found


def completed(*values: dict[str, Any]) -> list[dict[str, Any]]:
    """Completed lines with these aggregation inputs, their input `x` being the line number."""
    return [
        {"line_number": number, "inputs": {"x": number}, "output": {}, "aggregation_inputs": value}
        for number, value in enumerate(values)
    ]


class TestActivate:
    @pytest.mark.parametrize(
        ("when", "expected", "x", "status"),
        [
            ("${inputs.x}", "yes", "yes", "Completed"),
            ("${inputs.x}", "yes", "Yes", "Bypassed"),
            ("${inputs.x}", "1", 1, "Bypassed"),
            ("${inputs.x}", "null", None, "Completed"),
            ("${a.output.go[0]}", "true", True, "Completed"),
            ("${a.output.go[0]}", "true", 2, "Bypassed"),
            ("yes", "yes", 0, "Completed"),
        ],
    )
    def test_a_node_runs_where_its_condition_holds(
        self, dag: Load, run: Run, when: str, expected: str, x: Any, status: str
    ) -> None:
        is_ = "'1'" if expected == "1" else expected
        program = dag(
            "{o: {type: string, reference: '${b.output}'}, deep: {type: string, reference: '${b.output.k}'}}",
            a=("inputs: {x: '${inputs.x}'}", "def a(x): return {'go': [x]}"),
            b=(f"activate: {{when: '{when}', is: {is_}}}", "def b(): return {'k': 1}"),
        )

        line = run(program, x=x, y=1)

        assert (line["status"], node_of(line, "b")["status"]) == ("Completed", status)
        ran = status == "Completed"
        assert line["output"] == {"o": {"k": 1} if ran else None, "deep": 1 if ran else None}
        assert node_of(line, "b")["output"] == line["output"]["o"]

    def test_what_refers_to_bypassed_nodes_only_is_bypassed_too(self, dag: Load, run: Run) -> None:
        program = dag(
            "{o: {type: string, reference: '${last.output}'}}",
            a=("activate: {when: '${inputs.x}', is: 1}", "def a(): return 'a'"),
            b=("activate: {when: '${inputs.x}', is: 2}", "def b(): return 'b'"),
            of_a=("inputs: {a: '${a.output}'}", "def of_a(a): return a * 2"),
            by_a=("activate: {when: '${a.output}', is: a}", "def by_a(): return 'by a'"),
            last=("inputs: {a: '${of_a.output}', b: '${b.output}'}", "def last(a, b='nothing'): return [a, b]"),
        )

        outcomes = {}
        for x in (1, 2, 3):
            line = run(program, x=x, y=1)
            outcomes[x] = ({n["node"]: n["status"][0] for n in line["nodes"]}, line["output"]["o"])

        assert outcomes == {
            1: ({"a": "C", "b": "B", "of_a": "C", "by_a": "C", "last": "C"}, ["aa", "nothing"]),
            2: ({"a": "B", "b": "C", "of_a": "B", "by_a": "B", "last": "C"}, [None, "b"]),
            3: ({"a": "B", "b": "B", "of_a": "B", "by_a": "B", "last": "B"}, None),
        }

    def test_a_condition_that_cannot_be_looked_up_fails_the_line(self, dag: Load, run: Run) -> None:
        program = dag(
            a=("inputs: {x: '${inputs.x}'}", "def a(x): return x"),
            b=("activate: {when: '${a.output.no}', is: 1}", "def b(): return 1"),
        )

        line = run(program, x=1, y=1)

        assert innermost_code(line["error"]) == "InvalidReferenceProperty"

    def test_bypassed_lines_are_none_in_the_aggregation(self, dag: Load, run: Run, aggregate: Run) -> None:
        program = dag(
            a=("activate: {when: '${inputs.x}', is: 1}", "def a(): return 5"),
            total=(
                "aggregation: true, inputs: {a: '${a.output}'}",
                "def total(a): log_metric('lines', len(a)); log_metric('none', a.count(None)); return None",
            ),
            after=("aggregation: true, activate: {when: '${total.output}', is: 1}", "def after(): return 1"),
            behind=("aggregation: true, inputs: {a: '${after.output}'}", "def behind(a): return 1"),
        )
        lines = [{**run(program, x=x, y=1), "line_number": x} for x in range(3)]

        run_info = aggregate(program, lines)

        assert run_info["metrics"] == {"lines": 3, "none": 2}
        statuses = {node["node"]: node["status"] for node in run_info["nodes"]}
        assert statuses == {"total": "Completed", "after": "Bypassed", "behind": "Bypassed"}


class TestLines:
    def test_a_line_goes_through_its_nodes(self, dag: Load, run: Run) -> None:
        program = dag(
            "{o: {type: string, reference: '${b.output}'}, x: {type: string, reference: '${inputs.x}'},"
            " f: {type: string, reference: fixed}}",
            b=("inputs: {v: '${a.output.k[1]}', n: 2}", "def b(v, n): return v * n"),
            a=("inputs: {x: '${inputs.x}'}", "def a(x): return {'k': [0, x]}"),
        )

        line = run(program, x="ab", y=1)

        assert (line["status"], line["error"], line["logs"]) == ("Completed", None, "")
        assert line["output"] == {"o": "abab", "x": "ab", "f": "fixed"}
        assert line["inputs"] == {"x": "ab", "y": 1}
        assert line["aggregation_inputs"] == {}
        assert [(n["node"], n["status"], n["output"]) for n in line["nodes"]] == [
            ("a", "Completed", {"k": [0, "ab"]}),
            ("b", "Completed", "abab"),
        ]
        assert node_of(line, "b")["inputs"] == {"v": "ab", "n": 2}
        assert line["tokens"] == {"total_tokens": 0, "prompt_tokens": 0, "completion_tokens": 0}

    def test_times_are_utc_and_durations_seconds(self, dag: Load, run: Run) -> None:
        line = run(dag(a=("inputs: {}", "def a(): ...")))

        for part in (line, node_of(line, "a")):
            start, end = (datetime.fromisoformat(part[key]) for key in ("start_time", "end_time"))
            assert start.tzinfo is not None
            assert start <= end
            assert 0 <= part["duration_sec"] < 60

    def test_async_and_sync_tools_work_together(self, dag: Load, run: Run) -> None:
        program = dag(
            "{o: {type: string, reference: '${b.output}'}}",
            a=(
                "inputs: {x: '${inputs.x}'}",
                "async def a(x):\n    import asyncio; await asyncio.sleep(0)\n    return x",
            ),
            b=("inputs: {x: '${a.output}'}", "def b(x):\n    import threading\n    return [x, threading.get_ident()]"),
        )

        assert run(program, x=1)["output"]["o"][0] == 1

    def test_sync_tools_do_not_hold_the_event_loop(self, dag: Load) -> None:
        import threading

        program = dag(
            "{o: {type: int, reference: '${a.output}'}}",
            a=("inputs: {}", "def a():\n    import threading\n    return threading.get_ident()"),
        )

        line: Any = asyncio.run(program.run_line_async(0, {}))

        assert line["output"]["o"] != threading.get_ident()

    def test_many_lines_run_at_once(self) -> None:
        everyone = asyncio.Barrier(20)

        async def meet(n: int) -> int:
            await everyone.wait()
            log_metric("n", n)
            return n

        async def lines() -> Any:
            program = async_program(meet)
            return await asyncio.gather(*(program.run_line_async(n, {"n": n}) for n in range(20)))

        records = asyncio.run(asyncio.wait_for(lines(), 30))

        assert [(r["output"], r["metrics"]) for r in records] == [({"output": n}, {"n": n}) for n in range(20)]

    def test_metrics_belong_to_node_and_line(self, dag: Load, run: Run) -> None:
        program = dag(
            a=("inputs: {}", "def a(): log_metric('m', 1); log_metric('a', 1)"),
            b=("inputs: {v: '${a.output}'}", "def b(v): log_metric('m', 2)"),
        )

        line = run(program)

        assert line["metrics"] == {"m": 2, "a": 1}
        assert node_of(line, "a")["metrics"] == {"m": 1, "a": 1}
        assert node_of(line, "b")["metrics"] == {"m": 2}

    def test_the_record_keeps_inputs_that_the_code_changed(self, dag: Load, run: Run) -> None:
        program = dag(a=("inputs: {x: '${inputs.x}'}", "def a(x): x['deep'].append(1); x['new'] = 2"))

        line = run(program, x={"deep": [0]})

        assert line["inputs"] == {"x": {"deep": [0]}}

    def test_deeply_nested_inputs_pass(self, run: Run) -> None:
        deep: Any = 1
        for _ in range(380):
            deep = [deep]

        line = run(callable_program(lambda x: {"same": x}), x=deep)

        assert line["output"] == {"same": deep}

    def test_what_aggregation_needs_is_kept_by_reference(self, dag: Load, run: Run) -> None:
        program = dag(
            a=("inputs: {}", "def a(): return {'grade': 1}"),
            s=(
                "inputs: {all: '${a}', grades: '${a.output.grade}', xs: '${inputs.x}'}, aggregation: true",
                "def s(**v): ...",
            ),
            t=("inputs: {all: '${a.output}', s: '${s.output}'}, aggregation: true", "def t(**v): ..."),
        )

        line = run(program, x=1)

        assert line["aggregation_inputs"] == {"${a.output}": {"grade": 1}, "${a.output.grade}": 1}
        assert [node["node"] for node in line["nodes"]] == ["a"]


class TestReferences:
    @pytest.mark.parametrize(
        ("returned", "reference", "value"),
        [
            ("{'a': {'b': [1, {'k l': 2}]}}", "${a.output.a.b[1]['k l']}", 2),
            ("{'items': 3}", "${a.output.items}", 3),
            ("1j", "${a.output.imag}", 1.0),
            ("__import__('collections').UserDict(k=4)", "${a.output['k']}", 4),
        ],
    )
    def test_they_reach_keys_attributes_and_indexes(
        self, dag: Load, returned: str, reference: str, value: object
    ) -> None:
        output = json.dumps({"o": {"type": "object", "reference": reference}})

        line = dag(output, a=("inputs: {}", f"def a(): return {returned}")).run_line(0, {})

        assert line["output"] == {"o": value}

    @pytest.mark.parametrize(
        ("returned", "path", "found"),
        [
            ("{'a': 1, 'b': 2}", ".c", "no 'c' in a dict with the keys 'a', 'b' (KeyError)"),
            ("{}", ".c", "no 'c' in a dict with the keys (none) (KeyError)"),
            ("None", ".c", "no 'c' in None (TypeError)"),
            ("[1]", "[1]", "no 1 in a list (IndexError)"),
            ("'text'", ".c", "no 'c' in a str (TypeError)"),
            ("(n for n in [1])", ".c", "no 'c' in a generator (TypeError)"),
            ("type('T', (), {'c': property(lambda self: 1 / 0)})()", ".c", "no 'c' in a T (ZeroDivisionError)"),
        ],
    )
    def test_what_is_not_there_fails_the_line_by_name(
        self, dag: Load, run: Run, returned: str, path: str, found: str
    ) -> None:
        program = dag(
            a=("inputs: {}", f"def a(): return {returned}"),
            b=(f"inputs: {{v: '${{a.output{path}}}'}}", "def b(v): ..."),
        )

        line = run(program)

        assert line["status"] == "Failed"
        assert innermost_code(line["error"]) == "InvalidReferenceProperty"
        assert line["error"]["message"].startswith(f"${{a.output{path}}}: {found}. Correct the reference")
        assert [(n["node"], n["status"]) for n in line["nodes"]] == [("a", "Completed")]

    @pytest.mark.parametrize("place", ["output", "aggregation"])
    def test_they_fail_the_line_in_outputs_and_for_aggregation_too(self, dag: Load, run: Run, place: str) -> None:
        outputs = "{o: {type: int, reference: '${a.output.c}'}}" if place == "output" else "{}"
        program = dag(
            outputs,
            a=("inputs: {}", "def a(): return {}"),
            s=("inputs: {c: '${a.output.c}'}, aggregation: true", "def s(c): ..."),
        )

        line = run(program)

        assert innermost_code(line["error"]) == "InvalidReferenceProperty"
        assert (line["output"], line["aggregation_inputs"]) == (None, {})

    def test_an_input_the_line_lacks_fails_it(self, dag: Load, run: Run) -> None:
        line = run(dag(a=("inputs: {x: '${inputs.x}'}", "def a(x): ...")))

        assert innermost_code(line["error"]) == "InputNotFound"
        assert "no input 'x'" in line["error"]["message"]


class TestFailures:
    def test_a_node_that_raises_fails_the_line_as_promptflow_says_it(self, dag: Load, run: Run, tmp_path: Path) -> None:
        program = dag(
            a=("inputs: {}", "def a(): log_metric('m', 1)\n"),
            b=("inputs: {v: '${a.output}'}", "def b(v):\n    log_metric('m', 2)\n    raise KeyError('k')"),
            c=("inputs: {v: '${b.output}'}", "def c(v): ..."),
        )

        line = run(program)

        error = line["error"]
        assert (line["status"], line["output"], line["metrics"]) == ("Failed", None, {"m": 2})
        assert [(n["node"], n["status"]) for n in line["nodes"]] == [("a", "Completed"), ("b", "Failed")]
        assert node_of(line, "b")["error"] == error
        assert error["message"] == "Execution failure in 'b': (KeyError) 'k'"
        assert (error["code"], innermost_code(error), error["referenceCode"]) == (
            "UserError",
            "ToolExecutionError",
            "Tool",
        )
        ((kind, info),) = [(entry["type"], entry["info"]) for entry in error["additionalInfo"]]
        assert kind == "ToolExecutionErrorDetails"
        assert info.pop("traceback") == (
            "Traceback (most recent call last):\n"
            f'  File "{tmp_path / "b.py"}", line 5, in b\n'
            "    raise KeyError('k')\n"
            "KeyError: 'k'\n"
        )
        assert info == {
            "type": "KeyError",
            "message": "'k'",
            "filename": str(tmp_path / "b.py"),
            "lineno": 5,
            "name": "b",
        }

    def test_a_callable_that_raises_fails_the_line_as_promptflow_says_it(self, run: Run) -> None:
        class Flow:
            def __call__(self, x: str) -> None:
                raise ValueError("bad " + x)

        line = run(callable_program(Flow()), x="1")

        name = "TestFailures.test_a_callable_that_raises_fails_the_line_as_promptflow_says_it.<locals>.Flow.__call__"
        assert line["error"]["message"] == f"Execution failure in '{name}': (ValueError) bad 1"
        assert innermost_code(line["error"]) == "ScriptExecutionError"
        assert line["error"]["additionalInfo"][0]["type"] == "FlexFlowExecutionErrorDetails"
        assert set(line["error"]["additionalInfo"][0]["info"]) == {"type", "message", "traceback"}
        assert line["nodes"] == []

    def test_a_missing_argument_is_pythons_type_error(self, run: Run) -> None:
        line = run(callable_program(lambda a, b: a), a=1)

        assert "(TypeError)" in line["error"]["message"]
        assert "missing 1 required positional argument: 'b'" in line["error"]["message"]
        assert "prefect_batchflow" not in line["error"]["additionalInfo"][0]["info"]["traceback"]

    @pytest.mark.parametrize(
        ("statement", "code", "text"),
        [
            ("raise SystemExit(3)", "ScriptExecutionError", "(SystemExit) 3; the code called sys.exit()"),
            ("raise SystemExit", "ScriptExecutionError", "(SystemExit) 0; the code called sys.exit()"),
            ("raise MemoryError", "LineOutOfMemoryError", "(MemoryError) the line needed more memory"),
            ("raise StopIteration(5)", "ScriptExecutionError", "(StopIteration) 5"),
            ("raise GeneratorExit", "ScriptExecutionError", "(GeneratorExit)"),
            ("raise BaseException('odd')", "ScriptExecutionError", "(BaseException) odd"),
            ("raise TimeoutError('own')", "ScriptExecutionError", "(TimeoutError) own"),
            ("f = lambda: f(); f()", "ScriptExecutionError", "(RecursionError)"),
        ],
    )
    def test_whatever_code_raises_is_a_failed_line(
        self, tmp_path: Path, run: Run, statement: str, code: str, text: str
    ) -> None:
        (tmp_path / "raising.py").write_text(f"def go():\n    global f\n    {statement}\n")

        line = run(load_program(load_flow(f"{tmp_path / 'raising.py'}:go")))

        assert line["status"] == "Failed"
        assert innermost_code(line["error"]) == code
        assert text in line["error"]["message"]
        assert json.dumps(line)

    def test_the_packages_own_exceptions_are_wrapped_like_any(self, run: Run) -> None:
        def go() -> None:
            raise InputMappingError("mine")

        line = run(callable_program(go))

        assert innermost_code(line["error"]) == "ScriptExecutionError"
        assert "(InputMappingError) mine" in line["error"]["message"]

    def test_an_exception_that_cannot_say_what_it_is_still_fails_one_line(self, run: Run) -> None:
        class MuteError(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no")

        def go() -> None:
            raise MuteError

        line = run(callable_program(go))

        assert "(MuteError) no text, because its __str__ raised RuntimeError" in line["error"]["message"]

    def test_a_long_text_is_shortened(self, run: Run) -> None:
        def go() -> None:
            raise ValueError("x" * 10_000_000)

        line = run(callable_program(go))

        assert "9,980,000 characters left out" in line["error"]["message"]
        assert len(encode_record(line)) < 100_000

    def test_an_interrupt_passes(self, run: Run) -> None:
        def go() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(callable_program(go))

    def test_a_cancellation_passes_and_the_line_is_over(self) -> None:
        reached = asyncio.Event()

        async def hang() -> None:
            reached.set()
            await asyncio.Event().wait()

        async def cancel() -> None:
            task = asyncio.create_task(async_program(hang).run_line_async(0, {}))
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(asyncio.wait_for(cancel(), 30))

        assert current_context() is None


class TestStreams:
    def test_a_generator_is_joined_in_an_output(self, dag: Load, run: Run) -> None:
        program = dag(
            "{o: {type: string, reference: '${a.output}'}}",
            a=("inputs: {}", "def a():\n    yield 'a'\n    yield 1"),
        )

        line = run(program)

        assert line["output"] == {"o": "a1"}
        assert node_of(line, "a")["output"] == "a1"

    def test_an_async_generator_is_joined_in_an_output(self, dag: Load, run: Run) -> None:
        program = dag(
            "{o: {type: string, reference: '${a.output}'}}",
            a=("inputs: {}", "async def a():\n    yield 'a'\n    yield 1"),
        )

        assert run(program)["output"] == {"o": "a1"}

    def test_every_reader_of_a_generator_gets_the_whole(self, dag: Load, run: Run) -> None:
        """promptflow gives the flow an empty output once a node has read the generator."""
        program = dag(
            "{o: {type: string, reference: '${a.output}'}, p: {type: string, reference: '${b.output}'}}",
            a=("inputs: {}", "def a():\n    yield 'a'\n    yield 'b'"),
            b=("inputs: {s: '${a.output}', t: '${a.output}'}", "def b(s, t): return [next(s), *s, *t]"),
            g=("inputs: {s: '${a.output}'}, aggregation: true", "def g(s): ..."),
        )

        line = run(program)

        assert line["output"] == {"o": "ab", "p": ["a", "b", "a", "b"]}
        assert node_of(line, "b")["inputs"] == {"s": "ab", "t": "ab"}
        assert line["aggregation_inputs"] == {"${a.output}": "ab"}

    def test_an_async_reader_gets_an_async_generator(self, dag: Load, run: Run) -> None:
        program = dag(
            "{o: {type: string, reference: '${b.output}'}}",
            a=("inputs: {}", "async def a():\n    yield 1\n    yield 2"),
            b=("inputs: {s: '${a.output}'}", "async def b(s): return [n async for n in s]"),
        )

        assert run(program)["output"] == {"o": [1, 2]}

    def test_a_generator_that_raises_fails_its_node(self, dag: Load, run: Run) -> None:
        program = dag(a=("inputs: {}", "def a():\n    yield 1\n    raise OSError('gone')"))

        line = run(program)

        assert line["error"]["message"] == "Execution failure in 'a': (OSError) gone"
        assert node_of(line, "a")["status"] == "Failed"

    def test_streams_in_a_callables_dict_are_joined(self, run: Run) -> None:
        async def chunks() -> AsyncIterator[str]:
            yield "x"
            yield "y"

        def go() -> dict[str, Any]:
            return {"sync": iter(["a", 1]), "async": chunks(), "plain": [1]}

        assert run(callable_program(go))["output"] == {"sync": "a1", "async": "xy", "plain": [1]}

    def test_a_stream_of_a_library_is_joined_where_it_is_an_output(self, dag: Load, run: Run) -> None:
        program = dag(
            "{o: {type: string, reference: '${a.output.stream}'}}",
            a=("inputs: {}", "def a(): return {'stream': map(str, [1, 2])}"),
        )

        assert run(program)["output"] == {"o": "12"}

    @pytest.mark.parametrize("kind", ["dag", "callable"])
    def test_a_stream_that_raises_fails_the_line(self, dag: Load, run: Run, kind: str) -> None:
        def go() -> dict[str, Any]:
            return {"stream": map(int, ["x"])}

        program = (
            dag(
                "{o: {type: string, reference: '${a.output.stream}'}}",
                a=("inputs: {}", "def a(): return {'stream': map(int, ['x'])}"),
            )
            if kind == "dag"
            else callable_program(go)
        )

        line = run(program)

        assert line["status"] == "Failed"
        assert "(ValueError) invalid literal for int()" in line["error"]["message"]

    def test_a_plain_function_may_return_a_coroutine(self, run: Run) -> None:
        async def answer() -> int:
            return 42

        assert run(callable_program(lambda: answer()))["output"] == {"output": 42}

    def test_a_sync_line_with_async_code_runs_inside_a_loop_too(self) -> None:
        async def answer() -> int:
            log_metric("m", 1)
            return 42

        async def caller() -> Any:
            return callable_program(lambda: answer()).run_line(0, {})

        line = asyncio.run(caller())

        assert (line["output"], line["metrics"]) == ({"output": 42}, {"m": 1})


@dataclass
class Answer:
    text: Any
    score: float = 0.5


class TestOutputs:
    @pytest.mark.parametrize(
        ("returned", "output"),
        [
            ({"a": 1}, {"a": 1}),
            ({}, {}),
            (None, {"output": None}),
            ("text", {"output": "text"}),
            ([1], {"output": [1]}),
            (math.inf, {"output": math.inf}),
            (Answer("x"), {"text": "x", "score": 0.5}),
        ],
    )
    def test_a_callables_result_becomes_a_dict(self, run: Run, returned: Any, output: dict[str, Any]) -> None:
        assert run(callable_program(lambda: returned))["output"] == output

    def test_a_generator_in_a_dataclass_is_joined(self, run: Run) -> None:
        def go() -> Answer:
            return Answer(str(n) for n in range(3))

        assert run(callable_program(go))["output"] == {"text": "012", "score": 0.5}

    def test_a_callables_metrics_are_the_lines(self, run: Run) -> None:
        assert run(callable_program(lambda: log_metric("m", 1)))["metrics"] == {"m": 1}

    def test_a_line_run_can_be_encoded_as_it_comes(self, run: Run) -> None:
        line = run(callable_program(lambda x: {"y": x}), x="é")

        assert json.loads(encode_record(line)) == line


class TestAggregation:
    def test_lines_come_as_lists_in_order_of_their_numbers(self, dag: Load, aggregate: Run) -> None:
        program = dag(
            a=("inputs: {}", "def a(): ..."),
            s=(
                "inputs: {g: '${a.output.grade}', x: '${inputs.x}', y: '${inputs.y}', k: 3}, aggregation: true",
                "def s(g, x, y, k):\n    log_metric('n', len(g))\n    return {'all': [g, x, y, k]}",
            ),
            t=("inputs: {v: '${s.output.all}'}, aggregation: true", "def t(v): log_metric('t', v)"),
        )
        lines = completed({"${a.output.grade}": "a"}, {"${a.output.grade}": "b"}, {})

        result = aggregate(program, lines[::-1])

        assert result["metrics"] == {"n": 3, "t": [["a", "b", None], [0, 1, 2], [None] * 3, 3]}
        assert (result["output"], result["error"]) == ({}, None)
        assert [(n["node"], n["status"]) for n in result["nodes"]] == [("s", "Completed"), ("t", "Completed")]

    def test_no_completed_lines_give_empty_lists(self, dag: Load, aggregate: Run) -> None:
        program = dag(
            a=("inputs: {}", "def a(): ..."),
            s=("inputs: {g: '${a.output}'}, aggregation: true", "def s(g): log_metric('n', len(g))"),
        )

        assert aggregate(program, [])["metrics"] == {"n": 0}

    def test_a_node_that_fails_keeps_its_metrics_and_stops_only_what_needs_it(self, dag: Load, aggregate: Run) -> None:
        program = dag(
            bad=("inputs: {x: '${inputs.x}'}, aggregation: true", "def bad(x):\n    log_metric('m', 1)\n    1 / 0"),
            after=("inputs: {v: '${bad.output}'}, aggregation: true", "def after(v): log_metric('after', 1)"),
            last=("inputs: {v: '${after.output}'}, aggregation: true", "def last(v): log_metric('last', 1)"),
            other=("inputs: {x: '${inputs.x}'}, aggregation: true", "def other(x): log_metric('other', len(x))"),
        )

        result = aggregate(program, completed({}, {}))

        assert result["metrics"] == {"m": 1, "other": 2}
        assert [(n["node"], n["status"]) for n in result["nodes"]] == [("bad", "Failed"), ("other", "Completed")]
        assert node_of(result, "bad")["error"]["message"].startswith("Execution failure in 'bad': (ZeroDivisionError)")

    def test_a_reference_that_leads_nowhere_fails_the_node(self, dag: Load, aggregate: Run) -> None:
        program = dag(
            a=("inputs: {x: '${inputs.x}'}, aggregation: true", "def a(x): return {}"),
            b=("inputs: {v: '${a.output.nothing}'}, aggregation: true", "def b(v): ..."),
        )

        result = aggregate(program, completed({}))

        assert innermost_code(node_of(result, "b")["error"]) == "InvalidReferenceProperty"

    def test_an_async_aggregation_node_works_in_a_sync_flow(self, dag: Load, aggregate: Run) -> None:
        program = dag(s=("inputs: {x: '${inputs.x}'}, aggregation: true", "async def s(x): log_metric('sum', sum(x))"))

        assert not program.description.is_async
        assert aggregate(program, completed({}, {}, {}))["metrics"] == {"sum": 3}

    def test_threads_of_an_aggregation_node_log_metrics(self, dag: Load, aggregate: Run) -> None:
        program = dag(
            s=(
                "inputs: {x: '${inputs.x}'}, aggregation: true",
                """
                def s(x):
                    from threading import Thread
                    thread = Thread(target=log_metric, args=("n", len(x)))
                    thread.start()
                    thread.join()
                """,
            )
        )

        assert aggregate(program, completed({}, {}))["metrics"] == {"n": 2}

    def test_a_class_gets_what_its_calls_returned(self, run: Run, aggregate: Run) -> None:
        class Flow:
            def __call__(self, x: Any) -> Any:
                return x

            def __aggregate__(self, results: list[Any]) -> dict[str, Any]:
                log_metric("logged", len(results))
                return {"kinds": [type(result).__name__ for result in results], "grade": results[0].grade}

        program = callable_program(Flow())
        values = [{"grade": 1}, 5, {"output": 6}, None, ["a"]]
        lines = [run(program, x=value) | {"line_number": n} for n, value in enumerate(values)]

        result = aggregate(program, lines)

        expected = {"kinds": ["AttrDict", "int", "AttrDict", "NoneType", "list"], "grade": 1}
        assert result == {"output": expected, "metrics": {"logged": 5} | expected, "nodes": [], "error": None}

    @pytest.mark.parametrize(
        ("returned", "output"), [(None, {}), (5, {"output": 5}), ({}, {})], ids=["none", "number", "empty"]
    )
    def test_a_class_that_returns_no_dict_has_no_metrics(
        self, aggregate: Run, returned: Any, output: dict[str, Any]
    ) -> None:
        class Flow:
            def __call__(self) -> None: ...

            async def __aggregate__(self, results: list[Any]) -> Any:
                return returned

        result = aggregate(callable_program(Flow()), completed({}))

        assert (result["output"], result["metrics"], result["error"]) == (output, {}, None)

    def test_a_class_whose_aggregation_raises_says_so(self, aggregate: Run) -> None:
        """promptflow hides it in the log."""

        class Flow:
            def __call__(self) -> None: ...

            def __aggregate__(self, results: list[Any]) -> None:
                log_metric("before", 1)
                raise ValueError("no lines")

        result = aggregate(callable_program(Flow()), [])

        assert result["error"]["message"].endswith("Flow.__aggregate__': (ValueError) no lines")
        assert innermost_code(result["error"]) == "ScriptExecutionError"
        assert (result["output"], result["metrics"]) == ({}, {"before": 1})

    def test_a_function_has_nothing_to_aggregate(self, aggregate: Run) -> None:
        result = aggregate(callable_program(lambda: 1), completed({}))

        assert result == {"output": {}, "metrics": {}, "nodes": [], "error": None}

    def test_an_output_has_its_keys_as_attributes(self) -> None:
        output = AttrDict({"grade": 1, "items": 2})
        output.more = 3

        assert (output.grade, output["items"], output["more"]) == (1, 2, 3)
        with pytest.raises(AttributeError, match=r"There is no key 'score'\. Keys: 'grade', 'items', 'more'"):
            output.score  # noqa: B018 - reading it is the test
