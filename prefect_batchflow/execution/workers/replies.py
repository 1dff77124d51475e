"""What a worker sends: the output and the records of its lines."""

from __future__ import annotations

import io
import json
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from prefect_batchflow.exceptions import innermost_code
from prefect_batchflow.execution.program.record import lenient
from prefect_batchflow.execution.workers import wire
from prefect_batchflow.results.records import in_log, line_record, receipt_row
from prefect_batchflow.tools.context import travelling

if TYPE_CHECKING:
    from prefect_batchflow.execution.scrubbing import Scrubber
    from prefect_batchflow.results.records import AggregationRun, LineRun

LOG_LIMIT = 64 * 1024
"""Characters of a line's output that its record keeps."""


class Printed:
    """What one line printed; only the beginning is kept, so that endless output cannot fill the memory."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = LOG_LIMIT
        self._left_out = 0

    def add(self, text: str) -> None:
        """Keep as much of a text as fits."""
        kept = text[: self._room]
        if kept:
            self._parts.append(kept)
            self._room -= len(kept)
        self._left_out += len(text) - len(kept)

    def text(self, scrubber: Scrubber) -> str:
        """The kept text without secrets, and the number of characters left out."""
        kept = "".join(self._parts)
        if not self._left_out:
            return scrubber.text(kept)
        return f"{scrubber.beginning(kept)}\n… {self._left_out} more characters"


class PrintedOutput(io.TextIOBase):
    """Standard output and error of user code: each text is kept for the line that prints it, and passed on to the engine.

    The engine uses it only if the process dies. Otherwise the line's record has the text.
    """

    _printed: ContextVar[Printed | None] = travelling(ContextVar("_printed", default=None))

    only: ClassVar[Printed | None] = None
    """For the line that runs, if lines run one at a time: threads of the flow's modules do not have its context."""

    encoding = "utf-8"

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The process's standard error."""
        return self._fd

    def write(self, text: str) -> int:
        """Keep a text for the line that prints it, and pass it on to the engine."""
        printed = self._printed.get() or self.only
        if printed is not None:
            printed.add(text)
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._fd, data) :]
        return len(text)

    @classmethod
    def begin(cls) -> Printed:
        """Keep what is printed in this context from now on."""
        printed = Printed()
        cls._printed.set(printed)
        return printed

    @classmethod
    def end(cls) -> None:
        """Keep nothing that is printed in this context."""
        cls._printed.set(None)
        cls.only = None


def line_reply(head: dict[str, Any], run: LineRun, printed: Printed, scrubber: Scrubber) -> tuple[bytes, bool]:
    """The message with a line's record and what the engine needs at once; and whether the line hit the memory limit."""
    run["logs"] = printed.text(scrubber)
    record, body = scrubber.encode(line_record(run, head["line_number"], head["attempt"], head["input_hash"]))
    error = record["error"]
    spent = error is not None and innermost_code(error) == "LineOutOfMemoryError"
    told = {"printed": in_log(record["logs"])} if record["logs"] else {}
    reply = {
        **told,
        "op": "line",
        "id": head["id"],
        "receipt": receipt_row(record),
        "duration_sec": record["duration_sec"],
        "error": error,
        "spent": spent,
    }
    return wire.pack(reply, body), spent


def aggregate_reply(head: dict[str, Any], run: AggregationRun, scrubber: Scrubber) -> bytes:
    """The message with what the aggregation did."""
    body = lenient(run).encode()
    if scrubber.finds_in(body):
        body = json.dumps(scrubber.record(json.loads(body))).encode()
    return wire.pack({"op": "aggregate", "id": head["id"]}, body)


class Writer:
    """Writes whole messages to a blocking pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()

    def __call__(self, message: bytes) -> None:
        """Write a message; this waits while the pipe is full. A fork of user code exits here: it is not a second worker."""
        if os.getpid() != self._pid:
            os._exit(0)
        view = memoryview(message)
        while view:
            view = view[os.write(self._fd, view) :]
