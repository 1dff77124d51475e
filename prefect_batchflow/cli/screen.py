"""What the command line writes: text with rich for people, JSON for programs.

Rows, errors and names are printed as plain text, without markup and control characters.
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from prefect_batchflow.report.summary import one_line
from prefect_batchflow.results.strict_json import strict
from prefect_batchflow.results.texts import encodable

if TYPE_CHECKING:
    from collections.abc import Sequence

STATUS_COLOURS = {
    "Completed": "green",
    "Failed": "red",
    "Canceled": "yellow",
    "Running": "cyan",
    "Unfinished": "yellow",
}
_PIPE_COLUMNS = 1_000


def console(*, error: bool = False) -> Console:
    """A console for standard output or standard error. Outside of a terminal, lines are not wrapped."""
    made = Console(stderr=error, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _PIPE_COLUMNS
    return made


def printable(text: object) -> str:
    """The text with every character that is not printable as a space, or as an escape if it cannot be encoded.

    Line breaks stay.
    """
    lines = encodable(str(text)).splitlines()
    return "\n".join("".join(char if char.isprintable() else " " for char in line) for line in lines)


def shell_line(words: Sequence[str]) -> str:
    r"""A command line that a shell reads as these words. A word that UTF-8 cannot hold is `$'caf\xe9'`, for bash and zsh."""
    return " ".join(shlex.quote(word) if encodable(word) == word else f"$'{_in_dollar_quotes(word)}'" for word in words)


def _in_dollar_quotes(word: str) -> str:
    return encodable(word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n"))


def print_error(message: object) -> None:
    """Write an error to standard error."""
    console(error=True).print(Text.assemble(("Error: ", "bold red"), printable(message)))


def print_note(message: object) -> None:
    """Write a note to standard error."""
    console(error=True).print(Text.assemble(("Note: ", "yellow"), printable(message)))


def print_json(document: Any) -> None:
    """Write the one JSON document, in ASCII; NaN and infinity are null."""
    sys.stdout.write(json.dumps(strict(document), indent=2, allow_nan=False) + "\n")


def print_facts(out: Console, facts: dict[str, str], title: str = "") -> None:
    """Print one name and value per line. Lines are not wrapped, so that you can copy long values."""
    if title and facts:
        out.print()
        out.print(Text(title, style="bold"))
    indent = "  " if title else ""
    width = min(max(map(len, facts), default=0), 40)
    for name, value in facts.items():
        out.print(Text(f"{indent}{one_line(name, 100):<{width}}  {one_line(value, 2_000)}"), soft_wrap=True)


def indented(columns: int, *parts: str | tuple[str, str]) -> Padding:
    """A paragraph that is indented on every wrapped line."""
    return Padding.indent(Text.assemble(*parts), columns)
