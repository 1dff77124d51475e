"""Making the calls of a program, from sync or async code; an exception of user code becomes a result.

`drive` makes the calls in this thread. `drive_async` awaits async functions and calls others in a thread. A call of `drive` can
give something to await, because only calling a function shows for certain what it gives. `drive` then stops with a `Handover`,
with which `drive_async` continues on an event loop: the worker's, which lives as long as the worker.
"""

from __future__ import annotations

import sys
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any

from prefect_batchflow.execution.program.steps import END, Handover, Raised, Stream
from prefect_batchflow.execution.program.user_errors import passes_through

if TYPE_CHECKING:
    from prefect_batchflow.execution.program.branches import Tasks, Threads
    from prefect_batchflow.execution.program.steps import Steps, UserFunction

_CO_ITERABLE_COROUTINE = 0x100
"""The flag of generators that `types.coroutine` makes awaitable, as in `inspect`."""


def drive(steps: Steps) -> Any:
    """Make the calls of a program in this thread and return its result, or a `Handover`; branches run on threads."""
    threads: Threads | None = None
    result = None
    try:
        while True:
            step = steps.send(result)
            if isinstance(step, tuple):
                function = step[0]
                if function.needs_loop:
                    return Handover(steps, call=step)
                result = _call(*step)
                if is_unsettled(result):
                    function.is_async = True
                    return Handover(steps, value=result)
                if type(result) is Raised and _wants_loop(result.error):
                    function.is_async = function.needs_loop = True
                    return Handover(steps, call=step)
                continue
            if threads is None:
                from prefect_batchflow.execution.program.branches import Threads

                threads = Threads(drive)
            result = threads.end() if step is END else threads.begin(step.branches)
            if any(type(outcome) is Handover for _, outcome in result):
                begun, threads = threads.release(result, ending=step is END), None
                return Handover(steps, branches=begun)
    except StopIteration as stop:
        return stop.value
    finally:
        if threads is not None:
            threads.close()


async def drive_async(steps: Steps, taken_over: Handover | None = None) -> Any:
    """Make the calls of a program, async functions on this event loop, others in a thread; return its result.

    Args:
        steps: The program.
        taken_over: What `drive` has left of it.
    """
    tasks: Tasks | None = None
    result = None
    try:
        if taken_over is not None:
            if taken_over.branches is not None:
                from prefect_batchflow.execution.program.branches import Tasks

                tasks = Tasks(drive_async)
                result = await tasks.take_over(taken_over.branches)
            elif taken_over.call is not None:
                result = await _attempt_async(*taken_over.call)
            else:
                result = await _settle(taken_over.value)
        while True:
            step = steps.send(result)
            if isinstance(step, tuple):
                result = await _attempt_async(*step)
                continue
            if tasks is None:
                from prefect_batchflow.execution.program.branches import Tasks

                tasks = Tasks(drive_async)
            result = await (tasks.end() if step is END else tasks.begin(step.branches))
    except StopIteration as stop:
        return stop.value
    finally:
        if tasks is not None:
            await tasks.abandon()


def _call(function: UserFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        value = function.function(*args, **kwargs)
        if hasattr(type(value), "add_done_callback") and not hasattr(type(value), "__await__"):
            value = _waited_for(value)
        return Stream(list(value), is_async=False) if _is_plain_generator(value) else value
    except BaseException as exc:
        if passes_through(exc):
            raise
        return Raised(exc)


def _waited_for(value: Any) -> Any:
    """The result of a future of `concurrent.futures`, which a pool of threads gives; anything else as it is."""
    futures = sys.modules.get("concurrent.futures")
    return value.result() if futures is not None and isinstance(value, futures.Future) else value


async def _attempt_async(function: UserFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if function.is_async:
        value = _call(function, args, kwargs)
    else:
        from asyncio import to_thread

        value = await to_thread(_call, function, args, kwargs)
        if type(value) is Raised and _wants_loop(value.error):
            function.is_async = function.needs_loop = True
            value = _call(function, args, kwargs)
        elif is_unsettled(value):
            function.is_async = True
    return await _settle(value) if is_unsettled(value) else value


def is_unsettled(value: Any) -> bool:
    """Whether it has to be awaited or read on an event loop."""
    kind = type(value)
    return hasattr(kind, "__await__") or kind is AsyncGeneratorType or (kind is GeneratorType and _is_coroutine(value))


def _is_plain_generator(value: Any) -> bool:
    return type(value) is GeneratorType and not _is_coroutine(value)


def _is_coroutine(generator: GeneratorType[Any, Any, Any]) -> bool:
    return bool(generator.gi_code.co_flags & _CO_ITERABLE_COROUTINE)


def _wants_loop(error: BaseException) -> bool:
    """Whether a call failed only because no event loop runs in its thread."""
    if type(error) is not RuntimeError or "asyncio" not in sys.modules:
        return False
    return str(error).startswith(("no running event loop", "There is no current event loop"))


def _is_future(value: Any) -> bool:
    from asyncio import isfuture

    return isfuture(value)


async def _settle(value: Any) -> Any:
    """Await it, and what it gives, and read a generator to its end."""
    try:
        if type(value) is not AsyncGeneratorType:
            value = await value
            while type(value) is CoroutineType or _is_future(value):
                value = await value
        if type(value) is AsyncGeneratorType:
            return Stream([chunk async for chunk in value], is_async=True)
        return Stream(list(value), is_async=False) if type(value) is GeneratorType else value
    except BaseException as exc:
        if passes_through(exc):
            raise
        return Raised(exc)
