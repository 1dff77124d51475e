"""Second node: the model's number."""

from __future__ import annotations

from last_number import last_number
from promptflow.core import tool


@tool
def read_number(text: str) -> str:
    """Give the number at the end of the model's solution, or an empty text."""
    return last_number(text)
