"""Environment variables of a flow and a run, for the process that runs the flow's code."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from prefect_batchflow.connections.given import MISSING, connection_value
from prefect_batchflow.exceptions import GetConnectionError, InvalidConnectionError, InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONNECTION = re.compile(r"\$\{(?P<connection>[^.${}]+)\.(?P<key>[^${}]+)\}")


def resolved(
    variables: Mapping[str, str], connections: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Give the variables with each `${connection.key}` resolved.

    Args:
        variables: Name to text.
        connections: Name to promptflow's `{type, value: {key: …}}`, or to a connection.
        environ: The environment that completes the connections.

    Raises:
        GetConnectionError: A connection was not given, or refers to a variable that is not set. The message has only
            names, because values can be secrets.
        InvalidOptionError: A connection has no such key.
    Source: promptflow `core/_utils.py`, `update_dict_value_with_connections`, which then leaves the reference unresolved.
    """
    return {name: _resolved(name, text, connections, environ) for name, text in variables.items()}


def connections_in(variables: Mapping[str, str]) -> set[str]:
    """The names of the connections that variables refer to."""
    matches = (_CONNECTION.fullmatch(text.strip()) for text in variables.values())
    return {match["connection"] for match in matches if match is not None}


def _resolved(name: str, text: str, connections: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    match = _CONNECTION.fullmatch(text.strip())
    if match is None:
        return text
    connection, key = match["connection"], match["key"]
    if connection not in connections:
        known = ", ".join(f"'{other}'" for other in connections) or "none"
        raise GetConnectionError(
            f"The environment variable {name} refers to the connection '{connection}', which was not given. Given: {known}. "
            f"Give it, save it as a Prefect block, or give a value for {name}.",
            additional_info={MISSING: connection},
        )
    try:
        found = connection_value(connection, connections[connection], key, environ)
    except InvalidConnectionError as exc:
        raise GetConnectionError(
            f"The environment variable {name}: {exc}", additional_info=exc.additional_info
        ) from exc
    if found is None:
        raise InvalidOptionError(
            f"The environment variable {name} refers to '{key}' of the connection '{connection}', which has no such key. "
            f"Correct the reference, or give a value for {name}."
        )
    return str(found)
