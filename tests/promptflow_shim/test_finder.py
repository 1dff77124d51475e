"""`from promptflow.core import tool` works without promptflow, and stands aside where promptflow is."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import TYPE_CHECKING

import pytest

from prefect_batchflow.execution.program.loader import prepare_imports
from prefect_batchflow.promptflow_shim import install, uninstall
from prefect_batchflow.promptflow_shim.finder import ShimFinder
from prefect_batchflow.tools.context import log_metric
from prefect_batchflow.tools.python import tool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Folder = Path


@pytest.fixture(autouse=True)
def without_promptflow() -> Iterator[None]:
    """No mirror and no promptflow before and after each test."""

    def forget() -> None:
        uninstall()
        for name in [name for name in sys.modules if name.partition(".")[0] == "promptflow"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    forget()
    yield
    forget()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that modules are imported from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("module", ["promptflow", "promptflow.core"])
def test_the_mirrored_names_are_this_packages(module: str) -> None:
    assert install()

    mirrored = importlib.import_module(module)

    assert mirrored.tool is tool
    assert mirrored.log_metric is log_metric


def test_imports_as_flows_write_them_work() -> None:
    install()
    namespace: dict[str, object] = {}

    exec(  # noqa: S102 - the statements as users have them
        "import promptflow.core\n"
        "from promptflow import core, log_metric, tool\n"
        "from promptflow.core import tool as decorator\n"
        "same = core is promptflow.core and tool is decorator\n",
        namespace,
    )

    assert namespace["same"] is True


@pytest.mark.parametrize(
    "statement",
    [
        "from promptflow import ToolProvider",
        "from promptflow.core import ToolProvider, tool",
        "from promptflow._core.tool import ToolProvider, tool",
        "from promptflow._internal import ToolProvider, tool",
        "from promptflow.contracts.types import FilePath, PromptTemplate, Secret",
        "from promptflow.entities import DynamicList, InputSetting",
    ],
)
def test_what_tools_import_is_there(statement: str) -> None:
    install()

    exec(statement, {})  # noqa: S102 - the statements as users have them


def test_settings_for_editors_are_taken() -> None:
    install()
    entities = importlib.import_module("promptflow.entities")
    setting = entities.InputSetting(dynamic_list=entities.DynamicList(function=list, input_mapping={"a": "b"}))

    @tool(input_settings={"x": setting})
    def run(x: str) -> str:
        return x

    assert run("a") == "a"


def test_installing_twice_is_once() -> None:
    assert install()
    assert install()

    assert sys.meta_path.count(ShimFinder) == 1


def test_uninstalling_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert prepare_imports(str(tmp_path))
    importlib.import_module("promptflow.core")

    uninstall()
    uninstall()

    assert not any(name.startswith("promptflow") for name in sys.modules)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("promptflow")


@pytest.mark.parametrize(
    ("statement", "missing", "told"),
    [
        ("from promptflow.core import Nothing", "promptflow.core.Nothing", "Install promptflow itself"),
        ("import promptflow.nothing", "promptflow.nothing", "Install promptflow itself"),
        ("from promptflow.core._errors import X", "promptflow.core._errors", "pip install promptflow-core"),
        ("import promptflow.core; promptflow.core.Nothing", "promptflow.core.Nothing", "Install promptflow itself"),
        ("from promptflow.tools.aoai import chat", "promptflow.tools", "Use an llm or prompt node"),
        ("from promptflow.azure import PFClient", "promptflow.azure", "Run flows with `batchflow run`"),
        ("from promptflow._sdk._pf_client import PFClient", "promptflow._sdk._pf_client", "BatchEngine"),
        ("from promptflow._utils.logger_utils import logger", "promptflow._utils", "Use Python's logging"),
        ("from promptflow.tracing._trace import _traced", "promptflow.tracing._trace._traced", "Remove tracing"),
        (
            "from promptflow.evals.evaluators import F1ScoreEvaluator",
            "promptflow.evals",
            "pip install azure-ai-evaluation",
        ),
        ("from promptflow.core._serving.app import create_app", "promptflow.core._serving", "does not serve flows"),
    ],
)
def test_what_is_not_mirrored_says_what_to_do(statement: str, missing: str, told: str) -> None:
    install()

    with pytest.raises(ImportError) as caught:
        exec(statement, {})  # noqa: S102 - the statement as users have it

    assert f"prefect_batchflow does not provide {missing}. " in str(caught.value)
    assert told in str(caught.value)


def test_inspection_of_the_mirror_raises_nothing() -> None:
    install()
    module = importlib.import_module("promptflow.core")

    assert inspect.getmodule(module) is module
    assert not hasattr(module, "__wrapped__")


def test_other_imports_are_not_touched() -> None:
    install()

    assert importlib.import_module("json").__name__ == "json"
    with pytest.raises(ModuleNotFoundError, match="No module named 'promptflower'"):
        importlib.import_module("promptflower")


def test_where_promptflow_is_installed_it_is_used(site: Path) -> None:
    (site / "promptflow" / "core").mkdir(parents=True)
    (site / "promptflow" / "core" / "__init__.py").write_text("tool = 'its own'\n")

    assert not install()

    assert importlib.import_module("promptflow.core").tool == "its own"


def test_promptflow_that_was_imported_is_left_alone(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("promptflow.core", None))
    monkeypatch.setitem(sys.modules, "promptflow.core", own)

    assert not install()


def test_a_folder_of_that_name_is_no_promptflow(site: Path) -> None:
    (site / "promptflow" / "core").mkdir(parents=True)

    assert install()

    assert importlib.import_module("promptflow.core").tool is tool


def test_a_part_of_promptflow_that_is_installed_by_itself_stays_importable(site: Path) -> None:
    (site / "promptflow" / "tracing").mkdir(parents=True)
    (site / "promptflow" / "tracing" / "__init__.py").write_text("trace = 'its own'\n")

    assert install()

    assert importlib.import_module("promptflow.tracing").trace == "its own"
    assert importlib.import_module("promptflow.core").tool is tool
