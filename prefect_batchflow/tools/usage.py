"""Counts the tokens of model calls: whatever goes through the openai package, the package's own calls and user code's alike.

All of openai's resources, sync and async, ask through their client's `request`; that is where what the service says it used
is read. Nothing is patched, and nothing costs, until openai is imported.
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
_counting = Lock()  # a line's code may call from several threads


def count_model_calls() -> None:
    """Have every call through openai counted from now on, or from its import on; to be called any number of times."""
    if (module := sys.modules.get(_PACKAGE)) is not None:
        _count_calls_of(module)
    elif _CountingFinder not in sys.meta_path:
        sys.meta_path.insert(0, _CountingFinder)


class _CountingFinder:
    """Has openai's clients counted as soon as the package is imported."""

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
    """A client's `request` that also counts."""
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
    """What a call gave, its usage counted: now, at the end of a stream, or when a raw response is parsed."""
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
        _miss(usage)
    finally:
        _add(context, usage)


async def _noted_async(chunks: AsyncIterator[Any], context: RunContext) -> AsyncIterator[Any]:
    usage = None
    try:
        async for chunk in chunks:
            usage = _usage_of(chunk) or usage
            yield chunk
        _miss(usage)
    finally:
        _add(context, usage)


def _usage_of(answer: Any) -> tuple[int, int] | None:
    """Tokens of the prompt and of the completion; `None` when the answer does not tell."""
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


def _miss(usage: tuple[int, int] | None) -> None:
    if usage is None:
        _say_that_streams_do_not_tell()


@functools.cache
def _say_that_streams_do_not_tell() -> None:
    logger.warning(
        "A streamed answer of a model says nothing of its tokens: they are not counted. Ask for them with "
        "stream_options={'include_usage': True}, if the service knows it. This is said once a process."
    )
