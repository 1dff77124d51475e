"""Takes the secrets of a run out of everything that is kept of it: records, errors, printed output.

Outputs lose their secrets, too, because records are kept for long and copied on. A run without secrets skips the search.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_batchflow.connections.environment import filled_in
from prefect_batchflow.connections.given import connection_spec, secret_values
from prefect_batchflow.exceptions import InvalidConnectionError
from prefect_batchflow.execution.program.record import encode_record
from prefect_batchflow.execution.written_secrets import WrittenSecrets
from prefect_batchflow.inputs.places import secrets_in_url
from prefect_batchflow.results.records import AggregationRun, LineRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prefect_batchflow.definition.flow import Flow

Kept = TypeVar("Kept", LineRecord, AggregationRun)

MASK = "**data_scrubbed**"
"""Replaces a secret. Source: promptflow `_utils/credential_scrubber.py`."""
SHORTEST_SECRET = 8
"""Characters. Shorter secrets are not searched, because ordinary texts can contain them: `test`, for example."""
_API_KEY = "_API_KEY"
"""How environment variables with a key end: those of the openai package, and those that give a connection."""
_NAMES_A_SECRET = re.compile(r"(?:key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_SECRET_OF_ENVIRONMENT = re.compile(
    r"(?:_|^)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|AUTH_STRING|CONNECTION_STRING)$|_SECRET_\w*KEY$", re.IGNORECASE
)
"""Variables of the process that are secrets if their values look like one: AWS_SECRET_ACCESS_KEY, HF_TOKEN, …"""
_LOOKS_LIKE_A_SECRET = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[^\s]{16,}")
"""No word that an output can have by itself: `POSTGRES_PASSWORD=postgres` must not take that word out of outputs."""
_SECRET_ARGUMENT = re.compile(
    r"(?:^|_)(?:api_?key|access_?key|secret_?key|private_?key|account_?key|(?:access|api|auth|bearer|sas)_?token|secret|password"
    r"|passwd)$|^token$",
    re.IGNORECASE,
)
"""Arguments of a constructor that are secrets. `stop_token` and `sort_key` are ordinary words."""
_DEEPEST = 8
_PARTS = ("inputs", "output", "error", "metrics", "logs", "model_calls")


class Scrubber:
    """Finds secrets in texts and JSON: unchanged, or as `written` knows them encoded."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.secrets = frozenset(secret for secret in secrets if len(secret) >= SHORTEST_SECRET)
        self._written = WrittenSecrets(self.secrets) if self.secrets else None

    def knowing(self, secrets: Iterable[str]) -> Scrubber:
        """A scrubber that also takes out these secrets, which a worker found in its own environment."""
        return self if self.secrets.issuperset(secrets) else Scrubber(self.secrets.union(secrets))

    @classmethod
    def of_run(
        cls, flow: Flow, connections: Mapping[str, Any], init_kwargs: Mapping[str, Any], variables: Mapping[str, str]
    ) -> Scrubber:
        """The scrubber of a run, for this process's environment and the run's variables."""
        given = {**init_kwargs, "": flow.program.model}
        return cls(secrets_of(connections, given, {**os.environ, **variables}, variables))

    def text(self, text: str) -> str:
        """The text without secrets."""
        return text if self._written is None else self._written.replaced(text, MASK)

    def beginning(self, text: str) -> str:
        """A text that was cut at its end: without secrets, and without a part of one before the cut."""
        return text if self._written is None else self.text(text)[: -self._written.longest]

    def end(self, text: str) -> str:
        """A text that was cut at its beginning: without secrets, and without a part of one after the cut."""
        return text if self._written is None else self.text(text)[self._written.longest :]

    def value(self, value: Any) -> Any:
        """A JSON value without secrets, also in its keys."""
        if self._written is None:
            return value
        if type(value) is str:
            return self.text(value)
        if type(value) is dict:
            return {self.value(key): self.value(part) for key, part in value.items()}
        if type(value) is list:
            return list(map(self.value, value))
        return value

    def finds_in(self, encoded: bytes) -> bool:
        """Whether encoded JSON contains a secret."""
        return self._written is not None and self._written.is_in(encoded)

    def encode(self, record: LineRecord) -> tuple[LineRecord, bytes]:
        """A line's record without secrets, as values and as JSON."""
        encoded = encode_record(record)
        if self.finds_in(encoded):
            record = self.record(json.loads(encoded))
            encoded = encode_record(record)
        return record, encoded

    def record(self, record: Kept) -> Kept:
        """The record of a line or an aggregation in plain JSON, without secrets; names from the flow stay."""
        kept: Any = self._parts(record)
        if aggregated := kept.get("aggregation_inputs"):
            kept["aggregation_inputs"] = {reference: self.value(value) for reference, value in aggregated.items()}
        kept["nodes"] = [self._parts(node) for node in record["nodes"]]
        scrubbed: Kept = kept
        return scrubbed

    def _parts(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self.value(value) if key in _PARTS else value for key, value in record.items()}


def secrets_of(
    connections: Mapping[str, Any], init_kwargs: Mapping[str, Any], environ: Mapping[str, str], variables: Iterable[str]
) -> set[str]:
    """All secrets of a run.

    Args:
        connections: The run's connections, name to dictionary or connection.
        init_kwargs: Keys in model configurations, and arguments with names such as `password`, at any depth are secrets.
        environ: The environment. It completes the connections. Its variables that end in `_API_KEY` are secrets, and those that
            end like `_TOKEN` or `_SECRET_ACCESS_KEY` if their values look like secrets.
        variables: Names of the run's environment variables. Those that end like `key`, `token` or `password` are secrets.

    Passwords and signatures in addresses are secrets in all of them; of the process's variables, those that are no plain word.
    """
    names = {*filter(_NAMES_A_SECRET.search, variables), *(name for name in environ if name.endswith(_API_KEY))}
    from_environment = {environ[name] for name in names if name in environ}
    from_environment |= {
        text
        for name, text in environ.items()
        if _SECRET_OF_ENVIRONMENT.search(name) and _LOOKS_LIKE_A_SECRET.fullmatch(text) and not os.path.lexists(text)
    }
    given = [environ[name] for name in variables if name in environ]
    given += [*_texts_in(init_kwargs), *_texts_in({name: _open_values(spec) for name, spec in connections.items()})]
    in_addresses = _in_addresses(given) | {s for s in _in_addresses(environ.values()) if not s.isalpha()}
    return secret_values(connections, environ) | from_environment | set(_keys_in(init_kwargs, environ)) | in_addresses


def _in_addresses(texts: Iterable[str]) -> set[str]:
    return {secret for text in texts if ":" in text or "=" in text for secret in secrets_in_url(text)}


def _open_values(connection: Any) -> Any:
    spec = connection_spec(connection)
    return spec.get("value") if isinstance(spec, Mapping) else None


def _texts_in(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth <= _DEEPEST and isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(part, depth + 1)


def has_keys(init_kwargs: Mapping[str, Any]) -> bool:
    """Whether arguments of a constructor have a key in clear text; a reference to a variable is none."""
    return any(_keys_in(init_kwargs, {})) or any(map(secrets_in_url, _texts_in(init_kwargs)))


def _keys_in(value: Any, environ: Mapping[str, str], depth: int = 0) -> Iterator[str]:
    """All values of `api_key` and other names of secrets in dictionaries and model configurations."""
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        for key, part in value.items():
            if isinstance(part, str) and isinstance(key, str) and _SECRET_ARGUMENT.search(key):
                with suppress(InvalidConnectionError):  # a variable that is not set keeps no secret
                    yield filled_in(part, environ, key)
            else:
                yield from _keys_in(part, environ, depth + 1)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _keys_in(part, environ, depth + 1)
    elif type(value).__name__.endswith("ModelConfiguration"):
        yield from _keys_in({"api_key": getattr(value, "api_key", None)}, environ, depth)
