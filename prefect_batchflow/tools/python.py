"""The `@tool` decorator, the base class of tool classes, and classes that mark parameters."""

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
def tool(function: Callable[..., Any] | None = None, /, **described: Any) -> Any:
    """Mark a function, plain or async, as the tool of its file; use it as `@tool` or `@tool(name=…)`.

    Args:
        function: It gets a mark and is otherwise unchanged.
        described: What promptflow's editors show (name, description, type, …); kept, but not used.
    Source: promptflow `_core/tool.py`, `tool`.
    """

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__tool__ = described  # type: ignore[attr-defined]
        return function

    return mark if function is None else mark(function)


class ToolProvider:
    """The base class of tool classes: a node's inputs go to `__init__` and to the one method with `@tool`.

    Each worker process builds one object per node, from values that are written in the flow.
    Source: promptflow `_core/tool.py`, `ToolProvider`.
    """


class Secret(str):
    """Marks a parameter as a secret; its values are plain strings."""

    __slots__ = ("secret_name",)

    def set_secret_name(self, name: str) -> None:
        """Set the secret's name."""
        self.secret_name = name


class PromptTemplate(str):
    """Marks a parameter as a prompt's text; its values are plain strings."""

    __slots__ = ()


class FilePath(str):
    """Marks a parameter as a file's path; its values are plain strings."""

    __slots__ = ()


class InputSetting:
    """Settings of a parameter for promptflow's editors; kept, but not used."""

    def __init__(self, **described: Any) -> None:
        self.described = described


class DynamicList:
    """A function that gives promptflow's editors a list of choices; kept, but not used."""

    def __init__(self, function: Any, input_mapping: dict[str, str] | None = None) -> None:
        self.function, self.input_mapping = function, input_mapping


def is_tool(value: Any) -> bool:
    """Whether a value of a module is marked as a tool, by this package or by promptflow."""
    # Look for the marks on the object itself, because an instance or a mock can answer to any name.
    marks = getattr(value, "__dict__", {})
    return callable(value) and ("__tool__" in marks or "__tool" in marks)
