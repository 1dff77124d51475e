"""Orders for the tasks of a run on a cluster, given through the run storage, the one place that all of them see.

The run's process rewrites `control.json` every few seconds while its lines run, and the tasks watch it. So if the run is
stopped, killed or started again elsewhere, its tasks end within seconds on every machine, even if no other signal arrives.
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
from prefect_batchflow.storage.retries import read_sound

if TYPE_CHECKING:
    from types import TracebackType

    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys

logger = logging.getLogger(__name__)

BEAT_EVERY_SEC = 2.0
LOOK_EVERY_SEC = 1.0
ORPHANED_AFTER_SEC = 20.0
"""If `control.json` has not changed for this long, the run was killed or cannot write. Only the task's clock counts."""
END_SEC = 3.0
"""How long the tasks of a killed run may take to end after another start has taken over."""

Order = Literal["run", "drain", "stop", "end"]
"""`drain`: start no new lines, but finish the running ones. `stop`: end those too. `end`: the run is over."""
Verdict = Literal["run", "drain", "stop", "end", "superseded", "orphaned"]
"""An order as a task sees it. `superseded`: another start took over. `orphaned`: nobody writes any more."""


class Driver:
    """A context manager that gives a run's tasks their orders, and `end` when it exits. `session` counts starts, from 1."""

    def __init__(self, files: RunFiles, keys: RunKeys, session: int) -> None:
        self.owner = uuid.uuid4().hex
        """Shows tasks that they see this run's storage, not another folder of the same name."""
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
        with contextlib.suppress(Exception):  # tasks that miss it end once the file is stale
            await self.tell("end")

    async def tell(self, order: Order) -> None:
        """Give an order. Tasks see it within about `LOOK_EVERY_SEC`."""
        self._order = order
        await self._write()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_EVERY_SEC)
            try:
                await self._write()
            except Exception as exc:  # noqa: BLE001 - the next beat tries again, and tasks tolerate a few missing ones
                logger.warning("Cannot write %s: (%s) %s", self._keys.control, type(exc).__name__, exc)

    async def _write(self) -> None:
        # A canceled write continues in its thread; it must not land after the next one.
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
    """Reads a run's orders on a task's machine. `session` and `owner` are those of the `Driver` that started the task."""

    def __init__(self, files: RunFiles, keys: RunKeys, session: int, owner: str) -> None:
        self._files = files
        self._keys = keys
        self._session = session
        self._owner = owner
        self._last: dict[str, Any] = {}
        self._fresh_at = time.monotonic()

    async def look(self) -> Verdict:
        """Read the current order.

        Raises:
            StorageError: This machine does not see the run's file.
        """
        try:
            control = json.loads(await self._files.read_path(self._keys.control))
        except FileNotFoundError:
            raise self._unseen("there is no such file") from None
        except Exception as exc:  # noqa: BLE001 - the next look can succeed; ORPHANED_AFTER_SEC bounds the wait
            logger.warning("Cannot read %s: (%s) %s", self._files.location(self._keys.control), type(exc).__name__, exc)
        else:
            session = control["session"]
            if session < self._session or (session == self._session and control["owner"] != self._owner):
                raise self._unseen("the file there is another run's")
            if control != self._last:
                self._last, self._fresh_at = control, time.monotonic()
        return self._verdict()

    def _verdict(self) -> Verdict:
        control = self._last
        if control and control["session"] > self._session:
            return "superseded"
        if control and control["order"] == "end":
            return "end"
        if (control and is_dead(control)) or time.monotonic() - self._fresh_at > ORPHANED_AFTER_SEC:
            return "orphaned"
        order: Order = control.get("order", "run")
        return order if order in get_args(Order) else "stop"

    def _unseen(self, found: str) -> StorageError:
        place = self._files.location(self._keys.control)
        return StorageError(
            f"The cluster worker on {socket.gethostname()} does not see the run's file {place}: {found}. A run on a cluster "
            "needs a storage that every worker reaches by the same name: a bucket, or a folder on a shared disk."
        )


async def supersede(files: RunFiles, keys: RunKeys, session: int) -> None:
    """End the tasks that an earlier start of the run left behind, if any.

    If that start was killed, wait long enough for them to end, so that no line runs in both.
    """
    with storage_errors(files, "read", keys.control):
        try:
            before = await read_sound(files, keys.control, json.loads)
        except FileNotFoundError:
            return
    driver = Driver(files, keys, session)
    await driver.tell("end")
    if before.get("order") != "end":
        await asyncio.sleep(END_SEC)
