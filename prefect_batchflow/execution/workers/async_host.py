"""Async code in a worker: many lines at once on one event loop, with their sync functions on threads.

It is a module of its own because asyncio takes a third of a worker's start, and sync code does not need it.
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
from prefect_batchflow.tools.context import travelling

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_batchflow.execution.program.program import Program
    from prefect_batchflow.execution.scrubbing import Scrubber

OBEY_WITHIN_SEC = 1.0
"""How long a cancelled line can take to end; after that its process is replaced."""


class _Threads(ThreadPoolExecutor):
    """Runs the sync functions of async lines, and knows which lines still have one running."""

    job: ClassVar[ContextVar[int | None]] = travelling(ContextVar("job", default=None))
    """The id of the calling job."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(max_workers)
        self._calls: dict[int, set[Future[Any]]] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        call = super().submit(fn, *args, **kwargs)
        if (key := self.job.get()) is not None:
            self._calls.setdefault(key, set()).add(call)
        return call

    def are_busy_with(self, key: int) -> bool:
        return not all(call.done() for call in self._calls.get(key, ()))

    def forget(self, key: int) -> None:
        self._calls.pop(key, None)


class AsyncHost:
    """Runs each line that comes in on `fd` as its own task, with `lines_at_once` threads for sync functions."""

    def __init__(self, program: Program, fd: int, write: Writer, lines_at_once: int, scrubber: Scrubber) -> None:
        self._program, self._fd, self._write, self._scrubber = program, fd, write, scrubber
        self._threads = _Threads(lines_at_once)
        self._running: dict[int, asyncio.Task[None]] = {}
        self._cancelled: set[int] = set()
        """The jobs that the engine has cancelled."""
        self._outputs: dict[int, Printed] = {}
        self._unpacker = wire.Unpacker()

    async def run(self) -> None:
        """Run lines until the engine closes the pipe, then exit the process."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(self._threads)
        loop.add_reader(self._fd, self._on_readable)
        await loop.create_future()

    def _on_readable(self) -> None:
        data = os.read(self._fd, 1 << 20)
        if not data:
            # Do not return through asyncio, which would wait for lines and threads that never end.
            os._exit(0)
        for head, body in self._unpacker.feed(data):
            key = head["id"]
            if head["op"] == "cancel":
                self._cancel(key)
                continue
            work = self._run_line if head["op"] == "line" else self._aggregate
            task = self._running[key] = asyncio.get_running_loop().create_task(work(head, body))
            task.add_done_callback(functools.partial(self._on_end, key))

    async def _run_line(self, head: dict[str, Any], body: bytes) -> None:
        key = head["id"]
        self._threads.job.set(key)
        printed = self._outputs[key] = PrintedOutput.begin()
        inputs = json.loads(body)
        try:
            run = await self._program.run_line_async(head["line_number"], inputs, head.get("images"))
        except asyncio.CancelledError as exc:
            if key in self._cancelled:
                raise
            run = self._program.failed_line(head["line_number"], inputs, exc)  # it cancelled itself
        reply, _ = line_reply(head, run, printed, self._scrubber)
        self._write(reply)

    async def _aggregate(self, head: dict[str, Any], body: bytes) -> None:
        self._threads.job.set(head["id"])
        run = await self._program.aggregate_async(json.loads(body))
        self._write(aggregate_reply(head, run, self._scrubber))

    def _cancel(self, key: int) -> None:
        if (task := self._running.get(key)) is not None:
            self._cancelled.add(key)
            task.cancel()
            asyncio.get_running_loop().call_later(OBEY_WITHIN_SEC, self._look_after, key)
        # Sent whether or not the line obeys, to show that the loop still runs; with the output, because no record follows.
        printed = self._outputs[key].text(self._scrubber) if key in self._outputs else ""
        self._write(wire.pack({"op": "canceled", "id": key}, printed.encode("utf-8", "backslashreplace")))

    def _look_after(self, key: int) -> None:
        if key in self._running or self._threads.are_busy_with(key):
            self._write(wire.pack({"op": "stuck", "id": key}))
        self._threads.forget(key)

    def _on_end(self, key: int, task: asyncio.Task[None]) -> None:
        del self._running[key]
        self._outputs.pop(key, None)
        self._cancelled.discard(key)
        if task.cancelled():
            return
        self._threads.forget(key)
        if (error := task.exception()) is not None:
            # Our own error: those of user code are in the record. The engine sees that this process dies, and in which line.
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
