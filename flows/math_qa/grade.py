"""After all lines: how many of them are right."""

from __future__ import annotations

from promptflow.core import log_metric, tool


@tool
def grade(correct: list[bool], numbers: list[str]) -> dict[str, int]:
    """Log `accuracy` over the completed lines, and the share without a number; `None` stands for a line without a value."""
    right, silent = sum(map(bool, correct)), sum(not number for number in numbers)
    if correct:
        log_metric("accuracy", round(right / len(correct), 4))
        log_metric("without_number", round(silent / len(correct), 4))
    return {"lines": len(correct), "right": right, "without_number": silent}
