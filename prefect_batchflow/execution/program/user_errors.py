"""Turning exceptions of user code into error dictionaries."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from traceback import TracebackException
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.classes import IN_GROUP_KEY, INFO_KEY, ErrorClass, class_of_exception, exceptions_in
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
    from types import TracebackType

TEXT_LIMIT = 20_000
"""Characters that an error keeps of an exception's text, and of its traceback."""
_TOLD_OF_GROUP = 3
"""Exceptions of a group that its text shows."""
_RAISED_BY_USERS = (BatchflowException, UserErrorException, SystemErrorException)
"""The classes that flows import under promptflow's names, and derive from."""
_OWN_FOLDER = f"{Path(__file__).parents[2]}{os.sep}"


def passes_through(exc: BaseException) -> bool:
    """Whether an exception must not become a line's error: an interrupt, or a cancellation of the task that runs the line.

    Any other cancellation comes from something that user code awaited, and is an error like any other.
    """
    # If asyncio was never imported, it cannot have cancelled anything.
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or not isinstance(exc, asyncio.CancelledError):
        return isinstance(exc, KeyboardInterrupt)
    try:
        task = asyncio.current_task()
    except RuntimeError:  # in a thread without a loop
        return False
    return bool(task is not None and task.cancelling())


def describe(exc: BaseException) -> dict[str, Any]:
    """Give type, message and traceback of an exception of user code; the traceback begins in user code.

    It adds the `error_class` if there is one, and `retry_after_sec` if the exception says how long to wait before another
    try, as those of model services do.

    Source: promptflow `_core/_errors.py`, `tool_traceback`.
    """
    user_frames = _user_frames(exc.__traceback__)
    try:
        trace = "".join(TracebackException(type(exc), exc, user_frames).format())
    except Exception:  # noqa: BLE001 - formatting calls a user's class, and can run out of memory
        trace = ""
    described: dict[str, Any] = {"type": type(exc).__name__, "message": _own_text(exc), "traceback": _shortened(trace)}
    if (kind := class_of_exception(exc)) is not ErrorClass.USER_CODE:
        described[INFO_KEY] = str(kind)
    if isinstance(exc, BaseExceptionGroup):
        described[IN_GROUP_KEY] = sorted({type(one).__name__ for one in exceptions_in(exc)})
    asked = wait_asked_by(exc)
    return described if asked is None else {**described, "retry_after_sec": asked}


def exception_text(exc: BaseException) -> str:
    """The text of an exception, with an explanation for `SystemExit` and `MemoryError`; of a group, what is in it, too."""
    if not isinstance(exc, BaseExceptionGroup):
        return _own_text(exc)
    # Each text once: many tasks of a group often fail alike.
    told = list(dict.fromkeys(f"({type(one).__name__}) {_own_text(one)}" for one in exceptions_in(exc)))
    more = f"; and {len(told) - _TOLD_OF_GROUP} more" if len(told) > _TOLD_OF_GROUP else ""
    return _shortened(f"{_own_text(exc)}: {'; '.join(told[:_TOLD_OF_GROUP])}{more}")


def _own_text(exc: BaseException) -> str:
    try:
        text = _shortened(str(exc))
    except Exception as broken:  # noqa: BLE001 - a user's class
        return f"no text, because its __str__ raised {type(broken).__name__}"
    if isinstance(exc, SystemExit):
        return f"{text or '0'}; the code called sys.exit(), which ends only this line"
    if isinstance(exc, MemoryError):
        return text or "the line needed more memory than its process may use"
    return text


def tool_error(node: str, exc: BaseException) -> dict[str, Any]:
    """The error dictionary of a node whose code raised.

    Exceptions of promptflow and of this package keep their codes; those that user code itself raises keep their text, too.
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
        # Its dictionary, not a new exception: a user's class can take other arguments.
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
    error_class = LineOutOfMemoryError if any(isinstance(one, MemoryError) for one in exceptions_in(exc)) else kind
    message = f"Execution failure in '{name}': ({type(exc).__name__}) {exception_text(exc)}"
    return error_dict(error_class(message, target=target, additional_info=details))


def _user_frames(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of this package and of `import` that precede user code."""
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith((_OWN_FOLDER, "<frozen importlib")):
        frames = frames.tb_next
    return frames


def _shortened(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    half = TEXT_LIMIT // 2
    return f"{text[:half]}\n… {len(text) - TEXT_LIMIT:,} characters left out …\n{text[-half:]}"
