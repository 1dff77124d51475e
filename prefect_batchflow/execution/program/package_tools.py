"""Tools of installed packages: entry points of the group `package_tools`, as in promptflow's packages.

Such an entry point is a function that lists tool ids with their definitions: `module` and `function`, `class_name` for a
method, and texts for editors. Only the listing functions are imported, until a node needs a tool.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.packages import PACKAGES, pip_install
from prefect_batchflow.exceptions import PackageToolNotFoundError, ResolveToolError
from prefect_batchflow.execution.program.user_errors import exception_text, passes_through

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "package_tools"
SHOWN_IDS = 20
"""How many tool ids a message lists."""


@dataclass(frozen=True, slots=True)
class PackageTool:
    """One tool of an installed package."""

    id: str
    """As in the flow's yaml, even if the package has a newer name for it."""
    module: str
    function: str
    class_name: str | None = None
    """The class, if the function is a method."""
    definition: Mapping[str, Any] = field(default_factory=dict)
    """The package's whole definition: `inputs` with their types, `name`, `type`, `description`."""
    package: str = ""
    version: str = ""


def find_package_tool(name: str) -> PackageTool:
    """Give the tool that has, or had, this name in an installed package.

    Args:
        name: The id, as in `source: {type: package, tool: …}`.

    Raises:
        PackageToolNotFoundError: No installed package has it; the message lists the existing tools, and packages whose
            listing failed.
        ResolveToolError: Its definition lacks the module or the function.
    Source: promptflow `_core/tools_manager.py`, `collect_package_tools` and `ToolLoader.load_package_tool`.
    """
    tools, failures = _collected(tuple(sys.path))
    found = tools.get(name)
    if found is None:
        found = next((tool for tool in tools.values() if name in _former_names(tool.definition)), None)
    if found is None:
        raise PackageToolNotFoundError(
            f"No installed package has the tool '{name}'. {_what_there_is(name, tools)}{_failed(failures)}"
            f"{install_hint(name)}",
            target="Executor",
        )
    if not (found.module and found.function):
        raise ResolveToolError(
            f"The tool '{name}' of the package {found.package} {found.version} is defined without "
            f"{'a function' if found.module else 'a module'}. Install another version of the package.",
            target="Executor",
        )
    return found


@functools.cache
def _collected(path: tuple[str, ...]) -> tuple[dict[str, PackageTool], list[str]]:
    """All tools of packages on this `sys.path`, by id, and the failures of listings."""
    tools: dict[str, PackageTool] = {}
    failures = []
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        package, version = _distribution(entry_point)
        try:
            listed = entry_point.load()()
            tools.update((tool.id, tool) for tool in _tools_of(listed, package, version))
        except BaseException as exc:  # the tools of other packages are still needed
            if passes_through(exc):
                raise
            failures.append(f"{package or entry_point.value} ({type(exc).__name__}: {exception_text(exc)})")
    return tools, failures


def _tools_of(listed: Any, package: str, version: str) -> Iterator[PackageTool]:
    if not isinstance(listed, Mapping):
        raise TypeError(f"expected tool id to definition, found a {type(listed).__name__}")
    for name, definition in listed.items():
        if isinstance(definition, Mapping):
            module, function = str(definition.get("module") or ""), str(definition.get("function") or "")
            class_name = definition.get("class_name") or None
            yield PackageTool(str(name), module, function, class_name, dict(definition), package, version)


def _distribution(entry_point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    dist = entry_point.dist
    return (dist.name, dist.version) if dist is not None else ("", "")


def _former_names(definition: Mapping[str, Any]) -> list[str]:
    names = definition.get("deprecated_tools") or []
    return names if isinstance(names, list) else [names]


def _what_there_is(name: str, tools: Mapping[str, PackageTool]) -> str:
    if not tools:
        return "No package has any tools."
    # Similar names first, because not all may be shown.
    near = get_close_matches(name, tools, 5, 0.5)
    ids = near + sorted(tools.keys() - set(near))
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return f"Existing tools: {', '.join(ids[:SHOWN_IDS])}{more}."


def _failed(failures: list[str]) -> str:
    return f" The tools of these packages cannot be listed: {'; '.join(failures)}." if failures else ""


def install_hint(name: str) -> str:
    """A sentence on how to install the package of a tool, with a leading space."""
    for module in PACKAGES:
        if name.startswith(f"{module}."):
            return f" Install the package that contains it: {pip_install(module)}"
    return " Install the package that contains it, in the Python that runs the flow."
