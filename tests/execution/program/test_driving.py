"""User code is called without raising, its streams can be read again, and its errors begin where it begins."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.exceptions import SystemErrorException, UserErrorException
from prefect_batchflow.execution.program.driving import drive, drive_async
from prefect_batchflow.execution.program.steps import Handover, Raised, Stream, UserFunction
from prefect_batchflow.execution.program.user_errors import TEXT_LIMIT, describe, script_error, tool_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from prefect_batchflow.execution.program.steps import Steps


def steps(*functions: UserFunction) -> Steps:
    """A program that calls functions one after another and returns what they gave."""
    results = []
    for function in functions:
        result = yield function, (), {}
        results.append(result)
    return {"results": results}


@pytest.fixture(params=["sync", "async"])
def results(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """Drive a program of these functions either way."""

    def run(*functions: UserFunction) -> list[Any]:
        program = steps(*functions)
        done = drive(program) if request.param == "sync" else asyncio.run(drive_async(program))
        while isinstance(done, Handover):
            done = asyncio.run(drive_async(done.steps, done))
        given: list[Any] = done["results"]
        return given

    return run


def test_each_call_gets_its_result(results: Callable[..., list[Any]]) -> None:
    async def two() -> int:
        await asyncio.sleep(0)
        return 2

    assert results(UserFunction(lambda: 1, "one"), UserFunction(two, "two", is_async=True)) == [1, 2]


def test_what_is_raised_is_a_result_and_the_program_goes_on(results: Callable[..., list[Any]]) -> None:
    raised, after = results(UserFunction(lambda: 1 / 0, "bad"), UserFunction(lambda: 2, "good"))

    assert isinstance(raised, Raised)
    assert isinstance(raised.error, ZeroDivisionError)
    assert after == 2


def test_streams_can_be_read_again(results: Callable[..., list[Any]]) -> None:
    async def chunks() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def read(stream: Stream) -> list[int]:
        return [chunk async for chunk in stream.replay()]  # type: ignore[union-attr]

    plain, slow = results(UserFunction(lambda: (n for n in (1, 2)), "a"), UserFunction(chunks, "b", is_async=True))

    assert (plain.text, slow.text) == ("12", "12")
    assert [*plain.replay(), *plain.replay()] == [1, 2, 1, 2]
    assert [asyncio.run(read(slow)), asyncio.run(read(slow))] == [[1, 2], [1, 2]]


def test_async_programs_keep_sync_functions_off_the_loop() -> None:
    functions = [UserFunction(threading.get_ident, "thread"), UserFunction(threading.get_ident, "loop", is_async=True)]

    thread, loop = asyncio.run(drive_async(steps(*functions)))["results"]

    assert thread != threading.get_ident()
    assert loop == threading.get_ident()


def test_a_traceback_begins_in_user_code_and_names_causes(results: Callable[..., list[Any]]) -> None:
    def outer() -> None:
        try:
            raise KeyError("inner")
        except KeyError as exc:
            raise ValueError("outer") from exc

    (raised,) = results(UserFunction(outer, "outer"))
    described = describe(raised.error)

    assert (described["type"], described["message"]) == ("ValueError", "outer")
    trace = described["traceback"]
    assert trace.index("KeyError: 'inner'") < trace.index("direct cause") < trace.index("ValueError: outer")
    assert "prefect_batchflow/" not in trace


def test_an_endless_recursion_has_a_short_traceback(results: Callable[..., list[Any]]) -> None:
    def again() -> None:
        again()

    (raised,) = results(UserFunction(again, "again"))

    assert len(describe(raised.error)["traceback"]) < TEXT_LIMIT


@pytest.mark.parametrize(
    ("make", "kind", "details"),
    [
        (tool_error, "ToolExecutionError", "ToolExecutionErrorDetails"),
        (script_error, "ScriptExecutionError", "FlexFlowExecutionErrorDetails"),
    ],
)
def test_errors_have_promptflows_form(make: Callable[..., dict[str, Any]], kind: str, details: str) -> None:
    error = make("name", ValueError("text"))

    assert error["message"] == "Execution failure in 'name': (ValueError) text"
    assert (error["code"], error["innerError"]) == ("UserError", {"code": kind, "innerError": None})
    assert [entry["type"] for entry in error["additionalInfo"]] == [details]


def test_promptflows_exceptions_keep_their_codes_and_their_text() -> None:
    class TooLong(UserErrorException):
        def __init__(self, limit: int) -> None:
            super().__init__(message_format="longer than {limit}", limit=limit, target="Tool")

    error = tool_error("check", TooLong(3))

    assert (error["code"], error["innerError"]) == ("UserError", {"code": "TooLong", "innerError": None})
    assert (error["message"], error["referenceCode"]) == ("longer than 3", "Tool")
    assert error["additionalInfo"][0]["type"] == "ToolExecutionErrorDetails"
    assert tool_error("check", SystemErrorException("away"))["code"] == "SystemError"
