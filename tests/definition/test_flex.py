"""flow.flex.yaml and callables: what is imported by name, what travels pickled, and what is refused."""

from __future__ import annotations

import functools
import importlib
import json
import pickle
import re
import subprocess
import sys
import threading
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.definition.flex import find_module_file
from prefect_batchflow.definition.flow import Entry, Flow, FlowInput, Service
from prefect_batchflow.definition.flow_files import files_of
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import (
    FlowDefinitionError,
    FlowNotFoundError,
    InvalidFlexFlowEntry,
    InvalidFlowRequest,
    PythonLoadError,
    UnsupportedFeatureError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve()


def plain(text: str) -> str:
    return text.upper()


async def awaited(text: str) -> str:
    return text


class Scorer:
    def __init__(self, factor: int = 1) -> None:
        self.factor = factor

    def __call__(self, n: int) -> int:
        return n * self.factor

    @classmethod
    def make(cls, n: int) -> int:
        return n

    class Inner:
        def __call__(self) -> None: ...


class NoCall:
    pass


def entry_of(flow: Flow) -> Entry:
    assert isinstance(flow.program, Entry)
    return flow.program


def unpickled(entry: Entry) -> Any:
    assert entry.pickled is not None
    return pickle.loads(entry.pickled)  # noqa: S301 - made by the test


@pytest.fixture
def import_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """Import a module written on the spot; forget it afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path / "root"))
    imported = set(sys.modules)

    def make(name: str, text: str) -> ModuleType:
        file = (tmp_path / "root").joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield make
    for name in set(sys.modules) - imported:
        del sys.modules[name]


class TestYaml:
    def load(self, folder: Path, text: str) -> Flow:
        (folder / "main.py").touch()
        (folder / "flow.flex.yaml").write_text(text)
        return load_flow(folder)

    def test_entry_inputs_init_and_sample(self, tmp_path: Path) -> None:
        flow = self.load(
            tmp_path,
            "entry: main:Scorer\n"
            "inputs: {n: {type: int}, note: {type: string, default: ''}}\n"
            "outputs: {score: {type: int}}\n"
            "init: {factor: {type: int, default: 2}}\n"
            "sample: {inputs: {n: 1}, init: {factor: 3}}\n"
            "environment: {image: python}\n"
            "display_name: Scorer\n",
        )

        assert entry_of(flow) == Entry("main", "Scorer", file=tmp_path / "main.py", sample_init={"factor": 3})
        assert flow.inputs == {"n": FlowInput("n", "int"), "note": FlowInput("note", "string")}
        assert flow.init == {"factor": FlowInput("factor", "int", 2)}
        assert flow.working_dir == tmp_path

    def test_inputs_are_not_needed(self, tmp_path: Path) -> None:
        assert self.load(tmp_path, "entry: main:run\n").inputs == {}

    def test_a_module_of_a_package_is_found_without_importing_it(self, tmp_path: Path) -> None:
        package = tmp_path / "pack"
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit\n")
        (package / "mod.py").touch()

        assert entry_of(self.load(tmp_path, "entry: pack.mod:run\n")).file == package / "mod.py"
        assert "pack" not in sys.modules

    def test_a_file_may_stand_in_the_modules_place(self, tmp_path: Path) -> None:
        entry = entry_of(self.load(tmp_path, "entry: main.py:run\n"))

        assert (entry.module, entry.attribute) == (str(tmp_path / "main.py"), "run")

    def test_an_installed_module_is_an_entry_too(self, tmp_path: Path) -> None:
        assert entry_of(self.load(tmp_path, "entry: json:loads\n")).module == "json"

    @pytest.mark.parametrize("text", ["main", "main:", ":run", "main:run:x", "main:run-it", "5", "[a]", ""])
    def test_another_form_of_entry_is_refused(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(InvalidFlexFlowEntry, match="expected 'module:function' or 'module:Class'"):
            self.load(tmp_path, f"entry: {json.dumps(text) if text.endswith(':') else text}\n")

    @pytest.mark.parametrize("entry", ["mian:run", "main.sub:run", "mian.py:run"])
    def test_a_module_that_is_not_there_and_what_is(self, tmp_path: Path, entry: str) -> None:
        with pytest.raises(PythonLoadError, match=r"'entry' names .* which contains main\.py"):
            self.load(tmp_path, f"entry: {entry}\n")

    @pytest.mark.parametrize("key", ["nodes: [a]", "model: x"])
    def test_a_key_that_is_not_honoured_is_refused_by_name(self, tmp_path: Path, key: str) -> None:
        with pytest.raises(UnsupportedFeatureError, match=f"the key '{key.partition(':')[0]}' is not supported"):
            self.load(tmp_path, f"entry: main:run\n{key}\n")

    def test_a_part_of_the_sample_that_is_not_known_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedFeatureError, match="sample: the key 'outputs'"):
            self.load(tmp_path, "entry: main:run\nsample: {outputs: {a: 1}}\n")

    def test_all_that_is_wrong_is_told_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidFlowRequest, match="has 3 problems"):
            self.load(tmp_path, "entry: nowhere:run\ninputs: {i: {type: picture}}\nadditional_include: [a]\n")

    def test_another_language_has_an_entry_of_its_own_form(self, tmp_path: Path) -> None:
        flow = self.load(tmp_path, "entry: (Flow)Flow.Run\nlanguage: csharp\ninputs: {q: {type: string}}\n")

        assert (flow.language, entry_of(flow).attribute, list(flow.inputs)) == ("csharp", "(Flow)Flow.Run", ["q"])
        assert flow.service == Service()

    def test_another_language_says_how_it_is_served(self, tmp_path: Path) -> None:
        service = "{command: [./main, --port, '{port}'], aggregation: true, start_timeout_sec: 5}"
        flow = self.load(tmp_path, f"entry: main\nlanguage: go\nservice: {service}\n")

        assert flow.service == Service(("./main", "--port", "{port}"), aggregation=True, start_timeout_sec=5.0)

    @pytest.mark.parametrize(
        ("service", "said"),
        [
            ("[a]", "'service' should map names to values"),
            ("{comand: [a]}", "the key 'comand' is not supported. Did you mean 'command'?"),
            ("{command: ./main}", "'command' should be a list of texts"),
            ("{command: [./main, 80]}", "Write numbers in quotes"),
            ("{aggregation: sum}", "'aggregation' should be true or false, found 'sum'"),
            ("{start_timeout_sec: 0}", "seconds above 0, found 0"),
            ("{start_timeout_sec: true}", "seconds above 0, found True"),
        ],
    )
    def test_how_it_is_served_must_make_sense(self, tmp_path: Path, service: str, said: str) -> None:
        with pytest.raises(InvalidFlowRequest, match=re.escape(said)):
            self.load(tmp_path, f"entry: main\nlanguage: go\nservice: {service}\n")

    def test_python_is_not_served(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedFeatureError, match="the key 'service' is not supported"):
            self.load(tmp_path, "entry: main:run\nservice: {command: [a]}\n")


class TestReferences:
    def test_a_function_of_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "eval.py"
        file.write_text("raise SystemExit\n")

        flow = load_flow(f"{file}:run")

        assert entry_of(flow) == Entry(str(file), "run", file=file)
        assert (flow.name, flow.working_dir, flow.source) == ("run", tmp_path, f"{file}:run")

    def test_a_relative_file_below_the_working_directory(self, tmp_path: Path) -> None:
        (tmp_path / "eval.py").touch()

        assert load_flow("eval.py:Outer.run", tmp_path).source == f"{tmp_path / 'eval.py'}:Outer.run"

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FlowNotFoundError, match=r"No flow at .*eval\.py"):
            load_flow(f"{tmp_path / 'eval.py'}:run")

    def test_a_function_of_a_module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "evaluation.py").write_text("raise SystemExit\n")
        monkeypatch.chdir(tmp_path)

        flow = load_flow("evaluation:run")

        assert entry_of(flow) == Entry("evaluation", "run", file=tmp_path / "evaluation.py")
        assert (flow.working_dir, flow.source) == (tmp_path, "evaluation:run")

    def test_a_module_is_looked_for_in_the_working_directory(self, tmp_path: Path) -> None:
        (tmp_path / "evaluation.py").touch()

        assert entry_of(load_flow("evaluation:run", tmp_path)).file == tmp_path / "evaluation.py"

    def test_a_module_that_is_not_found_is_left_to_the_worker(self) -> None:
        assert entry_of(load_flow("no_such_module_here:run")).file is None

    def test_modules_are_found_in_packages_and_namespaces(self, tmp_path: Path) -> None:
        init = tmp_path / "space" / "sub" / "pack" / "__init__.py"
        init.parent.mkdir(parents=True)
        init.touch()

        assert find_module_file("space.sub.pack", [str(tmp_path)]) == init
        assert find_module_file("space.sub", [str(tmp_path)]) is None
        assert find_module_file("space.sub.pack.mod", [str(tmp_path)]) is None
        assert find_module_file("sys", [str(tmp_path)]) is None


class TestObjects:
    @pytest.mark.parametrize("target", [plain, awaited, Scorer, Scorer.Inner])
    def test_what_a_worker_finds_by_name_goes_by_name(self, target: Any) -> None:
        flow = load_flow(target)

        assert entry_of(flow) == Entry(__name__, target.__qualname__, file=HERE)
        assert (flow.name, flow.working_dir) == (target.__qualname__, HERE.parent)
        assert flow.source == f"{__name__}:{target.__qualname__}"
        assert HERE in files_of(flow).files

    @pytest.mark.parametrize(
        ("target", "name", "argument", "result"),
        [
            (lambda text: text + "!", "TestObjects.<lambda>", "a", "a!"),
            (functools.partial(plain), "plain", "a", "A"),
            (Scorer(3), "Scorer", 2, 6),
            (Scorer(3).__call__, "Scorer", 2, 6),
            (Scorer.make, "Scorer.make", 2, 2),
            (len, "len", "abc", 3),
            (str.upper, "str.upper", "a", "A"),
        ],
    )
    def test_everything_else_travels_pickled(self, target: Any, name: str, argument: Any, result: Any) -> None:
        flow = load_flow(target)
        entry = entry_of(flow)

        assert (entry.module, entry.attribute, flow.source) == ("", name, None)
        assert unpickled(entry)(argument) == result

    def test_a_nested_function_keeps_its_file_for_the_fingerprint(self) -> None:
        def nested() -> None: ...

        assert HERE in files_of(load_flow(nested)).files

    def test_the_interpreters_own_run_in_the_current_directory(self) -> None:
        assert load_flow(json.loads).working_dir == Path.cwd()
        assert files_of(load_flow(len)).files == ()

    def test_the_working_directory_may_be_said(self, tmp_path: Path) -> None:
        assert load_flow(plain, tmp_path).working_dir == tmp_path

    def test_a_module_of_a_package_is_imported_from_above_the_package(
        self, import_module: Callable[[str, str], ModuleType], tmp_path: Path
    ) -> None:
        module = import_module("pack.sub.flows", "def run(x): return x\n")

        flow = load_flow(module.run)

        assert flow.working_dir == tmp_path / "root"
        assert entry_of(flow).module == "pack.sub.flows"

    def test_a_function_that_was_replaced_in_its_module_travels_pickled(
        self, import_module: Callable[[str, str], ModuleType]
    ) -> None:
        module = import_module("replaced", "def run(x): return x\n")
        first, module.run = module.run, None  # type: ignore[attr-defined]

        assert entry_of(load_flow(first)).pickled

    def test_a_module_no_worker_can_import_travels_by_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType("made_up")
        module.__file__ = str(HERE)
        exec("def double(n): return 2 * n\ndef run(n): return double(n)", module.__dict__)  # noqa: S102
        monkeypatch.setitem(sys.modules, "made_up", module)
        entry = entry_of(load_flow(module.run))
        monkeypatch.delitem(sys.modules, "made_up")

        assert unpickled(entry)(4) == 8

    def test_a_function_of_a_script_travels_by_value(self, tmp_path: Path) -> None:
        (tmp_path / "script.py").write_text(
            "import sys\n"
            "from prefect_batchflow.definition.load import load_flow\n"
            "from prefect_batchflow.definition.flow_files import files_of\n"
            "def double(n): return 2 * n\n"
            "def run(n): return double(n)\n"
            "flow = load_flow(run)\n"
            "print(flow.name, flow.working_dir, flow.program.pickled.hex(), *files_of(flow).files, sep='\\n')\n"
            "print(*flow.program.code_parts, sep=', ')\n"
        )
        script = [sys.executable, str(tmp_path / "script.py")]

        printed = subprocess.run(script, capture_output=True, text=True, check=True, timeout=60).stdout

        # Its other lines, such as the options of the run, are not part of the flow.
        name, working_dir, pickled, code = printed.splitlines()
        assert (name, working_dir, code) == ("run", str(tmp_path), "the callable, function run, function double")
        assert unpickled(Entry("", "run", bytes.fromhex(pickled)))(4) == 8

    @pytest.mark.parametrize("target", [NoCall, NoCall(), 3.5, ["path"]])
    def test_what_cannot_be_called_is_refused(self, target: Any) -> None:
        with pytest.raises(FlowDefinitionError, match="is not a flow"):
            load_flow(target)

    def test_an_object_that_cannot_be_pickled_is_refused_with_a_way_out(self) -> None:
        class Holder:
            def __init__(self) -> None:
                self.client = {"rows": iter(range(3)), "open": (number for number in range(3))}

            def __call__(self) -> None: ...

        said = r"cannot be sent to a worker process: the value of 'open' of the attribute 'client' "
        said += r"of the object .*generator.*'module:name'"
        with pytest.raises(FlowDefinitionError, match=said):
            load_flow(Holder())

    def test_locks_and_the_like_are_made_anew_where_the_object_is_rebuilt(self) -> None:
        count = ContextVar("count", default=3)

        class Holder:
            def __init__(self) -> None:
                self.lock, self.again, self.local, self.event = (
                    threading.Lock(), threading.RLock(), threading.local(), threading.Event()
                )  # fmt: skip

            def __call__(self, n: int) -> int:
                with self.lock, self.again:
                    return n + count.get() + cached(n)

        @functools.lru_cache(maxsize=5)
        def cached(n: int) -> int:
            return 10 * n

        holder = Holder()
        with holder.lock:
            rebuilt = unpickled(entry_of(load_flow(holder)))

        assert rebuilt(4) == 47
