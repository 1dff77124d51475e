"""Async code in a worker: many lines at once on one event loop, their sync functions on threads.

A module of its own, for asyncio is a third of a worker's start, and sync code does without.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from prefect_batchflow.execution.workers import wire
from prefect_batchflow.execution.workers.replies import Printed, PrintedOutput, Writer, aggregate_reply, line_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_batchflow.execution.program.nodes import Program
    from prefect_batchflow.execution.scrubbing import Scrubber

OBEY_WITHIN_SEC = 1.0
"""How long a cancelled line may take to end; one that goes on costs its process."""


def run_async(program: Program, fd: int, write: Writer, lines_at_once: int, scrubber: Scrubber) -> None:
    """Run lines until the engine closes the pipe; ends the process.

    Args:
        program: The flow.
        fd: Where messages come from.
        write: Where answers go.
        lines_at_once: Threads for sync functions.
        scrubber: Takes secrets out of the answers.
    """
    asyncio.run(_host(program, fd, write, lines_at_once, scrubber))


class _Threads(ThreadPoolExecutor):
    """Runs the sync functions of async lines, and knows of which lines one still runs."""

    job: ClassVar[ContextVar[int]] = ContextVar("job")
    """The id of the job that calls."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(max_workers)
        self._calls: dict[int, set[Future[Any]]] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        call = super().submit(fn, *args, **kwargs)
        if (key := self.job.get(None)) is not None:
            self._calls.setdefault(key, set()).add(call)
        return call

    def are_busy_with(self, key: int) -> bool:
        return not all(call.done() for call in self._calls.get(key, ()))

    def forget(self, key: int) -> None:
        self._calls.pop(key, None)


async def _host(program: Program, fd: int, write: Writer, lines_at_once: int, scrubber: Scrubber) -> None:
    """Run every line that comes as a task of its own, until the engine closes the pipe."""
    loop = asyncio.get_running_loop()
    threads = _Threads(lines_at_once)
    loop.set_default_executor(threads)
    running: dict[int, asyncio.Task[None]] = {}
    cancelled: set[int] = set()
    """Those that the engine wants ended."""
    outputs: dict[int, Printed] = {}
    unpacker = wire.Unpacker()
    closed = asyncio.Event()

    async def run_line(head: dict[str, Any], body: bytes) -> None:
        threads.job.set(head["id"])
        printed = outputs[head["id"]] = PrintedOutput.begin()
        inputs = json.loads(body)
        try:
            record = await program.run_line_async(head["line_number"], inputs, head.get("images"))
        except asyncio.CancelledError as exc:
            if head["id"] in cancelled:
                raise
            record = program.failed_line(head["line_number"], inputs, exc)  # it has cancelled itself
        write(line_reply(head, dict(record), printed, scrubber))

    async def aggregate(head: dict[str, Any], body: bytes) -> None:
        threads.job.set(head["id"])
        run = await program.aggregate_async(json.loads(body))
        write(aggregate_reply(head, run, scrubber))

    def cancel(key: int) -> None:
        if (task := running.get(key)) is not None:
            cancelled.add(key)
            task.cancel()
            loop.call_later(OBEY_WITHIN_SEC, look_after, key)
        # Said whether or not the line obeys: it shows that the loop still turns. No record follows that has its output.
        printed = outputs[key].text(scrubber) if key in outputs else ""
        write(wire.pack({"op": "canceled", "id": key}, printed.encode("utf-8", "backslashreplace")))

    def look_after(key: int) -> None:
        if key in running or threads.are_busy_with(key):
            write(wire.pack({"op": "stuck", "id": key}))
        threads.forget(key)

    def on_end(key: int, task: asyncio.Task[None]) -> None:
        del running[key]
        outputs.pop(key, None)
        cancelled.discard(key)
        if task.cancelled():
            return
        threads.forget(key)
        if (error := task.exception()) is not None:
            # Nothing that the line's code raised, which is data. The engine sees this process die, and which line did it.
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)

    def on_readable() -> None:
        data = os.read(fd, 1 << 20)
        if not data:
            closed.set()
            return
        for head, body in unpacker.feed(data):
            if head["op"] == "cancel":
                cancel(head["id"])
                continue
            work = run_line if head["op"] == "line" else aggregate
            task = loop.create_task(work(head, body))
            running[head["id"]] = task
            task.add_done_callback(functools.partial(on_end, head["id"]))

    loop.add_reader(fd, on_readable)
    await closed.wait()
    # Not back through asyncio, which would wait for lines and threads that do not end.
    os._exit(0)
