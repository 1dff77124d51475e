"""A function as a flow, in HumanEval's format: each line runs one program against its unit tests.

The program runs in this process. It can loop forever, end the process or use too much memory: the engine gives each line a
worker process to itself while it runs, keeps the time and memory limits, and replaces dead workers.
There is no sandbox: the program can do everything that the user who started the run can do.
"""

from __future__ import annotations

import io
import sys
import traceback
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULE = "program_under_test"
"""The program's `__name__`; not `__main__`, so that its script part does not run."""


def evaluate(task_id: str, prompt: str, canonical_solution: str, test: str, entry_point: str) -> dict[str, object]:
    """Run one program against its tests.

    Args:
        task_id: Names the problem; also the program's file name in tracebacks.
        prompt: Imports, the function's head and its docstring.
        canonical_solution: The function's body, which continues where `prompt` ends.
        test: Defines `check(candidate)`, which asserts.
        entry_point: The name of the function that `check` gets.

    Returns:
        `{"task_id", "passed", "detail"}`; `detail` is empty, or the assertion that failed.

    Raises:
        BaseException: Anything that the program or its tests raise, except `AssertionError` from `check`; the line fails.
    """
    source = f"{prompt}{canonical_solution}\n{test}\n"
    with program_module() as module:
        exec(compile(source, task_id, "exec", dont_inherit=True), module.__dict__)
        try:
            module.__dict__["check"](module.__dict__[entry_point])
        except AssertionError as error:
            return {"task_id": task_id, "passed": False, "detail": failed_assertion(error, task_id, source)}
    return {"task_id": task_id, "passed": True, "detail": ""}


@contextmanager
def program_module() -> Iterator[ModuleType]:
    """A fresh module for one program, importable while it runs (dataclasses and pickle need that); no stdin."""
    module = ModuleType(MODULE)
    stdin, sys.stdin = sys.stdin, io.StringIO()
    sys.modules[MODULE] = module
    try:
        yield module
    finally:
        sys.stdin = stdin
        sys.modules.pop(MODULE, None)


def failed_assertion(error: AssertionError, task_id: str, source: str) -> str:
    """The assertion's line number and text in the program, and its message if it has one."""
    frames = traceback.extract_tb(error.__traceback__)
    line = [frame.lineno or 1 for frame in frames if frame.filename == task_id][-1]
    return f"line {line}: {source.splitlines()[line - 1].strip()}" + (f" ({error})" if str(error) else "")
