"""Where user code says by its annotations that it takes a connection, and what it is given there."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from prefect_batchflow.connections import is_connection_type, strong_connection
from prefect_batchflow.exceptions import GetConnectionError, InvalidConnectionError, NodeInputValidationError

if TYPE_CHECKING:
    from prefect_batchflow.connections import Connections


def connection_types(annotation: Any) -> list[type]:
    """The classes of connections among what an annotation allows; empty for any other parameter."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return [member for member in members if is_connection_type(member)]


def connect(name: Any, kinds: list[type], connections: Connections, needed_by: str) -> Any:
    """The connection that a parameter gets where the flow says a name.

    Args:
        name: What the flow says.
        kinds: What the parameter takes, from `connection_types`.
        connections: The run's.
        needed_by: For messages: `node 'answer', input 'connection'`.

    Raises:
        GetConnectionError: It was not given, or cannot be made.
        NodeInputValidationError: It is of another type, or the flow says no name.
    Source: promptflow `executor/_tool_resolver.py`, `_convert_to_connection_value`.
    """
    takes = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(name, str):
        raise NodeInputValidationError(
            f"{needed_by}: a {type(name).__name__} is given where the code takes a {takes}. Write a connection's name there.",
            target="Tool",
        )
    found = connections.get(name, needed_by)
    if isinstance(found, tuple(kinds)):
        return found
    strong = next((kind for kind in kinds if _is_strong(kind)), None)
    if strong is not None and type(found).__name__ in ("CustomConnection", "CustomStrongTypeConnection"):
        try:
            return strong_connection(found, strong)
        except InvalidConnectionError as exc:
            raise GetConnectionError(f"{needed_by}: {exc}", target="Tool") from exc
    raise NodeInputValidationError(
        f"{needed_by}: the connection {name!r} is a {type(found).__name__}, and the code takes a {takes}. Name one of these, "
        "or change the annotation.",
        target="Tool",
    )


def _is_strong(kind: type) -> bool:
    return any(base.__name__ == "CustomStrongTypeConnection" for base in kind.__mro__)
