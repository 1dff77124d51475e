"""Making the calls of a program, from sync or async code; an exception of user code becomes a result.

`drive` makes the calls in this thread. `drive_async` awaits async functions and calls others in a thread.
"""

from __future__ import annotations

from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

from prefect_batchflow.execution.program.steps import END, Raised, Stream
from prefect_batchflow.execution.program.user_errors import passes_through

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from prefect_batchflow.execution.program.branches import Tasks, Threads
    from prefect_batchflow.execution.program.steps import Steps, UserFunction


def drive(steps: Steps) -> Any:
    """Make the calls of a program in this thread and return its result; branches run on threads."""
    threads: Threads | None = None
    result = None
    try:
        while True:
            step = steps.send(result)
            if isinstance(step, tuple):
                result = _attempt(*step)
                continue
            if threads is None:
                from prefect_batchflow.execution.program.branches import Threads

                threads = Threads(drive)
            result = threads.end() if step is END else threads.begin(step.branches)
    except StopIteration as stop:
        return stop.value
    finally:
        if threads is not None:
            threads.close()


async def drive_async(steps: Steps) -> Any:
    """Make the calls of a program, async functions on this event loop, others in a thread; return its result."""
    tasks: Tasks | None = None
    result = None
    try:
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
        return Stream(list(value), is_async=False) if type(value) is GeneratorType else value
    except BaseException as exc:
        if passes_through(exc):
            raise
        return Raised(exc)


def _attempt(function: UserFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = _call(function, args, kwargs)
    return _run_here(_settle(value)) if _is_unsettled(value) else value


async def _attempt_async(function: UserFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if function.is_async:
        value = _call(function, args, kwargs)
    else:
        from asyncio import to_thread

        value = await to_thread(_call, function, args, kwargs)
    return await _settle(value) if _is_unsettled(value) else value


def _is_unsettled(value: Any) -> bool:
    """Whether it has to be awaited or read on an event loop."""
    kind = type(value)
    return hasattr(kind, "__await__") or kind is AsyncGeneratorType


async def _settle(value: Any) -> Any:
    try:
        if hasattr(type(value), "__await__"):
            value = await value
        if type(value) is AsyncGeneratorType:
            return Stream([chunk async for chunk in value], is_async=True)
        return Stream(list(value), is_async=False) if type(value) is GeneratorType else value
    except BaseException as exc:
        if passes_through(exc):
            raise
        return Raised(exc)


def _run_here(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end from sync code, even if this thread's event loop is running."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, asyncio.run, coroutine).result()
