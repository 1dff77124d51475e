"""Python is parsed although CPython 3.11 fails now and then while other threads parse."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from prefect_batchflow.definition.parsing import parsed

MISMATCH = "AST constructor recursion depth mismatch (before=66, after=77)"


def failing(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next calls of `ast.parse` fail as CPython does."""
    left, parse = list(range(times)), ast.parse

    def maybe(*args: Any, **kwargs: Any) -> Any:
        if left:
            left.pop()
            raise SystemError(MISMATCH)
        return parse(*args, **kwargs)

    monkeypatch.setattr(ast, "parse", maybe)


@pytest.mark.parametrize("times", [0, 1, 9])
def test_a_source_is_parsed_again(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(times, monkeypatch)
    assert ast.unparse(parsed(b"x = 1\n", "m.py")) == "x = 1"


def test_it_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(10, monkeypatch)
    with pytest.raises(SystemError, match="recursion depth mismatch"):
        parsed("x = 1")


def test_what_is_no_python_fails_at_once() -> None:
    with pytest.raises(SyntaxError) as caught:
        parsed(b"x =", "m.py")
    assert caught.value.filename == "m.py"
