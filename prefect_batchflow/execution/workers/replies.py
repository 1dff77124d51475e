"""What a worker sends: the records of its lines, with what they printed."""

from __future__ import annotations

import json
import os
from threading import Lock
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import innermost_code
from prefect_batchflow.execution.program.record import lenient
from prefect_batchflow.execution.workers import wire
from prefect_batchflow.execution.workers.streams import PrintedOutput
from prefect_batchflow.results.records import in_log, line_record, receipt_row

if TYPE_CHECKING:
    from prefect_batchflow.execution.scrubbing import Scrubber
    from prefect_batchflow.execution.workers.streams import Printed
    from prefect_batchflow.results.records import AggregationRun, LineRun


def line_reply(head: dict[str, Any], run: LineRun, printed: Printed, scrubber: Scrubber) -> tuple[bytes, bool]:
    """The message with a line's record and what the engine needs at once; and whether the line hit the memory limit."""
    run["logs"] = PrintedOutput.logs(printed, scrubber)
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


def wait_message(line_number: int, sec: float, status: int | None) -> bytes:
    """The message that a line waits for a service, and with which status the service has refused its call."""
    return wire.pack({"op": "wait", "line_number": line_number, "sec": sec, "status": status})


class Writer:
    """Writes whole messages to a blocking pipe, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()
        self._writing = Lock()

    def __call__(self, message: bytes) -> None:
        """Write a message; this waits while the pipe is full. A fork of user code exits here: it is not a second worker."""
        if os.getpid() != self._pid:
            os._exit(0)
        view = memoryview(message)
        with self._writing:
            while view:
                view = view[os.write(self._fd, view) :]
