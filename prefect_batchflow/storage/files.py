"""What the storage of a run needs of a file system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path


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
