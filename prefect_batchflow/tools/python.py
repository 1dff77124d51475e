"""The `@tool` decorator, the base of classes of tools, and the classes that mark a parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable

Function = TypeVar("Function", bound="Callable[..., Any]")


@overload
def tool(function: Function, /) -> Function: ...
@overload
def tool(
    function: None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    type: str | None = None,
    input_settings: Any = None,
    streaming_option_parameter: str | None = None,
    **extra: Any,
) -> Callable[[Function], Function]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    **described: Any,
) -> Any:
    """Mark a function, plain or async, as the tool of its file; use it as `@tool` or `@tool(name=…)`.

    Args:
        function: Stays what it is, with a mark on it.
        described: What promptflow's editors show of the tool (name, description, type, …): kept, and used nowhere.
    Source: promptflow `_core/tool.py`, `tool`.
    """

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__tool__ = described  # type: ignore[attr-defined]
        return function

    return mark if function is None else mark(function)


class ToolProvider:
    """The base of a class of tools: a node's inputs go to `__init__` and to its one method with `@tool`.

    It is built once a worker process for each node, from values that are written in the flow.
    Source: promptflow `_core/tool.py`, `ToolProvider`.
    """


class Secret(str):
    """Marks a parameter as a secret; a value is plain text."""

    __slots__ = ("secret_name",)

    def set_secret_name(self, name: str) -> None:
        """Note what the secret is called."""
        self.secret_name = name


class PromptTemplate(str):
    """Marks a parameter as the text of a prompt; a value is plain text."""

    __slots__ = ()


class FilePath(str):
    """Marks a parameter as the path of a file; a value is plain text."""

    __slots__ = ()


class InputSetting:
    """What promptflow's editors do with a parameter: kept, and used nowhere, as that of `@tool`."""

    def __init__(self, **described: Any) -> None:
        self.described = described


class DynamicList:
    """A list of choices that promptflow's editors ask a function for: kept, and used nowhere."""

    def __init__(self, function: Any, input_mapping: dict[str, str] | None = None) -> None:
        self.function, self.input_mapping = function, input_mapping


def is_tool(value: Any) -> bool:
    """Whether a module's value is a tool: marked by `tool` here, or by promptflow's own."""
    # Both marks are looked for on the object itself: a class instance or a mock may answer to any name.
    marks = getattr(value, "__dict__", {})
    return callable(value) and ("__tool__" in marks or "__tool" in marks)
