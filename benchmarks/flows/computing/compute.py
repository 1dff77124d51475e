"""A node that computes in pure Python, always the same amount."""

from __future__ import annotations

from promptflow.core import tool

STEPS = 200_000
"""About 15 ms on the machine of the figures in docs/performance.md."""


@tool
def compute(text: str) -> str:
    """Give a number that takes `STEPS` steps to find, in text."""
    value = len(text)
    for step in range(STEPS):
        value = (value * 31 + step) & 0xFFFFFFFF
    return f"{value:08x}"
