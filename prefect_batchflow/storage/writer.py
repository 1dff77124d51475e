"""Group commit for a run's records: while one segment is being written, outcomes gather for the next one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import BatchflowException, StorageError, UnexpectedError
from prefect_batchflow.storage.reserve import is_too_large

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.storage.records import RunRecords


class _Group:
    """Outcomes that will become one segment."""

    def __init__(self) -> None:
        self.outcomes: list[LineOutcome] = []
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class RecordWriter:
    """Writes one segment at a time, so that a slow storage gets fewer, larger segments and does not delay lines.

    It calls `kept` with the outcomes of each segment once they are safe, and `failed` if the write or `kept` raises.
    """

    def __init__(
        self,
        records: RunRecords,
        kept: Callable[[Sequence[LineOutcome]], None],
        failed: Callable[[BatchflowException], None],
    ) -> None:
        self._records = records
        self._kept = kept
        self._failed = failed
        self._gathering = _Group()
        self._writing: asyncio.Task[None] | None = None

    async def keep(self, outcomes: Sequence[LineOutcome]) -> None:
        """Write outcomes. Once this returns, they are safe.

        Raises:
            BatchflowException: They are perhaps not safe. `failed` got the same error.
        """
        self._gathering.outcomes.extend(outcomes)
        written = self._gathering.written
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write())
        await asyncio.shield(written)

    async def wait(self, limit_sec: float) -> None:
        """Wait until nothing is being written, at most this long."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=limit_sec)

    async def _append(self, outcomes: Sequence[LineOutcome]) -> None:
        """Write one segment. If there is no room for it, write as many of its lines as there is room for."""
        try:
            await self._records.append(outcomes)
        except StorageError as exc:
            if len(outcomes) == 1 or not is_too_large(exc):
                raise
            middle = len(outcomes) // 2
            await self._append(outcomes[:middle])
            await self._append(outcomes[middle:])
        else:
            self._kept(outcomes)

    async def _write(self) -> None:
        while self._gathering.outcomes:
            group, self._gathering = self._gathering, _Group()
            try:
                await self._append(group.outcomes)
                self._records.check_space()
            except Exception as exc:  # noqa: BLE001 - all waiters of the group must get it
                failure = (
                    exc if isinstance(exc, BatchflowException) else UnexpectedError(f"({type(exc).__name__}) {exc}")
                )
                self._failed(failure)
                group.written.set_exception(failure)
                group.written.exception()  # marks it as seen: perhaps all lines of the group were canceled
            else:
                group.written.set_result(None)
