"""The wait that a service asks for before another call: in the headers of its answer, or in an exception."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.classes import exceptions_in, infos

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_SEC = 10 * 365 * 86_400.0
"""The longest wait; longer ones, such as infinity, are not JSON numbers or not meant."""
_MOST_CAUSES = 8


def retry_after_sec(headers: Mapping[str, str]) -> float | None:
    """The wait in seconds, from `retry-after-ms` or from `Retry-After` in seconds or as a date."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if seconds == seconds:  # not NaN
            return min(max(0.0, seconds), MOST_SEC)
    text = headers.get("retry-after", "")
    if not text:
        return None
    from email.utils import parsedate_to_datetime  # slow to import, and few answers have a date

    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(0.0, moment.timestamp() - time.time()), MOST_SEC)


def wait_asked_by(exc: BaseException) -> float | None:
    """The wait in seconds that an exception, one of its causes or one in a group asks for; `None` if none does.

    Exceptions of this package have it as an attribute, those of openai, httpx and requests in their response, those of urllib
    in their headers.
    """
    try:
        return _asked_with_causes(exc)
    except Exception:  # noqa: BLE001 - attributes of a user's class can raise, and be anything
        return None


def _asked_with_causes(exc: BaseException) -> float | None:
    cause: BaseException | None = exc
    for _ in range(_MOST_CAUSES):
        if cause is None:
            return None
        if (asked := _asked_by(cause)) is not None:
            return asked
        if isinstance(cause, BaseExceptionGroup):
            return max(filter(None, map(_asked_with_causes, exceptions_in(cause))), default=None)
        cause = cause.__cause__
    return None


def _asked_by(exc: BaseException) -> float | None:
    asked = getattr(exc, "retry_after_sec", None)
    if asked is not None:
        seconds = float(asked)
        return min(max(0.0, seconds), MOST_SEC) if seconds == seconds else None
    headers = getattr(getattr(exc, "response", exc), "headers", None)
    return None if headers is None else retry_after_sec(headers)


MAX_NOT_BEFORE_SEC = 300.0
"""The longest wait before a line's next attempt, also if a service asks for more."""


def not_before_sec(error: dict[str, Any]) -> float:
    """The wait in seconds before a line's next attempt, from `Retry-After`; 0 if the error dictionary asks for none.

    `retry_after_sec` in its `additionalInfo` counts, up to `MAX_NOT_BEFORE_SEC`.
    """
    asked = [info.get("retry_after_sec") for info in infos(error)]
    return min(max((sec for sec in asked if isinstance(sec, int | float) and sec > 0), default=0.0), MAX_NOT_BEFORE_SEC)
