"""Errors and lines that were chosen: which errors are retried, and which lines run again."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.classes import ErrorClass, is_one_of
from prefect_batchflow.exceptions import InvalidOptionError, LineExecutionTimeoutError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

FAILED, TIMED_OUT, CRASHED = "failed", "timed_out", "crashed"
"""Names beside the error classes: all failed lines, the lines that reached their time limit, and another word for `crash`."""
LINE_TIMED_OUT = LineExecutionTimeoutError.__name__


def runs_again(rerun: Collection[str], error: dict[str, Any]) -> bool:
    """Whether `RunOptions.rerun` names the error of a failed line; no names mean all errors."""
    return not rerun or is_one_of([LINE_TIMED_OUT if name == TIMED_OUT else name for name in rerun], error)


def rerun_errors(text: str) -> tuple[str, ...]:
    """Read the errors whose failed lines run again, as `retried_errors` does; empty means all failed lines."""
    words = {CRASHED: str(ErrorClass.CRASH)}
    names = tuple(dict.fromkeys(words.get(n, n) for n in retried_errors(text, (FAILED, TIMED_OUT, CRASHED))))
    if FAILED in names and len(names) > 1:
        raise InvalidOptionError(f"{FAILED!r} means all failed lines. Remove it, or remove the other names.")
    return () if FAILED in names else names


_NUMBERS = re.compile(r"([0-9]{1,12})(?:\s*-\s*([0-9]{1,12}))?")


def numbered_lines(text: str) -> tuple[str, ...]:
    """Read the lines that run again: numbers and ranges, separated by commas, such as `3,7,20-30`.

    Returns:
        Numbers and ranges, sorted and joined.

    Raises:
        InvalidOptionError: A part is no number or range. The message names it.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    ranges = []
    for part in parts:
        match = _NUMBERS.fullmatch(part)
        if match is None:
            raise InvalidOptionError(
                f"{part!r} is not the number of a line or a range of them. Write numbers from 0 and ranges, such as 3,7,20-30."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise InvalidOptionError(f"The range {part!r} is empty. Write the smaller number first: {last}-{first}.")
        ranges.append((first, last))
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(f"{first}-{last}" if first < last else str(first) for first, last in joined)


class LineNumbers:
    """Line numbers, as `numbered_lines` gives them. A range takes no more room than a number."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._ranges = [(int(first), int(last or first)) for first, _, last in (t.partition("-") for t in texts)]

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._ranges, (number, float("inf"))) - 1
        return place >= 0 and number <= self._ranges[place][1]

    def __str__(self) -> str:
        return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in self._ranges)

    def beyond(self, total_lines: int) -> int | None:
        """The first number that lines numbered by position do not have."""
        return next((max(first, total_lines) for first, last in self._ranges if last >= total_lines), None)

    def missing(self, numbers: Collection[int]) -> int | None:
        """The first number that is not one of these."""
        return next((number for number in self._each(len(numbers) + 1) if number not in numbers), None)

    def _each(self, most: int) -> Iterator[int]:
        for first, last in self._ranges:
            yield from range(first, min(last + 1, first + most))


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
