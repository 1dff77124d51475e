"""The messages between a run and its tasks on a cluster: a chunk of lines goes out, receipts come back."""

from __future__ import annotations

import pickle
import uuid
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from prefect_batchflow.errors.chosen import LineNumbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.exceptions import BatchflowException
    from prefect_batchflow.execution.executor import Given
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.settings import LinePolicy


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunDescription:
    """Everything that a task needs of its run. It can hold secrets, so it has no repr: clusters log their calls."""

    run_id: str
    session: int
    since: int
    owner: str
    """The owner that the run's `Driver` writes."""
    storage_url: str
    storage_options: Mapping[str, str]
    flow: Flow
    """The flow as it was loaded; its additional includes are merged where it runs."""
    given: Given
    policy: LinePolicy
    ends_on_failure: bool
    """A chunk ends when one of its lines fails. The run itself checks the limits that need all lines."""
    lines_at_once: int
    """Lines of one chunk that run at once."""
    line_memory_mb: int | None
    records_run: str = ""
    """The name of the run in its records, the manifest's `identity`."""
    unnamed_until: int = 0
    """The last session whose records can be without it."""
    grows: bool = False
    """Whether a chunk begins with one line at once, and `lines_at_once` is the most."""
    rerun_lines: LineNumbers = field(default_factory=LineNumbers)
    """Lines that run again, although they have completed in a session before `rerun_since`."""
    rerun_since: int = 0
    version: str = field(default_factory=lambda: metadata.version("prefect-batchflow"))


class Assignment:
    """One chunk of one run. Not a collection or dataclass, because Prefect would search it and Dask would log it."""

    __slots__ = ("lines", "packed_run", "run_id", "run_key")

    def __init__(self, run_id: str, run_key: str, packed_run: bytes, lines: Sequence[Line]) -> None:
        self.run_id = run_id
        self.run_key = run_key
        self.packed_run = packed_run
        self.lines = lines

    def description(self) -> RunDescription:
        """The run; unpickled once per run in a process that runs its tasks."""
        description = pickle.loads(self.packed_run)  # noqa: S301 - from the run, like the task itself
        assert isinstance(description, RunDescription)
        return description

    def __dask_tokenize__(self) -> str:
        """A name for Dask, which would otherwise pickle everything to compute one."""
        return uuid.uuid4().hex

    def __repr__(self) -> str:
        """The line numbers, which is all that a log may show."""
        return f"<lines {self.lines[0].line_number} to {self.lines[-1].line_number}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How the lines of one chunk ended."""

    settled: Sequence[Receipt] = ()
    """Final receipts of lines whose records are in the storage, including lines that were done before."""
    unsettled: Sequence[Receipt] = ()
    """Failed attempts of lines that were waiting for their next attempt when the chunk was ended."""
    canceled: frozenset[int] = frozenset()
    """Lines that were running when the chunk was ended."""
    segments: Sequence[str] = ()
    """The names of this session's segments with records of these lines."""
    ended_by: str = ""
    """Why the chunk ended before its lines: a `Verdict`, `limit` or `leaving`. Empty if all lines have ended."""
    failure: BatchflowException | None = None
    """An error that is not the fault of a line and ends the run."""
    host: str = ""
