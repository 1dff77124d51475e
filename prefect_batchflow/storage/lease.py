"""Lets one process at a time write a run. A second one is refused, and the message names the holder.

A holder that is dead, or has not renewed its lease for long, loses the run to the next process that asks. Nobody has to unlock
anything.

**The newest lease decides.** Leases are numbered objects in the run's folder. To take a run over, a process creates the lease
after the newest one; on stores with conditional writes only one process can. Its number is the fencing number: the holder
writes only while it knows that no lease has a higher one. So a process that was stopped, suspended or slow past its lease is
refused at its next write, however late it wakes up.

**A look holds for some seconds.** A holder that has seen its own lease as the newest one writes without another look for a
fifth of the watch (`_look_holds_sec`), counted from before the look began, by a clock that goes on while the machine sleeps.
A process that takes over a holder that is perhaps alive creates its lease and then waits for as long, before it reads or
writes anything. A look that began before the new lease no longer holds by then, and each later look sees it. The outputs and
the result are looked for each time, and so is each write on a local disk, where a look is no request.

**On local disks there is a file lock, too.** The system releases it however its holder dies, so a free lock proves at once
that the holder is gone. It is only this proof: if somebody removes the file, the lease still decides.

The clocks of two machines can differ, and a clock can jump. So a lease that looks old, or is from the future, is watched by
the monotonic clock before it is taken over. A living holder renews it meanwhile. `beats` counts the renewals, so that each of
them changes the lease even where the wall clock stands still.

The file is long because taking, watching, renewing and losing a lease follow one argument, which is easier to check in one
place.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import math
import os
import socket
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from prefect_batchflow.exceptions import RunInUseError, StorageError
from prefect_batchflow.storage.file_lock import FileLock, is_locked
from prefect_batchflow.storage.files import storage_errors
from prefect_batchflow.storage.retries import read_sound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from prefect_batchflow.exceptions import BatchflowException
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
RELEASE_SEC = 10.0
"""How long a release may take, with its tries. After that the lease runs out by itself."""
LOOK_SEC = 0.3
"""How long a process that only checks a run's lock can hold it."""
WATCH_SEC = 25.0
"""The holder of a stale lease is dead if nobody renews it for this long."""
WATCH_LOOKS = 25
"""Looks during a watch. If the watching process is stopped meanwhile, it counts as one look only."""
ABSENT_LOOKS = 4
ABSENT_AGAIN_SEC = 0.5
"""An own lease that is not found is looked for again: a store's answers can be late."""

LOOKS_PER_WATCH = 5
"""A look holds for this part of `WATCH_SEC`."""

_gone: set[str] = set()
"""The owners of this process whose lease could not be released: nobody here holds it any more."""


class _Seen(NamedTuple):
    """The newest lease as it was read."""

    number: int
    """0: there is none."""
    content: bytes
    lease: dict[str, Any] | None
    """`None` if there is none, or it is torn."""


class Lease:
    """A context manager that holds a run for this process.

    It calls `on_lost` once if another process took the run over, or if the run's folder was removed. The run must end.

    Raises:
        RunInUseError: On entry, when another process, or another engine of this one, holds the run.
        StorageError: On entry, when the lease cannot be read or written.
    """

    def __init__(
        self, files: RunFiles, keys: RunKeys, on_lost: Callable[[BatchflowException], None] = lambda _: None
    ) -> None:
        self._files = files
        self._keys = keys
        self._on_lost = on_lost
        self._last_keys = frozenset({"", keys.outputs, keys.batch_result})
        """What ends a run is looked for each time, however fresh the last look is."""
        self._owner = uuid.uuid4().hex
        self._since = time.time()
        self._number = 0
        self._beats = 0
        self._looked_at = -math.inf
        """When the last look began that found this lease to be the newest."""
        self._is_proved_free = True
        """Whether nobody can have held the run when this process took it."""
        self._compares = True
        """Whether the store has conditional writes, so that a number has one owner."""
        self._lock: FileLock | None = None
        self._lost: BatchflowException | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    @property
    def number(self) -> int:
        """The fencing number: it grows with each process that gets the run."""
        return self._number

    async def __aenter__(self) -> Self:
        cure = "Nothing was run. Give a storage that is writable, with --storage or BATCHFLOW_STORAGE."
        try:
            with storage_errors(self._files, "write", self._keys.run_id, cure):
                await self._take()
        except BaseException:
            # An error can hide that the lease was written.
            await self._leave()
            raise
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def check(self, key: str = "") -> None:
        """Refuse a write to a key unless this process still holds the run. Call it directly before each write, and each try.

        An empty key is for what depends on this run alone, such as artifacts. It is looked for each time.

        Raises:
            RunInUseError: Another process has taken the run over.
            StorageError: The run's folder was removed, or the storage cannot be read.
        """
        # An image is named by its content: a late one changes nothing.
        if key.startswith(f"{self._keys.images}/"):
            return
        if self._lost is None and key not in self._last_keys and _now() - self._looked_at < _look_holds_sec():
            return
        with storage_errors(self._files, "list", self._keys.leases):
            lost = self._lost or await self._lost_to(thorough=not self._compares)
        if lost is not None:
            self._lose(lost)
            raise lost

    # --- taking it ---------------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        if (path := self._files.local_path(self._keys.lock)) is not None:
            self._lock = FileLock(path)
            # A check, such as `is_held`, takes the lock for a moment.
            for _ in range(10):
                if self._lock.take() or not self._lock.is_supported:
                    break
                await asyncio.sleep(LOOK_SEC / 10)
            if not self._lock.is_supported:
                self._lock = None
        number = await self._refuse_living()
        self._number = number + 1
        await self._create()
        if not self._is_proved_free:
            # Until then the earlier holder, if it is alive, can rely on a look from before this lease.
            await asyncio.sleep(_look_holds_sec())
        # Another process created it first, or at the same moment on a store without conditional writes.
        if (taken_by := await self._taken_by(thorough=True)) is not None:
            raise self._in_use(taken_by)
        if self._lock is not None and not self._lock.is_held:
            self._lock.replace()
            # From now on the lease has the new lock's number.
            await self._write()

    async def _refuse_living(self) -> int:
        """The number of the newest lease, once it is known that nobody holds the run."""
        seen = await self._look()
        if self._is_free(seen):
            return seen.number
        if seen.lease is not None and not _is_over(seen.lease) and _age_sec(seen.lease) is not None:
            raise self._in_use(seen.lease)
        for _ in range(WATCH_LOOKS):
            await asyncio.sleep(WATCH_SEC / WATCH_LOOKS)
            if self._lock is not None:
                self._lock.take()
            now = await self._look()
            if self._is_free(now):
                return now.number
            if now[:2] != seen[:2]:
                raise self._in_use(now.lease or {})
        self._is_proved_free = False
        return seen.number

    def _is_free(self, seen: _Seen) -> bool:
        """Whether it is proved that nobody holds the run."""
        if self._lock is not None and not self._lock.is_held:
            return False  # perhaps its holder has not written a lease yet
        if not seen.number:
            return True
        if seen.lease is None:
            return self._lock is not None
        if _is_over(seen.lease):
            return True
        if self._lock is None:
            return False
        here = this_process()
        if seen.lease["boot_id"] == here["boot_id"]:
            # Its holder would still have this lock, unless somebody removed the file that it had locked.
            return bool(seen.lease.get("lock") in (None, self._lock.inode))
        # Another kernel: this machine before a restart, or another machine, whose locks are perhaps not seen here.
        return bool(seen.lease["host"] == here["host"])

    async def _create(self) -> None:
        """Write the lease unless its number is taken; the caller reads it to see whose it is."""
        for tries_left in reversed(range(CREATE_TRIES)):
            try:
                return await self._files.create_path(self._keys.lease(self._number), self._content())
            except FileExistsError:
                return None
            except Exception as exc:
                if _cannot_compare(exc):
                    self._compares = False
                    return await self._write()
                if (await self._look()).number >= self._number:
                    return None
                if not tries_left:
                    raise
            await asyncio.sleep(CREATE_AGAIN_SEC)
        return None

    # --- holding it --------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        lost = None
        while lost is None:
            await asyncio.sleep(RENEW_EVERY_SEC)
            # A failed renewal is tried again; the lease outlives several.
            with contextlib.suppress(Exception):
                if self._lock is not None:
                    self._lock.take_again()
                lost = self._lost or await self._lost_to(thorough=True)
                if lost is None:
                    # Finishes even if this task is canceled: a renewal after the release would undo it.
                    self._writing = asyncio.ensure_future(self._write())
                    await asyncio.shield(self._writing)
        self._lose(lost)

    def _lose(self, lost: BatchflowException) -> None:
        if self._lost is None:
            self._lost = lost
            self._on_lost(lost)

    async def _lost_to(self, *, thorough: bool) -> BatchflowException | None:
        """Why this process no longer holds the run; `None` if it does."""
        for looks_left in reversed(range(1 if self._lock is not None else ABSENT_LOOKS)):
            try:
                taken_by = await self._taken_by(thorough=thorough)
            except FileNotFoundError:
                if looks_left:
                    await asyncio.sleep(ABSENT_AGAIN_SEC)
                    continue
                place = self._files.location(self._keys.lease(self._number))
                return StorageError(
                    f"Somebody removed or replaced the run's folder while the run {self._keys.run_id!r} was running: its "
                    f"lease {place} is gone. This process ends, and writes nothing more. Start the run again."
                )
            break
        if taken_by is None:
            return None
        holder = f" by process {taken_by['pid']} on {taken_by['host']}" if taken_by else ""
        return RunInUseError(
            f"The run {self._keys.run_id!r} was taken over{holder} while this process did not renew its lease. This process "
            "ends; its finished lines are kept.",
            run_id=self._keys.run_id,
        )

    async def _taken_by(self, *, thorough: bool) -> dict[str, Any] | None:
        """The lease of the process that holds the run instead of this one, `{}` if it is torn; `None` if this one does.

        Args:
            thorough: Whether to read the lease even if its number is this one's. A store without conditional writes can give
                a number to two processes.

        Raises:
            FileNotFoundError: There is no newer lease, and this one's own is gone.
        """
        began = _now()
        newest = await self._newest_number()
        if newest == self._number and not thorough:
            self._has_looked(began)
            return None
        number = max(newest, self._number)
        try:
            lease = _parsed(await self._files.read_path(self._keys.lease(number)))
        except FileNotFoundError:
            if number == self._number:
                raise
            lease = None
        if number > self._number:
            return lease or {}
        # A torn one is this process's: the next renewal writes it again.
        if lease is not None and lease["owner"] != self._owner:
            return lease
        self._has_looked(began)
        return None

    def _has_looked(self, began: float) -> None:
        # On a local disk a look costs no request. Without conditional writes, another process can overwrite this very lease.
        if not self._files.is_local and self._compares:
            self._looked_at = began

    # --- leaving it --------------------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """Release the run. Whatever fails, this process no longer counts as its holder."""
        if self._number:
            _gone.add(self._owner)
        try:
            if self._renewing is not None:
                self._renewing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._renewing
                if self._writing is not None:
                    await asyncio.wait({self._writing}, timeout=WRITE_ENDS_SEC)
            if self._number and self._lost is None:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(RELEASE_SEC):
                        await self._release()
                    _gone.discard(self._owner)
        finally:
            if self._lock is not None:
                self._lock.release()

    async def _release(self) -> None:
        # A release marks the lease instead of deleting it: the storage needs no delete permission.
        for tries_left in reversed(range(CREATE_TRIES)):
            try:
                if await self._taken_by(thorough=True) is None:
                    await self._write(released=True)
                return
            except FileNotFoundError:
                return
            except Exception:
                if not tries_left:
                    raise
            await asyncio.sleep(CREATE_AGAIN_SEC)

    # --- the objects -------------------------------------------------------------------------------------------------

    async def _write(self, *, released: bool = False) -> None:
        await self._files.write_path(self._keys.lease(self._number), self._content(released=released))

    def _content(self, *, released: bool = False) -> bytes:
        self._beats += 1
        lease = {
            "owner": self._owner,
            **this_process(),
            "lock": None if self._lock is None else self._lock.inode,
            "since": self._since,
            "renewed_at": time.time(),
            "expires_at": time.time() + LEASE_EXPIRES_AFTER_SEC,
            "beats": self._beats,
            "released": released,
        }
        return json.dumps(lease).encode()

    async def _newest_number(self) -> int:
        names = await self._files.list_names(self._keys.leases)
        return max((n for n in map(self._keys.lease_number, names) if n is not None), default=0)

    async def _look(self) -> _Seen:
        return await _newest(self._files, self._keys)

    def _in_use(self, lease: Mapping[str, Any]) -> RunInUseError:
        run_id = self._keys.run_id
        cure = "Wait for it to end, cancel it, or use another run id."
        # If the lock's holder has not written its lease yet, the newest one is the previous holder's.
        if not lease or _is_over(lease):
            return RunInUseError(f"The run {run_id!r} is already running. {cure}", run_id=run_id)
        since, until = _moment(lease.get("since")), _moment(lease["renewed_at"], LEASE_EXPIRES_AFTER_SEC)
        facts = {"pid": lease["pid"], "host": lease["host"], "since": since, "until": until}
        began = f", since {since}" if since else ""
        ends = (
            f"Its lease holds until {until}. A live process renews its lease every {RENEW_EVERY_SEC:g} s; if it does not, "
            "another process can take the run over."
        )
        return RunInUseError(
            f"The run {run_id!r} is already running by process {lease['pid']} on {lease['host']}{began}. {ends} {cure}",
            run_id=run_id,
            **facts,
        )


def _now() -> float:
    """Seconds that also count while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _look_holds_sec() -> float:
    return WATCH_SEC / LOOKS_PER_WATCH


def _moment(seconds: Any, more: float = 0.0) -> str:
    """A wall clock's time for people; empty if it is none."""
    try:
        moment = datetime.fromtimestamp(float(seconds), UTC) + timedelta(seconds=more)
    except (ValueError, TypeError, OverflowError, OSError):
        return ""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _cannot_compare(exc: Exception) -> bool:
    """Whether the store, or its package, has no conditional writes."""
    return isinstance(exc, NotImplementedError | TypeError) or (isinstance(exc, OSError) and exc.errno == errno.ENOSYS)


def _parsed(content: bytes) -> dict[str, Any] | None:
    """A lease; `None` if it is torn, empty, or something else."""
    try:
        lease = json.loads(content)
        is_whole = (
            all(isinstance(lease[name], str) for name in ("owner", "host", "boot_id"))
            and type(lease["pid"]) is int
            and type(lease["released"]) is bool
            and math.isfinite(lease["renewed_at"])
        )
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return lease if is_whole else None


def _age_sec(lease: Mapping[str, Any]) -> float | None:
    """The age of a lease that holds; `None` if it has run out, or is from the future."""
    age = time.time() - float(lease["renewed_at"])
    return age if 0 <= age < LEASE_EXPIRES_AFTER_SEC else None


def _is_over(lease: Mapping[str, Any]) -> bool:
    """Whether a lease's holder is known to hold it no more."""
    return bool(lease["released"]) or lease["owner"] in _gone or is_dead(lease)


async def _newest(files: RunFiles, keys: RunKeys) -> _Seen:
    """The newest lease."""
    names = await files.list_names(keys.leases)
    number = max((n for n in map(keys.lease_number, names) if n is not None), default=0)
    if not number:
        return _Seen(0, b"", None)
    try:
        content = await read_sound(files, keys.lease(number), _sound)
    except (FileNotFoundError, IsADirectoryError):  # a listing that was late; or no lease
        content = b""
    except ValueError:  # torn, as two looks agree
        content = await files.read_path(keys.lease(number))
    return _Seen(number, content, _parsed(content))


def _sound(content: bytes) -> bytes:
    json.loads(content)
    return content


async def is_held(files: RunFiles, keys: RunKeys) -> bool:
    """Whether a process seems to be running the run now. Only looks; if in doubt, no."""
    lock = files.local_path(keys.lock)
    if lock is not None and await asyncio.to_thread(is_locked, lock):
        return True
    try:
        lease = (await _newest(files, keys)).lease
        return lease is not None and not _is_over(lease) and _age_sec(lease) is not None
    except Exception:  # noqa: BLE001 - any error of the storage
        return False


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
    except (FileNotFoundError, ProcessLookupError, OverflowError):
        return True
    return state in "ZX" or start_ticks != lease.get("start_ticks")
