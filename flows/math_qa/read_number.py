"""Second node: the model's number."""

from __future__ import annotations

from last_number import last_number
from promptflow.core import tool


@tool
def read_number(text: str) -> str:
    """Give the number that the model's solution ends with; empty where there is none."""
    return last_number(text)
