"""Lets one process at a time run a run. A second one is refused by name; a dead one's run is taken over automatically.

On local disks the holder has a file lock, which the system releases however the holder dies. Elsewhere it has the newest
lease, an object that it renews while it runs. Another process takes the run over once the holder is known to be dead, or its
lease is old. The clocks of two machines can differ, so an old lease is first watched for a while.

Leases are numbered. To take a run over, a process creates the lease after the newest one. On stores with conditional writes
only one process can. A holder that was late finds, when it renews, that its lease is no longer the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prefect_batchflow.exceptions import RunInUseError, StorageError
from prefect_batchflow.storage.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys

RENEW_EVERY_SEC = 10.0
LEASE_EXPIRES_AFTER_SEC = 60.0
"""The holder of a lease this old, or from the future, can be dead."""
CREATE_TRIES = 5
CREATE_AGAIN_SEC = 0.2
"""A store can refuse a conditional write during another one, and ask to try again."""
WRITE_ENDS_SEC = 5.0
"""How long a release waits for a renewal in progress."""
LOOK_SEC = 0.3
"""How long a process that only checks a run's lock can hold it."""
WATCH_SEC = 25.0
"""The holder of a stale lease is dead if nobody renews it for this long."""


class Lease:
    """A context manager that holds a run for this process.

    It calls `on_lost` once if another process took the run over, such as while this one was suspended. The run must end.

    Raises:
        RunInUseError: On entry, when another process, or another engine of this one, holds the run.
        StorageError: On entry, when the lease cannot be read or written.
    """

    def __init__(
        self, files: RunFiles, keys: RunKeys, on_lost: Callable[[RunInUseError], None] = lambda _: None
    ) -> None:
        self._files = files
        self._keys = keys
        self._on_lost = on_lost
        self._owner = uuid.uuid4().hex
        self._number = 0
        self._fd: int | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        cure = "Nothing was run. Give a storage that is writable, with --storage or BATCHFLOW_STORAGE."
        try:
            with storage_errors(self._files, "write", self._keys.run_id, cure):
                lock = self._files.local_path(self._keys.lock)
                if lock is not None:
                    await self._lock(lock)
                await self._take(is_locked=lock is not None)
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
            if self._writing is not None:
                await asyncio.wait({self._writing}, timeout=WRITE_ENDS_SEC)
            # A release marks the lease instead of deleting it: the storage needs no delete permission.
            with contextlib.suppress(Exception):
                if await self._other_holder() is None:
                    await self._write(released=True)
        self._unlock()

    async def _lock(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + LOOK_SEC
        while True:
            try:
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A check, such as `is_held`, takes the lock for a moment.
                if time.monotonic() > deadline:
                    _, holder = await _newest(self._files, self._keys)
                    raise self._in_use(holder or {}) from None
            await asyncio.sleep(LOOK_SEC / 10)

    def _unlock(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    async def _take(self, *, is_locked: bool) -> None:
        number, lease = await _newest(self._files, self._keys)
        if not is_locked:
            await self._refuse_living(number, lease)
        self._number = number + 1
        await self._create()
        # Another process created it first, or at the same moment on a store without conditional writes.
        if (taken_by := await self._other_holder()) is not None:
            raise self._in_use(taken_by)

    async def _create(self) -> None:
        """Write the lease unless its number is taken; the caller reads it to see whose it is."""
        for tries_left in reversed(range(CREATE_TRIES)):
            try:
                return await self._files.create_path(self._keys.lease(self._number), self._content())
            except FileExistsError:
                return None
            except Exception as exc:
                if _cannot_compare(exc):
                    return await self._write()
                number, _ = await _newest(self._files, self._keys)
                if number >= self._number:
                    return None
                if not tries_left:
                    raise
            await asyncio.sleep(CREATE_AGAIN_SEC)
        return None

    async def _other_holder(self) -> dict[str, Any] | None:
        _, lease = await _newest(self._files, self._keys)
        return lease if lease is not None and lease.get("owner") != self._owner else None

    async def _refuse_living(self, number: int, lease: dict[str, Any] | None) -> None:
        if lease is None or lease.get("released") or is_dead(lease):
            return
        if 0 <= time.time() - float(lease.get("renewed_at", 0)) < LEASE_EXPIRES_AFTER_SEC:
            raise self._in_use(lease)
        await asyncio.sleep(WATCH_SEC)
        now = await _newest(self._files, self._keys)
        if now != (number, lease) and now[1] is not None and not now[1].get("released"):
            raise self._in_use(now[1])

    def _in_use(self, lease: dict[str, Any]) -> RunInUseError:
        # If the lock's holder has not written its lease yet, the newest one is the previous holder's.
        is_old = "pid" not in lease or lease.get("released") or is_dead(lease)
        holder = "" if is_old else f" by process {lease['pid']} on {lease['host']}"
        return RunInUseError(
            f"The run {self._keys.run_id!r} is already running{holder}. Wait for it to end, cancel it, or use another "
            "run id.",
            run_id=self._keys.run_id,
        )

    async def _write(self, *, released: bool = False) -> None:
        await self._files.write_path(self._keys.lease(self._number), self._content(released=released))

    def _content(self, *, released: bool = False) -> bytes:
        lease = {"owner": self._owner, **this_process(), "renewed_at": time.time(), "released": released}
        return json.dumps(lease).encode()

    async def _renew(self) -> None:
        taken_by = None
        while taken_by is None:
            await asyncio.sleep(RENEW_EVERY_SEC)
            # A failed renewal is tried again; the lease outlives several.
            with contextlib.suppress(Exception):
                taken_by = await self._other_holder()
                if taken_by is None:
                    # Finishes even if this task is canceled: a renewal after the release would undo it.
                    self._writing = asyncio.ensure_future(self._write())
                    await asyncio.shield(self._writing)
        self._on_lost(
            RunInUseError(
                f"The run {self._keys.run_id!r} was taken over by process {taken_by.get('pid')} on {taken_by.get('host')} "
                "while this process did not renew its lease. This process ends; its finished lines are kept.",
                run_id=self._keys.run_id,
            )
        )


def _cannot_compare(exc: Exception) -> bool:
    """Whether the store, or its package, has no conditional writes."""
    return isinstance(exc, NotImplementedError | TypeError) or (isinstance(exc, OSError) and exc.errno == errno.ENOSYS)


async def _newest(files: RunFiles, keys: RunKeys) -> tuple[int, dict[str, Any] | None]:
    """The number and content of the newest lease; 0 if there is none."""
    names = await files.list_names(keys.leases)
    number = max((n for n in map(keys.lease_number, names) if n is not None), default=0)
    if not number:
        return 0, None
    try:
        lease = json.loads(await files.read_path(keys.lease(number)))
    except ValueError as exc:
        raise StorageError(
            f"The lease at {files.location(keys.lease(number))} cannot be read: {exc}. If the run is not running, delete it."
        ) from exc
    return number, lease if isinstance(lease, dict) else None


async def is_held(files: RunFiles, keys: RunKeys) -> bool:
    """Whether a process seems to be running the run now. Only looks; if in doubt, no."""
    lock = files.local_path(keys.lock)
    if lock is not None:
        return await asyncio.to_thread(_is_locked, lock)
    try:
        _, lease = await _newest(files, keys)
        if lease is None or lease["released"] or is_dead(lease):
            return False
        return bool(time.time() - lease["renewed_at"] < LEASE_EXPIRES_AFTER_SEC)
    except Exception:  # noqa: BLE001 - any error of the storage
        return False


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def this_process() -> dict[str, Any]:
    """Facts from which another process can tell whether this one is alive."""
    pid = os.getpid()
    _, start_ticks = _state_and_start(pid)
    return {"pid": pid, "start_ticks": start_ticks, "host": socket.gethostname(), **_where_pids_count()}


def _where_pids_count() -> dict[str, str]:
    """The machine's boot and the pid namespace: two containers do not see each other's processes."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"boot_id": boot_id, "pid_namespace": str(Path("/proc/self/ns/pid").readlink())}


def _state_and_start(pid: int) -> tuple[str, str]:
    # The 3rd and the 22nd field. The 2nd, in parentheses, can contain anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


def is_dead(lease: Mapping[str, Any]) -> bool:
    """Whether a process, described by `this_process`, ran here and is gone. Its id can belong to a newer process."""
    here = _where_pids_count()
    if any(lease.get(name) != value for name, value in here.items()):
        return False
    try:
        state, start_ticks = _state_and_start(int(lease["pid"]))
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX" or start_ticks != lease.get("start_ticks")
