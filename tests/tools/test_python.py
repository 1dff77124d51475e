"""@tool marks a function and leaves it what it is."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import Any
from unittest.mock import MagicMock

import pytest

from prefect_batchflow.tools.python import is_tool, tool


def test_a_plain_function_stays_itself() -> None:
    def score(text: str, factor: int = 2) -> int:
        return len(text) * factor

    marked = tool(score)

    assert marked is score
    assert marked("ab") == 4
    assert list(inspect.signature(marked).parameters) == ["text", "factor"]


def test_an_async_function_stays_async() -> None:
    @tool
    async def answer() -> int:
        return 42

    assert inspect.iscoroutinefunction(answer)
    assert asyncio.run(answer()) == 42


def test_promptflows_descriptions_are_taken() -> None:
    @tool(
        name="Score",
        description="counts",
        type="python",
        input_settings={"text": object()},
        streaming_option_parameter="stream",
        icon="icon.png",
    )
    def score(text: str) -> int:
        return len(text)

    assert score("abc") == 3
    assert score.__tool__["name"] == "Score"  # type: ignore[attr-defined]


def test_empty_brackets_are_fine() -> None:
    @tool()
    def score() -> int:
        return 1

    assert is_tool(score)


def test_a_wrapper_that_copies_attributes_is_a_tool_too() -> None:
    @tool
    def score() -> int:
        return 1

    @functools.wraps(score)
    def retried() -> int:
        return score()

    assert is_tool(retried)


def test_promptflows_own_mark_is_known() -> None:
    def score() -> int:
        return 1

    score.__dict__["__tool"] = None

    assert is_tool(score)


@pytest.mark.parametrize("value", [len, print, lambda: 1, 5, None, "text", MagicMock(), tool])
def test_anything_else_is_no_tool(value: Any) -> None:
    assert not is_tool(value)
