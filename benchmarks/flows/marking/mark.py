"""The trivial node, which also notes when the run's first line began, and fails lines with a text that asks for it."""

from __future__ import annotations

import os
import time

from promptflow.core import tool

_noted = False


@tool
def mark(text: str) -> str:
    """Give the text in capitals; the first call in all processes writes down its time."""
    global _noted
    if not _noted:
        _noted = True
        note_first_line(time.monotonic())
    if text.startswith("fail"):
        raise ValueError(f"asked for: {text}")
    return text.upper()


def note_first_line(moment: float) -> None:
    """Write the time to the file in `BENCH_FIRST_LINE`, unless another process was first.

    The monotonic clock is the machine's on Linux, and so comparable between processes.
    """
    try:
        with open(os.environ["BENCH_FIRST_LINE"], "x") as mark:  # noqa: PTH123 - pathlib's import is no part of a line
            mark.write(str(moment))
    except FileExistsError:
        pass
