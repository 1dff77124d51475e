"""The tool of a node: a function or a class's method, of a file of the flow or of an installed package."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import MultipleToolsDefined, NoToolDefined, ResolveToolError
from prefect_batchflow.tools.python import is_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import ModuleType

    from prefect_batchflow.execution.program.package_tools import PackageTool


@dataclass(frozen=True, slots=True)
class FoundTool:
    """What a node's source holds; nothing is built yet."""

    function: Callable[..., Any]
    """To be called, or a method that `owner` has."""
    place: str
    """For messages: `the tool 'run' of tool.py`."""
    owner: type | None = None
    """The class to be built once, with those of the node's inputs that its constructor takes."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Parameter to promptflow's type, where a package says it; the annotations tell the others."""


def tool_of_source(node: str, own: Iterable[Any], file: Path) -> FoundTool:
    """Give the one tool of a node's file.

    Args:
        node: The node's name, for messages.
        own: The functions and classes that the file defines.
        file: For messages.

    Raises:
        NoToolDefined: There is none.
        MultipleToolsDefined: There are several.
    Source: promptflow `_core/tool_meta_generator.py`, `collect_tool_function_in_module`.
    """
    own = list(own)
    tools = [FoundTool(value, f"the tool '{value.__qualname__}' of {file}") for value in own if is_tool(value)]
    for value in own:
        if is_tool_class(value):
            tools += [
                FoundTool(method, f"the tool '{value.__qualname__}.{name}' of {file}", value)
                for name, method in inspect.getmembers(value, is_tool)
            ]
    if len(tools) == 1:
        return tools[0]
    if tools:
        names = ", ".join(sorted(tool.function.__qualname__ for tool in tools))
        raise MultipleToolsDefined(
            f"Node '{node}': {file} has {len(tools)} functions with @tool: {names}. Expected one; put each into a file "
            "of its own.",
            target="Tool",
        )
    functions = ", ".join(value.__qualname__ for value in own) or "none"
    raise NoToolDefined(
        f"Node '{node}': {file} has no function with @tool; its functions: {functions}. Put @tool, from "
        "promptflow.core, above the one that is meant.",
        target="Tool",
    )


def is_tool_class(value: Any) -> bool:
    """Whether it is a class of tools: derived from `ToolProvider`, ours or promptflow's."""
    return isinstance(value, type) and any(base.__name__ == "ToolProvider" for base in value.__mro__[1:])


def tool_of_package(node: str, tool: PackageTool, module: ModuleType) -> FoundTool:
    """Give the tool that an imported module of a package has.

    Raises:
        ResolveToolError: The module lacks the function or class that the package says it has.
    """
    owner = None if tool.class_name is None else _part(node, tool, module, tool.class_name)
    function = _part(node, tool, module if owner is None else owner, tool.function)
    place = f"the tool '{tool.id}' of {tool.package} {tool.version}"
    inputs = tool.definition.get("inputs")
    declared = inputs.items() if isinstance(inputs, dict) else ()
    types = {
        str(name): _first_type(spec["type"]) for name, spec in declared if isinstance(spec, dict) and "type" in spec
    }
    return FoundTool(function, place, owner, types)


def _part(node: str, tool: PackageTool, holder: ModuleType | type, name: str) -> Any:
    if not hasattr(holder, name):
        raise ResolveToolError(
            f"Node '{node}': the package {tool.package} {tool.version} says that its tool '{tool.id}' is '{name}' of "
            f"{holder.__name__}, which is not there. Install another version of the package.",
            target="Tool",
        )
    return getattr(holder, name)


def _first_type(given: Any) -> str:
    """Promptflow converts for the first of several types."""
    return str(given[0] if isinstance(given, list) and given else given)
