"""Async code in a worker: many lines at once on one event loop, with their sync functions on threads.

It is a module of its own because asyncio takes a third of a worker's start, and sync code does not need it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from prefect_batchflow.execution.workers import wire
from prefect_batchflow.execution.workers.replies import Writer, aggregate_reply, line_reply
from prefect_batchflow.execution.workers.streams import Printed, PrintedOutput, keep_apart
from prefect_batchflow.tools.context import travelling

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from contextvars import Context

    from prefect_batchflow.execution.program.program import Program
    from prefect_batchflow.execution.scrubbing import Scrubber
    from prefect_batchflow.results.records import LineRun

OBEY_WITHIN_SEC = 1.0
"""How long a cancelled line can take to end; after that its process is replaced."""


def main_loop() -> asyncio.AbstractEventLoop:
    """The event loop of the process: the one that the flow's modules use when they are imported, otherwise a new one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            loop = asyncio.get_event_loop()
        except RuntimeError:
            loop = asyncio.new_event_loop()
    if loop.is_closed():
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


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
        self._permits: int | None = None
        """The pipe of permits, as long as jobs come that the engine has sent to a worker of sync code."""

    async def run(self) -> None:
        """Run lines until the engine closes the pipe, then exit the process."""
        keep_apart()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(self._threads)
        loop.add_reader(self._fd, self._on_readable)
        await loop.create_future()

    async def take_over(
        self, unpacker: wire.Unpacker, frames: Iterable[wire.Frame], permits: int, begin: Callable[[AsyncHost], None]
    ) -> None:
        """Do the same after a line has turned out to be async.

        Args:
            unpacker: What the worker has read, incomplete messages.
            frames: What it has read and not begun.
            permits: The pipe of permits.
            begin: Begins the rest of that line.
        """
        self._unpacker, self._permits = unpacker, permits
        self._write(wire.pack({"op": "async"}))
        begin(self)
        self._take(frames)
        await self.run()

    def begin(self, head: dict[str, Any], work: Coroutine[Any, Any, None], context: Context | None = None) -> None:
        """Begin a job."""
        key = head["id"]
        task = self._running[key] = asyncio.get_running_loop().create_task(work, context=context)
        task.add_done_callback(functools.partial(self._on_end, key))

    def _on_readable(self) -> None:
        data = os.read(self._fd, 1 << 20)
        if not data:
            # Do not return through asyncio, which would wait for lines and threads that never end.
            os._exit(0)
        self._take(self._unpacker.feed(data))

    def _take(self, frames: Iterable[wire.Frame]) -> None:
        for head, body in frames:
            if head["op"] == "cancel":
                self._cancel(head["id"])
            elif head["op"] == "async":  # the engine knows, and gives no more permits
                self._permits = None
            elif self._is_permitted():
                work = self._run_line if head["op"] == "line" else self._aggregate
                self.begin(head, work(head, body))

    def _is_permitted(self) -> bool:
        """Whether the engine has not taken back the job that it sent."""
        if self._permits is None:
            return True
        if not (permit := os.read(self._permits, 1)):
            os._exit(0)
        return permit != wire.SKIP

    async def _run_line(self, head: dict[str, Any], body: bytes) -> None:
        inputs = json.loads(body)
        printed = PrintedOutput.begin()
        run = self._program.run_line_async(head["line_number"], inputs, head.get("images"))
        await self._answer(head, inputs, run, printed)

    async def finish_line(
        self, head: dict[str, Any], body: bytes, rest: Coroutine[Any, Any, LineRun], printed: Printed
    ) -> None:
        """Run the rest of a line that has begun as sync code."""
        await self._answer(head, json.loads(body), rest, printed)

    async def _answer(
        self, head: dict[str, Any], inputs: dict[str, Any], work: Coroutine[Any, Any, LineRun], printed: Printed
    ) -> None:
        key = head["id"]
        self._threads.job.set(key)
        self._outputs[key] = printed
        try:
            run = await work
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
