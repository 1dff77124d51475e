"""Aggregation node: how many tickets got the right category and urgency, over all completed lines."""

from __future__ import annotations

from operator import eq
from typing import Any

from promptflow.core import log_metric, tool


def share(part: int, whole: int) -> float:
    """`part / whole`, or 0 if `whole` is 0."""
    return part / whole if whole else 0.0


@tool
def evaluate(
    categories: list[str], urgencies: list[str], expected_categories: list[str], expected_urgencies: list[str]
) -> dict[str, Any]:
    """Log `accuracy`, `macro_f1` and `urgency_accuracy`; give the confusion table and each category's figures.

    `confusion[expected][given]` counts tickets. All lists have one item per completed line, in the same order.
    """
    names = sorted({*categories, *expected_categories})
    confusion = {expected: dict.fromkeys(names, 0) for expected in names}
    for expected, given in zip(expected_categories, categories, strict=True):
        confusion[expected][given] += 1

    figures = {}
    for name in names:
        hits = confusion[name][name]
        precision = share(hits, categories.count(name))
        recall = share(hits, expected_categories.count(name))
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        figures[name] = {"precision": round(precision, 4), "recall": round(recall, 4), "f1": round(f1, 4)}

    right = sum(confusion[name][name] for name in names)
    urgencies_right = sum(map(eq, urgencies, expected_urgencies))
    log_metric("accuracy", round(share(right, len(categories)), 4))
    log_metric("macro_f1", round(sum(f["f1"] for f in figures.values()) / max(len(figures), 1), 4))
    log_metric("urgency_accuracy", round(share(urgencies_right, len(urgencies)), 4))
    return {"tickets": len(categories), "confusion": confusion, "categories": figures}
