"""The context in which user code runs, per line or aggregation: metrics, tokens, connections.

It is kept in context variables. `travelling` names those that threads inherit from the line that starts them.
"""

from __future__ import annotations

import functools
import logging
import os
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from threading import Lock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect_batchflow.exceptions import GetConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prefect_batchflow.connections.given import Connections
    from prefect_batchflow.results.records import ModelCall

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
Given = ParamSpec("Given")

_travelling: list[ContextVar[Any]] = []
_counting = Lock()  # a line's code can call from several threads


KEEP_CALLS = "BATCHFLOW_KEEP_MODEL_CALLS"
"""A variable of the flow's environment. With any text, records keep what their lines sent to models."""


def keeps_model_calls() -> bool:
    """Whether records keep what lines send to models."""
    return bool(os.environ.get(KEEP_CALLS))


class RunContext:
    """The metrics and tokens of one line or aggregation so far."""

    __slots__ = ("_line", "calls", "line_number", "metrics", "tokens", "unfinished")

    def __init__(self, line_number: int | None = None) -> None:
        self.line_number = line_number
        """The number of the line; `None` in an aggregation."""
        self.metrics: dict[str, Any] = {}
        """Metrics of the node that runs now; the walk takes them when the node ends."""
        self.tokens = {"total_tokens": 0, "prompt_tokens": 0, "completion_tokens": 0}
        """Sums over the model calls of the whole line."""
        self._line: RunContext | None = None
        """If it is a node's, the one of the line."""
        self.unfinished: set[str] = set()
        """The ids of its calls whose answer was not ready and has no usage yet."""
        self.calls: list[ModelCall] | None = [] if keeps_model_calls() else None
        """What it sent to models, if that is kept."""

    def of_node(self) -> RunContext:
        """A context for a node that runs beside other nodes: its own metrics, the line's tokens."""
        context = RunContext(self.line_number)
        context.tokens, context.unfinished, context.calls = self.tokens, self.unfinished, self.calls
        context._line = self._line or self
        return context

    def add_tokens(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one model call."""
        if (self._line or self) not in _open:
            say_not_counted()
        with _counting:
            self.tokens["prompt_tokens"] += prompt_tokens
            self.tokens["completion_tokens"] += completion_tokens
            self.tokens["total_tokens"] += prompt_tokens + completion_tokens


def travelling(variable: ContextVar[Value]) -> ContextVar[Value]:
    """Let threads inherit a variable of ours; all others are as empty in a new thread as Python makes them."""
    _travelling.append(variable)
    return variable


def carried() -> list[tuple[ContextVar[Any], Any]]:
    """What a thread inherits from here."""
    return [(variable, variable.get(None)) for variable in _travelling]


def in_this_line(function: Callable[Given, Value]) -> Callable[Given, Value]:
    """A function that belongs to the line that runs here, whichever thread calls it."""
    here = carried()

    def call(*args: Given.args, **kwargs: Given.kwargs) -> Value:
        tokens = [(variable, variable.set(value)) for variable, value in here]
        try:
            return function(*args, **kwargs)
        finally:
            for variable, token in tokens:
                variable.reset(token)

    return call


_current: ContextVar[RunContext | None] = travelling(ContextVar("current_run", default=None))
_open: set[RunContext] = set()


@contextmanager
def running(line_number: int | None = None, begun: RunContext | None = None) -> Iterator[RunContext]:
    """Make this context belong to a line or an aggregation, so that its code logs there; to one that has begun, if given."""
    context = RunContext(line_number) if begun is None else begun
    token = _current.set(context)
    _open.add(context)
    try:
        yield context
    finally:
        _open.discard(context)
        _current.reset(token)


def inside(context: RunContext) -> Context:
    """A copy of the current context variables in which code logs to `context`."""
    copied = copy_context()
    copied.run(_current.set, context)
    return copied


def current_context() -> RunContext | None:
    """The context of the line or aggregation that runs here; `None` outside a run.

    Threads that user code starts inherit it in a worker. A thread without context belongs to the line that runs in this
    process, if only one does.
    """
    context = _current.get()
    if context is None and len(_open) == 1:
        return next(iter(_open), None)
    return context


_tell_wait: Callable[[int, float, int | None], object] | None = None


def when_lines_wait(tell: Callable[[int, float, int | None], object]) -> None:
    """Call `tell(line_number, seconds, status)` from now on when a line begins to wait for a service, from any thread."""
    global _tell_wait
    _tell_wait = tell


def note_wait(seconds: float, status: int | None) -> None:
    """Note that the line that runs here waits before it calls a service again, which has refused it with this status."""
    context = current_context()
    if _tell_wait is not None and context is not None and context.line_number is not None:
        _tell_wait(context.line_number, seconds, status)


def note_call_of_no_line() -> None:
    """Say that a model call is not counted, if lines run and it belongs to none of them."""
    if _open:
        say_not_counted()


@functools.cache
def say_not_counted() -> None:
    """Warn, once per process."""
    logger.warning(
        "A thread or task has called a model outside any line, or after its line had ended. The tokens of such calls are not "
        "counted. Start the thread in the line, and wait for it before the line returns. This warning appears once per process."
    )


_connections: Connections | None = None


def give_connections(connections: Connections) -> None:
    """Let code in this process use the run's connections by name; a worker has one run."""
    global _connections
    _connections = connections


def given_connections() -> Connections | None:
    """The run's connections; `None` outside a run."""
    return _connections


def connection_named(name: str, needed_by: str = "", kinds: Sequence[str] = ()) -> Any:
    """The run's connection with this name; the arguments are those of `Connections.get`.

    Raises:
        GetConnectionError: It was not given, or cannot be created; or this is outside a run.
    """
    if _connections is None:
        raise GetConnectionError(
            f"The connection {name!r} was asked for outside a run, and only runs have connections. Give a key instead.",
            target="Tool",
        )
    return _connections.get(name, needed_by, kinds)


def log_metric(key: str, value: Any, variant_id: str | None = None) -> None:
    """Log a metric of the run; the last value of a key wins. Meant for aggregation nodes.

    Args:
        key: The metric's name.
        value: A number, usually.
        variant_id: Accepted, but not used: a run has one variant.
    Source: promptflow `_core/metric_logger.py`, `log_metric`.
    """
    context = current_context()
    if context is None:
        logger.warning("The metric %r was logged outside a run and is lost.", key)
        return
    context.metrics[key] = value
