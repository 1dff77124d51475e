"""The one node of the flow that is all overhead."""

from __future__ import annotations

from promptflow.core import tool


@tool
def upper(text: str) -> str:
    """Give the text in capitals."""
    return text.upper()
