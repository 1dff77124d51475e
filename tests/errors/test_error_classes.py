"""The classes of errors: real exceptions of the libraries that flows call through, and the error dictionaries they become."""

from __future__ import annotations

import asyncio
import errno
import http.client
import socket
import ssl
import subprocess
import urllib.error
from email.message import Message
from typing import Any

import httpcore
import httpx
import openai
import pytest
import requests
import urllib3

from prefect_batchflow import exceptions
from prefect_batchflow.errors.classes import _OF_CODES, ErrorClass, class_of_error, class_of_exception, is_one_of
from prefect_batchflow.errors.groups import advice_for
from prefect_batchflow.errors.waits import wait_asked_by
from prefect_batchflow.exceptions import BatchflowException, error_dict, innermost_code
from prefect_batchflow.execution.program.user_errors import script_error, tool_error

BAD_CERTIFICATE = ssl.SSLCertVerificationError(1, "certificate verify failed")
REQUEST = httpx.Request("POST", "http://127.0.0.1/v1")


def answered(cls: type[openai.APIStatusError], status: int, **body: str) -> openai.APIStatusError:
    """An answer of a model's service, as the openai package raises it."""
    # openai may have a client of its own, whose responses have what these have.
    return cls("no", response=httpx.Response(status, request=REQUEST), body=body)  # type: ignore[arg-type]


def model_is_away() -> openai.APIConnectionError:
    return openai.APIConnectionError(request=REQUEST)  # type: ignore[arg-type]


def bad_certificate_of_httpx() -> BaseException:
    """httpcore raises its own error from nothing, and leaves in it what it was made of."""
    return raised_from(httpx.ConnectError("no"), httpcore.ConnectError(BAD_CERTIFICATE))


def http_error(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(status, request=REQUEST))


def requests_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


def raised_from(exc: BaseException, cause: BaseException) -> BaseException:
    exc.__cause__ = cause
    return exc


def group(*exceptions: BaseException) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("unhandled errors in a TaskGroup", exceptions)


class OwnError(Exception):
    """An exception of a flow that says itself what it is."""

    error_class = "transient"


class ClientConnectorCertificateError(ConnectionError, ssl.SSLCertVerificationError):
    """As aiohttp's: an error of a connection, and of its certificate."""


class OddError(Exception):
    @property
    def status_code(self) -> int:
        raise RuntimeError("no status")


EXCEPTIONS: list[tuple[BaseException, str]] = [
    (answered(openai.RateLimitError, 429), "rate_limit"),
    (answered(openai.RateLimitError, 429, code="insufficient_quota"), "refused"),
    (answered(openai.RateLimitError, 429, code="billing_hard_limit_reached"), "refused"),
    (answered(openai.RateLimitError, 429, code="billing_not_active"), "refused"),
    (answered(openai.InternalServerError, 500), "transient"),
    (answered(openai.InternalServerError, 503), "transient"),
    (answered(openai.ConflictError, 409), "transient"),
    (answered(openai.APIStatusError, 408), "timeout"),
    (answered(openai.BadRequestError, 400), "refused"),
    (answered(openai.AuthenticationError, 401), "refused"),
    (answered(openai.PermissionDeniedError, 403), "refused"),
    (answered(openai.NotFoundError, 404), "refused"),
    (answered(openai.UnprocessableEntityError, 422), "refused"),
    (model_is_away(), "transient"),
    (openai.APITimeoutError(REQUEST), "timeout"),  # type: ignore[arg-type]
    (httpx.ConnectError("no"), "transient"),
    (httpx.ReadError("no"), "transient"),
    (httpx.RemoteProtocolError("no"), "transient"),
    (httpx.ConnectTimeout("no"), "timeout"),
    (httpx.ReadTimeout("no"), "timeout"),
    (httpx.PoolTimeout("no"), "timeout"),
    (httpx.UnsupportedProtocol("no"), "user_code"),
    (http_error(429), "rate_limit"),
    (http_error(502), "transient"),
    (http_error(404), "refused"),
    (requests.ConnectionError("no"), "transient"),
    (requests.exceptions.ChunkedEncodingError("no"), "transient"),
    (requests.ConnectTimeout("no"), "timeout"),
    (requests.ReadTimeout("no"), "timeout"),
    (requests.exceptions.SSLError("no"), "user_code"),
    (requests.exceptions.InvalidURL("no"), "user_code"),
    (requests_error(429), "rate_limit"),
    (requests_error(503), "transient"),
    (requests.HTTPError("without a response"), "user_code"),
    (urllib.error.HTTPError("http://x", 429, "no", Message(), None), "rate_limit"),
    (urllib.error.URLError(ConnectionRefusedError("no")), "transient"),
    (urllib.error.URLError(TimeoutError("no")), "timeout"),
    (urllib.error.URLError("unknown url type"), "user_code"),
    (http.client.RemoteDisconnected("no"), "transient"),
    (http.client.IncompleteRead(b"", 3), "transient"),
    (ConnectionResetError("no"), "transient"),
    (BrokenPipeError("no"), "transient"),
    (socket.gaierror(-3, "no"), "transient"),
    (ssl.SSLEOFError("no"), "transient"),
    (ssl.SSLCertVerificationError("no"), "user_code"),
    (ClientConnectorCertificateError("no"), "user_code"),
    (bad_certificate_of_httpx(), "user_code"),
    (raised_from(model_is_away(), bad_certificate_of_httpx()), "user_code"),
    (raised_from(OwnError("no"), BAD_CERTIFICATE), "transient"),
    (urllib.error.URLError(BAD_CERTIFICATE), "user_code"),
    (requests.exceptions.SSLError(urllib3.exceptions.SSLError(BAD_CERTIFICATE)), "user_code"),
    (raised_from(httpx.ConnectError("no"), ssl.SSLEOFError("no")), "transient"),
    (OSError(errno.ENETUNREACH, "no"), "transient"),
    (OSError(errno.ENOSPC, "no"), "user_code"),
    (FileNotFoundError("no"), "user_code"),
    (TimeoutError("no"), "timeout"),
    (subprocess.TimeoutExpired("x", 1), "timeout"),
    (MemoryError(), "out_of_memory"),
    (exceptions.RateLimitError("no", status=429, final=False), "rate_limit"),
    (exceptions.RateLimitError("no", status=429, final=True), "refused"),
    (exceptions.APITimeoutError("no"), "timeout"),
    (exceptions.ContentFilterError("no"), "refused"),
    (exceptions.OpenAIError("no", status=418), "refused"),
    (ValueError("no"), "user_code"),
    (SystemExit(429), "user_code"),
    (OwnError("no"), "transient"),
    (OddError("no"), "user_code"),
    (raised_from(RuntimeError("no answer"), httpx.ReadTimeout("no")), "timeout"),
    (raised_from(RuntimeError("no"), raised_from(KeyError("no"), ConnectionResetError("no"))), "transient"),
    (raised_from(ValueError("no"), KeyError("no")), "user_code"),
    (group(answered(openai.RateLimitError, 429)), "rate_limit"),
    (group(answered(openai.RateLimitError, 429), answered(openai.RateLimitError, 429)), "rate_limit"),
    (group(answered(openai.InternalServerError, 500), answered(openai.RateLimitError, 429)), "rate_limit"),
    (group(answered(openai.RateLimitError, 429), answered(openai.BadRequestError, 400)), "refused"),
    (group(answered(openai.RateLimitError, 429), ValueError("no")), "user_code"),
    (group(group(group(model_is_away()))), "transient"),
    (group(raised_from(RuntimeError("no answer"), httpx.ReadTimeout("no"))), "timeout"),
    (group(MemoryError()), "out_of_memory"),
    (group(asyncio.CancelledError(), http_error(429)), "rate_limit"),
    (group(KeyError("no")), "user_code"),
    (raised_from(RuntimeError("no"), group(http_error(503))), "transient"),
    (group(OddError("no")), "user_code"),
]


@pytest.mark.parametrize(("exc", "expected"), EXCEPTIONS, ids=lambda value: repr(value)[:60])
def test_what_was_raised_is_of_a_class_and_so_is_the_error_that_it_becomes(exc: BaseException, expected: str) -> None:
    assert class_of_exception(exc) == expected
    assert class_of_error(tool_error("node", exc)) == expected
    assert class_of_error(script_error("main", exc)) == expected


def test_an_exception_that_is_its_own_cause_has_an_end() -> None:
    error = RuntimeError("no")
    error.__cause__ = error
    assert class_of_exception(error) == "user_code"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (exceptions.LineExecutionTimeoutError, "timeout"),
        (exceptions.ProcessCrashError, "crash"),
        (exceptions.LineOutOfMemoryError, "out_of_memory"),
        (exceptions.InputTypeError, "bad_input"),
        (exceptions.InputParseError, "bad_input"),
        (exceptions.InputNotFound, "bad_input"),
        (exceptions.InvalidUserData, "bad_input"),
        (exceptions.LoadMultimediaDataError, "bad_input"),
        (exceptions.FlowOutputUnserializable, "user_code"),
        (exceptions.UnexpectedError, "user_code"),
    ],
)
def test_an_error_of_the_engine_is_of_a_class(kind: type[BatchflowException], expected: str) -> None:
    assert class_of_error(error_dict(kind("no"))) == expected


@pytest.mark.parametrize(
    "error",
    [
        {},
        {"code": ["UserError"], "innerError": "no"},
        {"code": "UserError", "additionalInfo": [{"type": "x", "info": {"error_class": "none of them"}}]},
        {"code": "UserError", "additionalInfo": [{"type": "x", "info": {"error_class": ["rate_limit"]}}]},
    ],
)
def test_an_error_that_a_foreign_service_made_up_is_user_code(error: dict[str, Any]) -> None:
    assert class_of_error(error) is ErrorClass.USER_CODE


def test_the_codes_are_those_of_exceptions() -> None:
    assert all(issubclass(getattr(exceptions, code), BatchflowException) for code in _OF_CODES)


class TestGroups:
    def test_the_message_says_what_is_in_it_each_text_once(self) -> None:
        several = group(ValueError("a"), group(KeyError("b"), ValueError("a")), *(OSError(n, "c") for n in (1, 2, 3)))

        message = script_error("main", several)["message"]

        assert message == (
            "Execution failure in 'main': (ExceptionGroup) unhandled errors in a TaskGroup (5 sub-exceptions): "
            "(ValueError) a; (KeyError) 'b'; (PermissionError) [Errno 1] c; and 2 more"
        )

    def test_its_advice_is_that_of_what_is_in_it(self) -> None:
        error = script_error("main", group(answered(openai.RateLimitError, 429)))

        assert "too many calls" in advice_for("ScriptExecutionError", error["message"])

    @pytest.mark.parametrize("make", [tool_error, script_error])
    @pytest.mark.parametrize(
        ("names", "chosen"),
        [
            (["RateLimitError"], True),
            (["rate_limit"], True),
            (["ExceptionGroup", "BaseExceptionGroup"], True),
            (["KeyError"], True),
            (["ValueError"], False),
        ],
        ids=str,
    )
    def test_it_is_chosen_by_the_types_in_it(self, make: Any, names: list[str], chosen: bool) -> None:
        error = make("main", group(asyncio.CancelledError(), answered(openai.RateLimitError, 429)))
        if "KeyError" in names:
            error = make("main", group(group(KeyError("no"))))

        assert is_one_of(names, error) is chosen

    def test_it_waits_as_long_as_the_longest_wait_in_it(self) -> None:
        asking = [
            exceptions.RateLimitError("no", status=429, final=False, retry_after_sec=seconds) for seconds in (3.0, 7.0)
        ]

        assert wait_asked_by(group(ValueError("no"), *asking)) == 7.0
        assert wait_asked_by(raised_from(RuntimeError("no"), group(*asking))) == 7.0
        assert wait_asked_by(group(ValueError("no"))) is None

    def test_memory_that_ran_out_in_it_is_the_lines(self) -> None:
        assert innermost_code(script_error("main", group(MemoryError()))) == "LineOutOfMemoryError"

    def test_a_huge_group_has_a_short_text(self) -> None:
        error = script_error("main", group(*(ValueError("x" * 1_000 + str(n)) for n in range(1_000))))

        assert len(error["message"]) < 5_000
