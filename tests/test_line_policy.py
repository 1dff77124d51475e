"""`LinePolicy`: which errors are retried, and how long the next attempt waits."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest

from prefect_batchflow.errors.chosen import retried_errors
from prefect_batchflow.errors.classes import ErrorClass
from prefect_batchflow.errors.waits import MAX_NOT_BEFORE_SEC, not_before_sec
from prefect_batchflow.exceptions import (
    APITimeoutError,
    BadRequestError,
    InputTypeError,
    InternalServerError,
    InvalidOptionError,
    LineExecutionTimeoutError,
    LineOutOfMemoryError,
    ProcessCrashError,
    RateLimitError,
    error_dict,
)
from prefect_batchflow.execution.program.user_errors import script_error, tool_error
from prefect_batchflow.settings import LinePolicy


class Response:
    """What openai, httpx and requests hang on their exceptions."""

    headers: ClassVar = {"retry-after": "7"}


class TooManyError(Exception):
    """An exception of an HTTP client."""

    response = Response()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(error_dict(RateLimitError("x")), "RateLimitError", id="a rate limit"),
        pytest.param(error_dict(RateLimitError("x")), "OpenAIError", id="any error of the model"),
        pytest.param(error_dict(APITimeoutError("x")), "APIConnectionError", id="a timeout is a failed connection"),
        pytest.param(error_dict(InternalServerError("x")), "InternalServerError", id="a failing service"),
        pytest.param(tool_error("n", RateLimitError("x")), "RateLimitError", id="what a node's call raised"),
        pytest.param(tool_error("n", TooManyError()), "TooManyError", id="what a node's code raised"),
        pytest.param(script_error("f", RateLimitError("x")), "RateLimitError", id="what a callable's call raised"),
        pytest.param(script_error("f", KeyError("x")), "ScriptExecutionError", id="whatever a callable raised"),
    ],
)
def test_an_error_is_retried_by_its_codes_and_by_the_class_that_was_raised(error: dict[str, Any], code: str) -> None:
    assert LinePolicy(retry_on=(code,)).retries_error(error)
    assert not LinePolicy(retry_on=("AuthenticationError",)).retries_error(error)


ERRORS = {
    "rate_limit": error_dict(RateLimitError("x")),
    "transient": error_dict(InternalServerError("x")),
    "timeout": error_dict(LineExecutionTimeoutError("x")),
    "crash": error_dict(ProcessCrashError("x")),
    "out_of_memory": error_dict(LineOutOfMemoryError("x")),
    "bad_input": error_dict(InputTypeError("x")),
    "refused": error_dict(BadRequestError("x")),
    "user_code": script_error("f", KeyError("x")),
}


@pytest.mark.parametrize(
    ("retry_on", "retried"),
    [
        ("", {"rate_limit", "transient", "timeout", "crash", "out_of_memory", "user_code"}),
        ("rate_limit", {"rate_limit"}),
        (" rate-limit, transient,timeout ,crash,", {"rate_limit", "transient", "timeout", "crash"}),
        ("bad_input,refused", {"bad_input", "refused"}),
        ("user_code,RateLimitError", {"user_code", "rate_limit"}),
        ("ProcessCrashError", {"crash", "out_of_memory"}),
        ("KeyError", {"user_code"}),
    ],
)
def test_a_user_says_which_classes_of_errors_are_retried(retry_on: str, retried: set[str]) -> None:
    policy = LinePolicy(retry_on=retried_errors(retry_on))
    assert {kind for kind, error in ERRORS.items() if policy.retries_error(error)} == retried


def test_every_class_of_errors_is_tried_here() -> None:
    assert ERRORS.keys() == set(ErrorClass)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("ratelimit", "rate_limit"),
        ("timeouts", "timeout"),
        ("usercode", "user_code"),
        ("RATE_LIMIT", "rate_limit"),
        ("Rate_Limit", "rate_limit"),
        ("Rate-Limit", "rate_limit"),
        ("TIMEOUT", "timeout"),
        ("user", "user_code"),
        ("memory", "out_of_memory"),
        ("input", "bad_input"),
    ],
)
def test_a_misspelt_class_is_refused_with_the_one_that_was_meant(misspelt: str, meant: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"Did you mean '{meant}'"):
        retried_errors(f"crash,{misspelt}")


@pytest.mark.parametrize(
    "name", ["TimeoutError", "Timeout", "gaierror", "error", "ETIMEDOUT", "Quota_Error", "UserError"]
)
def test_what_may_be_a_code_or_a_type_of_exceptions_is_taken_as_it_is(name: str) -> None:
    assert retried_errors(name) == (name,)


@pytest.mark.parametrize(
    ("first", "backoff", "delays"),
    [
        (1.0, 2.0, [1, 2, 4, 8, 16, 32, 64, 128, 256, *[300] * 991]),
        (0.0, 2.0, [0] * 1000),
        (5.0, 1.0, [5] * 1000),
        (900.0, 2.0, [300] * 1000),
        (1.0, 1e308, [1, *[300] * 999]),
    ],
)
def test_delays_grow_up_to_the_longest_however_many_there_are(
    first: float, backoff: float, delays: list[float]
) -> None:
    policy = LinePolicy(retries=1000, retry_delay_sec=first, retry_backoff=backoff)

    assert list(policy.delays()) == delays


def test_delays_are_made_one_at_a_time() -> None:
    assert next(LinePolicy(retries=1000, retry_delay_sec=3).delays()) == 3
    with pytest.raises(InvalidOptionError, match=r"retries is 1001\. It must be a whole number from 0 to 1000\."):
        LinePolicy(retries=1001)


@pytest.mark.parametrize("make", [tool_error, script_error])
@pytest.mark.parametrize(
    "exc",
    [RateLimitError("x", retry_after_sec=7.0, additional_info={"OpenAIErrorDetails": {"status": 429}}), TooManyError()],
    ids=["ours", "a client's"],
)
def test_the_wait_that_a_service_asks_for_is_in_the_lines_error(make: Any, exc: Exception) -> None:
    assert not_before_sec(make("name", exc)) == 7.0


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        (0.5, 0.5),
        (3600, MAX_NOT_BEFORE_SEC),
        (math.inf, MAX_NOT_BEFORE_SEC),
        (math.nan, 0),
        (-1, 0),
        ("9", 0),
        (None, 0),
    ],
)
def test_a_wait_is_bounded_and_what_is_none_is_not_waited_for(asked: Any, waited: float) -> None:
    info = {"type": "OpenAIErrorDetails", "info": {"retry_after_sec": asked}}
    assert not_before_sec({"code": "UserError", "additionalInfo": [info]}) == waited


@pytest.mark.parametrize("entries", [None, "text", ["text"], [{"type": "x"}], [{"info": "text"}]], ids=repr)
def test_an_error_that_a_foreign_service_made_up_asks_for_nothing(entries: Any) -> None:
    error = {"code": "SystemError", "additionalInfo": entries}
    assert not_before_sec(error) == 0
    assert not LinePolicy(retry_on=("RateLimitError",)).retries_error(error)


def test_the_wait_that_was_asked_of_a_wrapped_call_is_waited_for() -> None:
    error = RuntimeError("no answer")
    error.__cause__ = TooManyError()
    assert not_before_sec(script_error("main", error)) == 7.0


def test_an_exception_whose_attributes_raise_asks_for_nothing() -> None:
    class OddError(Exception):
        @property
        def response(self) -> Response:
            raise RuntimeError("no response")

    assert not_before_sec(tool_error("n", OddError())) == 0
