"""One writer a run: a second one is refused by name, and what a dead one left is taken over by itself.

On this machine's disks the lease is a file lock, which the system drops when its holder dies, however it dies. Elsewhere it
is an object renewed while the run lives: it is taken over once its process is known to be dead, or it was not renewed for a
while.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prefect_batchflow.exceptions import RunInUseError, StorageError

if TYPE_CHECKING:
    from types import TracebackType

    from prefect_batchflow.storage.keys import RunKeys
    from prefect_batchflow.storage.records import RunFiles

RENEW_EVERY_SEC = 10.0
STALE_AFTER_SEC = 60.0


class Lease:
    """Holds a run for this process while it is entered.

    Raises:
        RunInUseError: On entry, when another process, or another engine of this one, holds the run.
        StorageError: On entry, when that cannot be told or the lease cannot be written.
    """

    def __init__(self, files: RunFiles, keys: RunKeys) -> None:
        self._files = files
        self._keys = keys
        self._owner = uuid.uuid4().hex
        self._fd: int | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            lock = self._files.local_path(self._keys.lock)
            if lock is not None:
                await self._lock(lock)
            else:
                await self._refuse_living(await self._holder())
            await self._write()
        except OSError as exc:
            self._unlock()
            raise StorageError(
                f"Cannot write the run storage at {self._files.location(self._keys.run_id)}: ({type(exc).__name__}) {exc}. "
                "Nothing was run. Give a storage that can be written, with --storage or BATCHFLOW_STORAGE."
            ) from exc
        except BaseException:
            self._unlock()
            raise
        if lock is None:
            self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
            # A released lease is one that nobody renews: no delete is asked of the storage.
            with contextlib.suppress(OSError):
                await self._write(released=True)
        self._unlock()

    async def _lock(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(await self._holder() or {}) from None

    def _unlock(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    async def _holder(self) -> dict[str, Any] | None:
        try:
            lease = json.loads(await self._files.read_path(self._keys.lease))
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise StorageError(f"The lease at {self._files.location(self._keys.lease)} cannot be read: {exc}.") from exc
        return lease if isinstance(lease, dict) else None

    async def _refuse_living(self, lease: dict[str, Any] | None) -> None:
        if lease is None or lease.get("released") or _is_dead(lease):
            return
        if time.time() - float(lease.get("renewed_at", 0)) < STALE_AFTER_SEC:
            raise self._in_use(lease)

    def _in_use(self, lease: dict[str, Any]) -> RunInUseError:
        holder = f" by process {lease['pid']} on {lease['host']}" if "pid" in lease else ""
        return RunInUseError(
            f"The run {self._keys.run_id!r} is running already{holder}. Wait for it to end, cancel it, or give another "
            "run id.",
            run_id=self._keys.run_id,
        )

    async def _write(self, *, released: bool = False) -> None:
        lease = {"owner": self._owner, **_this_process(), "renewed_at": time.time(), "released": released}
        await self._files.write_path(self._keys.lease, json.dumps(lease).encode())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_SEC)
            # A renewal that fails is tried again; the lease outlives several.
            with contextlib.suppress(OSError):
                await self._write()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> str:
    # The 22nd field; the second one, in parentheses, may hold anything.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "boot_id": _boot_id(), "start_ticks": _start_ticks(pid)}


def _is_dead(lease: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine and is gone; a process id that came round again is told by its start."""
    if lease.get("boot_id") != _boot_id():
        return False
    try:
        return _start_ticks(int(lease["pid"])) != lease.get("start_ticks")
    except FileNotFoundError:
        return True
