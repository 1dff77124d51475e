"""promptflow's tracing functions, so that a flow's code runs; nothing is traced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

Function = TypeVar("Function", bound="Callable[..., Any]")


@overload
def trace(func: Function) -> Function: ...
@overload
def trace(func: None = None) -> Callable[[Function], Function]: ...
def trace(func: Any = None) -> Any:
    """Return the function (plain, async or a generator) unchanged; `@trace` and `@trace()` both work.

    Source: promptflow `tracing/_trace.py`, `trace`.
    """
    return func if func is not None else lambda function: function


def start_trace(**described: Any) -> None:
    """Do nothing: promptflow's viewer is not supported, and results are in the run's records."""


class ThreadPoolExecutorWithContext(ThreadPoolExecutor):
    """A pool whose threads count metrics and tokens for the line that submits the work.

    Source: promptflow `tracing/_context_utils.py`, `ThreadPoolExecutorWithContext`.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it in a thread, in a copy of this context."""
        return super().submit(copy_context().run, fn, *args, **kwargs)
