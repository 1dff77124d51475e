"""Tools of installed packages are found by their ids, and what is missing is said with what there is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from tool_package import install_package

from prefect_batchflow.exceptions import ResolveToolError
from prefect_batchflow.execution.program.package_tools import find_package_tool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("fresh_imports")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    sys.path.insert(0, str(folder))
    return folder


def definition(function: str, **more: object) -> dict[str, object]:
    return {"module": "shout_package.tools", "function": function, "name": "Shout", "type": "python", **more}


def test_a_tool_is_found_by_its_id(site: Path) -> None:
    install_package(site, "shout_package", "", {"shout_package.tools.shout": definition("shout", inputs={"x": 1})})

    tool = find_package_tool("shout_package.tools.shout")

    assert (tool.module, tool.function, tool.class_name) == ("shout_package.tools", "shout", None)
    assert (tool.package, tool.version) == ("shout-package", "1.5")
    assert tool.definition["inputs"] == {"x": 1}
    assert "shout_package.tools" not in sys.modules


def test_a_method_names_its_class(site: Path) -> None:
    install_package(site, "shout_package", "", {"a.b.C.run": definition("run", class_name="C")})

    assert find_package_tool("a.b.C.run").class_name == "C"


def test_a_former_id_is_found(site: Path) -> None:
    tools = {"new_id": definition("shout", deprecated_tools=["old_id", "older_id"])}
    install_package(site, "shout_package", "", tools)

    assert find_package_tool("older_id").function == "shout"


def test_an_unknown_id_is_refused_with_those_that_there_are(site: Path) -> None:
    install_package(site, "shout_package", "", {"shout_package.tools.shout": definition("shout")})

    with pytest.raises(ResolveToolError) as caught:
        find_package_tool("shout_package.tools.shot")

    assert str(caught.value) == (
        "No installed package has the tool 'shout_package.tools.shot'. Existing tools: shout_package.tools.shout. "
        "Install the package that contains it, in the Python that runs the flow."
    )


@pytest.mark.parametrize(
    ("name", "package"),
    [
        pytest.param("promptflow.tools.serpapi.SerpAPI.search", "--no-deps promptflow-tools", id="promptflow's own"),
        pytest.param("promptflow_vectordb.tool.vector_db_lookup.search", "promptflow-vectordb", id="vector search"),
    ],
)
def test_the_package_of_a_known_id_is_named(site: Path, name: str, package: str) -> None:
    with pytest.raises(ResolveToolError, match=f"pip install {package}$"):
        find_package_tool(name)


def test_a_package_whose_listing_fails_costs_only_its_own_tools(site: Path) -> None:
    install_package(site, "broken_package", "", "raise RuntimeError('no catalogue')")
    install_package(site, "odd_package", "", "return ['a']")
    install_package(site, "shout_package", "", {"shout": definition("shout")})

    assert find_package_tool("shout").package == "shout-package"
    with pytest.raises(ResolveToolError) as caught:
        find_package_tool("whisper")

    assert "broken-package (RuntimeError: no catalogue)" in str(caught.value)
    assert "odd-package (TypeError: expected tool id to definition, found a list)" in str(caught.value)


def test_a_definition_without_function_is_refused(site: Path) -> None:
    install_package(site, "shout_package", "", {"shout": {"module": "shout_package.tools"}})

    with pytest.raises(ResolveToolError, match=r"shout-package 1\.5 is defined without a function"):
        find_package_tool("shout")


def test_a_package_installed_later_is_found(site: Path, tmp_path: Path) -> None:
    with pytest.raises(ResolveToolError):
        find_package_tool("shout")
    install_package(tmp_path / "more", "shout_package", "", {"shout": definition("shout")})
    sys.path.append(str(tmp_path / "more"))

    assert find_package_tool("shout").function == "shout"
