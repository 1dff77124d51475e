"""The standard streams of a worker: text streams as Python's, whose text is kept for the line that prints it."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from prefect_batchflow.tools.context import travelling

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from prefect_batchflow.execution.scrubbing import Scrubber

LOG_LIMIT = 64 * 1024
"""Characters of a line's output that its record keeps."""
OUTSIDE, END_OUTSIDE = "[printed outside any line]\n", "[end of what was printed outside any line]\n"
"""They enclose, in the log of the next line that ends, what a thread or task has printed after the end of its line."""
_NAMES = ("stdout", "stderr")
_decoder = codecs.getincrementaldecoder("utf-8")


class Printed:
    """What one line printed; only the beginning is kept, so that endless output cannot fill the memory."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = LOG_LIMIT
        self._left_out = 0
        self._bytes: codecs.IncrementalDecoder | None = None
        """Decodes what is written as bytes, which can end within a character."""
        self.replaced: dict[str, Any] = {}
        """The streams that the line has put in the place of `sys.stdout` and `sys.stderr`, if lines run side by side."""
        self.ended = False

    def add(self, text: str) -> None:
        """Keep as much of a text as fits."""
        if self._bytes is not None:
            unfinished, self._bytes = self._bytes.decode(b"", final=True), None
            text = unfinished + text
        self._add(text)

    def add_bytes(self, data: bytes) -> None:
        """The same for bytes, in UTF-8."""
        if self._bytes is None:
            self._bytes = _decoder("backslashreplace")
        self._add(self._bytes.decode(data))

    def _add(self, text: str) -> None:
        kept = text[: self._room]
        if kept:
            self._parts.append(kept)
            self._room -= len(kept)
        self._left_out += len(text) - len(kept)

    def text(self, scrubber: Scrubber) -> str:
        """The kept text without secrets, and the number of characters left out."""
        self.add("")
        kept = "".join(self._parts)
        if not self._left_out:
            return scrubber.text(kept)
        return f"{scrubber.beginning(kept)}\n… {self._left_out} more characters"


class PrintedOutput(io.TextIOWrapper):
    """Standard output or error of user code: each text is kept for the line that prints it, and passed on to the engine.

    The engine uses it only if the process dies. Otherwise the line's record has the text. Nothing is buffered, and closing it
    does nothing: one line must not take it from the others.
    """

    _printed: ContextVar[Printed | None] = travelling(ContextVar("_printed", default=None))

    only: ClassVar[Printed | None] = None
    """For the line that runs, if lines run one at a time: threads of the flow's modules do not have its context."""
    _left: ClassVar[Printed | None] = None
    """For what threads and tasks print that outlive their line or belong to none."""

    mode = "w"

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(_PrintedBytes(fd, name), "utf-8", "backslashreplace", line_buffering=True, write_through=True)
        self._fd = fd

    def write(self, text: str, /) -> int:
        """Keep a text for the line that prints it, and pass it on to the engine."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if (printed := self.keeper()) is not None:
            printed.add(text)
        # Always UTF-8, whatever user code reconfigures: the engine reads it.
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._fd, data) :]
        return len(text)

    def close(self) -> None:
        """Do nothing."""

    def detach(self) -> io.BufferedWriter:
        """Give the stream of bytes, and stay usable for the other lines."""
        return cast("io.BufferedWriter", self.buffer)

    @classmethod
    def begin(cls) -> Printed:
        """Keep what is printed in this context from now on."""
        printed = Printed()
        cls._printed.set(printed)
        if cls._left is None:
            cls._left = Printed()
        return printed

    @classmethod
    def end(cls) -> None:
        """Keep nothing that is printed in this context."""
        cls._printed.set(None)
        cls.only = None

    @classmethod
    def keeper(cls) -> Printed | None:
        """What keeps what is printed here; `None` before the first line."""
        printed = cls._printed.get() or cls.only
        return cls._left if printed is None or printed.ended else printed

    @classmethod
    def logs(cls, printed: Printed, scrubber: Scrubber) -> str:
        """The log of a line that has ended, after what no line has printed since the last one."""
        for name in _NAMES:
            stream = getattr(sys, name)
            if not isinstance(stream, PrintedOutput):
                with contextlib.suppress(Exception):  # it is of user code, which has replaced ours
                    stream.flush()
        printed.ended = True
        said = "" if cls._left is None else cls._left.text(scrubber)
        if not said:
            return printed.text(scrubber)
        cls._left = Printed()
        return f"{OUTSIDE}{said.rstrip()}\n{END_OUTSIDE}{printed.text(scrubber)}"


class _PrintedBytes(io.BufferedWriter):
    """The `buffer` of such a stream."""

    def __init__(self, fd: int, name: str) -> None:
        raw = io.FileIO(fd, "w", closefd=False)
        raw.name = name
        super().__init__(raw)

    def write(self, data: ReadableBuffer, /) -> int:
        written = super().write(data)
        super().flush()
        if (printed := PrintedOutput.keeper()) is not None:
            printed.add_bytes(bytes(data))
        return written

    def close(self) -> None:
        """Do nothing, like the text stream."""


def install() -> None:
    """Make these the standard streams, and give user code an empty standard input."""
    # Also under the names that keep Python's own streams, which would write past the lines' logs.
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115 - stays open
    sys.stdout = sys.__stdout__ = PrintedOutput(1, "<stdout>")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = PrintedOutput(2, "<stderr>")  # type: ignore[misc]


def keep_apart() -> None:
    """Let lines that run side by side replace the streams each for itself, as `contextlib.redirect_stdout` does.

    `sys.stdout` gives a line its own stream. `print` does not read this attribute but the module's dictionary, where a stream
    is that asks for the line's.
    """
    process = {name: getattr(sys, name) for name in _NAMES}
    for name in _NAMES:
        setattr(sys, name, _LinesStream(name))
    _Sys.process = process
    sys.__class__ = _Sys


class _LinesStream:
    """What `print` finds: the stream of the line that prints."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(_Sys.stream(self._name), attribute)


def _per_line(name: str) -> property:
    def replace(_: ModuleType, stream: Any) -> None:
        printed = PrintedOutput.keeper()
        streams = _Sys.process if printed is None else printed.replaced
        if not isinstance(stream, _LinesStream):
            streams[name] = stream
        elif printed is not None:
            streams.pop(name, None)

    return property(lambda _: _Sys.stream(name), replace)


class _Sys(ModuleType):
    """The type of the module `sys` in a worker of async lines."""

    process: ClassVar[dict[str, Any]] = {}
    """The streams of code that runs outside lines."""

    @staticmethod
    def stream(name: str) -> Any:
        printed = PrintedOutput.keeper()
        replaced: dict[str, Any] = {} if printed is None else printed.replaced
        return replaced.get(name, _Sys.process[name])

    stdout = cast("Any", _per_line("stdout"))
    stderr = cast("Any", _per_line("stderr"))
