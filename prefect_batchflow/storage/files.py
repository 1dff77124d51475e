"""What the storage of a run needs of a file system."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from prefect_batchflow.exceptions import BatchflowException, StorageError, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ANOTHER_STORAGE = "Make it readable, or give another one, with --storage or BATCHFLOW_STORAGE."


class RunFiles(Protocol):
    """What the storage needs of a file system; `blocks.RunStorageBlock` is one, over fsspec."""

    async def read_path(self, path: str) -> bytes:
        """A key's bytes; `FileNotFoundError` when there is none, any other error when that cannot be told."""
        ...

    async def write_path(self, path: str, content: bytes) -> None:
        """Write a key whole."""
        ...

    async def create_path(self, path: str, content: bytes) -> None:
        """Write a key whole; `FileExistsError` when there is one already."""
        ...

    async def put_file(self, path: str, source: Path) -> None:
        """Copy a local file to a key, whole."""
        ...

    async def get_file(self, path: str, target: Path) -> None:
        """Copy a key to a local file."""
        ...

    async def list_names(self, folder: str) -> list[str]:
        """The names below a folder, sorted."""
        ...

    def local_path(self, key: str) -> Path | None:
        """The file of a key on this machine, if it is one."""
        ...

    def location(self, key: str = "") -> str:
        """Where a key lies, for people."""
        ...


@contextlib.contextmanager
def storage_errors(files: RunFiles, verb: str, key: str = "", cure: str = "") -> Iterator[None]:
    """Raise whatever the storage raises as a `StorageError` that says what failed, where and why.

    Args:
        files: The storage's file system.
        verb: `read`, `write` or `list`.
        key: The file or folder in question.
        cure: What to do about it, in whole sentences.
    """
    try:
        yield
    except BatchflowException:
        raise
    except Exception as exc:
        text = f"Cannot {verb} the run storage at {files.location(key)}: {told(exc)}. {cure}"
        raise StorageError(text.rstrip(), key=key) from exc


def write_beside(folder: Path, name: str, write: Callable[[Path], object], *, again: bool = True) -> None:
    """Write a file of an output folder whole, under another name first; one that is there only if `again`.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        if not again and (folder / name).exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".writing-{name}"
        write(temporary)
        temporary.replace(folder / name)
    except OSError as exc:
        raise StorageError(
            f"Cannot write the output folder {folder}: {exc}. The run's own folder has the outputs too; give a folder "
            "that can be written."
        ) from exc
