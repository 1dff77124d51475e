"""The only node of the trivial flow, for which everything else is overhead."""

from __future__ import annotations

from promptflow.core import tool


@tool
def upper(text: str) -> str:
    """Give the text in capitals."""
    return text.upper()
