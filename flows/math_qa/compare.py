"""Third node: whether the model's number is the one that was asked for."""

from __future__ import annotations

from last_number import last_number
from promptflow.core import tool


@tool
def compare(number: str, expected: str) -> bool:
    """Compare with the number of the worked answer; a model that gave none is wrong."""
    return number != "" and number == last_number(expected)
