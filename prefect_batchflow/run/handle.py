"""What of a run cannot be a Prefect parameter: the caller's objects on the way in, the result on the way out, its cancel.

A flow run that a worker started has an empty one. It travels by context variable, never through Prefect.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prefect_batchflow.exceptions import BatchflowException
    from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy
    from prefect_batchflow.results.models import BatchResult
    from prefect_batchflow.results.tally import Tally
    from prefect_batchflow.storage.custom import AbstractBatchRunStorage, AbstractRunStorage


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """Where a run stands."""

    run_id: str
    flow_name: str
    total_lines: int
    completed_lines: int
    failed_lines: int
    reused_lines: int
    """Of the completed ones, those that an earlier start of the run had done."""
    running_lines: int
    elapsed_sec: float
    """Since the first line could start."""


@dataclass
class LiveRun:
    """One run as its caller holds it."""

    flow: Any = None
    """A callable or class, for a flow that is an object in memory."""
    init_kwargs: Mapping[str, Any] | None = None
    """Any picklable values."""
    environment_variables: Mapping[str, str] | None = None
    """Set where the flow's code runs; `None` leaves it to the request."""
    connections: Mapping[str, Any] | None = None
    """Name to promptflow's dictionary, or a connection; handed to the workers, or to the executor of another language."""
    run_storage: AbstractRunStorage | None = None
    """Called with every line and node."""
    resume_storage: AbstractBatchRunStorage | None = None
    """Asked for completed lines."""
    executor_proxy: AbstractExecutorProxy | None = None
    """Runs the lines instead of what the flow's language says."""
    listener: Callable[[ProgressReport], None] | None = None
    """Called a few times a second, on the run's event loop."""

    result: BatchResult | None = None
    tally: Tally | None = None
    notes: list[str] = field(default_factory=list)
    """What is no fault, but may not be what was meant."""
    failure: BatchflowException | None = None
    """Why there is no result."""
    server_gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the Prefect server did not answer at the end of the run."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._drains = False
        self._on_cancel: Callable[[bool], object] | None = None

    @property
    def cancel_reason(self) -> str | None:
        """Who cancelled the run; `None` while nobody did."""
        return self._reason

    @property
    def drains(self) -> bool:
        """Whether it was cancelled, and the lines that run may come to their ends."""
        return self._drains

    def cancel(self, reason: str = "Canceled by the caller.", *, drain: bool = False) -> None:
        """Ask the run to end, from any thread; the first reason stays.

        Args:
            reason: Who asks.
            drain: Give the lines that run some seconds to end; a second call without it takes them away.
        """
        with self._lock:
            if self._reason is not None and (drain or not self._drains):
                return
            self._reason = self._reason or reason
            self._drains = drain
            on_cancel = self._on_cancel
        if on_cancel is not None:
            on_cancel(drain)

    def when_cancelled(self, call: Callable[[bool], object]) -> None:
        """Have `call` made, from any thread, when the run is cancelled, or at once if it is; given whether it drains."""
        with self._lock:
            self._on_cancel = call
            cancelled = self._reason is not None
        if cancelled:
            call(self._drains)


_live: contextvars.ContextVar[LiveRun | None] = contextvars.ContextVar("live_run", default=None)


@contextmanager
def handed_over(live: LiveRun) -> Iterator[None]:
    """Give `live` to the batch run that is started inside, in this context."""
    token = _live.set(live)
    try:
        yield
    finally:
        _live.reset(token)


def current_live_run() -> LiveRun:
    """What the caller handed over, or an empty one."""
    return _live.get() or LiveRun()
