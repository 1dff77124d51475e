"""Manifests of format 1, read as the present ones. Runs of that time can be shown, verified, copied and resumed."""

from __future__ import annotations

from typing import Any, Final

_NAMES: Final = {"timeout_sec": "line_timeout_sec", "backoff": "retry_backoff", "jitter": "retry_jitter"}
"""The names of that time in the policy of a line, to those of today."""


def from_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """A manifest of format 1 as one of format 2.

    Its options were in groups, `None` was an empty one, and three options had the place of `max_failures`.

    Raises:
        LookupError, TypeError, AttributeError, ValueError: It is not a manifest.
    """
    given = dict(data["options"])
    policy = {_NAMES.get(name, name): value for name, value in dict(given.pop("policy", {})).items()}
    options = {**given, **policy, **dict(given.pop("failures", {}))}
    options.pop("failures", None)
    options.pop("max_retry_delay_sec", None)  # it is fixed now
    first, lines, percent = (
        options.pop(name, None) for name in ("fail_fast", "max_failed_lines", "max_failed_percent")
    )
    if limit := "1" if first else str(int(lines) + 1) if lines else f"{float(percent):g}%" if percent else "":
        options["max_failures"] = limit
    texts = {name: ",".join(value) if isinstance(value, list) else value for name, value in options.items()}
    return {**data, "format": 2, "options": {name: value for name, value in texts.items() if value is not None}}
