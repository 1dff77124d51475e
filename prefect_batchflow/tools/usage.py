"""Counts the tokens of all model calls through the openai package, from this package and from user code.

All resources of openai, sync and async, call their client's `request`; the usage is read from its answers there. Nothing is
patched before openai is imported.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from threading import Lock
from typing import TYPE_CHECKING, Any

from prefect_batchflow.tools.context import current_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from prefect_batchflow.tools.context import RunContext

logger = logging.getLogger(__name__)

_PACKAGE = "openai"
_counting = Lock()  # a line's code can call from several threads


def count_model_calls() -> None:
    """Count all calls through openai from now on, or from its import on; repeated calls do nothing."""
    if (module := sys.modules.get(_PACKAGE)) is not None:
        _count_calls_of(module)
    elif _CountingFinder not in sys.meta_path:
        sys.meta_path.insert(0, _CountingFinder)


class _CountingFinder:
    """Starts counting when openai is imported."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _PACKAGE:
            return None
        others = (finder for finder in sys.meta_path if finder is not _CountingFinder)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _count_calls_of(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _count_calls_of(module: ModuleType) -> None:
    for name in ("OpenAI", "AsyncOpenAI"):
        client = getattr(module, name, None)
        request = getattr(client, "request", None)
        if client is not None and request is not None and not hasattr(request, "counts_tokens"):
            client.request = _counted(request)


def _counted(request: Callable[..., Any]) -> Callable[..., Any]:
    """A client's `request` that also counts tokens."""
    if inspect.iscoroutinefunction(request):

        @functools.wraps(request)
        async def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            return _noted(await request(self, *args, **kwargs))

    else:

        @functools.wraps(request)
        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            return _noted(request(self, *args, **kwargs))

    counted.counts_tokens = True  # type: ignore[attr-defined]
    return counted


def _noted(result: Any) -> Any:
    """Count the usage of an answer: now, at the end of a stream, or when a raw response is parsed."""
    context = current_context()
    if context is None:
        return result
    if hasattr(result, "_iterator"):
        stream = result._iterator
        result._iterator = (
            _noted_async(stream, context) if hasattr(stream, "__anext__") else _noted_sync(stream, context)
        )
    elif type(result).__name__ == "LegacyAPIResponse":
        parse = result.parse
        counted: list[bool] = []

        @functools.wraps(parse)
        def parse_and_count(*args: Any, **kwargs: Any) -> Any:
            value = parse(*args, **kwargs)
            if not counted:
                counted.append(True)
                value = _noted(value)
            return value

        result.parse = parse_and_count
    else:
        _add(context, _usage_of(result))
    return result


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


def _usage_of(answer: Any) -> tuple[int, int] | None:
    """Tokens of the prompt and of the completion; `None` when the answer does not say."""
    usage = getattr(answer, "usage", None) or getattr(getattr(answer, "response", None), "usage", None)
    prompt = _first_int(usage, "prompt_tokens", "input_tokens")
    completion = _first_int(usage, "completion_tokens", "output_tokens")
    return None if prompt is None and completion is None else (prompt or 0, completion or 0)


def _first_int(usage: Any, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := getattr(usage, name, None), int)), None)


def _add(context: RunContext, usage: tuple[int, int] | None) -> None:
    if usage is not None:
        with _counting:
            context.add_tokens(*usage)


@functools.cache
def _say_that_streams_do_not_tell() -> None:
    logger.warning(
        "A model's streamed answer does not report its tokens, so they are not counted. Pass "
        "stream_options={'include_usage': True} if the service supports it. This warning appears once per process."
    )
