"""The public names, and what importing them costs."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import prefect_batchflow
from prefect_batchflow import exceptions


def leaves(cls: type[BaseException]) -> list[type[BaseException]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in leaves(sub))]


def test_every_public_name_is_there_and_every_name_has_a_home() -> None:
    tree = ast.parse(Path(prefect_batchflow.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    shown = {a.asname: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    homes = {name: f"prefect_batchflow.{module}" for name, module in prefect_batchflow._HOMES.items()}
    assert shown == homes, "what type checkers see is what is imported"
    assert prefect_batchflow.__all__ == sorted(homes)
    for name in prefect_batchflow.__all__:
        assert getattr(prefect_batchflow, name).__name__ == name


def test_no_two_classes_have_the_same_name() -> None:
    sources = Path(prefect_batchflow.__file__).parent.rglob("*.py")
    found = Counter(n.name for s in sources for n in ast.walk(ast.parse(s.read_text())) if isinstance(n, ast.ClassDef))
    assert found["Flow"] == 1
    assert [name for name, count in found.items() if count > 1] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prefect_batchflow.nothing  # noqa: B018 - the access is what is tested


def test_a_flows_own_imports_cost_no_prefect() -> None:
    code = (
        "import sys; from prefect_batchflow import tool, log_metric, load_flow; "
        "print([m for m in ('prefect', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("cls", leaves(exceptions.BatchflowException), ids=lambda c: c.__name__)
def test_an_exception_survives_pickling_with_its_facts(cls: type[exceptions.BatchflowException]) -> None:
    exc = pickle.loads(pickle.dumps(cls("text", target="Tool", additional_info={"a": 1}, run_id="r")))  # noqa: S301
    assert (type(exc), exc.message, exc.target, exc.additional_info, exc.run_id) == (cls, "text", "Tool", {"a": 1}, "r")


@pytest.mark.parametrize("cls", leaves(exceptions.BatchflowException), ids=lambda c: c.__name__)
def test_the_drawn_tree_names_every_exception(cls: type[exceptions.BatchflowException]) -> None:
    assert cls.__name__ in (exceptions.__doc__ or "")


def test_an_error_dictionary_has_promptflows_codes() -> None:
    error = exceptions.error_dict(exceptions.LineOutOfMemoryError("too much"))
    assert error["code"] == "UserError"
    assert error["innerError"] == {
        "code": "ProcessCrashError",
        "innerError": {"code": "LineOutOfMemoryError", "innerError": None},
    }
    assert exceptions.innermost_code(error) == "LineOutOfMemoryError"
    assert exceptions.error_dict(KeyError("x"))["innerError"]["code"] == "KeyError"
