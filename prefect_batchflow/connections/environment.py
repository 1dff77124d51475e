"""Variables from the environment of the process that runs the flow: `${env:NAME}` in texts, and those of connections."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import TO_GIVE, InvalidConnectionError

if TYPE_CHECKING:
    from collections.abc import Mapping

_REFERENCE = re.compile(r"\$\{(?i:env):([^}]+)\}")


_OF_OTHERS = ("PREFECT_", "BATCHFLOW_")
"""Variables that give no connection: they hold the worker's own keys, and a run can choose the names of its connections."""


def variables_in(text: str) -> list[str]:
    """The names of the variables that a text refers to, each once."""
    return list(dict.fromkeys(name.strip() for name in _REFERENCE.findall(text)))


def is_variable(text: str) -> bool:
    """Whether the whole text is one reference."""
    return variable_named(text) is not None


def variable_named(text: str) -> str | None:
    """The variable that the whole text refers to; `None` for other texts."""
    match = _REFERENCE.fullmatch(text.strip())
    return None if match is None else match[1].strip()


def filled_in(text: str, environ: Mapping[str, str], place: str) -> str:
    """Replace the references in a text with the values of the variables.

    Raises:
        InvalidConnectionError: A variable is not set; the message names the variable and the place.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1].strip()
        if name not in environ:
            raise InvalidConnectionError(
                f"{place} is {match[0]}, but the environment variable {name} is not set. Set it for the process that "
                "runs the flow.",
                additional_info={TO_GIVE: {"variable": name}},
            )
        return environ[name]

    return _REFERENCE.sub(value, text)


def is_for_connections(variable: str) -> bool:
    """Whether a variable can give a connection, and does not belong to Prefect or this package."""
    return not variable.startswith(_OF_OTHERS)


def variables_of(name: str, key: str) -> list[str]:
    """The environment variables that give a key of a connection, the usual spelling first.

    A shell sets no variable with a dash or a dot in its name, so that `my-ai` is also read from `MY_AI_API_KEY`.
    """
    exact = f"{name.replace(' ', '_')}_{key}".upper()
    return list(dict.fromkeys([re.sub(r"[^A-Z0-9_]", "_", exact), exact]))
