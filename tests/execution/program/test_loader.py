"""A flow becomes a program: code imported once, tools found and checked, classes built, inputs described."""

from __future__ import annotations

import functools
import importlib
import pickle
import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from tool_package import install_package

from prefect_batchflow import promptflow_shim
from prefect_batchflow.definition.flow import FlowInput
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import (
    FlowEntryInitializationError,
    InvalidAggregationFunction,
    InvalidOptionError,
    PythonLoadError,
    ResolveToolError,
    UnsupportedFeatureError,
)
from prefect_batchflow.execution.program.loader import load_program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefect_batchflow.execution.program.program import Program

    Load = Callable[..., Program]


pytestmark = pytest.mark.usefixtures("fresh_imports")


@pytest.fixture
def node(tmp_path: Path) -> Load:
    """Load a flow of one node `a` whose source is given, with these inputs in its yaml."""

    def load(
        source: str, inputs: str = "{x: '${inputs.x}'}", chosen: dict[str, str] | None = None, **more: Any
    ) -> Program:
        (tmp_path / "tool.py").write_text(dedent(source))
        (tmp_path / "flow.dag.yaml").write_text(
            "inputs: {x: {type: string}}\n"
            "outputs: {out: {type: string, reference: '${a.output}'}}\n"
            f"nodes: [{{name: a, type: python, source: {{type: code, path: tool.py}}, inputs: {inputs}}}]\n"
        )
        flow = load_flow(tmp_path, node_connections={"a": chosen} if chosen else None)
        return load_program(flow, **more)

    return load


@pytest.fixture
def entry(tmp_path: Path) -> Load:
    """Load a flex flow whose entry is `Run` of the given source."""

    def load(
        source: str,
        yaml: str = "",
        init_kwargs: dict[str, Any] | None = None,
        connections: dict[str, Any] | None = None,
    ) -> Program:
        (tmp_path / "main_module.py").write_text(dedent(source))
        (tmp_path / "flow.flex.yaml").write_text(f"entry: main_module:Run\n{dedent(yaml)}")
        return load_program(load_flow(tmp_path), init_kwargs, connections)

    return load


def output(program: Program, **inputs: Any) -> Any:
    line = program.run_line(0, inputs)
    assert line["error"] is None
    return line["output"]


class TestNodes:
    def test_a_tool_is_found_by_its_mark(self, node: Load) -> None:
        program = node("""
            from promptflow.core import tool

            def helper(x): return x

            @tool
            def shout(x: str) -> str: return helper(x).upper()
        """)

        assert output(program, x="abc") == {"out": "ABC"}
        assert program.description.inputs == {"x": FlowInput("x", "string")}
        assert not program.description.is_async
        assert not program.description.has_aggregation

    def test_an_async_tool_makes_the_flow_async(self, node: Load) -> None:
        program = node("""
            from promptflow.core import tool
            @tool
            async def shout(x): return x
        """)

        assert program.description.is_async

    def test_helpers_beside_the_tool_are_imported(self, node: Load, tmp_path: Path) -> None:
        (tmp_path / "helper_of_test.py").write_text("def shout(x): return x + '!'\n")

        program = node("""
            from promptflow.core import tool
            import helper_of_test
            @tool
            def run(x): return helper_of_test.shout(x)
        """)

        assert output(program, x="a") == {"out": "a!"}
        assert sys.path[0] == str(tmp_path)

    def test_an_imported_tool_is_not_the_files_own(self, node: Load, tmp_path: Path) -> None:
        (tmp_path / "other_tool.py").write_text("from promptflow.core import tool\n@tool\ndef other(x): return x\n")

        program = node("""
            from promptflow.core import tool
            from other_tool import other
            @tool
            def run(x): return other(x) * 2
            alias = run
        """)

        assert output(program, x="a") == {"out": "aa"}

    def test_classes_of_a_source_can_be_pickled(self, node: Load) -> None:
        program = node("""
            from __future__ import annotations
            import pickle
            from dataclasses import dataclass
            from promptflow.core import tool

            @dataclass
            class Point:
                x: str

            @tool
            def run(x): return pickle.loads(pickle.dumps(Point(x))).x
        """)

        assert output(program, x="a") == {"out": "a"}

    def test_a_file_is_imported_once_however_many_nodes_use_it(self, tmp_path: Path) -> None:
        (tmp_path / "tool.py").write_text(
            "from pathlib import Path\n"
            "from promptflow.core import tool\n"
            "with Path(__file__).with_suffix('.log').open('a') as log: log.write('x')\n"
            "@tool\ndef run(x): return x\n"
        )
        (tmp_path / "flow.dag.yaml").write_text(
            "inputs: {x: {type: string}}\n"
            "nodes:\n"
            "- {name: a, type: python, source: {path: tool.py}, inputs: {x: 1}}\n"
            "- {name: b, type: python, source: {path: ./tool.py}, inputs: {x: 2}}\n"
        )

        load_program(load_flow(tmp_path))

        assert (tmp_path / "tool.log").read_text() == "x"

    def test_a_source_named_as_a_standard_module_hides_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "colorsys.py").write_text("from promptflow.core import tool\n@tool\ndef run(x): return x\n")
        (tmp_path / "flow.dag.yaml").write_text(
            "inputs: {x: {type: string}}\n"
            "nodes: [{name: a, type: python, source: {path: colorsys.py}, inputs: {x: 1}}]\n"
        )
        standard = importlib.import_module("colorsys")

        load_program(load_flow(tmp_path))

        assert sys.modules["colorsys"] is standard

    def test_no_tool_lists_the_functions(self, node: Load) -> None:
        with pytest.raises(
            ResolveToolError, match=r"Node 'a': .*tool\.py has no function with @tool\. Its functions: run"
        ):
            node("def run(x): ...")

    def test_several_tools_are_listed(self, node: Load) -> None:
        with pytest.raises(ResolveToolError, match="has 2 functions with @tool: one, two"):
            node("""
                from promptflow.core import tool
                @tool
                def two(): ...
                @tool
                def one(): ...
            """)

    @pytest.mark.parametrize(
        ("source", "text"),
        [
            (
                "import no_such_module_here",
                r"\(ModuleNotFoundError\).*Install the package that has 'no_such_module_here'",
            ),
            (
                "from promptflow.core import Nothing",
                r"\(ImportError\) prefect_batchflow does not provide promptflow\.core\.Nothing",
            ),
            ("def broken(:", r"\(SyntaxError\)"),
            ("1 / 0", r"\(ZeroDivisionError\) division by zero"),
            ("raise SystemExit(3)", r"\(SystemExit\) 3; the code called sys\.exit\(\)"),
        ],
    )
    def test_a_source_that_cannot_be_imported(self, node: Load, source: str, text: str) -> None:
        with pytest.raises(
            PythonLoadError, match=rf"tool\.py, the source of node 'a', cannot be imported: {text}"
        ) as caught:
            node(source)

        details = caught.value.additional_info["PythonLoadErrorDetails"]
        assert "prefect_batchflow/execution" not in details["traceback"]
        assert not any(name == "tool" or ".made_up." in name for name in sys.modules)

    def test_an_interrupt_stays_one(self, node: Load) -> None:
        with pytest.raises(KeyboardInterrupt):
            node("raise KeyboardInterrupt")

    def test_a_source_that_went_away(self, tmp_path: Path) -> None:
        (tmp_path / "tool.py").touch()
        (tmp_path / "flow.dag.yaml").write_text(
            "inputs: {x: {type: string}}\nnodes: [{name: a, type: python, source: {path: tool.py}}]\n"
        )
        flow = load_flow(tmp_path)
        (tmp_path / "tool.py").unlink()

        with pytest.raises(PythonLoadError, match=r"node 'a' does not exist: .*tool\.py"):
            load_program(flow)


class TestLiterals:
    @pytest.mark.parametrize(
        ("parameter", "literal", "value"),
        [
            ("p: int", "'5'", 5),
            ("p: 'int'", "'5'", 5),
            ("p: float", "2", 2.0),
            ("p: bool", "'False'", False),
            ("p: str", "5", "5"),
            ("p: list", "'[1, 2]'", [1, 2]),
            ("p: dict", "'{\"a\": 1}'", {"a": 1}),
            ("p: Optional[int]", "'5'", 5),
            ("p: int | None", "'5'", 5),
            ("p: Union[int, str]", "'x'", "x"),
            ("p: Color", "red", "red"),
            ("p=1.5", "'2'", 2.0),
            ("p", "'text'", "text"),
            ("p", "'[1]'", [1]),
            ("p: OnlyForTypeCheckers", "text", "text"),
            ("**p", "'5'", {"p": "5"}),
            ("p: Secret", "'123'", "123"),
            ("p: PromptTemplate", "'123'", "123"),
            ("p: FilePath", "'123'", "123"),
            ("p: 'Secret'", "'123'", "123"),
            ("p: Row", "'{\"a\": 1}'", {"a": 1}),
            ("p: list[int]", "'[1]'", [1]),
        ],
    )
    def test_they_become_the_parameters_type(self, node: Load, parameter: str, literal: str, value: Any) -> None:
        program = node(
            f"""
            from dataclasses import dataclass
            from enum import Enum
            from typing import Optional, Union
            from promptflow.contracts.types import FilePath, PromptTemplate, Secret
            from promptflow.core import tool
            @dataclass
            class Row:
                a: int
            class Color(Enum):
                red = "red"
            @tool
            def run({parameter.replace("OnlyForTypeCheckers", "'OnlyForTypeCheckers'")}): return p
            """,
            f"{{p: {literal}}}",
        )

        found = output(program)["out"]

        assert (found, type(found)) == (value, type(value))

    def test_one_that_does_not_fit_is_refused_on_load(self, node: Load) -> None:
        with pytest.raises(ResolveToolError, match=r"Node 'a': the tool 'run' of .*input 'x' is 'five': .*type int"):
            node("from promptflow.core import tool\n@tool\ndef run(x: int): ...\n", "{x: five}")

    @pytest.mark.parametrize("literal", ["''", "null", ""])
    def test_an_empty_one_leaves_the_tools_default(self, node: Load, literal: str) -> None:
        program = node("from promptflow.core import tool\n@tool\ndef run(x='default'): return x\n", f"{{x: {literal}}}")

        assert output(program) == {"out": "default"}

    def test_a_list_is_new_for_each_line(self, node: Load) -> None:
        program = node(
            "from promptflow.core import tool\n@tool\ndef run(x):\n    x.append(1)\n    return len(x)\n", "{x: [[0]]}"
        )

        assert [output(program), output(program)] == [{"out": 2}, {"out": 2}]

    @pytest.mark.parametrize(
        ("signature", "inputs", "text"),
        [
            ("x, y", "{x: 1}", "needs 'y', which the node's inputs lack. Parameters: "),
            ("x", "{x: ''}", r"needs 'x', which the node's inputs lack \(an empty value counts as none\)"),
            ("x", "{x: 1, z: 2}", "has no parameter 'z'"),
            ("x, *y", "{x: 1, y: 2}", "has no parameter 'y'"),
            ("*, x, y", "{z: 1}", "has no parameter 'z'; it needs 'x'.*; it needs 'y'"),
        ],
    )
    def test_inputs_that_do_not_fit_the_tool_are_refused_on_load(
        self, node: Load, signature: str, inputs: str, text: str
    ) -> None:
        with pytest.raises(ResolveToolError, match=text):
            node(f"from promptflow.core import tool\n@tool\ndef run({signature}): ...\n", inputs)

    def test_a_tool_that_takes_everything_gets_everything(self, node: Load) -> None:
        program = node(
            "from promptflow.core import tool\n@tool\ndef run(**all): return all\n", "{x: '${inputs.x}', n: 3}"
        )

        assert output(program, x="a") == {"out": {"x": "a", "n": 3}}


class TestToolClasses:
    SOURCE = """
        from promptflow.core import ToolProvider, tool
        class Counter(ToolProvider):
            def __init__(self, start: int, label: str = "n"):
                super().__init__()
                self.count, self.label = start, label
            @tool
            def run(self, x: str, times: int = 2):
                self.count += 1
                return f"{self.label}{self.count} {x * times}"
    """

    def test_the_nodes_inputs_are_divided_and_it_is_built_once(self, node: Load) -> None:
        program = node(self.SOURCE, "{x: '${inputs.x}', start: '5', label: '', times: '3'}")

        assert [output(program, x="a"), output(program, x="b")] == [{"out": "n6 aaa"}, {"out": "n7 bbb"}]

    def test_an_async_method_makes_the_flow_async(self, node: Load) -> None:
        program = node("""
            from promptflow import ToolProvider, tool
            class Mine(ToolProvider):
                @tool
                async def run(self, x): return x
        """)

        assert program.description.is_async

    def test_two_nodes_have_two_objects(self, tmp_path: Path) -> None:
        (tmp_path / "tool.py").write_text(dedent(self.SOURCE))
        (tmp_path / "flow.dag.yaml").write_text(
            "inputs: {x: {type: string}}\n"
            "outputs: {a: {reference: '${a.output}'}, b: {reference: '${b.output}'}}\n"
            "nodes:\n"
            "- {name: a, type: python, source: {path: tool.py}, inputs: {x: '${inputs.x}', start: 1}}\n"
            "- {name: b, type: python, source: {path: tool.py}, inputs: {x: '${inputs.x}', start: 7}}\n"
        )

        assert output(load_program(load_flow(tmp_path)), x="z") == {"a": "n2 zz", "b": "n8 zz"}

    @pytest.mark.parametrize(
        ("inputs", "text"),
        [
            pytest.param("{x: a}", "its class Counter needs 'start'", id="missing"),
            pytest.param("{x: a, start: five}", "input 'start' is 'five': expected .* type int", id="of another type"),
            pytest.param("{x: a, start: '${inputs.x}'}", "which is built once, before any line", id="a reference"),
            pytest.param("{start: 1}", "needs 'x', which the node's inputs lack", id="the method's own"),
            pytest.param("{x: a, start: 1, y: 2}", "has no parameter 'y'", id="unknown"),
        ],
    )
    def test_inputs_that_do_not_fit_are_refused_on_load(self, node: Load, inputs: str, text: str) -> None:
        with pytest.raises(ResolveToolError, match=rf"Node 'a': the tool 'Counter\.run' of .*tool\.py.*{text}"):
            node(self.SOURCE, inputs)

    def test_a_parameter_of_both_is_refused(self, node: Load) -> None:
        source = self.SOURCE.replace("times: int", "start: int")

        with pytest.raises(ResolveToolError, match=r"has the parameter 'start', and its class's __init__ has it too"):
            node(source, "{x: a, start: 1}")

    def test_a_constructor_that_raises_is_reported_without_the_values(self, node: Load) -> None:
        source = self.SOURCE.replace("super().__init__()", "raise ConnectionError('no answer')")

        with pytest.raises(
            ResolveToolError, match=r"Counter cannot be built with start: \(ConnectionError\) no answer"
        ):
            node(source, "{x: a, start: 12345}")

    def test_two_methods_with_tool_are_listed(self, node: Load) -> None:
        source = dedent(self.SOURCE) + "    @tool\n    def other(self): ...\n"

        with pytest.raises(ResolveToolError, match=r"2 functions with @tool: Counter\.other, Counter\.run"):
            node(source)


class TestPackageTools:
    SOURCE = """
        class Shouter:
            def __init__(self, mark: str): self.mark = mark
            def run(self, x): return x.upper() + self.mark
        def shout(x, n=1): return repr((x, n))
    """

    @pytest.fixture
    def load(self, tmp_path: Path) -> Load:
        """Load a flow of one node with this tool of the package `shout_package`."""

        def load(tool: str, inputs: str, more: str = "") -> Program:
            common = {"module": "shout_package.tools"}
            tools: dict[str, dict[str, Any]] = {
                "shout": {**common, "function": "shout", "inputs": {"n": {"type": ["int"]}, "x": {"type": "string"}}},
                "Shouter.run": {**common, "function": "run", "class_name": "Shouter"},
                "lost": {**common, "function": "lost"},
                "unimportable": {"module": "shout_package.nowhere", "function": "f"},
            }
            install_package(tmp_path / "site", "shout_package", self.SOURCE, tools)
            sys.path.append(str(tmp_path / "site"))
            (tmp_path / "flow.dag.yaml").write_text(
                "inputs: {x: {type: string}}\n"
                "outputs: {out: {reference: '${a.output}'}}\n"
                f"nodes: [{{name: a, type: python, source: {{type: package, tool: {tool}}}, inputs: {inputs}{more}}}]\n"
            )
            return load_program(load_flow(tmp_path))

        return load

    def test_a_function_with_the_packages_types(self, load: Load) -> None:
        assert output(load("shout", "{x: '5', n: '2'}")) == {"out": "('5', 2)"}

    def test_a_method_of_a_class(self, load: Load) -> None:
        assert output(load("Shouter.run", "{x: '${inputs.x}', mark: '!'}"), x="a") == {"out": "A!"}

    def test_one_that_is_not_installed(self, load: Load) -> None:
        with pytest.raises(ResolveToolError, match="No installed package has the tool 'whisper'"):
            load("whisper", "{}")

    def test_one_that_the_package_lacks(self, load: Load) -> None:
        with pytest.raises(ResolveToolError, match=r"shout-package 1\.5 declares 'lost' of shout_package\.tools"):
            load("lost", "{}")

    def test_a_module_that_cannot_be_imported(self, load: Load) -> None:
        with pytest.raises(PythonLoadError, match=r"shout_package\.nowhere of shout-package, which has .* node 'a'"):
            load("unimportable", "{}")

    def test_the_nodes_module_is_imported_first(self, load: Load) -> None:
        load("shout", "{x: a}", ", module: shout_package.listing")

        assert "shout_package.listing" in sys.modules

    def test_promptflows_modules_of_providers_are_not_needed(self, load: Load) -> None:
        load("shout", "{x: a}", ", module: promptflow.tools.openai")

    def test_a_module_of_the_node_that_cannot_be_imported(self, load: Load) -> None:
        with pytest.raises(
            PythonLoadError, match="The module 'no_such_module_here' of the node 'a' cannot be imported"
        ):
            load("shout", "{x: a}", ", module: no_such_module_here")


class TestEntries:
    def test_a_function(self, entry: Load) -> None:
        program = entry("def Run(x: str, n: int = 2): return x * n")

        assert output(program, x="ab") == {"output": "abab"}
        assert program.description.inputs == {
            "x": FlowInput("x", "string", nullable=True),
            "n": FlowInput("n", "int", 2, nullable=True, takes_empty_text=False),
        }
        assert not program.description.has_aggregation

    def test_a_class_is_built_once(self, entry: Load) -> None:
        program = entry(
            """
            class Run:
                def __init__(self, start): self.count = start
                def __call__(self): self.count += 1; return self.count
                def __aggregate__(self, results): return {}
            """,
            init_kwargs={"start": 10},
        )

        assert [output(program), output(program)] == [{"output": 11}, {"output": 12}]
        assert program.description.has_aggregation

    def test_init_has_the_yamls_defaults_and_types(self, entry: Load) -> None:
        source = """
            class Run:
                def __init__(self, factor, name="none"): self.said = f"{name} {factor!r}"
                def __call__(self): return self.said
        """
        yaml = "init: {factor: {type: int, default: 2}, name: {type: string, default: ''}}\n"

        assert output(entry(source, yaml)) == {"output": "none 2"}
        assert output(entry(source, yaml, {"factor": "3", "name": "x"})) == {"output": "x 3"}

    def test_the_samples_init_serves_where_none_is_given(self, entry: Load) -> None:
        source = """
            class Run:
                def __init__(self, factor): self.factor = factor
                def __call__(self): return self.factor
        """
        yaml = "sample: {init: {factor: 7}}\n"

        assert output(entry(source, yaml)) == {"output": 7}
        assert output(entry(source, yaml, {"factor": 8})) == {"output": 8}

    def test_a_constructor_that_raises_is_reported_without_the_values(self, entry: Load) -> None:
        source = """
            class Run:
                def __init__(self, key): raise ConnectionError("no answer")
                def __call__(self): ...
        """

        with pytest.raises(FlowEntryInitializationError) as caught:
            entry(source, init_kwargs={"key": "s3cret"})

        assert str(caught.value) == "'Run' cannot be built with key: (ConnectionError) no answer"
        assert "s3cret" not in str(caught.value.additional_info)

    def test_an_argument_that_is_missing_is_told_with_how_to_give_it(self, entry: Load) -> None:
        with pytest.raises(
            FlowEntryInitializationError, match=r"no arguments: .*missing 1 required.*Give --init key=… on"
        ):
            entry("class Run:\n    def __init__(self, key, n=1, *rest, **more): ...\n    def __call__(self): ...\n")

    def test_an_init_value_of_another_type_is_refused_without_the_value(self, entry: Load) -> None:
        with pytest.raises(InvalidOptionError, match=r"init 'n' of the flow .* expected a value of type int") as caught:
            entry("class Run:\n    def __call__(self): ...\n", "init: {n: {type: int}}", {"n": "s3cret"})

        assert "s3cret" not in str(caught.value)

    def test_init_kwargs_need_a_class(self, entry: Load, node: Load) -> None:
        with pytest.raises(InvalidOptionError, match=r"init_kwargs \(n\) were given, but 'Run' is not a class"):
            entry("def Run(x): ...", init_kwargs={"n": 1})

    def test_init_kwargs_need_a_flex_flow(self, node: Load) -> None:
        with pytest.raises(InvalidOptionError, match="is a DAG flow"):
            node("", init_kwargs={"n": 1})

    @pytest.mark.parametrize(
        ("source", "text"),
        [
            ("def other(): ...", r"main_module\.py has no 'Run'\. It defines other\."),
            ("", "It defines no function or class"),
            ("Run = 5", r"'Run' of main_module is 5\. Expected a function or a class with __call__"),
            ("class Run: ...", "The class 'Run' of main_module has no __call__"),
            ("import no_such_module_here", r"The module 'main_module' of the entry 'Run' cannot be imported"),
        ],
    )
    def test_an_entry_that_cannot_be_run(self, entry: Load, source: str, text: str) -> None:
        with pytest.raises(PythonLoadError, match=text):
            entry(source)

    def test_an_aggregation_takes_one_list(self, entry: Load) -> None:
        source = "class Run:\n    def __call__(self): ...\n    def __aggregate__(self, a, b): ..."
        with pytest.raises(InvalidAggregationFunction, match=r"Run\.__aggregate__\(a, b\) should take one parameter"):
            entry(source)

    @pytest.mark.parametrize(
        ("source", "is_async"),
        [
            ("async def Run(): ...", True),
            ("async def Run():\n    yield 1", True),
            ("def Run():\n    yield 1", False),
            ("import functools\nasync def f(x): ...\nRun = functools.partial(functools.partial(f), 1)", True),
            ("class Run:\n    async def __call__(self): ...", True),
            ("class C:\n    async def __call__(self): ...\nRun = C()", True),
            ("class C:\n    async def run(self): ...\nRun = C().run", True),
            ("class Run:\n    def __call__(self): ...\n    async def __aggregate__(self, results): ...", False),
        ],
    )
    def test_async_entries_are_known(self, entry: Load, source: str, is_async: bool) -> None:
        assert entry(source).description.is_async is is_async

    def test_promptflows_wrapper_of_an_async_generator_is_async(self, entry: Load) -> None:
        program = entry("""
            async def original(): yield 1
            def Run(): return original()
            Run.__original_function = original
        """)

        assert program.description.is_async

    def test_a_file_and_a_nested_name(self, tmp_path: Path) -> None:
        (tmp_path / "some-file.py").write_text(
            "class Outer:\n    class Inner:\n        def __call__(self, x): return x\n"
        )

        program = load_program(load_flow(f"{tmp_path / 'some-file.py'}:Outer.Inner"))

        assert output(program, x=1) == {"output": 1}

    def test_a_module_of_a_package_may_import_its_neighbours(self, tmp_path: Path) -> None:
        package = tmp_path / "pack_of_test"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "near.py").write_text("N = 4\n")
        (package / "mod.py").write_text("from .near import N\ndef run(): return N\n")

        program = load_program(load_flow("pack_of_test.mod:run", tmp_path))

        assert output(program) == {"output": 4}

    def test_modules_of_one_name_in_two_flows_do_not_mix(self, tmp_path: Path) -> None:
        programs = []
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "shared_name.py").write_text(f"def run(): return {name!r}\n")
            programs.append(load_program(load_flow("shared_name:run", folder)))

        assert [output(program) for program in programs] == [{"output": "one"}, {"output": "two"}]

    def test_a_module_named_as_a_standard_one_is_the_flows(self, tmp_path: Path) -> None:
        (tmp_path / "json.py").write_text("def run(): return 'mine'\n")

        assert output(load_program(load_flow("json:run", tmp_path))) == {"output": "mine"}

    def test_a_package_whose_name_is_taken_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "json").mkdir()
        (tmp_path / "json" / "__init__.py").touch()
        (tmp_path / "json" / "decoder.py").write_text("def run(): ...\n")

        with pytest.raises(PythonLoadError, match=r"'json\.decoder' should come from .*, but .* has this name already"):
            load_program(load_flow("json.decoder:run", tmp_path))

    @pytest.mark.parametrize(
        ("target", "inputs", "result"),
        [
            (lambda a, b=2: a * b, {"a": 4}, 8),
            (functools.partial(int, base=2), {"x": "101"}, 5),
            (len, {"obj": "abc"}, 3),
            (str.upper, {"self": "abc"}, "ABC"),
            (divmod, {"y": 2, "x": 7}, (3, 1)),
        ],
    )
    def test_pickled_callables_and_builtins(self, target: Any, inputs: dict[str, Any], result: Any) -> None:
        if isinstance(target, functools.partial):
            target = functools.partial(lambda x, base: int(x, base), base=2)

        assert output(load_program(load_flow(target)), **inputs) == {"output": result}

    def test_a_pickle_that_cannot_be_read_is_reported(self, entry: Load) -> None:
        flow = load_flow(lambda: 1)
        object.__setattr__(flow.program, "pickled", pickle.dumps(1)[:-1])

        with pytest.raises(PythonLoadError, match=r"The callable '.*' cannot be rebuilt"):
            load_program(flow)

    def test_another_language_needs_an_executor(self, tmp_path: Path) -> None:
        (tmp_path / "Flow.dll").touch()

        with pytest.raises(UnsupportedFeatureError, match=r"written in csharp\. Register an executor"):
            load_program(load_flow(tmp_path / "Flow.dll"))


class TestDescription:
    def test_annotations_give_types(self, entry: Load) -> None:
        program = entry("""
            from __future__ import annotations
            from typing import Optional, TYPE_CHECKING
            if TYPE_CHECKING:
                from nowhere import Nothing
            def Run(a: int, b: float, c: str, d: bool, e: list, f: dict, g: Optional[int], h: list[str], i: Nothing, j): ...
        """)

        types = {name: found.type for name, found in program.description.inputs.items()}
        assert types == {
            "a": "int",
            "b": "double",
            "c": "string",
            "d": "bool",
            "e": "list",
            "f": "object",
            "g": "int",
            "h": "list",
            "i": "any",
            "j": "any",
        }

    def test_the_yaml_wins_over_the_code(self, entry: Load) -> None:
        program = entry(
            "def Run(a: int, b='code', c='code', d=None): ...",
            """
            inputs:
              a: {type: string, description: first}
              b: {type: string, default: yaml}
              c: {type: string, default: ''}
              other: {type: int}
            """,
        )

        assert program.description.inputs == {
            "a": FlowInput("a", "string", description="first"),
            "b": FlowInput("b", "string", "yaml"),
            "c": FlowInput("c", "string", "code"),
            "d": FlowInput("d", "any", None, nullable=True),
        }

    def test_a_default_that_is_no_json_is_left_to_python(self, entry: Load) -> None:
        program = entry("def Run(a=(1, 2), b=[1, {'k': None}], c=object(), d={1: 2}): return isinstance(a, tuple)")

        found = program.description.inputs
        assert {name: (i.required, i.has_code_default) for name, i in found.items()} == {
            "a": (False, True), "b": (False, False), "c": (False, True), "d": (False, True)
        }  # fmt: skip
        assert output(program) == {"output": True}
        assert output(program, a=[1]) == {"output": False}

    def test_keyword_arguments_of_any_name_take_all_mapped_inputs(self, entry: Load) -> None:
        program = entry("def Run(a, *args, **rest): return rest", "inputs: {extra: {type: int}}")

        assert program.description.inputs == {
            "a": FlowInput("a", "any", nullable=True),
            "extra": FlowInput("extra", "int"),
        }
        assert output(program, a=1, extra=2, more=3) == {"extra": 2, "more": 3}

    def test_mapped_inputs_without_parameter_are_left_out(self, entry: Load) -> None:
        assert output(entry("def Run(a): return a"), a=1, more=3) == {"output": 1}


class TestPromptflowInstalled:
    @pytest.fixture(autouse=True)
    def promptflow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A promptflow of the real one's shape: own marks, and metrics that go to loggers."""
        promptflow_shim.uninstall()
        core = tmp_path / "site" / "promptflow"
        (core / "core").mkdir(parents=True)
        (core / "_core").mkdir()
        (core / "_core" / "__init__.py").touch()
        (core / "_core" / "metric_logger.py").write_text(
            "loggers = []\n"
            "def add_metric_logger(logger): loggers.append(logger)\n"
            "def log_metric(key, value, variant_id=None):\n"
            "    for logger in loggers: logger(key, value, variant_id)\n"
        )
        (core / "core" / "__init__.py").write_text(
            "from promptflow._core.metric_logger import log_metric\n"
            "def tool(f):\n    setattr(f, '__tool', None)\n    return f\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def test_its_decorator_and_metrics_work(self, tmp_path: Path) -> None:
        (tmp_path / "flow").mkdir()
        (tmp_path / "flow" / "score.py").write_text(
            "from promptflow.core import log_metric, tool\n"
            "@tool\ndef run(values):\n    log_metric('sum', sum(values))\n"
        )
        (tmp_path / "flow" / "flow.dag.yaml").write_text(
            "inputs: {x: {type: int}}\n"
            "nodes: [{name: a, type: python, source: {path: score.py}, inputs: {values: '${inputs.x}'},"
            " aggregation: true}]\n"
        )

        program = load_program(load_flow(tmp_path / "flow"))

        lines: list[Any] = [
            {"line_number": n, "inputs": {"x": n}, "output": {}, "aggregation_inputs": {}} for n in (1, 2)
        ]
        assert program.aggregate(lines)["metrics"] == {"sum": 3}


def test_a_worker_imports_little() -> None:
    check = (
        "import sys; import prefect_batchflow.execution.program.loader; "
        "print(*{'prefect', 'pydantic', 'yaml', 'cloudpickle', 'asyncio'} & set(sys.modules))"
    )

    printed = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)

    assert printed.stdout.split() == []


class TestConnections:
    GIVEN: ClassVar[dict[str, Any]] = {
        "open": {"type": "OpenAIConnection", "value": {"api_key": "sk-1"}},
        "custom": {"type": "CustomConnection", "value": {"api_key": "k", "url": "u"}, "secret_keys": ["api_key"]},
    }

    @pytest.mark.parametrize(
        ("annotation", "name", "expected"),
        [
            ("OpenAIConnection", "open", "OpenAIConnection sk-1"),
            ("'OpenAIConnection'", "open", "OpenAIConnection sk-1"),
            ("Optional[OpenAIConnection]", "open", "OpenAIConnection sk-1"),
            ("OpenAIConnection | CustomConnection", "custom", "CustomConnection k"),
            ("Mine", "custom", "Mine k"),
            ("Union[Mine, OpenAIConnection]", "custom", "Mine k"),
            ("Annotated[OpenAIConnection, 'x']", "open", "OpenAIConnection sk-1"),
            ("Optional[Annotated[OpenAIConnection, 'x']]", "open", "OpenAIConnection sk-1"),
            ("Annotated[Mine, 'x']", "custom", "Mine k"),
            ("str", "open", "str -"),
        ],
    )
    def test_a_parameter_annotated_with_a_connection_takes_its_name(
        self, node: Load, annotation: str, name: str, expected: str
    ) -> None:
        program = node(self.source(annotation), f"{{c: {name}}}", connections=self.GIVEN)
        assert output(program, x="a") == {"out": expected}

    def test_the_record_has_the_connections_name(self, node: Load) -> None:
        program = node(self.source("OpenAIConnection"), "{c: open}", connections=self.GIVEN)
        assert program.run_line(0, {"x": "a"})["nodes"][0]["inputs"] == {"c": "open"}

    def test_a_connection_chosen_for_the_run_takes_the_place_of_the_nodes(self, node: Load) -> None:
        source = self.source("OpenAIConnection | CustomConnection")
        for inputs in ("{c: open}", "{}"):
            program = node(source, inputs, {"c": "custom"}, connections=self.GIVEN)
            assert output(program, x="a") == {"out": "CustomConnection k"}

    def test_the_class_of_a_tool_takes_one_too(self, node: Load) -> None:
        source = """
            from promptflow.core import ToolProvider, tool
            from promptflow.connections import CustomConnection
            class Search(ToolProvider):
                def __init__(self, c: CustomConnection): self.c = c
                @tool
                def find(self, model: str = "") -> str: return f"{self.c.api_key} {model}"
            """
        program = node(source, "{}", {"c": "custom", "model": "m"}, connections=self.GIVEN)
        assert output(program, x="a") == {"out": "k m"}

    def test_only_connections_and_models_are_chosen_for_a_run(self, node: Load) -> None:
        source = """
            from promptflow.core import tool
            from promptflow.connections import CustomConnection
            @tool
            def a(c: CustomConnection, d: CustomConnection | None = None, x: str = "") -> str: return x
            """
        with pytest.raises(InvalidOptionError) as caught:
            node(source, "{c: custom}", {"x": "text", "y": "z", "d": "custom"}, connections=self.GIVEN)
        assert "Node 'a': 'x', 'y' was chosen as a connection for this run. Parameters of its tool that take a" in str(
            caught.value
        )
        assert "connection: 'c', 'd'. Choose one of these, or 'deployment_name', 'model'" in str(caught.value)

    @pytest.mark.parametrize(
        ("annotation", "value", "message"),
        [
            ("OpenAIConnection", "nope", "'nope' for node 'a', input 'c' was not given; given: custom, open"),
            ("OpenAIConnection", "custom", "'custom' is a CustomConnection, but the code takes OpenAIConnection"),
            ("OpenAIConnection", "5", "because the code takes OpenAIConnection. Found a value of type int"),
            ("Needy", "custom", "node 'a', input 'c': The connection 'custom' has no token, which Needy requires"),
        ],
    )
    def test_a_connection_that_does_not_serve_is_refused_before_any_line(
        self, node: Load, annotation: str, value: str, message: str
    ) -> None:
        with pytest.raises(ResolveToolError) as caught:
            node(self.source(annotation), f"{{c: {value}}}", connections=self.GIVEN)
        assert message in str(caught.value)
        assert "sk-1" not in str(caught.value)

    @staticmethod
    def source(annotation: str) -> str:
        return f"""
            from typing import Annotated, Optional, Union
            from promptflow.core import tool
            from promptflow.connections import CustomConnection, CustomStrongTypeConnection, OpenAIConnection

            class Secret(str): ...

            class Mine(CustomStrongTypeConnection):
                api_key: Secret
                url: str

            class Needy(Mine):
                token: Secret

            @tool
            def a(c: {annotation}) -> str:
                return f"{{type(c).__name__}} {{getattr(c, 'api_key', '-')}}"
            """

    @pytest.mark.parametrize(
        ("annotation", "yaml", "value", "expected"),
        [
            ("OpenAIConnection", "", "open", "OpenAIConnection sk-1"),
            ("Optional[OpenAIConnection]", "", "open", "OpenAIConnection sk-1"),
            ("object", "init: {c: {type: OpenAIConnection}}", "open", "OpenAIConnection sk-1"),
            ("OpenAIModelConfiguration", "", {"model": "m", "connection": "open"}, "OpenAIModelConfiguration sk-1"),
            ("OpenAIModelConfiguration", "", {"model": "m", "api_key": "k"}, "OpenAIModelConfiguration k"),
            (
                "Union[AzureOpenAIModelConfiguration, OpenAIModelConfiguration]",
                "",
                {"model": "m", "connection": "open"},
                "OpenAIModelConfiguration sk-1",
            ),
            (
                "object",
                "init: {c: {type: OpenAIModelConfiguration}}",
                {"model": "m", "connection": "open"},
                "OpenAIModelConfiguration sk-1",
            ),
            ("str", "", "open", "str -"),
        ],
    )
    def test_a_constructor_takes_a_connection_or_model_configuration(
        self, entry: Load, annotation: str, yaml: str, value: Any, expected: str
    ) -> None:
        program = entry(self.flex(annotation), yaml, {"c": value}, self.GIVEN)
        assert output(program, x="a") == {"output": expected}

    @pytest.mark.parametrize(
        ("annotation", "value", "message"),
        [
            ("OpenAIConnection", "nope", "'Run' cannot be built: The connection 'nope' for init 'c' was not given"),
            ("OpenAIModelConfiguration", {"model": "m", "connection": "custom"}, "'custom' is a CustomConnection"),
            ("OpenAIModelConfiguration", {"connection": "open"}, "OpenAIModelConfiguration lacks 'model'"),
            ("OpenAIModelConfiguration", {"model": "m", "mdl": 1}, "has the unknown keys mdl"),
            (
                "OpenAIModelConfiguration",
                {"model": "m", "connection": "open", "api_key": "sk-2"},
                "has the connection 'open' and also api_key",
            ),
        ],
        ids=["not given", "another type", "no model", "unknown key", "both"],
    )
    def test_a_constructor_that_cannot_have_it_is_told_without_secrets(
        self, entry: Load, annotation: str, value: Any, message: str
    ) -> None:
        with pytest.raises(FlowEntryInitializationError) as caught:
            entry(self.flex(annotation), "", {"c": value}, self.GIVEN)
        assert message in str(caught.value)
        assert "sk-" not in str(caught.value)

    @staticmethod
    def flex(annotation: str) -> str:
        return f"""
            from typing import Optional, Union
            from promptflow.connections import OpenAIConnection
            from promptflow.core import AzureOpenAIModelConfiguration, OpenAIModelConfiguration

            class Run:
                def __init__(self, c: {annotation}): self.c = c
                def __call__(self, x: str): return f"{{type(self.c).__name__}} {{getattr(self.c, 'api_key', '-')}}"
            """
