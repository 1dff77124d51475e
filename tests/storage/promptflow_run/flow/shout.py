import os

from promptflow.core import tool


@tool
def shout(text: str) -> str:
    """Upper case; a text that begins with a question mark is refused while SHOUT_REFUSES is set."""
    if text.startswith("?") and os.environ.get("SHOUT_REFUSES"):
        raise ValueError(f"cannot shout {text!r}")
    return text.upper()
