"""What a manifest keeps of a flow: by place and content of its files, and by the versions of its packages."""

from __future__ import annotations

from importlib import metadata
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.settings import RunOptions
from prefect_batchflow.storage import flow_print as module
from prefect_batchflow.storage.flow_print import FlowPrint, flow_print, package_versions
from prefect_batchflow.storage.manifest import Manifest, changes

if TYPE_CHECKING:
    from pathlib import Path


def print_of(folder: Path) -> FlowPrint:
    return flow_print(load_flow(f"{folder / 'flow.py'}:run"))


def manifest_with(flow: FlowPrint, **facts: Any) -> Manifest:
    known: dict[str, Any] = {
        "run_id": "r", "flow_name": "f", "flow": None, "working_dir": "/", "data": {}, "inputs_mapping": {}, "init_names": [],
        "init_kwargs": None, "options": RunOptions(), "output_dir": None, "total_lines": 1, "sessions": [],
        "fingerprints": flow.fingerprints, "flow_parts": flow.named_parts, "packages": dict(flow.packages),
    }  # fmt: skip
    return Manifest(**{**known, **facts})


def test_files_count_by_place_and_content(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text("import one, sub.two")
    one, two = tmp_path / "one.py", tmp_path / "sub" / "two.py"
    two.parent.mkdir()
    one.write_text("1")
    two.write_text("2")
    prints = [print_of(tmp_path)]

    assert print_of(tmp_path) == prints[0]
    two.write_text("3")
    prints.append(print_of(tmp_path))
    one.rename(tmp_path / "sub" / "one.py")
    prints.append(print_of(tmp_path))

    assert len({found.fingerprints["flow"] for found in prints}) == 3


def test_a_moved_flow_is_the_same_flow(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "flow.py").write_text("import helper")
        (tmp_path / folder / "helper.py").write_text("x = 1")

    assert print_of(tmp_path / "here") == print_of(tmp_path / "there")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"a.py": "1"}, {"a.py": "2"}, "the flow's files changed (a.py changed)"),
        ({"a.py": "1"}, {"a.py": "1", "b.txt": "2"}, "the flow's files changed (b.txt is new)"),
        ({"a.py": "1", "b.txt": "2"}, {"a.py": "1"}, "the flow's files changed (b.txt is gone)"),
        ({"function f": "1"}, {"function f": "2"}, "the flow's code changed (function f changed)"),
        ({"the callable": "1"}, {"the callable": "2"}, "the flow's code changed (the callable changed)"),
        ({"global P": "1"}, {"a.py": "2"}, "the flow's files changed (a.py is new, global P is gone)"),
        (
            {},
            {f"{number}.py": "x" for number in range(9)},
            "the flow's files changed",
        ),
        (
            {"a.py": "1"},
            {"a.py": "1", **{f"{number}.py": "x" for number in range(9)}},
            "the flow's files changed (0.py is new, 1.py is new, 2.py is new, 3.py is new, 4.py is new and 4 more)",
        ),
        ({"a.py": "1"}, {f"{number}.py": "x" for number in range(501)}, "the flow's files changed (a.py is gone)"),
    ],
    ids=["changed", "new", "gone", "code", "object", "both", "an older manifest", "many", "too many to keep"],
)
def test_a_change_of_the_flow_names_its_parts(before: dict[str, str], now: dict[str, str], said: str) -> None:
    manifest, found = manifest_with(FlowPrint(before, {})), FlowPrint(now, {})

    said_now = changes(manifest.fingerprints, found.fingerprints, found.details(manifest))
    assert list(said_now.values()) == [said]


def test_a_change_of_packages_names_the_versions() -> None:
    manifest = manifest_with(FlowPrint({}, {"openai": "1.3", "yaml": "6", "gone": "1"}))
    found = FlowPrint({}, {"openai": "2.0", "yaml": "6", "new": "3"})

    said = changes(manifest.fingerprints, found.fingerprints, found.details(manifest))
    assert list(said.values()) == ["the installed packages changed (gone 1 → absent, new absent → 3, openai 1.3 → 2.0)"]


def test_versions_are_those_of_the_packages_that_have_the_modules() -> None:
    assert package_versions(["yaml", "no_such_module"]) == {"PyYAML": metadata.version("PyYAML")}
    assert package_versions(["jinja2"]) == {"jinja2": metadata.version("jinja2")}


def test_each_module_is_found_in_the_packages_that_have_it() -> None:
    names = ["yaml", "PIL", "attr", "dateutil", "jinja2", "httpx", "_pytest", "pydantic_core"]
    for name, packages in metadata.packages_distributions().items():
        if name in names and PathFinder.find_spec(name) is not None:
            assert set(package_versions([name])) <= {name, *packages}
            assert set(module._packages_of(name)) == set(packages)
