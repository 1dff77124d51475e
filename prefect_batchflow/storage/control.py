"""What the tasks of a run on a cluster are to do, told through the run storage: the one place that all of them see.

The process of the run writes `control.json` again and again while its lines run. Tasks look at it: a run that is stopped, was
started again elsewhere, or was killed, ends on every machine within seconds, also where nothing else tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
import uuid
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.storage.files import storage_errors
from prefect_batchflow.storage.lease import is_dead, this_process

if TYPE_CHECKING:
    from types import TracebackType

    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys

logger = logging.getLogger(__name__)

BEAT_EVERY_SEC = 2.0
LOOK_EVERY_SEC = 1.0
STALE_AFTER_SEC = 20.0
"""A control that was not written for so long is that of a run that was killed, or cannot write. Both clocks are the task's."""
END_SEC = 3.0
"""How long the tasks of a killed run may go on, once another start of it has taken over."""

Order = Literal["run", "drain", "stop", "end"]
"""`drain`: begin no line, those that run may end; `stop`: end them too; `end`: the run is over."""
Verdict = Literal["run", "drain", "stop", "end", "superseded", "orphaned"]
"""What a task makes of it: also that another start of the run has taken over, or that nobody writes any more."""


class Driver:
    """Tells the tasks of one run what to do while it is entered; `end` is the last word.

    Args:
        files: The storage's file system.
        keys: The run's keys.
        session: How many times the run was started, this time included.
    """

    def __init__(self, files: RunFiles, keys: RunKeys, session: int) -> None:
        self.owner = uuid.uuid4().hex
        """By what tasks know that they see this run's storage, and not a folder of the same name."""
        self._files = files
        self._keys = keys
        self._session = session
        self._order: Order = "run"
        self._beats = 0
        self._writing = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        with storage_errors(self._files, "write", self._keys.control):
            await self._write()
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beating is not None:
            self._beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._beating
        with contextlib.suppress(Exception):  # tasks that never hear it end when nobody writes any more
            await self.tell("end")

    async def tell(self, order: Order) -> None:
        """Give an order; the tasks see it within about `LOOK_EVERY_SEC`."""
        self._order = order
        await self._write()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_EVERY_SEC)
            try:
                await self._write()
            except Exception as exc:  # noqa: BLE001 - whatever the storage raises: tried again, and tasks bear some of it
                logger.warning("Cannot write %s: (%s) %s", self._keys.control, type(exc).__name__, exc)

    async def _write(self) -> None:
        # A write that is given up goes on in its thread, and must not come after the next one.
        await asyncio.shield(self._write_in_turn())

    async def _write_in_turn(self) -> None:
        async with self._writing:
            self._beats += 1
            control = {
                "owner": self.owner,
                "session": self._session,
                "order": self._order,
                "beats": self._beats,
                **this_process(),
            }
            await self._files.write_path(self._keys.control, json.dumps(control).encode())


class Follower:
    """Looks at what a run's tasks are to do.

    Args:
        files: The storage's file system, as this machine sees it.
        keys: The run's keys.
        session: The run's, of which the task is.
        owner: The `Driver`'s.
    """

    def __init__(self, files: RunFiles, keys: RunKeys, session: int, owner: str) -> None:
        self._files = files
        self._keys = keys
        self._session = session
        self._owner = owner
        self._last: dict[str, Any] = {}
        self._fresh_at = time.monotonic()

    async def look(self) -> Verdict:
        """What is to be done now.

        Raises:
            StorageError: This machine does not see what the run wrote.
        """
        try:
            control = json.loads(await self._files.read_path(self._keys.control))
        except FileNotFoundError:
            raise self._unseen("nothing is there") from None
        except Exception as exc:  # noqa: BLE001 - the storage may answer the next time; for how long it need not, is bounded
            logger.warning("Cannot read %s: (%s) %s", self._files.location(self._keys.control), type(exc).__name__, exc)
        else:
            self._check(control)
            if control != self._last:
                self._last, self._fresh_at = control, time.monotonic()
        return self._verdict()

    def _check(self, control: dict[str, Any]) -> None:
        if control["session"] < self._session or (
            control["session"] == self._session and control["owner"] != self._owner
        ):
            raise self._unseen("what is there is another run's")

    def _verdict(self) -> Verdict:
        control = self._last
        if control and control["session"] > self._session:
            return "superseded"
        if control and control["order"] == "end":
            return "end"
        if (control and is_dead(control)) or time.monotonic() - self._fresh_at > STALE_AFTER_SEC:
            return "orphaned"
        order: Order = control.get("order", "run")
        return order if order in get_args(Order) else "stop"

    def _unseen(self, found: str) -> StorageError:
        place = self._files.location(self._keys.control)
        return StorageError(
            f"The cluster worker on {socket.gethostname()} does not see what the run wrote at {place}: {found}. A run on a "
            "cluster needs a storage that every worker reaches under the same name: a bucket, or a folder of a shared disk."
        )


async def supersede(files: RunFiles, keys: RunKeys, session: int) -> None:
    """Tell the tasks of an earlier start of a run, if any are left, that another one has taken over.

    Where that start was killed it waits for as long as they may take to end, so that no line runs in both.
    """
    with storage_errors(files, "read", keys.control):
        try:
            before = json.loads(await files.read_path(keys.control))
        except FileNotFoundError:
            return
    driver = Driver(files, keys, session)
    await driver.tell("end")
    if before.get("order") != "end":
        await asyncio.sleep(END_SEC)
