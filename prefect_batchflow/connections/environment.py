"""`${env:NAME}` in texts: a variable from the environment of the process that runs the flow."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import InvalidConnectionError

if TYPE_CHECKING:
    from collections.abc import Mapping

_REFERENCE = re.compile(r"\$\{env:([^}]+)\}")


def variables_in(text: str) -> list[str]:
    """The names of the variables that a text refers to, each once."""
    return list(dict.fromkeys(name.strip() for name in _REFERENCE.findall(text)))


def is_variable(text: str) -> bool:
    """Whether the whole text is one reference."""
    return _REFERENCE.fullmatch(text.strip()) is not None


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
                "runs the flow."
            )
        return environ[name]

    return _REFERENCE.sub(value, text)
