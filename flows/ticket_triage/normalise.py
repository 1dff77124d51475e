"""First node: a ticket's words without their endings, and how loudly it was written."""

from __future__ import annotations

from promptflow.core import tool
from stemming import stems


@tool
def normalise(subject: str, body: str) -> dict[str, object]:
    """Give the stems of subject and body, the share of capitals among the letters, and the count of `!`."""
    text = f"{subject} {body}"
    letters = [char for char in text if char.isalpha()]
    return {
        "subject": stems(subject),
        "body": stems(body),
        "capitals": round(sum(char.isupper() for char in letters) / max(len(letters), 1), 3),
        "exclamations": text.count("!"),
    }
