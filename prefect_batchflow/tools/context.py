"""What user code reaches while a line or an aggregation runs: its metrics, and room for the tokens it used."""

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
    """What one line, or one aggregation, has logged so far."""

    __slots__ = ("line_number", "metrics", "tokens")

    def __init__(self, line_number: int | None = None) -> None:
        self.line_number = line_number
        """The line that runs; `None` in an aggregation."""
        self.metrics: dict[str, Any] = {}
        """Of the node that runs now; the walk takes them from here when it ends."""
        self.tokens = {"total_tokens": 0, "prompt_tokens": 0, "completion_tokens": 0}
        """Sums over the model calls of the whole line."""

    def of_node(self) -> RunContext:
        """One for a node that runs beside others: metrics of its own, tokens in the sums of the line."""
        context = RunContext(self.line_number)
        context.tokens = self.tokens
        return context

    def add_tokens(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one model call; whoever calls from several threads takes a lock."""
        self.tokens["prompt_tokens"] += prompt_tokens
        self.tokens["completion_tokens"] += completion_tokens
        self.tokens["total_tokens"] += prompt_tokens + completion_tokens


_current: ContextVar[RunContext | None] = ContextVar("current_run", default=None)
_open: set[RunContext] = set()


@contextmanager
def running(line_number: int | None = None) -> Iterator[RunContext]:
    """Make what is logged from here on, in this context, belong to one line or aggregation."""
    context = RunContext(line_number)
    token = _current.set(context)
    _open.add(context)
    try:
        yield context
    finally:
        _open.discard(context)
        _current.reset(token)


def inside(context: RunContext) -> Context:
    """A copy of the context that runs here, in which what is logged belongs to `context`."""
    copied = copy_context()
    copied.run(_current.set, context)
    return copied


def current_context() -> RunContext | None:
    """What runs now; `None` outside of a run.

    A thread that user code started has no context of its own: if only one line runs in this process, it is that one's.
    """
    context = _current.get()
    if context is None and len(_open) == 1:
        return next(iter(_open), None)
    return context


_connections: Connections | None = None


def give_connections(connections: Connections) -> None:
    """Let code of this process have the run's connections by name; a worker has one run."""
    global _connections
    _connections = connections


def given_connections() -> Connections | None:
    """The run's connections; `None` outside of a run."""
    return _connections


def connection_named(name: str) -> Any:
    """The run's connection of a name.

    Raises:
        GetConnectionError: It was not given, or cannot be made; or nothing runs here.
    """
    if _connections is None:
        raise GetConnectionError(
            f"The connection {name!r} was asked for outside of a run, which is given connections. Give a key instead.",
            target="Tool",
        )
    return _connections.get(name)


def log_metric(key: str, value: Any, variant_id: str | None = None) -> None:
    """Log a metric of the run; the last value of a key wins. Meant for aggregation nodes.

    Args:
        key: The metric's name.
        value: A number, usually.
        variant_id: Taken and not used: a run has one variant.
    Source: promptflow `_core/metric_logger.py`, `log_metric`.
    """
    context = current_context()
    if context is None:
        logger.warning("The metric %r was logged outside of a run and is lost.", key)
        return
    context.metrics[key] = value
