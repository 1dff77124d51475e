"""Errors that were chosen by name: those that are retried, and those of failed lines that run again."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.classes import ErrorClass, is_one_of
from prefect_batchflow.exceptions import InvalidOptionError, LineExecutionTimeoutError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

FAILED, TIMED_OUT = "failed", "timed_out"
"""Words for failed lines beside classes of errors: all of them, and those that reached their limit."""
LINE_TIMED_OUT = LineExecutionTimeoutError.__name__


def runs_again(rerun: Collection[str], error: dict[str, Any]) -> bool:
    """Whether a line that failed with this error is of those that `RunOptions.rerun` names; no name is all."""
    return not rerun or is_one_of([LINE_TIMED_OUT if name == TIMED_OUT else name for name in rerun], error)


def rerun_errors(text: str) -> tuple[str, ...]:
    """Read which failed lines run again, separated by commas, as the errors they failed with; empty is all of them.

    Raises:
        InvalidOptionError: A name that looks like a class of errors and is none.
    """
    names = error_names(text, (FAILED, TIMED_OUT))
    if FAILED in names and len(names) > 1:
        raise InvalidOptionError(f"{FAILED!r} is all failed lines. Leave out the others, or it.")
    return () if FAILED in names else names


def retried_errors(text: str) -> tuple[str, ...]:
    """Read a list of errors that are retried, separated by commas.

    Raises:
        InvalidOptionError: A name that looks like a class of errors and is none.
    """
    return error_names(text)


def error_names(text: str, words: Sequence[str] = ()) -> tuple[str, ...]:
    """Read a list of errors: classes, codes and types of exceptions, separated by commas.

    Args:
        text: What was typed.
        words: What may be said beside classes.

    Raises:
        InvalidOptionError: A name that looks like a class of errors, or one of the words, and is none.
    """
    known = [*words, *map(str, ErrorClass)]
    names = []
    for name in filter(None, map(str.strip, text.split(","))):
        meant = _meant(name, known)
        if meant is not None and name.replace("-", "_") != meant:
            raise InvalidOptionError(
                f"{name!r} is no class of errors. Did you mean {meant!r}? There are {', '.join(known)}; "
                "codes and types of exceptions, such as RateLimitError, are taken too."
            )
        names.append(meant or name)
    return tuple(names)


def _meant(name: str, known: Sequence[str]) -> str | None:
    """What of the known a name stands for, misspelt or not; `None` for what may be a code or a type of exceptions.

    Whether one of these ever comes nobody knows beforehand, and most have capitals between small letters.
    """
    if not (name.islower() or name.isupper() or "_" in name or "-" in name):
        return None
    spelt = name.lower().replace("-", "_")
    if spelt in known:
        return spelt
    words = set(spelt.split("_"))
    of_its_words = [kind for kind in known if words <= set(kind.split("_"))]
    close = difflib.get_close_matches(spelt, known, 1, cutoff=0.8) if name.islower() else []
    return next(iter([*of_its_words, *close]), None)
