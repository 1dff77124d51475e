"""The program of a worker process: one flow, loaded once; sync code a line at a time, async code many lines at once.

`python -m prefect_batchflow.execution.workers.worker PERMITS`, started by `worker_process`, which says what permits are.
PERMITS is the descriptor of their pipe. Messages come on standard input and go to standard output as `wire` has them; both are
moved away before user code is imported, so that what it prints goes to standard error and what it reads is empty. The import
chain is the standard library, `definition`, `tools` and `execution`.
"""

from __future__ import annotations

import faulthandler
import fcntl
import json
import os
import pickle
import resource
import sys
import termios
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import BatchflowException, UnexpectedError, error_dict
from prefect_batchflow.execution.program.environment import resolved
from prefect_batchflow.execution.program.loader import load_program
from prefect_batchflow.execution.scrubbing import Scrubber
from prefect_batchflow.execution.workers import wire
from prefect_batchflow.execution.workers.memory import be_killed_first
from prefect_batchflow.execution.workers.replies import PrintedOutput, Writer, aggregate_reply, line_reply

if TYPE_CHECKING:
    from prefect_batchflow.execution.program.program import Program


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


def _given(job: dict[str, Any]) -> dict[str, Any]:
    """The caller's objects; their modules are looked for where the caller found them."""
    for entry in job["sys_path"]:
        if entry not in sys.path:
            sys.path.append(entry)
    return dict(pickle.loads(job["packed"]))  # noqa: S301 - of the run's own process, as the job itself


def _load(job: dict[str, Any], given: dict[str, Any]) -> Program:
    os.environ.update(resolved(job["environment_variables"], given["connections"]))
    program = load_program(job["flow"], given["init_kwargs"], given["connections"])
    _limit_memory(job["line_memory_mb"])
    return program


def _ready(program: Program, scrubber: Scrubber) -> bytes:
    # Pickled by nobody: the description is rebuilt from plain JSON at the other end.
    description = program.description
    inputs = [
        {
            "name": i.name,
            "type": i.type,
            "description": i.description,
            "nullable": i.nullable,
            **({} if i.required else {"default": i.default}),
        }
        for i in description.inputs.values()
    ]
    head = {
        "op": "ready",
        "inputs": inputs,
        "is_async": description.is_async,
        "has_aggregation": description.has_aggregation,
        # What a line that is killed has printed is scrubbed by the engine, which may run in another environment.
        "secrets": sorted(scrubber.secrets),
    }
    return wire.pack(head)


def _end_output() -> None:
    """Mark the end of what a line wrote, also past Python, as far as the engine has not read it before the line's answer."""
    waiting = bytearray(4)
    try:
        fcntl.ioctl(2, termios.FIONREAD, waiting)
        if any(waiting):
            os.write(2, wire.NEXT_LINE)
    except OSError:
        return  # user code has put something else in the place of standard error


def _run_sync(program: Program, read: _Reader, permits: int, write: Writer, scrubber: Scrubber) -> None:
    while frame := read():
        head, body = frame
        permit = os.read(permits, 1)
        if permit == wire.SKIP:
            continue
        if not permit:  # the engine is gone
            return
        if head["op"] == "line":
            printed = PrintedOutput.only = PrintedOutput.begin()
            run = program.run_line(head["line_number"], json.loads(body), head.get("images"))
            _end_output()
            reply, spent = line_reply(head, run, printed, scrubber)
            write(reply)
            if spent:  # what the line left allocated would be refused to the next one
                return
        elif head["op"] == "aggregate":
            write(aggregate_reply(head, program.aggregate(json.loads(body)), scrubber))


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


def main(permits: int) -> None:
    """Load the flow the engine sends, say what it is or why it does not load, and run lines until the pipe closes."""
    be_killed_first()
    os.set_inheritable(permits, False)
    fd_in, fd_out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the process's own, for its life
    sys.stdout = sys.stderr = PrintedOutput(2)
    faulthandler.enable(file=2)
    read, write = _Reader(fd_in), Writer(fd_out)
    first = read()
    if first is None:
        return
    scrubber = Scrubber({}, {}, {})
    try:
        job = pickle.loads(first[1])  # noqa: S301 - from the parent, which made it
        given = _given(job)
        environment = job["environment_variables"]
        scrubber = Scrubber.of_run(job["flow"], given["connections"], given["init_kwargs"], environment)
        program = _load(job, given)
        ready = _ready(program, scrubber)
    except BaseException as exc:  # noqa: BLE001 - user code is imported here, and may even exit
        error = exc if isinstance(exc, BatchflowException) else UnexpectedError(f"({type(exc).__name__}) {exc}")
        write(wire.pack({"op": "refused", "error": scrubber.value(error_dict(error))}))
        return
    write(ready)
    if program.description.is_async:
        # Here, and not before: asyncio is a third of a worker's start.
        from prefect_batchflow.execution.workers.async_host import run_async

        run_async(program, fd_in, write, job["lines_at_once"], scrubber)
    _run_sync(program, read, permits, write, scrubber)
    # No clean-up of user code: threads it left behind must not keep a worker alive.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
