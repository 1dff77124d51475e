"""A helper of the nodes `normalise` and `classify`: words without their endings."""

from __future__ import annotations

import re

ENDINGS = ("ing", "ed", "ly", "s")


def stem(word: str) -> str:
    """Cut one ending and a last `e`, so that `charged` and `charge` meet as `charg`."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            break
    return word.removesuffix("e") if len(word) > 3 else word


def stems(text: str) -> list[str]:
    """The stems of a text in order; digits and punctuation are left out."""
    return [stem(word) for word in re.findall(r"[^\W\d_]+", text.lower().replace("'", ""))]
