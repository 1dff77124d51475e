from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from model_server import ModelServer, Reply, at, error_reply, rate_limited

from prefect_batchflow import exceptions
from prefect_batchflow.errors.waits import MOST_SEC, retry_after_sec
from prefect_batchflow.exceptions import (
    APIConnectionError,
    APIResponseValidationError,
    ContentFilterError,
    OpenAIError,
    RateLimitError,
    ToolValidationError,
    error_dict,
)
from prefect_batchflow.tools import llm
from prefect_batchflow.tools.context import running
from prefect_batchflow.tools.llm import answer_of, call_model, call_model_sync, delay_before_retry

if TYPE_CHECKING:
    from collections.abc import Coroutine


@dataclass
class OpenAIConnection:
    base_url: str
    api_key: str = "key"
    organization: str | None = None


@dataclass
class AzureOpenAIConnection:
    api_base: str
    api_key: str = "key"
    api_version: str = "2024-06-01"


@dataclass
class ServerlessConnection:
    api_base: str
    api_key: str = "key"


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits before further tries, which are not waited for."""
    waited: list[float] = []
    sleep = asyncio.sleep

    def note(delay: float) -> Coroutine[Any, Any, None]:
        # Threads of Prefect, which other tests have started, sleep as well.
        if sys._getframe(1).f_globals is not vars(llm):
            return sleep(delay)
        waited.append(delay)
        return sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    return waited


def chat(text: str = "one two", **parameters: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **parameters}


def ask(server: ModelServer, **parameters: Any) -> Any:
    return asyncio.run(call_model(OpenAIConnection(server.base_url), "chat", chat(**parameters)))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_chat_is_answered_and_its_tokens_are_counted(model_server: ModelServer, stream: bool) -> None:
    with running() as context:
        response = ask(model_server, stream=stream, temperature=0.5, seed=7)

    assert answer_of(response, "chat") == "echo: one two"
    assert context.tokens == model_server.tokens == {"total_tokens": 5, "prompt_tokens": 2, "completion_tokens": 3}
    assert model_server.calls[0].body["temperature"] == 0.5
    assert model_server.calls[0].body["seed"] == 7


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_completion_is_answered_and_its_tokens_are_counted(model_server: ModelServer, stream: bool) -> None:
    asked = {"model": "m", "prompt": "a b c", "stream": stream}
    with running() as context:
        response = asyncio.run(call_model(OpenAIConnection(model_server.base_url), "completion", asked))

    assert answer_of(response, "completion") == "echo: a b c"
    assert context.tokens == model_server.tokens


def test_a_message_with_tool_calls_is_given_whole(model_server: ModelServer) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    model_server.script.append(Reply(message={"role": "assistant", "content": None, "tool_calls": [call]}))

    message = answer_of(ask(model_server), "chat", whole_message=True)

    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == call["function"]


def test_azure_and_serverless_have_their_own_paths(model_server: ModelServer) -> None:
    asyncio.run(call_model(AzureOpenAIConnection(model_server.url), "chat", chat()))
    asyncio.run(call_model(ServerlessConnection(model_server.url), "chat", chat()))

    azure, serverless = model_server.calls
    assert azure.path == "/openai/deployments/m/chat/completions?api-version=2024-06-01"
    assert azure.headers["api-key"] == "key"
    assert serverless.path == "/v1/chat/completions"


def test_many_calls_at_once_share_a_client(model_server: ModelServer) -> None:
    model_server.hold_until = 64

    async def ask_all() -> None:
        openai = llm.import_openai()
        connections = [OpenAIConnection(model_server.base_url) for _ in range(64)]
        assert len({id(await llm._shared_client(openai, c)) for c in connections}) == 1
        for _ in range(2):
            await asyncio.gather(*(call_model(c, "chat", chat(f"n {n}")) for n, c in enumerate(connections)))

    asyncio.run(ask_all())

    assert model_server.most_at_once == 64
    assert model_server.connections == 64


def test_sync_code_calls_too_and_its_tokens_are_its_line_s(model_server: ModelServer) -> None:
    connection = OpenAIConnection(model_server.base_url)
    with running(1) as first, running(2) as second:
        answers = [answer_of(call_model_sync(connection, "chat", chat(text)), "chat") for text in ("a", "b c")]

    assert answers == ["echo: a", "echo: b c"]
    assert (first.tokens["total_tokens"], second.tokens) == (0, model_server.tokens)
    assert model_server.connections == 1


@pytest.mark.parametrize(
    ("reply", "least", "most"),
    [
        (rate_limited("1"), 1.0, 1.1),
        (rate_limited("89"), 89.0, 90.0),
        (rate_limited("soon"), 0.37, 0.5),
        (rate_limited(), 0.37, 0.5),
        (error_reply(503, "busy", retry_after_ms="1500"), 1.5, 1.65),
        (error_reply(500, "broken"), 0.37, 0.5),
        (error_reply(409, "conflict"), 0.37, 0.5),
        (Reply(fault="reset"), 0.37, 0.5),
        (Reply(body={"error": {"message": "upstream", "code": 502}}), 0.37, 0.5),
        (Reply(body={"error": {"message": "slow down", "code": "rate_limit_exceeded"}}), 0.37, 0.5),
    ],
    ids=["seconds", "89", "odd", "none", "ms", "500", "409", "reset", "200-with-502", "200-with-429"],
)
def test_what_may_pass_is_tried_again_when_the_service_says(
    model_server: ModelServer, delays: list[float], reply: Reply, least: float, most: float
) -> None:
    model_server.script.append(reply)
    with running() as context:
        response = ask(model_server)

    assert answer_of(response, "chat") == "echo: one two"
    assert len(delays) == 1
    assert least <= delays[0] <= most
    assert model_server.call_count == 2
    assert context.tokens == model_server.tokens


def test_a_wait_until_a_date_is_waited_for(model_server: ModelServer, delays: list[float]) -> None:
    model_server.script.append(rate_limited(at(120)))

    assert answer_of(ask(model_server), "chat") == "echo: one two"
    assert 60 <= delays[0] <= 121


def test_a_stream_that_breaks_off_is_asked_for_again(model_server: ModelServer, delays: list[float]) -> None:
    model_server.script.append(Reply(fault="reset"))

    assert answer_of(ask(model_server, stream=True), "chat") == "echo: one two"
    assert len(delays) == 1


def test_tries_end(model_server: ModelServer, delays: list[float]) -> None:
    model_server.answer = lambda _: error_reply(500, "broken")

    with pytest.raises(exceptions.InternalServerError, match="broken"):
        ask(model_server)
    assert model_server.call_count == llm.MAX_RETRIES + 1
    assert len(delays) == llm.MAX_RETRIES
    assert max(delays) <= llm.MAX_DELAY_SEC


FINAL = [
    (401, None, "", "AuthenticationError"),
    (403, None, "", "PermissionDeniedError"),
    (404, None, "", "NotFoundError"),
    (400, None, "", "BadRequestError"),
    (422, None, "", "UnprocessableEntityError"),
    (400, "content_filter", "", "ContentFilterError"),
    (400, "content_policy_violation", "", "ContentFilterError"),
    (429, "insufficient_quota", "insufficient_quota", "RateLimitError"),
    (429, "billing_hard_limit_reached", "", "RateLimitError"),
    (429, None, "billing_not_active", "RateLimitError"),
    (402, None, "", "OpenAIError"),
    (418, None, "", "OpenAIError"),
]


@pytest.mark.parametrize(("status", "code", "kind", "name"), FINAL, ids=[f"{s}-{c}" for s, c, *_ in FINAL])
def test_what_does_not_pass_fails_at_once_and_is_named(
    model_server: ModelServer, delays: list[float], status: int, code: str | None, kind: str, name: str
) -> None:
    model_server.script.append(error_reply(status, "no, for a reason", code=code, kind=kind))

    with pytest.raises(OpenAIError, match="no, for a reason") as raised:
        ask(model_server)

    assert delays == []
    assert type(raised.value).__name__ == name
    error = error_dict(raised.value)
    assert (error["code"], error["innerError"]["code"]) == ("UserError", "OpenAIError")
    assert error["additionalInfo"][0]["info"]["status"] == status


def test_azures_words_for_a_spent_quota_are_understood(model_server: ModelServer, delays: list[float]) -> None:
    text = "Out of call volume quota for CognitiveServices. Quota will be replenished in 2.05:06:00."
    model_server.script.append(error_reply(429, text, code="429"))

    with pytest.raises(RateLimitError, match="Out of call volume"):
        ask(model_server)
    assert delays == []


def test_a_quota_per_minute_that_speaks_of_billing_is_tried_again(
    model_server: ModelServer, delays: list[float]
) -> None:
    text = "You exceeded your current quota, please check your plan and billing details."
    model_server.script.append(error_reply(429, text, code="429"))

    ask(model_server)
    assert len(delays) == 1


def test_a_wait_beyond_all_patience_fails_at_once_and_tells(model_server: ModelServer, delays: list[float]) -> None:
    model_server.script.append(rate_limited("3600"))

    with pytest.raises(RateLimitError) as raised:
        ask(model_server)
    assert delays == []
    assert raised.value.retry_after_sec == 3600  # type: ignore[attr-defined]


@pytest.mark.parametrize("body", ["<html>hello</html>", {"choices": []}, {"error": {"message": "odd"}}], ids=str)
def test_an_answer_that_is_none_fails(model_server: ModelServer, delays: list[float], body: Any) -> None:
    model_server.script.append(Reply(body=body))

    with pytest.raises(APIResponseValidationError):
        ask(model_server)
    assert delays == []


def test_a_filtered_answer_fails_and_a_partly_filtered_one_is_given(model_server: ModelServer) -> None:
    filtered = {"role": "assistant", "content": None}
    model_server.script += [
        Reply(message=filtered, finish_reason="content_filter"),
        Reply(finish_reason="content_filter"),
    ]

    with pytest.raises(ContentFilterError):
        answer_of(ask(model_server), "chat")
    assert answer_of(ask(model_server), "chat") == "echo: one two"


def test_a_service_that_is_not_there_fails_soon(delays: list[float]) -> None:
    with ModelServer() as gone:
        pass

    with pytest.raises(APIConnectionError, match=r"connection to the service at http://\S+ failed: "):
        ask(gone)
    assert len(delays) == llm.MAX_CONNECT_RETRIES


def test_a_call_that_is_never_answered_ends_with_its_line(model_server: ModelServer) -> None:
    model_server.script.append(Reply(fault="silence"))

    async def ask_for_a_moment() -> None:
        async with asyncio.timeout(0.2):
            await call_model(OpenAIConnection(model_server.base_url), "chat", chat())

    with pytest.raises(TimeoutError):
        asyncio.run(ask_for_a_moment())


def test_a_service_that_knows_no_stream_options_streams_without(model_server: ModelServer) -> None:
    model_server.script.append(error_reply(400, "Unrecognized request argument supplied: stream_options"))
    with running() as context:
        response = ask(model_server, stream=True)

    assert answer_of(response, "chat") == "echo: one two"
    assert context.tokens["total_tokens"] == 0


@pytest.mark.parametrize(
    "connection",
    [object(), OpenAIConnection("http://127.0.0.1:1", api_key="")],
    ids=["another-kind", "no-key"],
)
def test_a_connection_that_cannot_be_used_is_refused(connection: Any) -> None:
    with pytest.raises(ToolValidationError):
        asyncio.run(call_model(connection, "chat", chat()))


def test_without_openai_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)

    with pytest.raises(exceptions.PythonLoadError, match=r"pip install 'prefect-batchflow\[llm\]'"):
        llm.import_openai()


def test_the_users_own_mistake_stays_what_it_is(model_server: ModelServer) -> None:
    with pytest.raises(TypeError, match="misspelt"):
        ask(model_server, misspelt=1)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "-2"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "2", "retry-after-ms": "300"}, 0.3),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 9999 07:28:00 GMT"}, MOST_SEC),
        ({"retry-after": "1e999"}, MOST_SEC),
        ({"retry-after": "9" * 400}, MOST_SEC),
        ({"retry-after": "tomorrow"}, None),
    ],
)
def test_the_wait_that_a_service_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_sec(headers) == seconds


def test_waits_grow_and_differ() -> None:
    error = exceptions.InternalServerError("x", status=500, retry_after_sec=None)

    waits = [delay_before_retry(error, n) or 0.0 for n in range(llm.MAX_RETRIES)]

    assert all(0.75 * min(0.5 * 2**n, 20) <= wait <= min(0.5 * 2**n, 20) for n, wait in enumerate(waits))
    assert delay_before_retry(error, llm.MAX_RETRIES) is None
