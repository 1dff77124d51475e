"""What a flow gets from around it: its connections and environment variables, as a manifest keeps them.

Only hashes of values that are no secrets. Not even a hash of a secret is kept: a short one could be guessed from it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from prefect_batchflow.connections.environment import variables_in
from prefect_batchflow.connections.given import connection_spec, make_connection, secret_values
from prefect_batchflow.exceptions import InvalidConnectionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SECRET_WORD = re.compile(
    r"(.*key|token|secrets?|pass(word|wd|phrase)?|pwd|credentials?|sas|sig|signature|pat|cookie|bearer|authorization|dsn)"
)
_WORDS = re.compile(r"[a-z0-9]+", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ASSIGNED = re.compile(r"([\w.-]+)=([^;&\s]+)")
_KEYS = re.compile(r"\b(sk-[\w-]{16,}|bearer\s+\S+|basic\s+\S+)", re.IGNORECASE)
_SET_FROM = re.compile(r"([\w.-]+)[\"']?\s*[:=]\s*.*?\$\{env:", re.IGNORECASE)
_SHORTEST_SECRET = 8
_IMPLIED = ("AZURE_OPENAI_ENDPOINT", "OPENAI_BASE_URL", "OPENAI_API_VERSION", "OPENAI_ORG_ID")
"""The variables, besides keys, that a model without an address of its own comes from."""


def is_secret_name(name: str) -> bool:
    """Whether a key, or the name of a variable, is one of a secret: `AZURE_OPENAI_API_KEY`, `dbPassword`, `sig`."""
    words = [word.lower() for word in _WORDS.findall(_CAMEL.sub("_", name))]
    return any(map(_SECRET_WORD.fullmatch, words)) or "connectionstring" in "".join(words)


def named_variables(text: str) -> Iterator[str]:
    """The variables that a text refers to as `${env:NAME}`, without those of secrets."""
    for line in text.splitlines():
        if names := variables_in(line):
            found = _SET_FROM.search(line)
            if found is None or not is_secret_name(found[1]):
                yield from (name for name in names if not is_secret_name(name))


def surroundings(
    connections: Mapping[str, Any],
    environment_variables: Mapping[str, str],
    named: Iterable[str],
    environ: Mapping[str, str],
    *,
    uses_models: bool = False,
) -> dict[str, str]:
    """Give a short hash of each value that is no secret, and of the presence of each variable that is one.

    Args:
        connections: The run's connections, name to promptflow's dictionary, or to a connection.
        environment_variables: Those of the run.
        named: The variables of the process that the flow, its arguments or its own variables refer to.
        environ: The whole environment of the flow's code.
        uses_models: Whether the flow can take a model's address from the usual variables.

    Returns:
        Names for messages (`connection my_ai.api_base`, `variable MODEL`) to hashes.
    """
    all_secrets = secret_values(connections, environ) | {v for name, v in environ.items() if is_secret_name(name)}
    # The longest first: one secret can be a part of another.
    secrets = sorted((secret for secret in all_secrets if len(secret) >= _SHORTEST_SECRET), key=lambda s: (-len(s), s))
    found: dict[str, str] = {}
    referred = {*named}
    for name, given in connections.items():
        for key, value in _open_values(name, given, environ):
            found[f"connection {name}.{key}"] = _hash(value, secrets)
        referred |= {variable for text in _texts(connection_spec(given)) for variable in named_variables(text)}
    for text in environment_variables.values():
        referred.update(named_variables(text))
    referred.update(name for name in _IMPLIED if uses_models and name in environ)
    set_here = {name: environ[name] for name in referred if name in environ and not is_secret_name(name)}
    for name, text in {**set_here, **environment_variables}.items():
        found[f"variable {name}"] = "secret" if is_secret_name(name) else _hash(text, secrets)
    return found


def without_secrets(value: Any) -> Any:
    """Arguments of a constructor, with the type in place of each value under the name of a secret."""
    if isinstance(value, Mapping):
        return {
            key: type(part).__name__ if isinstance(key, str) and is_secret_name(key) else without_secrets(part)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(part) for part in value]
    return _open_text(value, ()) if isinstance(value, str) else value


def _open_values(name: str, given: Any, environ: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    try:
        made = make_connection(name, given, environ)
    except InvalidConnectionError:
        return  # a flow that uses it fails before a line runs
    yield "type", type(made).__name__
    for key, value in made.configs.items():
        if value is not None and not is_secret_name(key):
            yield key, value


def _hash(value: Any, secrets: Iterable[str]) -> str:
    text = (
        value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=lambda item: type(item).__name__)
    )
    return hashlib.sha256(_open_text(text, secrets).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _open_text(text: str, secrets: Iterable[str]) -> str:
    """A text without the secrets that can stand in it: a password or signature of a URL, a key of a connection string."""
    for secret in secrets:
        text = text.replace(secret, "")
    if "://" in text:
        try:
            parts = urlsplit(text)
            text = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        except ValueError:  # no address after all
            text = text.partition("://")[0]
    text = _ASSIGNED.sub(lambda match: f"{match[1]}=" if is_secret_name(match[1]) else match[0], text)
    return _KEYS.sub("", text)


def _texts(value: Any) -> Iterator[str]:
    """Each text in a value with its key, as `key: text`."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from (f"{key}: {text}" for text in _texts(part))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value


def variables_of_arguments(init_kwargs: Mapping[str, Any]) -> Iterator[str]:
    """The variables that a constructor's arguments refer to, without those of secrets."""
    for text in _texts(init_kwargs):
        yield from named_variables(text)
