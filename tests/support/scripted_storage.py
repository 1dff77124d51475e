"""An fsspec file system, `scripted://`, that keeps files in memory and fails as a script says."""

from __future__ import annotations

import contextlib
import errno
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class HttpError(Exception):
    """As packages of stores raise them: only an attribute tells the status."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text or f"HTTP {status}")
        self.status = status


class UnknownClientError(Exception):
    """An error that nobody has a class for."""


def _slow_down() -> Exception:
    error = OSError(errno.EBUSY, "Please reduce your request rate.")
    error.__cause__ = HttpError(503, "SlowDown")
    return error


ERRORS: dict[str, Callable[[], Exception]] = {
    "timeout": lambda: TimeoutError("the store did not answer"),
    "reset": lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "403": lambda: PermissionError("Forbidden"),
    "429": lambda: HttpError(429),
    "500": lambda: OSError(errno.EREMOTEIO, "We encountered an internal error. Please try again."),
    "503": _slow_down,
    "client error": lambda: UnknownClientError("something went wrong"),
}
"""Errors of one call, that a next call need not meet."""
LIES = ("short read", "empty read", "absent read", "stale listing", "empty listing", "lost answer")
"""Answers that are wrong, and a write that arrives although its answer is an error."""
KINDS = {"absent read": "read", "short read": "read", "empty read": "read", "stale listing": "list",
         "empty listing": "list", "lost answer": "write"}  # fmt: skip


@dataclass
class Script:
    """The `n`-th call of a kind goes wrong, or that and all that follow.

    Args:
        fault: One of `ERRORS` or `LIES`.
        n: Counted from 1; 0 for no fault.
        kind: `read`, `write`, `list`, or empty for any of them.
        lasts: Whether the calls after it go wrong too.
    """

    fault: str
    n: int
    kind: str = ""
    lasts: bool = False
    calls: list[tuple[str, str]] = field(default_factory=list)
    """All calls: their kind and path."""
    fired: bool = False
    _count: int = 0

    def strikes(self, kind: str, path: str) -> bool:
        """Count a call; whether it goes wrong."""
        self.calls.append((kind, path))
        if kind != (KINDS.get(self.fault) or self.kind or kind):
            return False
        self._count += 1
        struck = self._count == self.n or (self.lasts and self.n > 0 and self._count > self.n)
        self.fired = self.fired or struck
        return struck


class ScriptedFileSystem(MemoryFileSystem):  # type: ignore[misc] # it ships no types
    """Files in memory; each read, write and listing first asks the script."""

    protocol = "scripted"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in its base class
    pseudo_dirs = [""]  # noqa: RUF012
    script: Script | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("scripted://", "memory://")))

    def _strikes(self, kind: str, path: str) -> str:
        """The lie to tell, if any; an error is raised."""
        script = type(self).script
        if script is None or not script.strikes(kind, path):
            return ""
        if script.fault in ERRORS:
            raise ERRORS[script.fault]()
        return script.fault

    def cat_file(self, path: str, **options: Any) -> bytes:
        lie = self._strikes("read", path)
        if lie == "absent read":
            raise FileNotFoundError(path)
        content = bytes(super().cat_file(path, **options))
        return content[: len(content) // 2] if lie == "short read" else b"" if lie == "empty read" else content

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        lie = self._strikes("read", rpath)
        if lie == "absent read":
            raise FileNotFoundError(rpath)
        content = bytes(super().cat_file(rpath))
        cut = {"short read": len(content) // 2, "empty read": 0}.get(lie, len(content))
        with open(lpath, "wb") as file:  # noqa: PTH123
            file.write(content[:cut])

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        lie = self._strikes("write", path)
        super().pipe_file(path, value, mode=mode, **options)
        if lie:
            raise TimeoutError("the answer was lost")

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        lie = self._strikes("write", rpath)
        with open(lpath, "rb") as file:  # noqa: PTH123
            super().pipe_file(rpath, file.read())
        if lie:
            raise TimeoutError("the answer was lost")

    def rm_file(self, path: str) -> None:
        lie = self._strikes("write", path)
        super()._rm(path)
        if lie:
            raise TimeoutError("the answer was lost")

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        lie = self._strikes("list", path)
        found = list(super().ls(path, detail=detail, **options))
        return found[: len(found) // 2] if lie == "stale listing" else [] if lie == "empty listing" else found


fsspec.register_implementation("scripted", ScriptedFileSystem, clobber=True)


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[Script]:
    """Let the script rule."""
    ScriptedFileSystem.script = script
    try:
        yield script
    finally:
        ScriptedFileSystem.script = None


def content_of(path: str) -> bytes:
    """A file, past every script."""
    return io.BytesIO(ScriptedFileSystem.store[path].getbuffer()).read()
