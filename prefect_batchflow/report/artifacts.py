"""The artifacts of a run in Prefect: its summary, its failed lines, its progress.

A report never fails a run: if an artifact cannot be written in time, the run's log gets a warning. Call these functions
inside the Prefect flow whose run gets the artifacts.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

from prefect_batchflow.report.summary import escaped
from prefect_batchflow.results.texts import encodable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

WRITE_TIMEOUT_SEC: Final = 5.0
"""How long writing the summary or the table may take. Prefect's client alone would try for minutes."""
PROGRESS_TIMEOUT_SEC: Final = 3.0
"""How long one update of the progress may take, also the last one at the end of a run."""
PROGRESS_INTERVAL_SEC: Final = 2.0
"""The shortest time between two updates of the progress."""

ArtifactKind = Literal["summary", "failed-lines", "progress"]


def artifact_key(run_id: str, kind: ArtifactKind) -> str:
    """The key of an artifact, always the same for one run id and kind: at most 80 characters of `[a-z0-9-]`."""
    slug = re.sub(r"[^a-z0-9]+", "-", run_id.lower())[:40].strip("-")
    digest = hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return "-".join(part for part in ("batchflow", slug, digest, kind) if part)


async def write_summary(run_id: str, markdown: str) -> bool:
    """Write the summary of a run as a markdown artifact; returns whether it was written."""
    write = partial(
        acreate_markdown_artifact,
        encodable(markdown),
        key=artifact_key(run_id, "summary"),
        description=f"Summary of batch run {escaped(run_id, 100)}",
    )
    return await _written(write, f"summary of run {run_id!r}", WRITE_TIMEOUT_SEC)


async def write_failed_lines(run_id: str, rows: list[dict[str, Any]], failed_lines: int) -> bool:
    """Write rows, out of all `failed_lines`, as a table artifact; returns whether it was written.

    A resumed run without failed lines writes no rows, to clear its earlier table.
    """
    shown = f"{failed_lines}" if len(rows) >= failed_lines else f"The first {len(rows)} of {failed_lines}"
    write = partial(
        acreate_table_artifact,
        rows,
        key=artifact_key(run_id, "failed-lines"),
        description=f"{shown} failed lines of batch run {escaped(run_id, 100)}",
    )
    return await _written(write, f"table of failed lines of run {run_id!r}", WRITE_TIMEOUT_SEC)


class ProgressArtifact:
    """The progress artifact of a run, kept up to date inside an `async with` block.

    `update` only notes the numbers. They are written in the background, one request at a time and at most every
    `PROGRESS_INTERVAL_SEC`, so that a slow server delays no line. The end of the block writes the last numbers.
    `clock` is monotonic, in seconds.
    """

    def __init__(self, run_id: str, total_lines: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._run_id = run_id
        self._total_lines = total_lines
        self._clock = clock
        self._numbers = (0, 0)
        self._written_numbers: tuple[int, int] | None = None
        self._next_write = float("-inf")
        self._writing: asyncio.Task[None] | None = None
        self._artifact_id: UUID | None = None
        self._warned = False

    async def __aenter__(self) -> Self:
        self.update(0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._try(self._write_last)

    def update(self, ended_lines: int, failed_lines: int = 0) -> None:
        """Note how many lines have ended, and how many of them failed. Returns at once."""
        self._numbers = (ended_lines, failed_lines)
        now = self._clock()
        if now >= self._next_write and (self._writing is None or self._writing.done()):
            self._next_write = now + PROGRESS_INTERVAL_SEC
            self._writing = asyncio.create_task(self._try(self._write))

    async def _try(self, write: Callable[[], Awaitable[None]]) -> None:
        written = await _written(
            write, f"progress of run {self._run_id!r}", PROGRESS_TIMEOUT_SEC, warn=not self._warned
        )
        self._warned = self._warned or not written

    async def _write_last(self) -> None:
        if self._writing is not None:
            await self._writing
        if self._written_numbers != self._numbers:
            await self._write()

    async def _write(self) -> None:
        numbers = ended, failed = self._numbers
        percent = 100.0 * ended / self._total_lines if self._total_lines else 100.0
        percent = min(percent, 100.0)
        text = f"{ended} of {self._total_lines} lines ended" + (f", {failed} failed" if failed else "")
        if self._artifact_id is None:
            key = artifact_key(self._run_id, "progress")
            self._artifact_id = await acreate_progress_artifact(percent, key=key, description=text)
        else:
            await aupdate_progress_artifact(self._artifact_id, percent, description=text)
        self._written_numbers = numbers


async def _written(write: Callable[[], Awaitable[object]], what: str, limit_sec: float, *, warn: bool = True) -> bool:
    """Try a write, and return whether it succeeded in time. Cancellation passes."""
    try:
        async with asyncio.timeout(limit_sec):
            await write()
    except Exception as exc:  # noqa: BLE001 - whatever Prefect's API raises, a report never fails a run
        if warn:
            _logger().warning(
                "Could not write the %s as an artifact (%s: %s). The run continues, and its results are complete. "
                "Check whether the Prefect API answers.",
                what,
                type(exc).__name__,
                str(exc) or f"no answer within {limit_sec:g} s",
            )
        return False
    return True


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger(__name__)
