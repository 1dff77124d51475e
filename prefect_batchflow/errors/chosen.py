"""Errors chosen by name: which errors are retried, and which failed lines run again."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.classes import ErrorClass, is_one_of
from prefect_batchflow.exceptions import InvalidOptionError, LineExecutionTimeoutError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

FAILED, TIMED_OUT = "failed", "timed_out"
"""Names beside the error classes: all failed lines, and the lines that reached their time limit."""
LINE_TIMED_OUT = LineExecutionTimeoutError.__name__


def runs_again(rerun: Collection[str], error: dict[str, Any]) -> bool:
    """Whether `RunOptions.rerun` names the error of a failed line; no names mean all errors."""
    return not rerun or is_one_of([LINE_TIMED_OUT if name == TIMED_OUT else name for name in rerun], error)


def rerun_errors(text: str) -> tuple[str, ...]:
    """Read the errors whose failed lines run again, as `retried_errors` does; empty means all failed lines."""
    names = retried_errors(text, (FAILED, TIMED_OUT))
    if FAILED in names and len(names) > 1:
        raise InvalidOptionError(f"{FAILED!r} means all failed lines. Remove it, or remove the other names.")
    return () if FAILED in names else names


def retried_errors(text: str, words: Sequence[str] = ()) -> tuple[str, ...]:
    """Read the errors, separated by commas, that are retried: error classes, codes and exception types.

    Args:
        text: The list as typed.
        words: Names that are allowed beside the error classes.

    Raises:
        InvalidOptionError: A name looks like an error class or one of the words, but is neither; or commas are wrong.
    """
    known = [*words, *map(str, ErrorClass)]
    names = []
    given = list(filter(None, map(str.strip, text.split(","))))
    if text.strip() and not given:
        raise InvalidOptionError(f"{text!r} names no error. Write names of errors, separated by commas.")
    for name in given:
        if len(name.split()) > 1:
            raise InvalidOptionError(f"{name!r} is not the name of one error. Separate names with commas.")
        meant = _meant(name, known)
        if meant is not None and name.replace("-", "_") != meant:
            raise InvalidOptionError(
                f"{name!r} is not an error class. Did you mean {meant!r}? The classes are {', '.join(known)}; "
                "codes and exception types, such as RateLimitError, work too."
            )
        names.append(meant or name)
    return tuple(names)


def _meant(name: str, known: Sequence[str]) -> str | None:
    """The known name that was meant, misspelt or not; `None` for a name that can be a code or an exception type.

    Codes and types cannot be checked before they occur. Most of them mix capitals and small letters.
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
