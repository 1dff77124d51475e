"""F1: the named steps of a run at which its process can be killed. Only tests know them: they wrap functions of the package.

A step of the storage is named by what is written and how far that is: `before records`, `unfinished records` (written under
another name), `after records`. `WRITERS` names each function of the package that writes to a run's storage or an output
folder, and the points at which it can be killed.
"""

from __future__ import annotations

import contextvars
import functools
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.run import ending, resuming, starting
from prefect_batchflow.storage import care, files, images, lease, outputs, reserve, writer
from prefect_batchflow.storage.file_lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable

_LEASE: contextvars.ContextVar[str] = contextvars.ContextVar("lease", default="lease")
"""What the write of a lease means. Context variables reach the thread that writes."""
_KINDS: Final = {
    "manifest.json": "manifest",
    "manifests": "kept manifest",
    "control.json": "control",
    "records": "records",
    "outputs.jsonl": "outputs",
    "failed.jsonl": "failed lines",
    "batch_result.json": "result",
    "images": "image",
    "output.jsonl": "outputs",
}


def _steps(*kinds: str) -> tuple[str, ...]:
    return tuple(f"{step} {kind}" for kind in kinds for step in ("before", "unfinished", "after"))


def _around(*kinds: str) -> tuple[str, ...]:
    return tuple(f"{step} {kind}" for kind in kinds for step in ("before", "after"))


_LEASES = _steps("lease taken", "lease renewed", "lease released")
WRITERS: Final[dict[str, tuple[str, ...]]] = {
    "storage/care.py:_copy_file": _steps("copied records", "copied manifest"),
    "storage/care.py:_merge": _around("deleting records"),
    "storage/care.py:delete_run": _around("deleting records", "deleting manifest", "deleting the run"),
    "storage/control.py:Driver._write_in_turn": (),  # on a cluster only, and the next start's `supersede`
    "storage/file_lock.py:FileLock.replace": _around("lock replaced"),
    "storage/file_lock.py:FileLock.take": _around("lock taken"),
    "storage/files.py:_LocalFiles.delete_folder": _around("deleting the run"),
    "storage/files.py:_LocalFiles.delete_path": _around("deleting records", "deleting manifest"),
    "storage/files.py:_LocalFiles.move": _around("moving damaged records"),
    "storage/files.py:_put": _steps("records", "manifest"),
    "storage/files.py:write_beside": _steps("output folder's outputs"),
    "storage/images.py:ImageFiles._write": _steps("image", "output folder's image"),
    "storage/lease.py:Lease._create": _steps("lease taken"),
    "storage/lease.py:Lease._write": _steps("lease renewed", "lease released"),
    "storage/manifest.py:write_manifest": _steps("kept manifest", "manifest"),
    "storage/outputs.py:_put_and_read_back": _steps("outputs", "failed lines", "result"),
    "storage/outputs.py:write_outputs": _steps(
        "output folder's outputs", "output folder's failed lines", "output folder's result"
    ),
    "storage/private_files.py:make_folder": (),  # a folder without files is no state
    "storage/private_files.py:remove_unfinished": _around("unfinished files removed"),
    "storage/private_files.py:unfinished": _steps("records"),
    "storage/records.py:RunRecords.append": _steps("records"),
    "storage/records.py:RunRecords.set_damaged_aside": _around("moving damaged records"),
    "storage/reserve.py:Reserve._grow": _around("space reserved"),
    "storage/reserve.py:Reserve.release": _around("space released"),
}
"""The functions that write, delete or rename, each with the points at which it is killed."""
ELSEWHERE: Final = {
    "blocks.py": "hands each call on to the files of the storage",
    "storage/retries.py": "hands each call on to the files of the storage",
    "storage/files.py:_RemoteFiles": "stores of others: tests/storage/test_retries.py has a fault at each call",
    "storage/files.py:_ServerFiles": "stores of others: tests/storage/test_retries.py has a fault at each call",
    "storage/files.py:remove_unfinished_on_server": "on an SFTP server only",
    "storage/source_run.py:_outputs": "copies to a temporary folder, to be read",
    "cli/care.py:export": "a table for people, written beside and renamed like the files of an output folder",
}
"""Other places that write, and why they have no points."""
OF_A_RUN: Final = (
    *_around("flow started", "acknowledged", "aggregation", "summary artifact", "table artifact"),
    "after lease held",
)
"""Steps of a run that are no writes to its storage."""
ALL: Final = tuple(dict.fromkeys([*OF_A_RUN, *(point for points in WRITERS.values() for point in points)]))


class _Passages:
    """Counts the passages of all points, and kills this process at one of them."""

    def __init__(self, point: str, n: int, log: Path, number: signal.Signals) -> None:
        self._point, self._n, self._log, self._signal = point, n, log, number
        self._counts: Counter[str] = Counter()

    def pass_by(self, point: str) -> None:
        self._counts[point] += 1
        with self._log.open("a") as file:
            file.write(f"{point}\n")
        if (point, self._counts[point]) == (self._point, self._n):
            os.kill(os.getpid(), self._signal)


def _kind(path: Path) -> str:
    """What is at a path of a run's folder or of an output folder."""
    folder = path.parent.name
    if folder == "leases":
        return _LEASE.get()
    inside = "output folder's " if "outputs" in {path.parent.name, path.parent.parent.name} else ""
    copied = "copied " if "copies" in path.parts else ""
    return copied + inside + _KINDS.get(folder, _KINDS.get(path.name, path.name))


def install(point: str, n: int, log: Path, signal_name: str = "SIGKILL") -> None:
    """Wrap the package's functions in this process, to kill it at the n-th passage of a point.

    Args:
        point: One of `ALL`; empty for none.
        n: Counted from 1.
        log: Gets each passage.
        signal_name: What the process sends itself.
    """
    passages = _Passages(point, n, log, signal.Signals[signal_name])
    pass_by = passages.pass_by

    put = files._put

    def put_in_steps(target: Path, write: Callable[[Any], object], *, new: bool = False) -> None:
        kind = _kind(target)

        def write_whole(file: Any) -> None:
            write(file)
            file.flush()
            pass_by(f"unfinished {kind}")

        pass_by(f"before {kind}")
        put(target, write_whole, new=new)
        pass_by(f"after {kind}")

    files._put = put_in_steps

    beside = files.write_beside

    def beside_in_steps(
        folder: Path, name: str, write: Callable[[Path], object], *, again: bool = True, inner: str = ""
    ) -> None:
        kind = _kind(folder / inner / name)

        def write_whole(path: Path) -> None:
            write(path)
            pass_by(f"unfinished {kind}")

        pass_by(f"before {kind}")
        beside(folder, name, write_whole, again=again, inner=inner)
        pass_by(f"after {kind}")

    for module in (files, outputs, images):
        module.write_beside = beside_in_steps  # type: ignore[attr-defined]

    def around(owner: Any, name: str, kind: str | Callable[..., str]) -> None:
        whole = getattr(owner, name)

        @functools.wraps(whole)
        async def later(*args: Any, **options: Any) -> Any:
            said = kind if isinstance(kind, str) else kind(*args)
            pass_by(f"before {said}")
            result = await whole(*args, **options)
            pass_by(f"after {said}")
            return result

        @functools.wraps(whole)
        def now(*args: Any, **options: Any) -> Any:
            said = kind if isinstance(kind, str) else kind(*args)
            pass_by(f"before {said}")
            result = whole(*args, **options)
            pass_by(f"after {said}")
            return result

        setattr(owner, name, later if _is_async(whole) else now)

    around(files._LocalFiles, "delete_path", lambda _, path: f"deleting {_kind(Path(path))}")
    around(files._LocalFiles, "delete_folder", "deleting the run")
    around(files._LocalFiles, "move", "moving damaged records")
    around(resuming, "remove_unfinished", "unfinished files removed")
    around(reserve.Reserve, "_grow", "space reserved")
    around(reserve.Reserve, "release", "space released")
    around(FileLock, "take", "lock taken")
    around(FileLock, "replace", "lock replaced")
    around(starting.FlowStart, "start", "flow started")
    around(ending, "aggregate", "aggregation")
    around(ending, "write_summary", "summary artifact")
    around(ending, "write_failed_lines", "table artifact")
    around(lease.Lease, "__aenter__", "lease held")

    made = writer.RecordWriter.__init__

    def make(self: writer.RecordWriter, records: Any, kept: Callable[[Any], None], failed: Any) -> None:
        def keep(outcomes: Any) -> None:
            pass_by("before acknowledged")
            kept(outcomes)
            pass_by("after acknowledged")

        made(self, records, keep, failed)

    writer.RecordWriter.__init__ = make  # type: ignore[method-assign]

    create, write = lease.Lease._create, lease.Lease._write

    async def create_lease(self: lease.Lease) -> None:
        with _meaning("lease taken"):
            await create(self)

    async def write_lease(self: lease.Lease, *, released: bool = False) -> None:
        with _meaning("lease released" if released else "lease renewed"):
            await write(self, released=released)

    lease.Lease._create = create_lease  # type: ignore[method-assign]
    lease.Lease._write = write_lease  # type: ignore[method-assign]


class _meaning:  # noqa: N801 - used like a function
    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> None:
        self._token = _LEASE.set(self._text)

    def __exit__(self, *_: object) -> None:
        _LEASE.reset(self._token)


def _is_async(function: Any) -> bool:
    import inspect

    return inspect.iscoroutinefunction(function)


def hurry() -> None:
    """Let leases be renewed while a short run lasts, and be taken over soon."""
    lease.RENEW_EVERY_SEC = 0.05
    lease.WATCH_SEC, lease.WATCH_LOOKS = 0.3, 3


assert care  # imported for its functions' modules, whose calls go through `files`
