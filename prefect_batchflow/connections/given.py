"""The connections that a run was given, by name: made when they are first asked for, with the environment's part in them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import GetConnectionError, InvalidConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

from prefect_batchflow.connections.environment import filled_in, is_variable
from prefect_batchflow.connections.kinds import KINDS, MODULE, is_connection

MISSING = "MissingConnection"
"""In an error's additional information: the name of a connection that was not given."""


def make_connection(
    name: str,
    spec: Any,
    environ: Mapping[str, str],
    kind_of: Callable[[str], type[Any] | None] = KINDS.get,
) -> Any:
    """Make a connection of promptflow's dictionary.

    Args:
        name: What the flow calls it.
        spec: `{type, value, module, secret_keys}`, or a connection, which is made anew under the name.
        environ: `<NAME>_<KEY>`, in capitals, takes the place of a value, and `${env:X}` as a value is that variable's.
        kind_of: Gives the class of a type, where it is not one of these.

    Raises:
        InvalidConnectionError: The dictionary's type, keys or variables are wrong; no value is told.
    Source: promptflow `core/_connection_provider/_dict_connection_provider.py`, and `core/_utils.py` for the variables.
    """
    if is_connection(spec):
        spec = connection_spec(spec)
    if not isinstance(spec, dict):
        raise InvalidConnectionError(
            f"The connection {name!r} is a {type(spec).__name__}. Expected {{'type': …, 'value': {{…}}}}, or a connection."
        )
    type_name = spec.get("type")
    kind = kind_of(type_name) if isinstance(type_name, str) else None
    if kind is None:
        raise InvalidConnectionError(
            f"The connection {name!r} has the type {type_name!r}. Expected one of {', '.join(sorted(KINDS))}."
        )
    value = spec.get("value") or {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidConnectionError(
            f"The 'value' of the connection {name!r} is a {type(value).__name__}. Expected its keys and their values."
        )
    value = {key: _from_environment(name, key, found, environ) for key, found in value.items()}
    module = spec.get("module") or MODULE
    if type_name in ("CustomConnection", "CustomStrongTypeConnection"):
        secret_keys = set(spec.get("secret_keys") or ())
        secrets = {key: found for key, found in value.items() if key in secret_keys}
        configs = {key: found for key, found in value.items() if key not in secret_keys}
        return kind(secrets=secrets, configs=configs, name=name, module=module)
    return _strong(name, kind, value)


def connection_spec(connection: Any) -> dict[str, Any]:
    """A connection as promptflow's dictionary of it; one of a type that a flow defines becomes a custom one."""
    name = type(connection).__name__
    return {
        "type": name if name in KINDS else "CustomConnection",
        "value": {**connection.configs, **connection.secrets},
        "module": connection.module,
        "secret_keys": list(connection.secrets),
    }


def connection_value(name: str, spec: Any, key: str, environ: Mapping[str, str]) -> Any:
    """One value of a connection, with the environment's part in it as in `make_connection`; `None` for a key that is not there.

    Raises:
        InvalidConnectionError: It is a variable's that is not set.
    """
    spec = connection_spec(spec) if is_connection(spec) else spec
    values = spec.get("value") if isinstance(spec, dict) else None
    if not isinstance(values, dict) or key not in values:
        return None
    return _from_environment(name, key, values[key], environ)


def _strong(name: str, kind: type[Any], value: dict[str, Any]) -> Any:
    """A connection of a type with fields; keys that are none of them are left out, as promptflow does."""
    import inspect

    fields = {
        field: parameter
        for field, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    given = {key: found for key, found in value.items() if key in fields}
    missing = [key for key, parameter in fields.items() if parameter.default is parameter.empty and key not in given]
    if missing:
        raise InvalidConnectionError(
            f"The connection {name!r} has no {', '.join(missing)}, which {kind.__name__} needs; it has "
            f"{', '.join(value) or 'no keys'}. It takes {', '.join(fields)}."
        )
    return kind(**given, name=name)


def _from_environment(name: str, key: str, value: Any, environ: Mapping[str, str]) -> Any:
    override = f"{name.replace(' ', '_')}_{key}".upper()
    if override in environ:
        value = environ[override]
    if not isinstance(value, str) or not is_variable(value):
        return value
    return filled_in(value.strip(), environ, f"{key!r} of the connection {name!r}")


def secret_values(specs: Mapping[str, Any], environ: Mapping[str, str]) -> set[str]:
    """The secrets of connections, as texts, also of one that cannot be made: what is called `api_key` or a secret key."""
    found: set[str] = set()
    for name, given in specs.items():
        spec = connection_spec(given) if is_connection(given) else given
        value = spec.get("value") if isinstance(spec, dict) else None
        if not isinstance(value, dict):
            continue
        for key in {"api_key", *(spec.get("secret_keys") or ())} & value.keys():
            try:
                found.add(str(_from_environment(name, key, value[key], environ) or ""))
            except InvalidConnectionError:
                continue  # a variable that is not there keeps no secret
    return found - {""}


class Connections:
    """The connections that a run was given, by name; each is made when it is first asked for.

    Args:
        specs: Name to promptflow's dictionary, or to a connection.
        environ: The environment that completes them.
    """

    def __init__(self, specs: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._specs = dict(specs or {})
        self._environ = environ or {}
        self._made: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._specs)

    @property
    def names(self) -> list[str]:
        """What may be asked for, sorted."""
        return sorted(self._specs)

    def get(self, name: str, needed_by: str = "") -> Any:
        """The connection of a name: promptflow's own class where promptflow is installed, else one of these.

        Args:
            name: As the flow says it.
            needed_by: For the message: `node 'answer'`.

        Raises:
            GetConnectionError: It was not given, or cannot be made of what was; a `ResolveToolError`.
        """
        if name not in self._made:
            place = f" for {needed_by}" if needed_by else ""
            if name not in self._specs:
                there = ", ".join(self.names) or "none"
                raise GetConnectionError(
                    f"The connection {name!r}{place} is not there; given were: {there}. Give it in `connections`, save it "
                    "as a Prefect block, or correct the name in the flow.",
                    target="Tool",
                    additional_info={MISSING: name},
                )
            try:
                self._made[name] = make_connection(name, self._specs[name], self._environ, installed_kind)
            except InvalidConnectionError as exc:
                raise GetConnectionError(
                    f"The connection {name!r}{place} cannot be made. {exc}", target="Tool"
                ) from exc
        return self._made[name]


def installed_kind(type_name: str) -> type[Any] | None:
    """The class of a type: promptflow's own where that is imported and has it, since flows ask what a connection is."""
    own = KINDS.get(type_name)
    for module in ("promptflow.connections", "promptflow.core._connection"):
        found = getattr(sys.modules.get(module), type_name, None) if own is not None else None
        if isinstance(found, type):
            return found
    return own
