from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import pytest

from prefect_batchflow.tools import usage
from prefect_batchflow.tools.context import running
from prefect_batchflow.tools.usage import count_model_calls

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_server import ModelServer

MESSAGES: list[Any] = [{"role": "user", "content": "one two three"}]
WITH_USAGE: Any = {"include_usage": True}


@pytest.fixture(autouse=True)
def _counting() -> None:
    count_model_calls()


def read_all(client: openai.OpenAI) -> None:
    for _ in client.chat.completions.create(model="m", messages=MESSAGES, stream=True, stream_options=WITH_USAGE):
        pass


CALLS: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda client: client.chat.completions.create(model="m", messages=MESSAGES),
    "completion": lambda client: client.completions.create(model="m", prompt="a b"),
    "embeddings": lambda client: client.embeddings.create(model="m", input=["a b", "c"], encoding_format="float"),
    "stream": read_all,
    "parse": lambda client: client.chat.completions.parse(model="m", messages=MESSAGES),
    "raw": lambda client: client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES).parse(),
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
