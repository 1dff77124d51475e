from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from model_server import Reply, error_reply, rate_limited

from prefect_batchflow.tools import usage
from prefect_batchflow.tools.context import running
from prefect_batchflow.tools.usage import count_model_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model_server import ModelServer

MESSAGES: list[Any] = [{"role": "user", "content": "one two three"}]
WITH_USAGE: Any = {"include_usage": True}
BODY: Any = {"model": "m", "messages": MESSAGES}


@pytest.fixture(autouse=True)
def _counting() -> None:
    count_model_calls()


def read_all(client: openai.OpenAI) -> None:
    for _ in client.chat.completions.create(model="m", messages=MESSAGES, stream=True, stream_options=WITH_USAGE):
        pass


def raw_chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES, **options)


def in_stream(client: openai.OpenAI, read: Callable[[Any], Any], **options: Any) -> None:
    with client.chat.completions.with_streaming_response.create(model="m", messages=MESSAGES, **options) as response:
        read(response)


def stream_events(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="m", messages=MESSAGES, stream_options=WITH_USAGE) as events:
        list(events)


CALLS: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda client: client.chat.completions.create(model="m", messages=MESSAGES),
    "completion": lambda client: client.completions.create(model="m", prompt="a b"),
    "embeddings": lambda client: client.embeddings.create(model="m", input=["a b", "c"], encoding_format="float"),
    "stream": read_all,
    "parse": lambda client: client.chat.completions.parse(model="m", messages=MESSAGES),
    "beta parse": lambda client: client.beta.chat.completions.parse(model="m", messages=MESSAGES),
    "raw": lambda client: client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES).parse(),
    "raw, parsed twice": lambda client: [raw.parse() for raw in [raw_chat(client)] * 2],
    "raw, as text": lambda client: raw_chat(client).text,
    "raw, not read": lambda client: raw_chat(client),
    "raw stream, parsed": lambda client: list(raw_chat(client, stream=True, stream_options=WITH_USAGE).parse()),
    "raw stream, lines": lambda client: list(
        raw_chat(client, stream=True, stream_options=WITH_USAGE).http_response.iter_lines()
    ),
    "streaming response, parsed": lambda client: in_stream(client, lambda response: response.parse()),
    "streaming response, parsed twice": lambda client: in_stream(client, lambda r: (r.parse(), r.parse())),
    "streaming response, JSON": lambda client: in_stream(client, lambda response: response.json()),
    "streaming response, read": lambda client: in_stream(client, lambda response: response.read()),
    "streaming response, lines": lambda client: in_stream(client, lambda response: list(response.iter_lines())),
    "streaming response, small pieces": lambda client: in_stream(client, lambda r: list(r.iter_bytes(chunk_size=7))),
    "streaming response, stream": lambda client: in_stream(
        client, lambda response: list(response.parse()), stream=True, stream_options=WITH_USAGE
    ),
    "streaming response, stream as lines": lambda client: in_stream(
        client, lambda response: list(response.iter_lines()), stream=True, stream_options=WITH_USAGE
    ),
    "a stream's events": lambda client: stream_events(client),
    "other options": lambda client: raw_chat(client.with_options(timeout=20)),
    "post, as dict": lambda client: client.post("/chat/completions", body=BODY, cast_to=dict[str, object]),
    "post, as object": lambda client: client.post("/chat/completions", body=BODY, cast_to=object),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_of_user_code_are_counted_once(model_server: ModelServer, call: Callable[[openai.OpenAI], Any]) -> None:
    with openai.OpenAI(api_key="key", base_url=model_server.base_url) as client, running() as context:
        call(client)

    assert model_server.answered == 1
    assert context.tokens == model_server.tokens


def test_async_calls_are_counted_for_their_own_line(model_server: ModelServer) -> None:
    async def line(client: openai.AsyncOpenAI, number: int) -> int:
        with running(number) as context:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "w " * number}])
            stream = await client.chat.completions.create(
                model="m", messages=MESSAGES, stream=True, stream_options=WITH_USAGE
            )
            assert len([chunk async for chunk in stream]) > 1
            return context.tokens["prompt_tokens"]

    async def run() -> list[int]:
        async with openai.AsyncOpenAI(api_key="key", base_url=model_server.base_url) as client:
            return await asyncio.gather(*(line(client, number) for number in range(1, 9)))

    assert asyncio.run(run()) == [number + 3 for number in range(1, 9)]


ASYNC_READS: dict[str, Callable[[Any], Any]] = {
    "parse": lambda response: response.parse(),
    "json": lambda response: response.json(),
    "text": lambda response: response.text(),
}


@pytest.mark.parametrize("read", ASYNC_READS.values(), ids=ASYNC_READS)
def test_async_streaming_responses_are_counted_once(model_server: ModelServer, read: Callable[[Any], Any]) -> None:
    async def call() -> None:
        async with (
            openai.AsyncOpenAI(api_key="key", base_url=model_server.base_url) as client,
            client.chat.completions.with_streaming_response.create(model="m", messages=MESSAGES) as response,
        ):
            await read(response)

    with running() as context:
        asyncio.run(call())

    assert context.tokens == model_server.tokens
    assert context.tokens["total_tokens"]


def test_async_streaming_responses_with_streams_are_counted_once(model_server: ModelServer) -> None:
    async def call() -> None:
        async with (
            openai.AsyncOpenAI(api_key="key", base_url=model_server.base_url) as client,
            client.chat.completions.with_streaming_response.create(
                model="m", messages=MESSAGES, stream=True, stream_options=WITH_USAGE
            ) as response,
        ):
            stream = await response.parse()
            assert [chunk async for chunk in stream]

    with running() as context:
        asyncio.run(call())

    assert context.tokens == model_server.tokens
    assert context.tokens["total_tokens"]


RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": [], "status": "completed",
    "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
    "usage": {
        "input_tokens": 3, "output_tokens": 4, "total_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
    },
}  # fmt: skip
QUEUED = RESPONSE | {"status": "queued", "usage": None}


@contextmanager
def answered_with(*answers: dict[str, Any]) -> Iterator[openai.OpenAI]:
    """A client whose calls get these answers of the responses API, streams among them."""
    given = iter(answers)

    def answer(request: httpx2.Request) -> httpx2.Response:
        found = next(given)
        if request.method == "POST" and json.loads(request.content).get("stream"):
            event = {"type": "response.completed", "sequence_number": 1, "response": found}
            text = f"event: response.completed\ndata: {json.dumps(event)}\n\n"
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=text)
        return httpx2.Response(200, json=found)

    with openai.OpenAI(api_key="key", http_client=httpx2.Client(transport=httpx2.MockTransport(answer))) as client:
        yield client


RESPONSES: dict[str, tuple[list[dict[str, Any]], Callable[[openai.OpenAI], Any]]] = {
    "create": ([RESPONSE], lambda client: client.responses.create(model="m", input="a")),
    "stream": ([RESPONSE], lambda client: list(client.responses.create(model="m", input="a", stream=True))),
    "raw": ([RESPONSE], lambda client: client.responses.with_raw_response.create(model="m", input="a")),
    "retrieved until it is done": (
        [QUEUED, QUEUED, RESPONSE, RESPONSE],
        lambda client: [
            client.responses.create(model="m", input="a", background=True),
            *(client.responses.retrieve("resp_1") for _ in range(3)),
        ],
    ),
    "looked at again": (
        [RESPONSE, RESPONSE],
        lambda client: [client.responses.create(model="m", input="a"), client.responses.retrieve("resp_1")],
    ),
}


@pytest.mark.parametrize(("answers", "call"), RESPONSES.values(), ids=RESPONSES)
def test_responses_are_counted_once(answers: list[dict[str, Any]], call: Callable[[openai.OpenAI], Any]) -> None:
    with answered_with(*answers) as client, running() as context:
        call(client)

    assert context.tokens == {"total_tokens": 7, "prompt_tokens": 3, "completion_tokens": 4}


def test_another_runs_response_costs_nothing() -> None:
    with answered_with(RESPONSE) as client, running() as context:
        client.responses.retrieve("resp_1")

    assert context.tokens["total_tokens"] == 0


def test_bytes_that_are_not_read_to_the_end_are_no_error(model_server: ModelServer) -> None:
    with openai.OpenAI(api_key="key", base_url=model_server.base_url) as client, running() as context:
        in_stream(client, lambda response: next(response.iter_bytes(chunk_size=5)))

    assert context.tokens["total_tokens"] == 0


def test_calls_from_threads_are_counted(model_server: ModelServer) -> None:
    with (
        openai.OpenAI(api_key="key", base_url=model_server.base_url) as client,
        running() as context,
        ThreadPoolExecutor(4) as threads,
    ):
        list(threads.map(lambda _: CALLS["chat"](client), range(8)))

    assert context.tokens == model_server.tokens


def test_a_stream_without_usage_is_told_once(model_server: ModelServer, caplog: pytest.LogCaptureFixture) -> None:
    usage._say_that_streams_do_not_tell.cache_clear()
    model_server.tells_usage = False

    with (
        openai.OpenAI(api_key="key", base_url=model_server.base_url) as client,
        running() as context,
        caplog.at_level(logging.WARNING),
    ):
        read_all(client)
        read_all(client)

    assert context.tokens["total_tokens"] == 0
    assert len([record for record in caplog.records if "not counted" in record.message]) == 1


def test_nothing_is_counted_outside_of_a_run(model_server: ModelServer) -> None:
    with openai.OpenAI(api_key="key", base_url=model_server.base_url) as client:
        assert CALLS["chat"](client).usage.total_tokens == 7


def test_openai_is_counted_whenever_it_is_imported_and_not_imported_for_that() -> None:
    program = (
        "import sys\n"
        "from prefect_batchflow.tools.usage import count_model_calls\n"
        "count_model_calls(); count_model_calls()\n"
        "assert not {'openai', 'asyncio', 'jinja2'} & set(sys.modules), sys.modules\n"
        "import openai\n"
        "assert openai.OpenAI.request.counts_tokens and openai.AsyncAzureOpenAI.request.counts_tokens\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("refusals", "told"),
    [
        pytest.param([rate_limited("1")], [(7, 1.0, 429)], id="too many calls"),
        pytest.param([error_reply(500, "oops", retry_after="2")], [(7, 2.0, 500)], id="an error of the service"),
        pytest.param([], [], id="none"),
    ],
)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_client_that_waits_before_its_own_retry_tells_the_run(
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    refusals: list[Reply],
    told: list[tuple[int, float, int | None]],
) -> None:
    waits: list[tuple[int, float, int | None]] = []
    monkeypatch.setattr("prefect_batchflow.tools.context._tell_wait", lambda *wait: waits.append(wait))
    model_server.script.extend(refusals)

    async def ask() -> None:
        async with openai.AsyncOpenAI(api_key="key", base_url=model_server.base_url) as client:
            await client.chat.completions.create(model="m", messages=MESSAGES)

    with running(7):
        if kind == "async":
            asyncio.run(ask())
        else:
            with openai.OpenAI(api_key="key", base_url=model_server.base_url) as client:
                client.chat.completions.create(model="m", messages=MESSAGES)

    assert waits == told
    assert model_server.answered == 1
