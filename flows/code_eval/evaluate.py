"""A callable flow in HumanEval's shape: one line is one program, run against its own unit tests.

The program runs in this very process. It may loop for ever, end the process or eat memory: keeping the time, replacing
a dead worker and limiting memory are the engine's work, which gives each line a worker process to itself while it runs.
It is no sandbox: the program may do whatever the user who started the run may do.
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
"""The program's `__name__`; not `__main__`, so that a guarded script part does not run."""


def evaluate(task_id: str, prompt: str, canonical_solution: str, test: str, entry_point: str) -> dict[str, object]:
    """Run one program against its tests.

    Args:
        task_id: Names the problem; also the program's file name in tracebacks.
        prompt: Imports, the function's head and its docstring.
        canonical_solution: The function's body, which goes on where `prompt` ends.
        test: Defines `check(candidate)`, which asserts.
        entry_point: The name of the function that `check` gets.

    Returns:
        `{"task_id", "passed", "detail"}`; `detail` is empty, or the assertion that did not hold.

    Raises:
        BaseException: Whatever the program or its tests raise, but `AssertionError` from `check`; the line fails.
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
    """A fresh module for one program, importable while it runs (dataclasses and pickle ask for that); no stdin."""
    module = ModuleType(MODULE)
    stdin, sys.stdin = sys.stdin, io.StringIO()
    sys.modules[MODULE] = module
    try:
        yield module
    finally:
        sys.stdin = stdin
        sys.modules.pop(MODULE, None)


def failed_assertion(error: AssertionError, task_id: str, source: str) -> str:
    """The assertion's line number and text within the program, and its message where it has one."""
    frames = traceback.extract_tb(error.__traceback__)
    line = [frame.lineno or 1 for frame in frames if frame.filename == task_id][-1]
    return f"line {line}: {source.splitlines()[line - 1].strip()}" + (f" ({error})" if str(error) else "")
