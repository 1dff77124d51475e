"""Calling user code: once for sync and async alike, never raising what it raised, and what to say of that.

A program is a generator of calls: it yields `(function, args, kwargs)` and is sent the result, or `Raised`. `drive`
makes the calls in this thread; `drive_async` awaits async functions and calls the others in a thread. A program whose parts
may run at once yields `Begin`, with branches that are such generators themselves, and is sent what those returned that are
done by then; `END` gives it the rest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from traceback import TracebackException
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, TypeAlias

from prefect_batchflow.errors.classes import INFO_KEY, ErrorClass, class_of_exception
from prefect_batchflow.errors.waits import wait_asked_by
from prefect_batchflow.exceptions import (
    BatchflowException,
    LineOutOfMemoryError,
    ScriptExecutionError,
    SystemErrorException,
    ToolExecutionError,
    UserErrorException,
    error_dict,
    is_promptflows,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Sequence
    from contextvars import Context
    from types import TracebackType

    from prefect_batchflow.execution.program.branches import Tasks, Threads

    Call = tuple["UserFunction", tuple[Any, ...], dict[str, Any]]
    Step: TypeAlias = Call | "Begin"
    Steps = Generator[Step, Any, Any]

TEXT_LIMIT = 20_000
"""Characters of an exception's text, and of its traceback, that an error keeps."""

_RAISED_BY_USERS = (BatchflowException, UserErrorException, SystemErrorException)
"""promptflow's names for these are what flows import and derive from."""
_OWN_FOLDER = f"{Path(__file__).parents[2]}{os.sep}"


class UserFunction:
    """A function of user code, ready to be called."""

    __slots__ = ("function", "is_async", "name")

    def __init__(self, function: Callable[..., Any], name: str, *, is_async: bool = False) -> None:
        self.function = function
        self.name = name
        """As in `Execution failure in 'name'`."""
        self.is_async = is_async
        """Belongs on the event loop, because its result does, or because it never blocks."""


class Raised:
    """What a call gives instead of a result when user code raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Canceled(BaseException):
    """Thrown into a branch that was ended while its call ran."""


class Branch:
    """A part of a program that may run beside others of it."""

    __slots__ = ("context", "is_async", "name", "steps")

    def __init__(self, name: str, steps: Steps, context: Context, *, is_async: bool) -> None:
        self.name = name
        self.steps = steps
        self.context = context
        """What it runs in, its own."""
        self.is_async = is_async
        """Whether it runs on the event loop, and can be cancelled."""


class Begin:
    """Begin branches, and wait until at least one of all that were begun is done: its name and what it returned."""

    __slots__ = ("branches",)

    def __init__(self, branches: Sequence[Branch]) -> None:
        self.branches = branches


END = Begin(())
"""End the branches that run: names and returned values of all that had begun."""


class Stream:
    """What a generator gave, read to its end where it was made, so that several readers each get the whole."""

    __slots__ = ("_chunks", "_is_async", "text")

    def __init__(self, chunks: list[Any], *, is_async: bool) -> None:
        self._chunks = chunks
        self._is_async = is_async
        self.text = "".join(map(str, chunks))
        """All of it as one text, as an output has it."""

    def replay(self) -> Iterator[Any] | AsyncIterator[Any]:
        """A generator again, of the kind it was."""
        return _replay_async(self._chunks) if self._is_async else (chunk for chunk in self._chunks)


async def _replay_async(chunks: list[Any]) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk


def drive(steps: Steps) -> Any:
    """Make the calls of a program in this thread, and give what it returns; branches run on threads."""
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

                threads = Threads()
            result = threads.end() if step is END else threads.begin(step.branches)
    except StopIteration as stop:
        return stop.value
    finally:
        if threads is not None:
            threads.close()


async def drive_async(steps: Steps) -> Any:
    """Make the calls of a program, async functions on this event loop and others in a thread; give what it returns."""
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

                tasks = Tasks()
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
    """Whether it must be awaited or read on an event loop."""
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
    """Run a coroutine to its end from sync code, also where this thread's event loop is busy."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, asyncio.run, coroutine).result()


def passes_through(exc: BaseException) -> bool:
    """Whether an exception is not the line's: an interrupt, or the cancellation of the task that runs it.

    A cancellation of something else, which user code awaited, is an error like any other.
    """
    # Without asyncio in the process nothing can have been cancelled by it.
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or not isinstance(exc, asyncio.CancelledError):
        return isinstance(exc, KeyboardInterrupt)
    try:
        task = asyncio.current_task()
    except RuntimeError:  # in a thread without a loop
        return False
    return bool(task is not None and task.cancelling())


def join_text(chunks: Iterator[Any]) -> str:
    """Read what a stream of a library's own gives, as one text."""
    return "".join(map(str, chunks))


async def join_text_async(chunks: AsyncIterator[Any]) -> str:
    """Read what an async stream of a library's own gives, as one text."""
    return "".join([str(chunk) async for chunk in chunks])


def describe(exc: BaseException) -> dict[str, Any]:
    """Give type, message and traceback of what user code raised; the traceback begins in user code.

    With its `error_class` if it is of one, and with `retry_after_sec` if it says how long to wait before another try, as a
    model service does.

    Source: promptflow `_core/_errors.py`, `tool_traceback`.
    """
    user_frames = _user_frames(exc.__traceback__)
    try:
        trace = "".join(TracebackException(type(exc), exc, user_frames).format())
    except Exception:  # noqa: BLE001 - formatting asks a user's class for its text, and may run out of memory
        trace = ""
    described = {"type": type(exc).__name__, "message": exception_text(exc), "traceback": _shortened(trace)}
    if (kind := class_of_exception(exc)) is not ErrorClass.USER_CODE:
        described[INFO_KEY] = str(kind)
    asked = wait_asked_by(exc)
    return described if asked is None else {**described, "retry_after_sec": asked}


def exception_text(exc: BaseException) -> str:
    """What an exception says; with a word on the two that say little."""
    try:
        text = _shortened(str(exc))
    except Exception as broken:  # noqa: BLE001 - a user's class
        return f"no text, its __str__ raised {type(broken).__name__}"
    if isinstance(exc, SystemExit):
        return f"{text or '0'}; the code called sys.exit(), which ends a line and not the run"
    if isinstance(exc, MemoryError):
        return text or "the line asked for more memory than its process may have"
    return text


def tool_error(node: str, exc: BaseException) -> dict[str, Any]:
    """The error dictionary of a node whose code raised.

    promptflow's exceptions, and this package's, keep their codes; those that the user's code raises its text, too.
    Source: promptflow `_core/_errors.py`, `ToolExecutionError`; `_core/flow_execution_context.py`, `_invoke_tool_inner`.
    """
    details = describe(exc)
    frame = exc.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is not None:
        code = frame.tb_frame.f_code
        details |= {"filename": code.co_filename, "lineno": frame.tb_lineno, "name": code.co_name}
    additional = {"ToolExecutionErrorDetails": details}
    if isinstance(exc, BatchflowException) or is_promptflows(exc):
        # Never built again: a user's own class may take other arguments.
        said = error_dict(exc)
        if type(exc).__module__ == BatchflowException.__module__ and type(exc) not in _RAISED_BY_USERS:
            said["message"] = f"Execution failure in '{node}': ({type(exc).__name__}) {said['message']}"
        more = [{"type": name, "info": info} for name, info in additional.items()]
        return {**said, "additionalInfo": [*said.get("additionalInfo", []), *more]}
    return _failure(ToolExecutionError, node, exc, additional, "Tool")


def script_error(entry: str, exc: BaseException) -> dict[str, Any]:
    """The error dictionary of a callable flow whose code raised.

    Source: promptflow `executor/_errors.py`, `ScriptExecutionError`.
    """
    return _failure(ScriptExecutionError, entry, exc, {"FlexFlowExecutionErrorDetails": describe(exc)}, "Unknown")


def _failure(
    kind: type[ToolExecutionError | ScriptExecutionError],
    name: str,
    exc: BaseException,
    details: dict[str, Any],
    target: str,
) -> dict[str, Any]:
    error_class = LineOutOfMemoryError if isinstance(exc, MemoryError) else kind
    message = f"Execution failure in '{name}': ({type(exc).__name__}) {exception_text(exc)}"
    return error_dict(error_class(message, target=target, additional_info=details))


def _user_frames(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of this package, and of `import`, that lead to user code."""
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith((_OWN_FOLDER, "<frozen importlib")):
        frames = frames.tb_next
    return frames


def _shortened(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    half = TEXT_LIMIT // 2
    return f"{text[:half]}\n… {len(text) - TEXT_LIMIT:,} characters left out …\n{text[-half:]}"
