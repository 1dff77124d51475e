"""The program of a worker process: one flow, loaded once; sync code a line at a time, async code many lines at once.

`python -m prefect_batchflow.execution.worker PERMITS`, started by `worker_process`, which says what permits are; PERMITS is
the descriptor of their pipe. Messages come on standard input and go to standard
output as `wire` has them; both are moved away before user code is imported, so that what it prints goes to standard error
and what it reads is empty. The import chain is the standard library, `definition`, `tools` and `execution`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import functools
import io
import json
import os
import pickle
import resource
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from prefect_batchflow.exceptions import BatchflowException, UnexpectedError, error_dict, innermost_code
from prefect_batchflow.execution import wire
from prefect_batchflow.execution.loader import load_program
from prefect_batchflow.execution.nodes import encode_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_batchflow.execution.nodes import Program

LOG_LIMIT = 64 * 1024
"""Characters of a line's output that its record keeps."""
OBEY_WITHIN_SEC = 1.0
"""How long a cancelled line may take to end; one that goes on costs its process."""


class _Printed:
    """What one line printed: its beginning, for a line that prints without end must not fill the memory."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = LOG_LIMIT
        self._left_out = 0

    def add(self, text: str) -> None:
        kept = text[: self._room]
        if kept:
            self._parts.append(kept)
            self._room -= len(kept)
        self._left_out += len(text) - len(kept)

    def text(self) -> str:
        more = f"\n… {self._left_out} more characters" if self._left_out else ""
        return "".join(self._parts) + more


class _LineOutput(io.TextIOBase):
    """Standard output and error of user code: kept for the line that prints, and passed on to the engine.

    What is passed on is read there only when the line's process dies; a copy in the line's record is enough otherwise.
    """

    _printed: ContextVar[_Printed | None] = ContextVar("_printed", default=None)

    only: ClassVar[_Printed | None] = None
    """Of the one line that runs, if lines come one at a time: its threads have no context of it."""
    has_printed = False
    """Whether anything was printed since this was last reset."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, text: str) -> int:
        printed = self._printed.get() or self.only
        if printed is not None:
            printed.add(text)
        self.has_printed = True
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._fd, data) :]
        return len(text)

    @classmethod
    def begin(cls) -> _Printed:
        """Keep what is printed from here on, in this context."""
        printed = _Printed()
        cls._printed.set(printed)
        return printed


def _reply(head: dict[str, Any], record: dict[str, Any], printed: _Printed) -> bytes:
    """A line's record, and of it what the engine needs to know at once."""
    record["line_number"] = head["line_number"]
    record["attempt"] = head["attempt"]
    record["input_hash"] = head["input_hash"]
    record["logs"] = printed.text()
    body = encode_record(record)
    error = record["error"]
    tokens = record["tokens"]
    return wire.pack(
        {
            "op": "line",
            "id": head["id"],
            "status": record["status"],
            "duration_sec": record["duration_sec"],
            "tokens": [tokens["total_tokens"], tokens["prompt_tokens"], tokens["completion_tokens"]],
            "nodes": [[node["node"], node["status"]] for node in record["nodes"]],
            "error": error,
            "spent": _is_spent(record),
        },
        body,
    )


def _is_spent(record: dict[str, Any]) -> bool:
    """Whether the line was refused memory."""
    error = record["error"]
    return error is not None and innermost_code(error) == "LineOutOfMemoryError"


def _limit_memory(line_memory_mb: int | None) -> None:
    """Let this process grow by so much from here on; the flow's own imports are not counted."""
    if line_memory_mb is None:
        return
    with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 - no pathlib in a worker
        pages = int(statm.read().split()[0])
    limit = pages * resource.getpagesize() + line_memory_mb * 1024 * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _load(body: bytes) -> tuple[Program, dict[str, Any]]:
    job = pickle.loads(body)  # noqa: S301 - from the parent, which made it
    for entry in job["sys_path"]:
        if entry not in sys.path:
            sys.path.append(entry)
    program = load_program(job["flow"], job["init_kwargs"])
    _limit_memory(job["line_memory_mb"])
    return program, job


def _ready(program: Program) -> bytes:
    # Pickled by nobody: the description is rebuilt from plain JSON at the other end.
    description = program.description
    inputs = [
        {"name": i.name, "type": i.type, "description": i.description, **({} if i.required else {"default": i.default})}
        for i in description.inputs.values()
    ]
    head = {
        "op": "ready",
        "inputs": inputs,
        "is_async": description.is_async,
        "has_aggregation": description.has_aggregation,
    }
    return wire.pack(head)


def _run_sync(program: Program, read: _Reader, permits: int, output: _LineOutput, write: _Writer) -> None:
    while frame := read():
        head, body = frame
        permit = os.read(permits, 1)
        if permit == wire.SKIP:
            continue
        if not permit:  # the engine is gone
            return
        if output.has_printed:
            os.write(2, wire.NEXT_LINE)
            output.has_printed = False
        if head["op"] == "line":
            printed = _LineOutput.only = _LineOutput.begin()
            record = dict(program.run_line(head["line_number"], json.loads(body)))
            write(_reply(head, record, printed))
            if _is_spent(record):  # what the line left allocated would be refused to the next one
                return
        elif head["op"] == "aggregate":
            run = program.aggregate(json.loads(body))
            write(wire.pack({"op": "aggregate", "id": head["id"]}, json.dumps(run, default=repr).encode()))


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


async def _run_async(program: Program, fd: int, write: _Writer, lines_at_once: int) -> None:
    """Run every line that comes as a task of its own, until the engine closes the pipe."""
    loop = asyncio.get_running_loop()
    threads = _Threads(lines_at_once)
    loop.set_default_executor(threads)
    running: dict[int, asyncio.Task[None]] = {}
    unpacker = wire.Unpacker()
    closed = asyncio.Event()

    async def run_line(head: dict[str, Any], body: bytes) -> None:
        threads.job.set(head["id"])
        printed = _LineOutput.begin()
        record = await program.run_line_async(head["line_number"], json.loads(body))
        write(_reply(head, dict(record), printed))

    async def aggregate(head: dict[str, Any], body: bytes) -> None:
        threads.job.set(head["id"])
        run = await program.aggregate_async(json.loads(body))
        write(wire.pack({"op": "aggregate", "id": head["id"]}, json.dumps(run, default=repr).encode()))

    def cancel(key: int) -> None:
        if (task := running.get(key)) is not None:
            task.cancel()
            loop.call_later(OBEY_WITHIN_SEC, look_after, key)
        # Said whether or not the line obeys: it shows that the loop still turns.
        write(wire.pack({"op": "canceled", "id": key}))

    def look_after(key: int) -> None:
        if key in running or threads.are_busy_with(key):
            write(wire.pack({"op": "stuck", "id": key}))
        threads.forget(key)

    def on_end(key: int, task: asyncio.Task[None]) -> None:
        del running[key]
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


class _Reader:
    """Gives one message after another from a blocking pipe; `None` when it is closed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unpacker = wire.Unpacker()
        self._waiting: list[wire.Frame] = []

    def __call__(self) -> wire.Frame | None:
        while not self._waiting:
            data = os.read(self._fd, 1 << 20)
            if not data:
                return None
            self._waiting = self._unpacker.feed(data)
        return self._waiting.pop(0)


class _Writer:
    """Writes whole messages to a blocking pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, message: bytes) -> None:
        view = memoryview(message)
        while view:
            view = view[os.write(self._fd, view) :]


def main(permits: int) -> None:
    """Load the flow the engine sends, say what it is or why it does not load, and run lines until the pipe closes."""
    os.set_inheritable(permits, False)
    fd_in, fd_out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the process's own, for its life
    sys.stdout = sys.stderr = output = _LineOutput(2)
    faulthandler.enable(file=2)
    read, write = _Reader(fd_in), _Writer(fd_out)
    first = read()
    if first is None:
        return
    try:
        program, job = _load(first[1])
        ready = _ready(program)
    except BaseException as exc:  # noqa: BLE001 - user code is imported here, and may even exit
        error = exc if isinstance(exc, BatchflowException) else UnexpectedError(f"({type(exc).__name__}) {exc}")
        write(wire.pack({"op": "refused", "error": error_dict(error)}))
        return
    write(ready)
    if program.description.is_async:
        asyncio.run(_run_async(program, fd_in, write, job["lines_at_once"]))
    _run_sync(program, read, permits, output, write)
    # No clean-up of user code: threads it left behind must not keep a worker alive.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
