"""An fsspec file system, `scripted://`, that keeps files in memory and fails as a script says."""

from __future__ import annotations

import contextlib
import errno
import io
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

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
"""The kind of call that each lie is about, unless the script says another one."""
CALLS: dict[str, tuple[str, ...]] = {
    "list": (*ERRORS, "stale listing", "empty listing"),
    "read": (*ERRORS, "short read", "empty read", "absent read"),
    "write": (*ERRORS, "lost answer"),
    "delete": (*ERRORS, "lost answer"),
    "info": (*ERRORS, "absent read"),
}
"""All that can go wrong, by the kind of call."""


@dataclass
class Script:
    """The `n`-th call of a kind goes wrong, or that and all that follow.

    Args:
        fault: One of `ERRORS` or `LIES`.
        n: Counted from 1; 0 for no fault.
        kind: One of `CALLS`; empty for that of the lie, or any of them.
        lasts: Whether the calls after it go wrong too.
        every: If not 0, each call that is so many calls after the last that went wrong does, too.
    """

    fault: str
    n: int
    kind: str = ""
    lasts: bool = False
    every: int = 0
    calls: list[tuple[str, str]] = field(default_factory=list)
    """All calls: their kind and path."""
    fired: bool = False
    struck: str = ""
    """The path of the first call that went wrong."""
    _count: int = 0

    def strikes(self, kind: str, path: str) -> bool:
        """Count a call; whether it goes wrong."""
        self.calls.append((kind, path))
        if kind != (self.kind or KINDS.get(self.fault) or kind):
            return False
        self._count += 1
        later = self._count - self.n if self.n > 0 else -1
        struck = later == 0 or (later > 0 and (self.lasts or (self.every > 0 and later % self.every == 0)))
        if struck and not self.fired:
            self.fired, self.struck = True, path
        return struck


class ScriptedFileSystem(MemoryFileSystem):  # type: ignore[misc] # it ships no types
    """Files in memory; each read, write and listing first asks the script."""

    protocol = "scripted"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in its base class
    pseudo_dirs = [""]  # noqa: RUF012
    script: Script | None = None
    _inside = threading.local()
    """Set while a call is carried out: the base class makes calls of its own."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("scripted://", "memory://")))

    def _strikes(self, kind: str, path: str) -> str:
        """The lie to tell, if any; an error is raised."""
        script = type(self).script
        if getattr(self._inside, "call", False) or script is None or not script.strikes(kind, path):
            return ""
        if script.fault in ERRORS:
            raise ERRORS[script.fault]()
        return script.fault

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        before = getattr(self._inside, "call", False)
        self._inside.call = True
        try:
            yield
        finally:
            self._inside.call = before

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if self._strikes("info", path):
            raise FileNotFoundError(path)
        with self._call():
            return dict(super().info(path, **options))

    def cat_file(self, path: str, **options: Any) -> bytes:
        lie = self._strikes("read", path)
        if lie == "absent read":
            raise FileNotFoundError(path)
        with self._call():
            content = bytes(super().cat_file(path, **options))
        return content[: len(content) // 2] if lie == "short read" else b"" if lie == "empty read" else content

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        lie = self._strikes("read", rpath)
        if lie == "absent read":
            raise FileNotFoundError(rpath)
        with self._call():
            content = bytes(super().cat_file(rpath))
        cut = {"short read": len(content) // 2, "empty read": 0}.get(lie, len(content))
        with open(lpath, "wb") as file:  # noqa: PTH123
            file.write(content[:cut])

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        lie = self._strikes("write", path)
        with self._call():
            super().pipe_file(path, value, mode=mode, **options)
        if lie:
            raise TimeoutError("the answer was lost")

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        lie = self._strikes("write", rpath)
        with self._call(), open(lpath, "rb") as file:  # noqa: PTH123
            super().pipe_file(rpath, file.read())
        if lie:
            raise TimeoutError("the answer was lost")

    def rm_file(self, path: str) -> None:
        lie = self._strikes("delete", path)
        with self._call():
            super()._rm(path)
        if lie:
            raise TimeoutError("the answer was lost")

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        lie = self._strikes("write", path2)
        with self._call():
            super().cp_file(path1, path2, **options)
        if lie:
            raise TimeoutError("the answer was lost")

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        lie = self._strikes("list", path)
        with self._call():
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


def kept(root: str) -> dict[str, bytes]:
    """All files below a folder, past every script."""
    return {path: content_of(path) for path in list(ScriptedFileSystem.store) if path.startswith(f"/{root}/")}


def keep(root: str, files: dict[str, bytes]) -> None:
    """Let a folder have these files, and no others, past every script."""
    for path in kept(root):
        del ScriptedFileSystem.store[path]
    for path, content in files.items():
        ScriptedFileSystem.store[path] = MemoryFile(None, path, content)


def content_of(path: str) -> bytes:
    """A file, past every script."""
    return io.BytesIO(ScriptedFileSystem.store[path].getbuffer()).read()
