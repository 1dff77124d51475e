"""One call of a model through the openai package: OpenAI, Azure OpenAI, or any compatible service at a base URL.

All calls of a process to one service share one client. A failure that a retry can cure is retried, after the wait that the
service asks for or with growing delays. Any other failure becomes one of our exceptions. `usage` counts the tokens.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import logging
import random
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

from prefect_batchflow import exceptions
from prefect_batchflow.connections.addresses import check_address
from prefect_batchflow.connections.entra import check_installed, has_token
from prefect_batchflow.errors.packages import pip_install
from prefect_batchflow.errors.quota import CODES, is_spent
from prefect_batchflow.errors.waits import retry_after_sec
from prefect_batchflow.exceptions import (
    APIConnectionError,
    APIResponseValidationError,
    APITimeoutError,
    ContentFilterError,
    InternalServerError,
    InvalidConnectionError,
    OpenAIError,
    PythonLoadError,
    RateLimitError,
    ToolValidationError,
)
from prefect_batchflow.tools.context import note_wait
from prefect_batchflow.tools.side_loop import run_beside
from prefect_batchflow.tools.usage import count_model_calls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from types import ModuleType

Api = Literal["chat", "completion"]

MAX_RETRIES: Final = 10
"""Retries of a call, all within the line's timeout."""
MAX_CONNECT_RETRIES: Final = 3
"""Retries of a call while the service cannot be reached."""
MAX_RETRY_AFTER_SEC: Final = 300.0
"""If a service asks for a longer wait, the call fails at once, and the error has the wait."""
FIRST_DELAY_SEC: Final = 0.5
"""The delay before the first retry if the service does not ask for one; it doubles with each retry."""
MAX_DELAY_SEC: Final = 20.0
"""The longest delay that the service did not ask for."""
MAX_CONNECTIONS: Final = 10_000
"""Connections of one client: as many as lines can run at once."""

logger = logging.getLogger(__name__)

_OWN_CAUSES = {"UnsupportedProtocol", "LocalProtocolError", "InvalidURL"}  # a retry would fail the same way
_UNREACHED = {"ConnectError", "ConnectTimeout"}
_FILTERED = {"content_filter", "content_policy_violation"}
_STATUS_OF_CODE = {
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", *CODES), 429),
    **dict.fromkeys(("server_error", "internal_error"), 500),
    **dict.fromkeys(("overloaded", "overloaded_error"), 503),
}


async def call_model(connection: Any, api: Api, parameters: Mapping[str, Any]) -> Any:
    """Call a model.

    Args:
        connection: OpenAI, Azure OpenAI or Serverless, of this package or of promptflow.
        api: `chat` with `messages`, `completion` with a `prompt`.
        parameters: The API's parameters, including `model`, for Azure the name of a deployment. With `stream`, the answer
            is read to its end.

    Returns:
        openai's response object; for a stream the list of its chunks. `answer_of` extracts the answer.

    Raises:
        OpenAIError: The call failed, also after retries if these can help; the leaf says why.
        PythonLoadError: openai is not installed.
        ToolValidationError: The connection is of another kind or incomplete.
    """
    openai = import_openai()
    client = await _shared_client(openai, connection)
    retries = 0
    while True:
        try:
            return await _ask(openai, client, api, parameters)
        except Exception as exc:
            error = _classified(openai, exc)
            if error is None:
                raise
            delay = delay_before_retry(error, retries)
            if delay is None:
                raise error from exc
        retries += 1
        logger.warning("Try %d of %d in %.1f s: %s", retries + 1, MAX_RETRIES + 1, delay, error)
        note_wait(delay, getattr(error, "status", None))
        await asyncio.sleep(delay)


def call_model_sync(connection: Any, api: Api, parameters: Mapping[str, Any]) -> Any:
    """`call_model` for sync code; all calls share the clients of one background thread."""
    return run_beside(call_model(connection, api, parameters))


def answer_of(response: Any, api: Api, *, whole_message: bool = False) -> Any:
    """Extract the first answer from the result of `call_model`: its text, or `None` without a text.

    Args:
        response: A response, or the chunks of a stream.
        api: The api that was called.
        whole_message: Give a chat's message as a dictionary, with its `tool_calls` and `function_call`.

    Raises:
        ContentFilterError: The service filtered the whole answer.
    Source: promptflow-tools `common.py`, `post_process_chat_api_response`.
    """
    if isinstance(response, list):
        content = "".join(texts_of(response, api))
        reason = next((choice.finish_reason for choice in reversed(_choices(response)) if choice.finish_reason), None)
    else:
        choice = response.choices[0]
        if whole_message and api == "chat":
            return choice.message.model_dump()
        content, reason = choice.message.content if api == "chat" else choice.text, choice.finish_reason
    if not content and reason == "content_filter":
        text = "The service's content filter removed the whole answer. Change the prompt, or the deployment's filter."
        raise ContentFilterError(text, target="Tool", status=200, retry_after_sec=None)
    return content


def texts_of(chunks: list[Any], api: Api) -> Iterator[str]:
    """The texts of the first choice in a stream."""
    for choice in _choices(chunks):
        if text := choice.delta.content if api == "chat" else choice.text:
            yield text


def _choices(chunks: list[Any]) -> list[Any]:
    return [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == 0]


def delay_before_retry(error: OpenAIError, retries: int) -> float | None:
    """Seconds until the next retry of a call, after so many retries; `None` for no retry."""
    most = MAX_CONNECT_RETRIES if getattr(error, "unreached", False) else MAX_RETRIES
    if retries >= most or not _is_transient(error):
        return None
    asked: float | None = getattr(error, "retry_after_sec", None)
    if asked is None:
        delay = min(FIRST_DELAY_SEC * 2**retries, MAX_DELAY_SEC)
        # Random, so that not all lines come back at once.
        return float(delay * random.uniform(0.75, 1.0))  # noqa: S311
    if asked > MAX_RETRY_AFTER_SEC:
        return None
    return asked + random.uniform(0.0, min(1.0, asked / 10))  # noqa: S311


def _is_transient(error: OpenAIError) -> bool:
    if getattr(error, "final", False):
        return False
    passes = isinstance(error, APIConnectionError | InternalServerError | RateLimitError)
    return passes or getattr(error, "status", None) in (408, 409)


def kind_of(connection: Any) -> str | None:
    """`AzureOpenAIConnection`, `OpenAIConnection` or `ServerlessConnection`; `None` for anything else.

    By name, because a connection can be of promptflow's class.
    """
    names = [base.__name__ for base in type(connection).__mro__]
    return next((n for n in names if n in ("AzureOpenAIConnection", "OpenAIConnection", "ServerlessConnection")), None)


async def _ask(openai: ModuleType, client: Any, api: Api, parameters: Mapping[str, Any]) -> Any:
    create = client.chat.completions.create if api == "chat" else client.completions.create
    if not parameters.get("stream"):
        return _checked(await create(**parameters))
    try:
        stream = await create(**{"stream_options": {"include_usage": True}, **parameters})
    except openai.BadRequestError as exc:
        if "stream_options" not in str(exc) or "stream_options" in parameters:
            raise
        stream = await create(**parameters)  # an older service, which streams without reporting tokens
    async with stream:
        return [chunk async for chunk in stream]


def _checked(response: Any) -> Any:
    """Check that a response has an answer; some services send errors with status 200."""
    if getattr(response, "choices", None):
        return response
    if body := getattr(response, "error", None):
        raise _error_of_body(body, f"The service answered with an error and status 200: {_said(body)}")
    raise APIResponseValidationError(
        f"The service's response is not a model's answer: {str(response)[:200]!r}. Check the connection's address.",
        target="Tool",
        status=200,
        retry_after_sec=None,
    )


def _classified(openai: ModuleType, exc: Exception) -> OpenAIError | None:
    """Our exception for one of openai or of the HTTP client below it; `None` for a mistake in the call itself."""
    if isinstance(exc, OpenAIError):
        return exc
    if isinstance(exc, openai.APIStatusError):
        return _status_error(exc)
    if isinstance(exc, openai.APIConnectionError) or type(exc).__module__.startswith(("httpx", "httpcore")):
        cause = exc.__cause__ if isinstance(exc, openai.APIConnectionError) and exc.__cause__ else exc
        name = type(cause).__name__
        timed_out = isinstance(exc, openai.APITimeoutError)
        service = f"service{_address(exc)}"
        what = f"The {service} did not answer in time" if timed_out else f"The connection to the {service} failed"
        return (APITimeoutError if timed_out else APIConnectionError)(
            f"{what}: {str(cause) or name}",
            target="Tool",
            status=None,
            retry_after_sec=None,
            final=name in _OWN_CAUSES,
            unreached=name in _UNREACHED,
        )
    if isinstance(exc, openai.APIError):  # an error in the middle of a stream, or an unknown form of answer
        return _error_of_body(exc.body, f"The service stopped with an error: {exc.message}")
    if isinstance(exc, json.JSONDecodeError):
        text = f"The service's response is not JSON: {exc}. Check the connection's address."
        return APIResponseValidationError(text, target="Tool", status=200, retry_after_sec=None)
    return None


def _status_error(exc: Any) -> OpenAIError:
    body, headers = exc.body, exc.response.headers
    code = getattr(exc, "code", None)
    asked, request_id = retry_after_sec(headers), headers.get("x-request-id")
    details = {"status": exc.status_code, "code": code, "request_id": request_id, "retry_after_sec": asked}
    cls = ContentFilterError if code in _FILTERED else getattr(exceptions, type(exc).__name__, OpenAIError)
    if not issubclass(cls, OpenAIError):
        cls = OpenAIError
    error: OpenAIError = cls(
        f"Error code: {exc.status_code}. {_said(body) or exc.message}",
        target="Tool",
        additional_info={"OpenAIErrorDetails": details},
        status=exc.status_code,
        retry_after_sec=asked,
        final=is_spent(body) or headers.get("x-should-retry") == "false",
    )
    return error


def _address(exc: Exception) -> str:
    """The service's scheme, host and port, from a client's error; no part that can be secret."""
    try:
        url = exc.request.url  # type: ignore[attr-defined] # errors of openai and httpx can have it
        return f" at {url.scheme}://{url.netloc.decode()}"
    except (AttributeError, RuntimeError):
        return ""


def _error_of_body(body: Any, message: str) -> OpenAIError:
    """An error that only the body of the response shows, whose status is 200."""
    found = body if isinstance(body, dict) else {}
    codes = [found.get("code"), found.get("type"), found.get("status")]
    told = next((s for code in codes if (s := _STATUS_OF_CODE.get(str(code)) or _as_status(code))), None)
    cls: type[OpenAIError] = APIResponseValidationError
    if any(code in _FILTERED for code in codes if isinstance(code, str)):
        cls = ContentFilterError
    elif told == 429:
        cls = RateLimitError
    elif told is not None and told >= 500:
        cls = InternalServerError
    return cls(message, target="Tool", status=told or 200, retry_after_sec=None, final=is_spent(body))


def _as_status(code: Any) -> int | None:
    text = str(code)
    return int(text) if text.isdecimal() and len(text) == 3 else None


def _said(body: Any) -> str:
    """The message in an error's body."""
    text = body.get("message") if isinstance(body, dict) else body
    return str(text) if text else ""


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Any, ...], tuple[Any, AsyncIterator[None]]]]
_clients = WeakKeyDictionary()
"""For each event loop and service, the client and the generator that closes it."""


async def _shared_client(openai: ModuleType, connection: Any) -> Any:
    """The client of a service on this event loop, made for its first call and closed with the loop."""
    kind = kind_of(connection)
    if kind is None:
        raise ToolValidationError(
            f"A model call needs a connection of the type AzureOpenAI, OpenAI or Serverless, found a "
            f"{type(connection).__name__}. Name another connection.",
            target="Tool",
        )
    names = ("name", "api_key", "api_base", "base_url", "api_version", "organization", "auth_mode")
    key = (kind, *(getattr(connection, name, None) for name in names))
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    if key not in clients:
        client = _new_client(openai, kind, connection)
        clients[key] = client, _closed_with_its_loop(client)
        await anext(clients[key][1])
    return clients[key][0]


async def _closed_with_its_loop(client: Any) -> AsyncIterator[None]:
    """Close a client when the event loop ends, because a loop closes its async generators then."""
    try:
        yield
    finally:
        await client.close()


def _new_client(openai: ModuleType, kind: str, connection: Any) -> Any:
    # The package below openai differs between its versions (httpx, httpx2), but has the same names.
    below = next(base.__module__ for base in openai.DefaultAsyncHttpxClient.__mro__ if "httpx" in base.__module__)
    http = importlib.import_module(below.partition(".")[0])
    shared = {
        "max_retries": 0,
        "timeout": openai.Timeout(600.0, connect=30.0),
        "http_client": openai.DefaultAsyncHttpxClient(
            limits=http.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
        ),
    }
    key = _key_of(connection)
    if kind == "AzureOpenAIConnection":
        login = {"api_key": key} if key else {"azure_ad_token_provider": functools.partial(_token_for, connection)}
        address = {"azure_endpoint": connection.api_base.strip(), "api_version": connection.api_version}
        return openai.AsyncAzureOpenAI(**login, **address, **shared)
    if not key:
        place = f"The connection '{getattr(connection, 'name', None) or kind}'"
        raise ToolValidationError(f"{place} {_NO_KEY}", target="Tool")
    if kind == "ServerlessConnection":
        base_url = connection.api_base.strip().removesuffix("/v1") + "/v1"
        return openai.AsyncOpenAI(api_key=key, base_url=base_url, **shared)
    base_url = (connection.base_url or "").strip() or None
    return openai.AsyncOpenAI(api_key=key, organization=connection.organization or None, base_url=base_url, **shared)


def check_connection(
    connection: Any, place: str, variable_of: Callable[[str], str | None], *, address_name: str = ""
) -> None:
    """Refuse a connection that no call can use, before the first line.

    Args:
        connection: OpenAI, Azure OpenAI or Serverless.
        place: For messages: `Node 'ask': the connection 'azure'`.
        variable_of: Gives the environment variable that a key comes from.
        address_name: What the user calls the address, if it is not the connection's key.

    Raises:
        InvalidConnectionError: Its address is not one, it has no key, or it needs azure-identity, which is not installed.
    """
    kind = kind_of(connection)
    is_azure = kind == "AzureOpenAIConnection"
    address = "base_url" if kind == "OpenAIConnection" else "api_base"

    def told(key: str) -> str:
        variable = variable_of(key)
        name = address_name if key == address and address_name else key
        return f"{place}: its {name}" + (f", from the environment variable {variable}," if variable else "")

    if kind != "OpenAIConnection" or getattr(connection, address, None) or variable_of(address):
        check_address(getattr(connection, address, None), told(address))
    if _key_of(connection):
        return
    wants_key = not is_azure or getattr(connection, "auth_mode", "key") == "key"
    if wants_key and variable_of("api_key"):
        raise InvalidConnectionError(f"{told('api_key')} is empty. Set the variable, or write the key elsewhere.")
    if not is_azure:
        raise InvalidConnectionError(f"{place} {_NO_KEY}")
    check_installed(place)


_NO_KEY = "has no api_key. Give it one; for a service without keys, use any text."


def _key_of(connection: Any) -> str | None:
    """The key to send; `None` if a token of Entra ID takes its place."""
    key = getattr(connection, "api_key", None)
    return (key or "").strip() if getattr(connection, "auth_mode", "key") == "key" else None


async def _token_for(connection: Any) -> str:
    """A token of Entra ID; a login waits in a thread, so that other lines go on."""
    token: str = connection.get_token() if has_token() else await asyncio.to_thread(connection.get_token)
    return token


def import_openai() -> ModuleType:
    """The openai package, with its calls counted; if it is not installed, this raises `PythonLoadError`."""
    count_model_calls()
    try:
        return importlib.import_module("openai")
    except ImportError as exc:
        raise PythonLoadError(
            f"Model calls need the openai package, which cannot be imported: {exc}. {pip_install('openai')}.",
            target="Tool",
        ) from exc
