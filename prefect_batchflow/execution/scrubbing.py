"""Takes the secrets of a run out of what is kept of it: records, errors, printed output.

A record is for ever, and what is read there is copied on; so an output that has a secret in it loses it, too. Without secrets
nothing is looked through.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from prefect_batchflow.connections.environment import filled_in
from prefect_batchflow.connections.given import secret_values
from prefect_batchflow.exceptions import InvalidConnectionError
from prefect_batchflow.execution.program.record import encode_record
from prefect_batchflow.results.records import AggregationRun, LineRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prefect_batchflow.definition.flow import Flow

Kept = TypeVar("Kept", LineRecord, AggregationRun)

MASK = "**data_scrubbed**"
"""What stands in a secret's place. Source: promptflow `_utils/credential_scrubber.py`."""
SHORTEST_SECRET = 8
"""Characters of a secret from which on it is looked for: shorter ones, as `test`, are words of other texts as well."""
KEYS_OF_MODELS = ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY")
"""Where the openai package, and a prompty that says no key, find one."""
_NAMES_A_SECRET = re.compile(r"(?:key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_DEEPEST = 8
_PARTS = ("inputs", "output", "error", "metrics", "logs")


class Scrubber:
    """Finds secrets in texts and JSON, as they are and as Python and JSON write them.

    Args:
        connections: The run's, name to dictionary or connection.
        init_kwargs: Of these the keys of model configurations, at any depth.
        environ: What completes the connections; of it the keys of models.
        variables: The names of those that the run was given: one that ends as keys, tokens, secrets and passwords do is secret.
    """

    def __init__(
        self,
        connections: Mapping[str, Any],
        init_kwargs: Mapping[str, Any],
        environ: Mapping[str, str],
        variables: Iterable[str] = (),
    ) -> None:
        secrets = secret_values(connections, environ) | set(_keys_in(init_kwargs, environ))
        names = {*KEYS_OF_MODELS, *(name for name in variables if _NAMES_A_SECRET.search(name))}
        secrets |= {environ[name] for name in names if name in environ}
        self._know(secrets)

    def _know(self, secrets: Iterable[str]) -> None:
        self.secrets = frozenset(secret for secret in secrets if len(secret) >= SHORTEST_SECRET)
        forms = {form for secret in self.secrets for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1])}
        ordered = sorted(forms, key=len, reverse=True)
        self._longest = len(ordered[0]) if ordered else 0
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        written = (re.escape(json.dumps(form)[1:-1]) for form in ordered)
        self._in_json = re.compile("|".join(written).encode()) if ordered else None

    def knowing(self, secrets: Iterable[str]) -> Scrubber:
        """One that takes these out, too: those that a worker has found where it runs."""
        if self.secrets.issuperset(secrets):
            return self
        other = Scrubber({}, {}, {})
        other._know(self.secrets.union(secrets))
        return other

    @classmethod
    def of_run(
        cls,
        flow: Flow,
        connections: Mapping[str, Any],
        init_kwargs: Mapping[str, Any],
        variables: Mapping[str, str],
    ) -> Scrubber:
        """The scrubber of a run of a flow in this process's environment with the run's variables."""
        return cls(connections, {**init_kwargs, "": flow.program.model}, {**os.environ, **variables}, variables)

    def text(self, text: str) -> str:
        """A text without secrets."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def beginning(self, text: str) -> str:
        """A text that is cut at its end, without secrets, nor the part of one before the cut."""
        return text if self._pattern is None else self.text(text)[: -self._longest]

    def end(self, text: str) -> str:
        """A text that is cut at its beginning, without secrets, nor the part of one behind the cut."""
        return text if self._pattern is None else self.text(text)[self._longest :]

    def value(self, value: Any) -> Any:
        """JSON without secrets, keys included."""
        if self._pattern is None:
            return value
        if type(value) is str:
            return self.text(value)
        if type(value) is dict:
            return {self.value(key): self.value(part) for key, part in value.items()}
        if type(value) is list:
            return list(map(self.value, value))
        return value

    def finds_in(self, encoded: bytes) -> bool:
        """Whether JSON as it is written has a secret in it."""
        return self._in_json is not None and self._in_json.search(encoded) is not None

    def encode(self, record: LineRecord) -> tuple[LineRecord, bytes]:
        """A line's record without secrets, as values and as JSON."""
        encoded = encode_record(record)
        if self.finds_in(encoded):
            record = self.record(json.loads(encoded))
            encoded = encode_record(record)
        return record, encoded

    def record(self, record: Kept) -> Kept:
        """What is kept of a line or an aggregation, as plain JSON, without secrets; names of the flow's stay."""
        kept: Any = self._parts(record)
        if aggregated := kept.get("aggregation_inputs"):
            kept["aggregation_inputs"] = {reference: self.value(value) for reference, value in aggregated.items()}
        kept["nodes"] = [self._parts(node) for node in record["nodes"]]
        scrubbed: Kept = kept
        return scrubbed

    def _parts(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self.value(value) if key in _PARTS else value for key, value in record.items()}


def _keys_in(value: Any, environ: Mapping[str, str], depth: int = 0) -> Iterator[str]:
    """What stands as `api_key` in dictionaries and model configurations."""
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key == "api_key" and isinstance(part, str):
                with suppress(InvalidConnectionError):  # a variable that is not set keeps no secret
                    yield filled_in(part, environ, key)
            else:
                yield from _keys_in(part, environ, depth + 1)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _keys_in(part, environ, depth + 1)
    elif type(value).__name__.endswith("ModelConfiguration"):
        yield from _keys_in({"api_key": getattr(value, "api_key", None)}, environ, depth)
