"""What travels between a run and the tasks of its lines on a cluster: a chunk of lines there, receipts back."""

from __future__ import annotations

import pickle
import uuid
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.exceptions import BatchflowException
    from prefect_batchflow.execution.workers.pool import Given
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.settings import LinePolicy


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunDescription:
    """All that a task needs of its run. May hold secrets: shown by no repr, since clusters log what they call."""

    run_id: str
    session: int
    since: int
    owner: str
    """The `Driver`'s of the run."""
    storage_url: str
    storage_options: Mapping[str, str]
    flow: Flow
    """As it was loaded: what it includes is merged where it runs."""
    given: Given
    policy: LinePolicy
    ends_on_failure: bool
    """A chunk ends with the first of its lines that failed; the limits that need all lines are the run's own."""
    lines_at_once: int
    """Of one chunk."""
    line_memory_mb: int | None
    version: str = field(default_factory=lambda: metadata.version("prefect-batchflow"))


class Assignment:
    """One chunk of one run. No collection and no dataclass: Prefect would look through it, and Dask show it."""

    __slots__ = ("lines", "packed_run", "run_id", "run_key")

    def __init__(self, run_id: str, run_key: str, packed_run: bytes, lines: Sequence[Line]) -> None:
        self.run_id = run_id
        self.run_key = run_key
        self.packed_run = packed_run
        self.lines = lines

    def description(self) -> RunDescription:
        """The run; unpickled in the tasks' process once a run."""
        description = pickle.loads(self.packed_run)  # noqa: S301 - of the run, as the task itself
        assert isinstance(description, RunDescription)
        return description

    def __dask_tokenize__(self) -> str:
        """A name for Dask, which would pickle it all to find one."""
        return uuid.uuid4().hex

    def __repr__(self) -> str:
        """By its lines' numbers, which is all that a log may show."""
        return f"<lines {self.lines[0].line_number} to {self.lines[-1].line_number}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of the lines of one chunk."""

    settled: Sequence[Receipt] = ()
    """Of lines whose record is in the storage and that will not be tried again, also those that were done before."""
    unsettled: Sequence[Receipt] = ()
    """The failed attempts of lines that were to be tried again when the chunk was ended."""
    canceled: frozenset[int] = frozenset()
    """Lines that ran when the chunk was ended."""
    segments: Sequence[str] = ()
    """The names of those of this session that have records of its lines."""
    ended_by: str = ""
    """Why it ended before its lines had: a `Verdict`, `limit` or `leaving`; empty when all have ended."""
    failure: BatchflowException | None = None
    """What is no line's fault, and ends the run."""
    host: str = ""
