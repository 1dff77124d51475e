"""The number that a worked solution ends with."""

from __future__ import annotations

import re

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> str:
    """Give the number after the last `####`, without commas and zero decimals, or an empty text."""
    _, mark, result = text.rpartition("####")
    numbers = NUMBER.findall(result) if mark else []
    if not numbers:
        return ""
    number = str(numbers[-1]).replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number
