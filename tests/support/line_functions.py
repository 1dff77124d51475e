"""What tests run over lines, in a module that workers import in no time: a test's own brings pytest and the whole package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def shout(text: str, times: int = 1) -> dict[str, str]:
    return {"loud": text.upper() * times}


def double(n: int) -> dict[str, int]:
    return {"n": 2 * n}


def halve(n: int) -> float:
    """Fails for 0."""
    return 1 / n


def fail_on_odd(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n


def echo(x: Any, fail: bool) -> dict[str, Any]:
    """Give back what came, or fail with it."""
    sys.stdout.write(f"{x}\n" if len(str(x)) < 100 else "much")
    if fail:
        raise ValueError(x)
    return {"x": x, "of type": type(x).__name__}


def count(n: int) -> dict[str, int]:
    """Leave a witness in the working directory."""
    with Path("witness").open("a") as witness:
        witness.write(f"{n}\n")
    return {"n": n}


async def wait_a_little(n: int) -> int:
    return n + 1


class Greeter:
    """A flow with a constructor and an aggregation."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def __call__(self, name: str) -> str:
        return f"{self.greeting} {name}"

    def __aggregate__(self, results: list[Any]) -> dict[str, int]:
        return {"greetings": len(results)}
