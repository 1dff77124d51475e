"""A connection that environment variables give alone: `MY_AI_API_KEY` and `MY_AI_API_BASE` for `my_ai`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.connections.environment import is_for_connections, variables_of
from prefect_batchflow.connections.files import connection_of, fields_of, is_custom, kind_named, yaml_type
from prefect_batchflow.connections.kinds import KINDS
from prefect_batchflow.exceptions import InvalidConnectionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SECRET: Final = re.compile(r"(key|token|secret|password|passwd|credentials?|connection_string)$")
"""Names of secrets among the variables of a custom connection."""
_MODELS: Final = ("AzureOpenAIConnection", "OpenAIConnection")
"""The types that are tried first, or at all if the flow does not say which it takes. The first one also needs an `api_base`."""


def connection_of_variables(name: str, environ: Mapping[str, str], kinds: Sequence[str] = ()) -> dict[str, Any] | None:
    """Give promptflow's dictionary of the connection that variables give; `None` if they do not give a whole one.

    Args:
        name: Its name in the flow; its variables are `<NAME>_<KEY>` in capitals. `<NAME>_TYPE` gives its type.
        environ: The environment.
        kinds: The classes that the flow's code takes; empty if it does not say.

    Raises:
        InvalidConnectionError: `<NAME>_TYPE` is not a type.
    """
    given = _given(name, environ)
    kind = _kind(name, given, kinds)
    if kind is None:
        return None
    if is_custom(kind):
        values = {key: value for key, value in given.items() if not (key == "type" and kind_named(value))}
        return (
            {"type": kind, "value": values, "secret_keys": [k for k in values if _SECRET.search(k)]} if values else None
        )
    fields = fields_of(kind)
    if "base_url" in fields and "base_url" not in given and "api_base" in given:
        # Without it, the key would go to another service than the one that was written.
        given["base_url"] = given["api_base"]
    values = {key: value for key, value in given.items() if key in fields}
    return connection_of({"type": kind, **values}, f"The variables {_shown(name, values)}", {}, name).spec


def missing_variables(name: str, kinds: Sequence[str] = ()) -> str:
    """The variables that would give a connection, for a message: `MY_AI_API_KEY and MY_AI_API_BASE`."""
    strong = [kind for kind in kinds if kind in KINDS and not is_custom(kind)]
    if kinds and not strong:
        return f"{variables_of(name, '')[0]}<KEY>"
    kind = strong[0] if len(strong) == 1 else "OpenAIConnection"
    needed = [key for key, is_needed in fields_of(kind).items() if is_needed and key != "api_key"]
    return _shown(name, ["api_key", *needed])


def _given(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Key to value, of all variables that begin with the connection's name."""
    found: dict[str, str] = {}
    for prefix in reversed(variables_of(name, "")):
        given = {v: text for v, text in environ.items() if text and v.startswith(prefix) and is_for_connections(v)}
        found |= {v[len(prefix) :].lower(): text for v, text in given.items()}
    return {key: value for key, value in found.items() if key}


def _kind(name: str, given: Mapping[str, str], kinds: Sequence[str]) -> str | None:
    strong = [kind for kind in kinds if kind in KINDS and not is_custom(kind)]
    takes_custom = len(strong) < len(kinds)
    if said := given.get("type"):
        if (kind := kind_named(said)) is not None:
            return kind
        if not takes_custom:
            raise InvalidConnectionError(
                f"The variable {variables_of(name, 'type')[0]} is {said!r}, which is no type of a connection. Expected one of "
                f"{', '.join(map(yaml_type, KINDS))}."
            )
    # The first one that has all its keys.
    candidates = [kind for kind in _MODELS if not kinds or kind in strong]
    candidates += [kind for kind in strong if kind not in _MODELS]
    has_login = "api_key" in given or given.get("auth_mode", "").lower() == "meid_token"
    for kind in candidates if has_login else ():
        if all(key in given for key, is_needed in fields_of(kind).items() if is_needed):
            return kind
    return "CustomConnection" if takes_custom else None


def _shown(name: str, keys: Iterable[str]) -> str:
    return " and ".join(variables_of(name, key)[0] for key in keys)
