"""The seam between a run and what runs its lines: task runs on this machine, or chunks on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from prefect_batchflow.exceptions import BatchflowException
    from prefect_batchflow.execution.executor import LineOutcome, Wait
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import Receipt

STOP_GRACE_SEC = 3.0
"""How long the lines of a stopped run may take to end and be written, on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineEvents:
    """The calls that a run gets while its lines run."""

    settled: Callable[[Receipt], None]
    """Called once per line with its final receipt, when its record is safe."""
    ended: Callable[[Receipt], None] = lambda _: None
    """Called once per line with its final receipt, as soon as there is one."""
    persisted: Callable[[Sequence[LineOutcome]], None] | None = None
    """Called with each segment's outcomes once they are safe, failed attempts before a retry included."""
    failed: Callable[[BatchflowException], None] = lambda _: None
    """Called when something fails that is not the fault of a line, such as the storage. It stops the run."""


class LineFeed(Protocol):
    """Runs the lines of a run in groups. One contract test runs for every implementation."""

    how: str
    """How the lines run, for the log."""
    stop_grace_sec: float
    """How long the lines of a stopped run may take to end and be written."""
    on_room: Callable[[], None]
    """Called when the load has become less."""
    canceled: set[int]
    """The lines that were running when the run was stopped, and did not end."""
    unsettled: dict[int, Receipt]
    """The failed attempts of lines whose next attempt has not ended."""

    @property
    def group(self) -> int:
        """Lines of the next group."""

    @property
    def width(self) -> int:
        """The load at which no further group is begun. It can change while lines run."""

    @property
    def task_runs(self) -> int:
        """The task runs that it has begun."""

    def load(self) -> int:
        """The work that has been begun and not ended, in units of `width`."""

    def running(self) -> int:
        """How many lines may be running now."""

    def waits(self) -> list[Wait]:
        """The lines that wait for a service, as far as is known."""

    def run(self, lines: Sequence[Line]) -> Coroutine[Any, Any, None]:
        """Run a group; it counts as load from this call on. A line that is not settled was canceled or is unsettled."""

    async def look(self) -> None:
        """Look at what decides about the next groups. The run calls it every few seconds."""

    def stop(self, *, drain: bool = False) -> None:
        """Begin no line and no further attempt, and end the lines that run. Idempotent.

        Args:
            drain: Let the lines that run end by themselves, until a call without it.
        """

    async def written(self, limit_sec: float) -> None:
        """Wait, for a bounded time, until lines that have ended are settled; no line is settled after that."""
