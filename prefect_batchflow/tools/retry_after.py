"""When a service wants to be asked again: what its answer's headers say, and an exception that carries them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def retry_after_sec(headers: Mapping[str, str]) -> float | None:
    """The wait that a service asks for, from `retry-after-ms` or `Retry-After`, in seconds or as a date."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if seconds == seconds:  # and not NaN
            return max(0.0, seconds)
    text = headers.get("retry-after", "")
    if not text:
        return None
    from email.utils import parsedate_to_datetime  # takes a while, and nearly no answer has a date

    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, moment.timestamp() - time.time())


def wait_asked_by(exc: BaseException) -> float | None:
    """The seconds that an exception says to wait before another try; `None` if it says nothing of it.

    This package's exceptions say so themselves, those of openai, httpx and requests by the response that they carry.
    """
    try:
        asked = getattr(exc, "retry_after_sec", None)
        headers = getattr(getattr(exc, "response", None), "headers", None)
        if asked is not None:
            return float(asked)
        return None if headers is None else retry_after_sec(headers)
    except Exception:  # noqa: BLE001 - attributes of a user's class may raise, and be anything
        return None
