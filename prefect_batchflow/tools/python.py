"""The `@tool` decorator, and how a tool is told from any other function."""

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


def is_tool(value: Any) -> bool:
    """Whether a module's value is a tool: marked by `tool` here, or by promptflow's own."""
    # Both marks are looked for on the object itself: a class instance or a mock may answer to any name.
    marks = getattr(value, "__dict__", {})
    return callable(value) and ("__tool__" in marks or "__tool" in marks)
