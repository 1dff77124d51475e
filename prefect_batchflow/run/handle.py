"""A run in the hands of its caller: takes objects that cannot be Prefect parameters, gives the result, cancels the run.

The handle travels in a context variable, never through Prefect. A flow run that a worker started has an empty one.
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
    from prefect_batchflow.prefect_runtime.server_calls import Untold
    from prefect_batchflow.results.models import BatchResult
    from prefect_batchflow.results.tally import Tally
    from prefect_batchflow.storage.custom import AbstractBatchRunStorage, AbstractRunStorage


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """How far a run is."""

    run_id: str
    flow_name: str
    total_lines: int
    completed_lines: int
    failed_lines: int
    reused_lines: int
    """Lines that an earlier start of the run had completed; part of `completed_lines`."""
    running_lines: int
    elapsed_sec: float
    """Since the first line could start."""
    waiting_lines: int = 0
    """Lines that wait for a service, which has refused a call or asked for a wait, as far as is known."""
    next_wait_sec: float = 0.0
    """Seconds until the first of them continues."""
    wait_status: int | None = None
    """With which HTTP status the service has refused them, such as 429."""


@dataclass
class LiveRun:
    """One run as its caller holds it."""

    flow: Any = None
    """A callable or class, if the flow is an object in memory."""
    init_kwargs: Mapping[str, Any] | None = None
    """Any picklable values."""
    environment_variables: Mapping[str, str] | None = None
    """Set where the flow's code runs; `None` takes those of the request."""
    connections: Mapping[str, Any] | None = None
    """Name to a connection, or to promptflow's dictionary of one; for the workers, or the executor of another language."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that Prefect cannot hold, such as a path that is not UTF-8. Prefect gets escapes, to show, instead."""
    run_storage: AbstractRunStorage | None = None
    """Gets every line and node."""
    resume_storage: AbstractBatchRunStorage | None = None
    """Gives completed lines of an earlier run."""
    resume_output_dir: str | None = None
    """The output folder of that run, for images that its storage names by path."""
    executor_proxy: AbstractExecutorProxy | None = None
    """Runs the lines instead of the executor for the flow's language."""
    listener: Callable[[ProgressReport], None] | None = None
    """Called a few times a second, on the run's event loop."""
    on_note: Callable[[str], None] | None = None
    """Called with each note, as soon as there is one; those about the data come before the first line."""
    say: Callable[[str], None] = field(default=lambda _text: None)
    """Called with a sentence when the run waits for something before its first line."""

    result: BatchResult | None = None
    tally: Tally | None = None
    workers: str = ""
    """How many worker processes the run used and why, for people; empty if their number was given."""
    notes: list[str] = field(default_factory=list)
    """What is not an error, but perhaps not what was meant."""
    failure: BatchflowException | None = None
    """Why there is no result."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once lines begin. From then on, the run needs no Prefect server."""
    server_gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the Prefect server did not answer at the end of the run."""
    untold: Untold | None = None
    """The last state, if the Prefect server could not be told."""
    is_bounded: bool = False
    """Whether the calls of the Prefect engine have bounds."""
    show_command: str = ""
    """The command that shows the run, once its name is known."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._drains = False
        self._on_cancel: Callable[[bool], object] | None = None

    @property
    def cancel_reason(self) -> str | None:
        """Who cancelled the run; `None` if nobody has."""
        return self._reason

    @property
    def drains(self) -> bool:
        """Whether the run was cancelled and its running lines may still end by themselves."""
        return self._drains

    def cancel(self, reason: str = "Canceled by the caller.", *, drain: bool = False) -> None:
        """Ask the run to end, from any thread. `reason` says who asks; the first one stays.

        With `drain`, running lines get some seconds to end; a second call without it ends them.
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
        """Call `call(drains)`, from any thread, when the run is cancelled; at once if it already is."""
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
    """The handle that the caller handed over, or an empty one."""
    return _live.get() or LiveRun()
