"""promptflow's tracing, as far as a flow's code asks for it: nothing is traced, and nothing is in the way."""

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
    """Give back the function, plain, async or a generator, as it is; `@trace` and `@trace()` both work.

    Source: promptflow `tracing/_trace.py`, `trace`.
    """
    return func if func is not None else lambda function: function


def start_trace(**described: Any) -> None:
    """Take what promptflow's viewer is told, and do nothing: results are in the run's records."""


class ThreadPoolExecutorWithContext(ThreadPoolExecutor):
    """A pool whose threads count metrics and tokens to the line that submits to them.

    Source: promptflow `tracing/_context_utils.py`, `ThreadPoolExecutorWithContext`.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it in a thread, in a copy of this context."""
        return super().submit(copy_context().run, fn, *args, **kwargs)
