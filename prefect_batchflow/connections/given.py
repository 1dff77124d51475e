"""The connections of a run, by name. Each is made at its first use, with values from the environment."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import TO_GIVE, GetConnectionError, InvalidConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

from prefect_batchflow.connections.environment import (
    filled_in,
    is_for_connections,
    is_variable,
    variable_named,
    variables_of,
)
from prefect_batchflow.connections.kinds import KINDS, MODULE, is_connection_type, parts_of

MISSING = "MissingConnection"
"""The key in an error's additional information for the name of a connection that was not given,"""
WANTED = "WantedConnections"
"""and for the names of the classes that the flow takes there."""


def make_connection(
    name: str, spec: Any, environ: Mapping[str, str], kind_of: Callable[[str], type[Any] | None] = KINDS.get
) -> Any:
    """Make a connection from promptflow's dictionary.

    Args:
        name: Its name in the flow.
        spec: `{type, value, module, secret_keys}`, or a connection, which is copied under the name.
        environ: A variable `<NAME>_<KEY>`, in capitals, replaces a value; a value `${env:X}` is the value of X.
        kind_of: Gives the class of a type.

    Raises:
        InvalidConnectionError: The dictionary's type, keys or variables are wrong; the message shows no value.
    Source: promptflow `core/_connection_provider/_dict_connection_provider.py`, and `core/_utils.py` for the variables.
    """
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
    if type_name in ("CustomConnection", "CustomStrongTypeConnection"):
        secret_keys = set(spec.get("secret_keys") or ())
        return kind(**parts_of(value, secret_keys), name=name, module=spec.get("module") or MODULE)
    return _strong(name, kind, value)


def connection_spec(connection: Any) -> Any:
    """A connection as promptflow's dictionary; a type that a flow defines becomes custom, other values stay as they are."""
    if not is_connection_type(type(connection)):
        return connection
    name = type(connection).__name__
    return {
        "type": name if name in KINDS else "CustomConnection",
        "value": {**connection.configs, **connection.secrets},
        "module": connection.module,
        "secret_keys": list(connection.secrets),
    }


def connection_value(name: str, spec: Any, key: str, environ: Mapping[str, str]) -> Any:
    """One value of a connection, replaced from the environment as in `make_connection`; `None` for a missing key.

    Raises:
        InvalidConnectionError: The value is a variable that is not set.
    """
    values = _values(connection_spec(spec))
    return _from_environment(name, key, values[key], environ) if key in values else None


def _strong(name: str, kind: type[Any], value: dict[str, Any]) -> Any:
    """A connection of a type with fields; other keys are left out, as in promptflow."""
    import inspect

    parameters = inspect.signature(kind).parameters.items()
    fields = {field: parameter for field, parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    given = {key: found for key, found in value.items() if key in fields}
    missing = [key for key, parameter in fields.items() if parameter.default is parameter.empty and key not in given]
    if missing:
        raise InvalidConnectionError(
            f"The connection {name!r} has no {', '.join(missing)}, which {kind.__name__} requires. It has "
            f"{', '.join(value) or 'no keys'}. Allowed keys: {', '.join(fields)}."
        )
    return kind(**given, name=name)


def _values(spec: Any) -> dict[str, Any]:
    values = spec.get("value") if isinstance(spec, dict) else None
    return values if isinstance(values, dict) else {}


def _from_environment(name: str, key: str, value: Any, environ: Mapping[str, str]) -> Any:
    set_here = (v for v in variables_of(name, key) if v in environ and is_for_connections(v))
    value = next((environ[variable] for variable in set_here), value)
    if not isinstance(value, str) or not is_variable(value):
        return value
    return filled_in(value.strip(), environ, f"{key!r} of the connection {name!r}")


def secret_values(specs: Mapping[str, Any], environ: Mapping[str, str]) -> set[str]:
    """The secrets of connections, as texts: `api_key` and all secret keys, also of connections that cannot be created."""
    found: set[str] = set()
    for name, given in specs.items():
        spec = connection_spec(given)
        if values := _values(spec):
            for key in {"api_key", *(spec.get("secret_keys") or ())} & values.keys():
                with suppress(InvalidConnectionError):  # a variable that is not set holds no secret
                    found.add(str(_from_environment(name, key, values[key], environ) or ""))
    return found - {""}


class Connections:
    """The connections of a run, by name; each is made at its first use.

    Args:
        specs: Name to promptflow's dictionary, or to a connection.
        environ: The environment, as for `make_connection`.
    """

    def __init__(self, specs: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._specs = dict(specs or {})
        self._environ = environ or {}
        self._made: dict[str, Any] = {}
        self._is_loaded = False

    def __bool__(self) -> bool:
        return bool(self._specs)

    @property
    def names(self) -> list[str]:
        """Their names, sorted."""
        return sorted(self._specs)

    def get(self, name: str, needed_by: str = "", kinds: Sequence[str] = ()) -> Any:
        """Give a connection: of promptflow's class if promptflow is installed, else of this package's.

        Args:
            name: Its name.
            needed_by: Who needs it, for messages, such as `node 'answer'`.
            kinds: The names of the classes that fit, if the flow says so.

        Raises:
            GetConnectionError: It was not given, or cannot be created; a `ResolveToolError`.
        """
        if name not in self._made:
            place = f" for {needed_by}" if needed_by else ""
            if not name:
                raise GetConnectionError(
                    f"The name of the connection{place} is ''. Write it into the flow, or give it to the run: "
                    "--node-connections NODE.INPUT=CONNECTION for a node, --init NAME=CONNECTION for a constructor.",
                    target="Tool",
                    additional_info={TO_GIVE: {"connection": ""}},
                )
            if name not in self._specs:
                self._find(name, place, kinds)
            try:
                self._made[name] = make_connection(name, self._specs[name], self._environ, installed_kind)
            except InvalidConnectionError as exc:
                raise GetConnectionError(
                    f"The connection {name!r}{place} cannot be created. {exc}",
                    target="Tool",
                    additional_info=exc.additional_info,
                ) from exc
        return self._made[name]

    def variable_of(self, name: str, key: str) -> str | None:
        """The environment variable that gives a key of a connection; `None` if no variable does."""
        set_here = (variable for variable in variables_of(name, key) if variable in self._environ)
        written = _values(connection_spec(self._specs.get(name))).get(key)
        return next(set_here, None) or (variable_named(written) if isinstance(written, str) else None)

    def load_is_done(self) -> None:
        """The flow is loaded. A connection that its lines ask for can come from variables, because no block can follow."""
        self._is_loaded = True

    def _find(self, name: str, place: str, kinds: Sequence[str]) -> None:
        # Only here, because a worker rarely needs it, and it reads yaml.
        from prefect_batchflow.connections.variables import connection_of_variables

        # While the flow loads, the run looks for a block first: variables alone do not show what it has.
        if self._is_loaded and (spec := connection_of_variables(name, self._environ, kinds)) is not None:
            self._specs[name] = spec
            return
        there = ", ".join(self.names) or "none"
        raise GetConnectionError(
            f"The connection {name!r}{place} was not given; given: {there}. {how_to_give(name, kinds)}, or correct the name in "
            "the flow.",
            target="Tool",
            additional_info={MISSING: name, WANTED: list(kinds)},
        )


def how_to_give(name: str, kinds: Sequence[str]) -> str:
    """Say how to give a connection to a run, without a full stop."""
    from prefect_batchflow.connections.variables import missing_variables

    return (
        f"Give it as a file (--connection {name}=FILE.yml), a Prefect block (--connection {name}=BLOCK) or in `connections`, "
        f"save it (batchflow connection create), or set {missing_variables(name, kinds)}"
    )


def installed_kind(type_name: str) -> type[Any] | None:
    """The class of a type: promptflow's own if it is imported, because flows check the classes of connections."""
    own = KINDS.get(type_name)
    for module in ("promptflow.connections", "promptflow.core._connection"):
        found = getattr(sys.modules.get(module), type_name, None) if own is not None else None
        if isinstance(found, type):
            return found
    return own
