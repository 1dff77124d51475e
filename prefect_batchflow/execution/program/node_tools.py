"""Finding the tool of a node: a function or method in a file of the flow or in an installed package."""

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
    """The tool in a node's source; no class is built yet."""

    function: Callable[..., Any]
    """The tool, or a method of `owner`."""
    place: str
    """For messages: `the tool 'run' of tool.py`."""
    owner: type | None = None
    """The class to build once, with the inputs of the node that its constructor takes."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Parameter to promptflow's type, as far as a package declares it; annotations give the other types."""


def tool_of_source(node: str, own: Iterable[Any], file: Path) -> FoundTool:
    """Give the one tool of a node's file.

    Args:
        node: The node's name, for messages.
        own: The functions and classes that the file defines.
        file: The file, for messages.

    Raises:
        NoToolDefined: The file has no tool.
        MultipleToolsDefined: It has several.
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
        raise several_tools(node, file, [tool.function.__qualname__ for tool in tools])
    raise no_tool(node, file, [value.__qualname__ for value in own])


def several_tools(node: str, file: Path, names: list[str]) -> MultipleToolsDefined:
    """The error of a file with these tools."""
    return MultipleToolsDefined(
        f"Node '{node}': {file} has {len(names)} functions with @tool: {', '.join(sorted(names))}. Expected one; put each "
        "into its own file.",
        target="Tool",
    )


def no_tool(node: str, file: Path, names: list[str]) -> NoToolDefined:
    """The error of a file with these functions, and no tool."""
    return NoToolDefined(
        f"Node '{node}': {file} has no function with @tool. Its functions: {', '.join(names) or 'none'}. Put @tool, from "
        "promptflow.core, above the node's function.",
        target="Tool",
    )


def is_tool_class(value: Any) -> bool:
    """Whether it is a class derived from `ToolProvider`, ours or promptflow's."""
    return isinstance(value, type) and any(base.__name__ == "ToolProvider" for base in value.__mro__[1:])


def tool_of_package(node: str, tool: PackageTool, module: ModuleType) -> FoundTool:
    """Give a package's tool from its imported module.

    Raises:
        ResolveToolError: The module lacks the function or class that the package declares.
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
            f"Node '{node}': the package {tool.package} {tool.version} declares '{name}' of {holder.__name__} for its tool "
            f"'{tool.id}', but it does not exist. Install another version of the package.",
            target="Tool",
        )
    return getattr(holder, name)


def _first_type(given: Any) -> str:
    """The first of several types, for which promptflow converts."""
    return str(given[0] if isinstance(given, list) and given else given)
