"""Connections for parameters whose annotations ask for one."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from prefect_batchflow.connections.addresses import check_address
from prefect_batchflow.connections.environment import filled_in, variable_named
from prefect_batchflow.connections.given import installed_kind
from prefect_batchflow.connections.kinds import KINDS, is_connection_type, strong_connection
from prefect_batchflow.connections.model_configurations import AzureOpenAIModelConfiguration, OpenAIModelConfiguration
from prefect_batchflow.definition.annotations import bare, union_members
from prefect_batchflow.exceptions import GetConnectionError, InvalidConnectionError, NodeInputValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.connections.given import Connections


def connection_types(annotation: Any) -> list[type]:
    """The connection classes that an annotation allows; empty for other parameters."""
    return [member for member in _members(annotation) if is_connection_type(member)]


def connect(name: Any, kinds: list[type], connections: Connections, needed_by: str) -> Any:
    """Give the connection for a parameter where the flow has its name.

    Args:
        name: The value in the flow.
        kinds: The classes that the parameter takes, from `connection_types`.
        connections: Those of the run.
        needed_by: For messages: `node 'answer', input 'connection'`.

    Raises:
        GetConnectionError: The connection was not given or cannot be built.
        NodeInputValidationError: It has another type, or the value is not a name.
    Source: promptflow `executor/_tool_resolver.py`, `_convert_to_connection_value`.
    """
    takes = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(name, str):
        raise NodeInputValidationError(
            f"{needed_by}: expected the name of a connection, because the code takes {takes}. Found a value of "
            f"type {type(name).__name__}.",
            target="Tool",
        )
    found = connections.get(name, needed_by, [kind.__name__ for kind in kinds])
    if isinstance(found, tuple(kinds)):
        return found
    strong = next((kind for kind in kinds if _is_strong(kind)), None)
    if strong is not None and type(found).__name__ in ("CustomConnection", "CustomStrongTypeConnection"):
        try:
            return strong_connection(found, strong)
        except InvalidConnectionError as exc:
            raise GetConnectionError(f"{needed_by}: {exc}", target="Tool", additional_info=exc.additional_info) from exc
    raise NodeInputValidationError(
        f"{needed_by}: the connection {name!r} is a {type(found).__name__}, but the code takes {takes}. Name a connection "
        "of that type, or change the annotation.",
        target="Tool",
    )


def constructor_value(value: Any, annotation: Any, type_name: str, connections: Connections, needed_by: str) -> Any:
    """Give a constructor's argument: a connection for a name, a model configuration for its keys, other values unchanged.

    A value that is neither is refused, unless the annotation allows it too.

    Args:
        value: The value in the run or the flow.
        annotation: The parameter's annotation.
        type_name: Its type in the flow's yaml; the name of a connection class counts as an annotation.
        connections: Those of the run.
        needed_by: For messages: `init 'connection'`.

    Raises:
        GetConnectionError: A connection was not given or cannot be built.
        NodeInputValidationError: A connection has another type, or the value is no name of one.
        InvalidConnectionError: The keys do not fit a model configuration, or the value is none.
    Source: promptflow `executor/_script_executor.py`, `_resolve_init_kwargs`.
    """
    kinds = connection_types(annotation)
    models = model_types(annotation)
    allows_others = bool(kinds or models) and _allows_others(annotation, value)
    named = installed_kind(type_name) if type_name in KINDS else None
    if named is not None and not kinds:
        kinds = [named]
    if not models and type_name in _MODELS:
        models = [getattr(sys.modules.get("promptflow.core"), type_name, None) or _MODELS[type_name]]
    if isinstance(value, tuple(kinds)) or not (kinds or models):
        return value
    if models and isinstance(value, dict):
        return _model_configuration(value, models, connections, needed_by)
    if {base.__name__ for base in type(value).__mro__} & {kind.__name__ for kind in models}:
        keys = {name: found for name in value.__dataclass_fields__ if (found := getattr(value, name)) is not None}
        if value.connection:
            return _model_configuration(keys, models, connections, needed_by)
        _check_address_of(value, needed_by)
        return value
    if kinds and isinstance(value, str):
        return connect(value, kinds, connections, needed_by)
    if allows_others:
        return value
    if not models:
        return connect(value, kinds, connections, needed_by)
    example = f"{{{next(iter(models[0].__dataclass_fields__))}: …, connection: …}}"
    takes = " or ".join(kind.__name__ for kind in models)
    raise InvalidConnectionError(
        f"{needed_by}: expected the keys of {takes}, such as {example}; found a value of type {type(value).__name__}. "
        "To name a connection, write it as the key `connection`."
    )


def _members(annotation: Any) -> list[Any]:
    """What an annotation allows, without names for it and notes on it."""
    plain, _ = bare(annotation)
    return [bare(member)[0] for member in union_members(plain) or (plain,)]


def model_types(annotation: Any) -> list[type[Any]]:
    """The model configurations that an annotation allows; empty for other parameters."""
    return [member for member in _members(annotation) if isinstance(member, type) and member.__name__ in _MODELS]


def _allows_others(annotation: Any, value: Any) -> bool:
    """Whether an annotation allows a value that is no connection and no model configuration."""
    others = [
        m for m in _members(annotation) if not is_connection_type(m) and getattr(m, "__name__", "") not in _MODELS
    ]
    if value is None:
        return any(member in (None, type(None), Any, object) for member in others)
    return any(member not in (None, type(None)) for member in others)


def _model_configuration(
    value: dict[str, Any], kinds: list[type[Any]], connections: Connections, needed_by: str
) -> Any:
    """Build a model configuration from its keys; if it names a connection, endpoint and key come from there."""
    fields = {kind: list(kind.__dataclass_fields__) for kind in kinds}
    kind = next((kind for kind in kinds if fields[kind][0] in value), kinds[0])
    unknown = [str(key) for key in value if key not in fields[kind]]
    model = value.get(fields[kind][0])
    if unknown or model is None or model == "":
        problem = f"has the unknown keys {', '.join(unknown)}" if unknown else f"lacks {fields[kind][0]!r}"
        raise InvalidConnectionError(f"{needed_by}: {kind.__name__} {problem}. Its keys: {', '.join(fields[kind])}.")
    try:
        configuration = kind(**value)
    except InvalidConnectionError as exc:
        raise InvalidConnectionError(f"{needed_by}: {exc}") from exc
    if not configuration.connection:
        _check_address_of(configuration, needed_by)
        return configuration
    name = configuration.connection
    found = connect(name, [_connection_of(kind)], connections, needed_by)
    key = "api_base" if hasattr(found, "api_base") else "base_url"
    variable = connections.variable_of(name, key)
    if key == "api_base" or variable or getattr(found, key):
        check_address(getattr(found, key), f"{needed_by}: the connection {name!r}: its {key}{_from(variable)}")
    return kind.from_connection(found, model)


def _from(variable: str | None) -> str:
    return f", from the environment variable {variable}," if variable else ""


def _check_address_of(configuration: Any, needed_by: str) -> None:
    """Refuse an address that no call can use; its variables stay as they are written, as in promptflow."""
    for key in ("azure_endpoint", "base_url"):
        address, place = getattr(configuration, key, None), f"{needed_by}.{key}"
        if address is None or (address == "" and (key == "base_url" or os.environ.get("AZURE_OPENAI_ENDPOINT"))):
            continue
        if variable := variable_named(str(address)):
            address = filled_in(str(address), os.environ, place)
        check_address(address, f"{place}{_from(variable)}")


def _connection_of(kind: type[Any]) -> type[Any]:
    found = installed_kind(kind.__name__.replace("ModelConfiguration", "Connection"))
    assert found is not None, "each model configuration has a connection class of its name"
    return found


_MODELS: Mapping[str, type[Any]] = {
    cls.__name__: cls for cls in (AzureOpenAIModelConfiguration, OpenAIModelConfiguration)
}


def _is_strong(kind: type) -> bool:
    return any(base.__name__ == "CustomStrongTypeConnection" for base in kind.__mro__)
