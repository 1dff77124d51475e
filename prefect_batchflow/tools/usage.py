"""Counts the tokens of all model calls through the openai package, from this package and from user code.

All resources of openai, sync and async, call their client's `request`; the usage is read from its answers there, however user
code reads them: as objects, as streams, as raw responses or as bytes. A client that waits before it repeats a refused call
tells the run so. Nothing is patched before openai is imported.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect_batchflow.tools.context import current_context, note_call_of_no_line, note_wait
from prefect_batchflow.tools.on_import import when_imported

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import ModuleType

    from prefect_batchflow.tools.context import RunContext

logger = logging.getLogger(__name__)


def count_model_calls() -> None:
    """Count all calls through openai from now on, or from its import on; repeated calls do nothing."""
    when_imported("openai", _count_calls_of)


def _count_calls_of(module: ModuleType) -> None:
    for name in ("OpenAI", "AsyncOpenAI"):
        client = getattr(module, name, None)
        request = getattr(client, "request", None)
        if client is not None and request is not None and not hasattr(request, "counts_tokens"):
            client.request = _counted(request)
            if (sleep := getattr(client, "_sleep_for_retry", None)) is not None:
                client._sleep_for_retry = _told(sleep)


def _told(sleep: Callable[..., Any]) -> Callable[..., Any]:
    """A client's wait before its own retry, which also tells the run. The run adds no workers while a service answers 429."""

    @functools.wraps(sleep)
    def told(self: Any, **call: Any) -> Any:
        with contextlib.suppress(Exception):  # these are the client's inner names
            response, left = call["response"], call["max_retries"] - call["retries_taken"]
            seconds = self._calculate_retry_timeout(left, call["options"], response.headers if response else None)
            note_wait(seconds, response.status_code if response else None)
        return sleep(self, **call)

    return told


def _counted(request: Callable[..., Any]) -> Callable[..., Any]:
    """A client's `request` that also counts tokens."""
    if inspect.iscoroutinefunction(request):

        @functools.wraps(request)
        async def counted(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
            context = current_context()
            _keep(context, options)
            return _noted(await request(self, cast_to, options, *args, **kwargs), options, context)

    else:

        @functools.wraps(request)
        def counted(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
            context = current_context()
            _keep(context, options)
            return _noted(request(self, cast_to, options, *args, **kwargs), options, context)

    counted.counts_tokens = True  # type: ignore[attr-defined]
    return counted


def _keep(context: RunContext | None, options: Any) -> None:
    """Keep what is sent, if the line's record has it."""
    if context is None or context.calls is None or not isinstance(sent := getattr(options, "json_data", None), dict):
        return
    context.calls.append(
        {
            "api": str(getattr(options, "url", "")).strip("/"),
            "sent": json.loads(json.dumps(sent, default=repr)),
            "time": datetime.now(UTC).isoformat(),
        }
    )


def _noted(result: Any, options: Any, context: RunContext | None) -> Any:
    """Count the usage of an answer: now, or while user code reads it."""
    if context is None:
        note_call_of_no_line()
        return result
    if hasattr(result, "_iterator"):
        stream = result._iterator
        result._iterator = (
            _noted_async(stream, context) if hasattr(stream, "__anext__") else _noted_sync(stream, context)
        )
        return result
    response = getattr(result, "http_response", result)
    if not hasattr(response, "iter_bytes"):
        _note_answer(result, context, is_new=str(getattr(options, "method", "")).lower() != "get")
    elif response.is_closed:
        body = _Body(context, response)
        body.add(response.content)
        body.end()
    else:
        _note_bytes(response, context)
    return result


def _note_answer(answer: Any, context: RunContext, *, is_new: bool) -> None:
    """Count an answer: its usage if it is new, or if it is an earlier answer of the line that was not ready then."""
    usage, key = _usage_of(answer), _part(answer, "id")
    if usage is None:
        if is_new and isinstance(key, str):
            context.unfinished.add(key)
    elif is_new or key in context.unfinished:
        context.unfinished.discard(key)
        _add(context, usage)


def _noted_sync(chunks: Iterator[Any], context: RunContext) -> Iterator[Any]:
    usage = None
    try:
        for chunk in chunks:
            usage = _usage_of(chunk) or usage
            yield chunk
        if usage is None:
            _say_that_streams_do_not_tell()
    finally:
        _add(context, usage)


async def _noted_async(chunks: AsyncIterator[Any], context: RunContext) -> AsyncIterator[Any]:
    usage = None
    try:
        async for chunk in chunks:
            usage = _usage_of(chunk) or usage
            yield chunk
        if usage is None:
            _say_that_streams_do_not_tell()
    finally:
        _add(context, usage)


def _note_bytes(response: Any, context: RunContext) -> None:
    """Count the usage of an HTTP response while its body is read, parsed or not."""
    body = _Body(context, response)
    read, read_async = response.iter_bytes, response.aiter_bytes

    def iter_bytes(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        try:
            with contextlib.closing(read(*args, **kwargs)) as chunks:
                for chunk in chunks:
                    body.add(chunk)
                    yield chunk
        finally:
            body.end()

    async def aiter_bytes(*args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        try:
            async with contextlib.aclosing(read_async(*args, **kwargs)) as chunks:
                async for chunk in chunks:
                    body.add(chunk)
                    yield chunk
        finally:
            body.end()

    response.iter_bytes, response.aiter_bytes = iter_bytes, aiter_bytes


class _Body:
    """The body of an answer as its bytes arrive: one JSON value, or events with one JSON value each."""

    def __init__(self, context: RunContext, response: Any) -> None:
        self._context = context
        kind = response.headers.get("content-type", "")
        self._is_stream = "event-stream" in kind
        self._counts = self._is_stream or "json" in kind
        self._rest = bytearray()
        self._usage: tuple[int, int] | None = None

    def add(self, data: bytes) -> None:
        if not self._counts:
            return
        self._rest += data
        if self._is_stream:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                if line.startswith(b"data:") and b'"usage"' in line:
                    self._usage = _usage_in(line[5:]) or self._usage
                elif self._usage is None and line.strip() == b"data: [DONE]":
                    _say_that_streams_do_not_tell()

    def end(self) -> None:
        """Count what was found, once: a body that is read can be read again."""
        if self._counts:
            self._counts = False
            _add(self._context, self._usage if self._is_stream else _usage_in(self._rest))
            self._rest.clear()


def _usage_in(text: bytes | bytearray) -> tuple[int, int] | None:
    try:
        return _usage_of(json.loads(text))
    except ValueError:  # user code did not read all of it
        return None


def _usage_of(answer: Any) -> tuple[int, int] | None:
    """Tokens of the prompt and of the completion; `None` when the answer does not say."""
    usage = _part(answer, "usage") or _part(_part(answer, "response"), "usage")
    prompt = _first_int(usage, "prompt_tokens", "input_tokens")
    completion = _first_int(usage, "completion_tokens", "output_tokens")
    return None if prompt is None and completion is None else (prompt or 0, completion or 0)


def _part(value: Any, name: str) -> Any:
    """A field of an answer, which is an object of openai or a dict."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _first_int(usage: Any, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := _part(usage, name), int)), None)


def _add(context: RunContext, usage: tuple[int, int] | None) -> None:
    if usage is not None:
        context.add_tokens(*usage)


@functools.cache
def _say_that_streams_do_not_tell() -> None:
    logger.warning(
        "A model's streamed answer does not report its tokens, so they are not counted. Pass "
        "stream_options={'include_usage': True} if the service supports it. This warning appears once per process."
    )
