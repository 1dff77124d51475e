"""Takes the secrets of a run's connections and variables out of what is kept of it: records, errors, printed output.

A record is for ever, and what is read there is copied on; so an output that has a secret in it loses it, too. Without secrets
nothing is looked through.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from prefect_batchflow.connections import secret_values

if TYPE_CHECKING:
    from collections.abc import Mapping

MASK = "**data_scrubbed**"
"""What stands in a secret's place. Source: promptflow `_utils/credential_scrubber.py`."""
SHORTEST_SECRET = 8
"""Characters of a secret from which on it is looked for: shorter ones, as `test`, are words of other texts as well."""
_SECRET_NAME = re.compile(r"(key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_PARTS = ("inputs", "output", "error", "metrics", "logs")


class Scrubber:
    """Finds secrets in texts and JSON, as they are and as Python and JSON write them.

    Args:
        connections: The run's, name to dictionary or connection.
        init_kwargs: Of these the keys of model configurations.
        environ: What completes the connections.
        variables: Those that are set for the flow's code; of these the ones that are named as secrets are.
    """

    def __init__(
        self,
        connections: Mapping[str, Any],
        init_kwargs: Mapping[str, Any],
        environ: Mapping[str, str],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        secrets = secret_values(connections, environ)
        secrets |= {text for name, text in (variables or {}).items() if _SECRET_NAME.search(name) and "${" not in text}
        secrets |= {
            str(value["api_key"]) for value in init_kwargs.values() if isinstance(value, dict) and "api_key" in value
        }
        secrets = {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
        forms = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1])}
        ordered = sorted(forms, key=len, reverse=True)
        self._longest = len(ordered[0]) if ordered else 0
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        written = (re.escape(json.dumps(form)[1:-1]) for form in ordered)
        self._in_json = re.compile("|".join(written).encode()) if ordered else None

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

    def record(self, record: dict[str, Any]) -> dict[str, Any]:
        """What is kept of a line or an aggregation, as plain JSON, without secrets; names of the flow's stay."""
        kept = {**record, **{part: self.value(record[part]) for part in _PARTS if part in record}}
        aggregated = record.get("aggregation_inputs") or {}
        if aggregated:
            kept["aggregation_inputs"] = {reference: self.value(value) for reference, value in aggregated.items()}
        kept["nodes"] = [{**n, **{part: self.value(n[part]) for part in _PARTS if part in n}} for n in record["nodes"]]
        return kept
