"""The context in which user code runs, per line or aggregation: metrics, tokens, connections."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import GetConnectionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_batchflow.connections.given import Connections

logger = logging.getLogger(__name__)


class RunContext:
    """The metrics and tokens of one line or aggregation so far."""

    __slots__ = ("line_number", "metrics", "tokens")

    def __init__(self, line_number: int | None = None) -> None:
        self.line_number = line_number
        """The number of the line; `None` in an aggregation."""
        self.metrics: dict[str, Any] = {}
        """Metrics of the node that runs now; the walk takes them when the node ends."""
        self.tokens = {"total_tokens": 0, "prompt_tokens": 0, "completion_tokens": 0}
        """Sums over the model calls of the whole line."""

    def of_node(self) -> RunContext:
        """A context for a node that runs beside other nodes: its own metrics, the line's tokens."""
        context = RunContext(self.line_number)
        context.tokens = self.tokens
        return context

    def add_tokens(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one model call; several threads need a lock for it."""
        self.tokens["prompt_tokens"] += prompt_tokens
        self.tokens["completion_tokens"] += completion_tokens
        self.tokens["total_tokens"] += prompt_tokens + completion_tokens


_current: ContextVar[RunContext | None] = ContextVar("current_run", default=None)
_open: set[RunContext] = set()


@contextmanager
def running(line_number: int | None = None) -> Iterator[RunContext]:
    """Make this context belong to a line or an aggregation, so that its code logs there."""
    context = RunContext(line_number)
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

    Threads that user code started have no context. If only one line runs in this process, they belong to that line.
    """
    context = _current.get()
    if context is None and len(_open) == 1:
        return next(iter(_open), None)
    return context


_connections: Connections | None = None


def give_connections(connections: Connections) -> None:
    """Let code in this process use the run's connections by name; a worker has one run."""
    global _connections
    _connections = connections


def given_connections() -> Connections | None:
    """The run's connections; `None` outside a run."""
    return _connections


def connection_named(name: str) -> Any:
    """The run's connection with this name.

    Raises:
        GetConnectionError: It was not given, or cannot be created; or this is outside a run.
    """
    if _connections is None:
        raise GetConnectionError(
            f"The connection {name!r} was asked for outside a run, and only runs have connections. Give a key instead.",
            target="Tool",
        )
    return _connections.get(name)


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
