"""The environment variables of a flow and a run: set where the flow's code runs, never in the process of the run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONNECTION = re.compile(r"\$\{(?P<connection>[^.${}]+)\.(?P<key>[^${}]+)\}")


def resolved(variables: Mapping[str, str], connections: Mapping[str, Any]) -> dict[str, str]:
    """Give the variables with `${connection.key}` filled in.

    Args:
        variables: Name to text.
        connections: Name to promptflow's `{type, value: {key: …}}`, or to an object with the keys as attributes.

    Raises:
        InvalidOptionError: A connection, or a key of it, was not given; names only, for values may be secrets.
    Source: promptflow `core/_utils.py`, `update_dict_value_with_connections`, which leaves the reference in place then.
    """
    return {name: _resolved(name, text, connections) for name, text in variables.items()}


def _resolved(name: str, text: str, connections: Mapping[str, Any]) -> str:
    match = _CONNECTION.fullmatch(text.strip())
    if match is None:
        return text
    connection, key = match["connection"], match["key"]
    if connection not in connections:
        known = ", ".join(f"'{other}'" for other in connections) or "none"
        raise InvalidOptionError(
            f"The environment variable {name} is a key of the connection '{connection}', which was not given; given: {known}. "
            f"Give it, or a value for {name}."
        )
    given = connections[connection]
    if isinstance(given, dict):
        values = given.get("value") or {}
        found = values.get(key)
    else:
        found = getattr(given, key, None)
    if found is None:
        raise InvalidOptionError(
            f"The environment variable {name} is '{key}' of the connection '{connection}', which has no such key. Correct "
            f"the reference, or give a value for {name}."
        )
    return str(found)
