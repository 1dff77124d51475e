"""What the command line writes to its two streams: for people by rich, for programs as JSON.

Texts of rows, errors and names are printed as plain text: no markup is read in them, no control character leaves.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from prefect_batchflow.report.markdown import one_line

STATUS_COLOURS = {
    "Completed": "green",
    "Failed": "red",
    "Canceled": "yellow",
    "Running": "cyan",
    "Unfinished": "yellow",
}
_PIPE_COLUMNS = 1_000


def console(*, error: bool = False) -> Console:
    """A console for one of the two streams; where nobody looks, lines are as long as they are."""
    made = Console(stderr=error, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _PIPE_COLUMNS
    return made


def printable(text: object) -> str:
    """A text whose lines hold printable characters only; others become spaces."""
    lines = str(text).splitlines()
    return "\n".join("".join(char if char.isprintable() else " " for char in line) for line in lines)


def print_error(message: object) -> None:
    """Say on standard error what went wrong."""
    console(error=True).print(Text.assemble(("Error: ", "bold red"), printable(message)))


def print_note(message: object) -> None:
    """Say on standard error what is worth knowing."""
    console(error=True).print(Text.assemble(("Note: ", "yellow"), printable(message)))


def print_json(document: Any) -> None:
    """Write the one document that programs read; escapes keep every character printable."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def print_facts(out: Console, facts: dict[str, str], title: str = "") -> None:
    """Name and value a line; not wrapped, so that a long one can be copied whole."""
    if title and facts:
        out.print()
        out.print(Text(title, style="bold"))
    indent = "  " if title else ""
    width = min(max(map(len, facts), default=0), 40)
    for name, value in facts.items():
        out.print(Text(f"{indent}{one_line(name, 100):<{width}}  {one_line(value, 2_000)}"), soft_wrap=True)


def indented(columns: int, *parts: str | tuple[str, str]) -> Padding:
    """A paragraph that keeps its indent where it is wrapped."""
    return Padding.indent(Text.assemble(*parts), columns)
