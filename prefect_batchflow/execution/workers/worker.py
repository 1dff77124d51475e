"""The program of a worker process: it loads one flow, then runs its lines; sync code one at a time, async code many at once.

Code can turn out to be async at a call. The worker then tells the engine and runs many lines at once from there.

`worker_process` starts it as `python -m prefect_batchflow.execution.workers.worker PERMITS`, where PERMITS is the descriptor
of the pipe that `permits` describes. Messages, described in `wire`, come on standard input and go to standard output. Both are
moved to other descriptors before user code is imported: what user code prints goes to standard error, and it reads nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import os
import pickle
import resource
import sys
import termios
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.flow import NO_DEFAULT, Entry
from prefect_batchflow.exceptions import BatchflowException, UnexpectedError, error_dict
from prefect_batchflow.execution.program.environment import resolved
from prefect_batchflow.execution.program.importing import import_script, loading_flow
from prefect_batchflow.execution.program.loader import load_program, prepare_imports
from prefect_batchflow.execution.scrubbing import Scrubber
from prefect_batchflow.execution.workers import streams, threads, wire
from prefect_batchflow.execution.workers.memory import be_killed_first
from prefect_batchflow.execution.workers.replies import Writer, aggregate_reply, line_reply, wait_message
from prefect_batchflow.execution.workers.streams import PrintedOutput
from prefect_batchflow.tools.context import when_lines_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from prefect_batchflow.execution.program.program import Program
    from prefect_batchflow.execution.workers.async_host import AsyncHost
    from prefect_batchflow.execution.workers.streams import Printed
    from prefect_batchflow.results.records import LineRun


def _limit_memory(line_memory_mb: int) -> None:
    """Let this process grow by this much from now on; the flow's imports do not count."""
    with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 - no pathlib in a worker
        pages = int(statm.read().split()[0])
    limit = pages * resource.getpagesize() + line_memory_mb * 1024 * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _ready(program: Program, scrubber: Scrubber, *, is_async: bool) -> bytes:
    # Plain JSON, because the engine must not unpickle anything from a worker.
    description = program.description
    inputs = [
        {key: value for key in i.__slots__ if (value := getattr(i, key)) is not NO_DEFAULT}
        for i in description.inputs.values()
    ]
    head = {
        "op": "ready",
        "inputs": inputs,
        "is_async": is_async,
        "has_aggregation": description.has_aggregation,
        "takes_any": description.takes_any,
        # The engine scrubs the output of killed lines. On a cluster its environment can have other secrets.
        "secrets": sorted(scrubber.secrets),
    }
    return wire.pack(head)


def _end_output() -> None:
    """Mark the end of a line's output, including native code's, if the engine has not read all of it yet."""
    waiting = bytearray(4)
    with contextlib.suppress(OSError):  # user code has replaced standard error
        fcntl.ioctl(2, termios.FIONREAD, waiting)
        if any(waiting):
            os.write(2, wire.NEXT_LINE)


def _run_sync(
    program: Program, frames: _Frames, permits: int, write: Writer, scrubber: Scrubber
) -> Callable[[AsyncHost], None] | None:
    """Run lines one at a time, until the engine ends this; or until one turns out to be async: gives what begins it."""
    for head, body in frames:
        permit = os.read(permits, 1)
        if permit == wire.SKIP:
            continue
        if not permit:  # the engine is gone
            return None
        if head["op"] == "line":
            printed = PrintedOutput.only = PrintedOutput.begin()
            run = program.begin_line(head["line_number"], json.loads(body), head.get("images"))
            if not isinstance(run, dict):
                return _begin_async(head, body, run, printed)
            _end_output()
            reply, spent = line_reply(head, run, printed, scrubber)
            write(reply)
            if spent:  # what it left allocated would be missing for the next line
                return None
        else:
            aggregated = program.begin_aggregation(json.loads(body))
            if not isinstance(aggregated, dict):
                from prefect_batchflow.execution.workers.async_host import main_loop

                aggregated = main_loop().run_until_complete(aggregated)
            write(aggregate_reply(head, aggregated, scrubber))
    return None


def _begin_async(
    head: dict[str, Any], body: bytes, rest: Coroutine[Any, Any, LineRun], printed: Printed
) -> Callable[[AsyncHost], None]:
    """Have the rest of a line run beside those that come, in the context that its code has had so far."""
    context = copy_context()
    PrintedOutput.end()
    return lambda host: host.begin(head, host.finish_line(head, body, rest, printed), context)


class _Frames:
    """The messages from a blocking pipe, until it is closed. `rest` are those that were read and not taken."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.unpacker = wire.Unpacker()
        self.rest: deque[wire.Frame] = deque()

    def __iter__(self) -> Iterator[wire.Frame]:
        while True:
            while self.rest:
                yield self.rest.popleft()
            if not (data := os.read(self._fd, 1 << 20)):
                return
            self.rest += self.unpacker.feed(data)


def main(permits: int) -> None:
    """Load the flow that the engine sends, answer what it is or why it does not load, and run lines until the pipe closes."""
    be_killed_first()
    os.set_inheritable(permits, False)
    fd_in, fd_out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    streams.install()
    faulthandler.enable(file=2)
    threads.install()
    frames, write = _Frames(fd_in), Writer(fd_out)
    when_lines_wait(lambda *wait: write(wait_message(*wait)))
    if (first := next(iter(frames), None)) is None:
        return
    scrubber = Scrubber()
    try:
        job = pickle.loads(first[1])  # noqa: S301 - from the parent, which made it
        os.chdir(job["cwd"])
        # The modules of the caller's objects are searched in the caller's `sys.path`, too.
        sys.path += [entry for entry in job["sys_path"] if entry not in sys.path]
        given = pickle.loads(job["packed"])  # noqa: S301 - like the job itself
        flow, connections, environment = job["flow"], given["connections"], job["environment_variables"]
        scrubber = Scrubber.of_run(flow, connections, {}, environment)
        os.environ.update(resolved(environment, connections))
        with loading_flow(flow.name):
            if isinstance(flow.program, Entry) and flow.program.script is not None:
                prepare_imports(str(flow.working_dir))
                import_script(flow.program.script)
            init_kwargs = pickle.loads(given["init_kwargs"])  # noqa: S301 - it can have objects of the script
            scrubber = Scrubber.of_run(flow, connections, init_kwargs, environment)
            program = load_program(flow, init_kwargs, connections)
        if job["line_memory_mb"] is not None:
            _limit_memory(job["line_memory_mb"])
        ready = _ready(program, scrubber, is_async=job["is_async"] or program.description.is_async)
    except BaseException as exc:  # noqa: BLE001 - user code is imported here, and can even exit
        error = exc if isinstance(exc, BatchflowException) else UnexpectedError(f"({type(exc).__name__}) {exc}")
        write(wire.pack({"op": "refused", "error": scrubber.value(error_dict(error))}))
        return
    write(ready)
    is_async = job["is_async"] or program.description.is_async
    begin = None if is_async else _run_sync(program, frames, permits, write, scrubber)
    if is_async or begin is not None:
        # Imported only here, because asyncio takes a third of a worker's start.
        from prefect_batchflow.execution.workers.async_host import AsyncHost, main_loop

        host = AsyncHost(program, fd_in, write, job["lines_at_once"], scrubber)
        work = host.run() if begin is None else host.take_over(frames.unpacker, frames.rest, permits, begin)
        main_loop().run_until_complete(work)
    # No clean-up of user code: threads that it left must not keep the worker alive.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
