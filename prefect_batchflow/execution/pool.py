"""A run's workers: start, feed, time, end for good, replace. A crash or a hang is a failed line, never a failed run.

Sync code: `worker_count` processes, a line at a time each. Async code: one process, `max_concurrency` lines at a time.
Everything happens on the run's event loop; pipes are read by protocols, exits are seen through pidfds, no thread is started.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_batchflow import exceptions
from prefect_batchflow.definition.flow import NO_DEFAULT, FlowDescription, FlowInput
from prefect_batchflow.exceptions import (
    BatchflowException,
    InvalidOptionError,
    LineOutOfMemoryError,
    ProcessCrashError,
    UnexpectedError,
    WorkerStartError,
    error_dict,
    innermost_code,
)
from prefect_batchflow.execution import wire
from prefect_batchflow.execution.executor import (
    LineOutcome,
    aggregation_timed_out,
    failed_aggregation,
    failed_outcome,
    timed_out,
)
from prefect_batchflow.execution.processes import TOKEN_VARIABLE, end_session, end_with_token
from prefect_batchflow.lines import input_hash
from prefect_batchflow.results import Receipt, Status, Tokens, receipt_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.lines import Line

CANCEL_GRACE_SEC = 2.0
"""How long an event loop may take to answer that a line is to be cancelled, before its worker is replaced."""
START_TIMEOUT_SEC = 120.0
"""How long importing a flow may take."""
_END_WITHIN_SEC = 5.0
_SUPERVISOR_ENDS_WITHIN_SEC = 5.0
_CLOSED = "The workers are gone: the run was closed."
TAIL_BYTES = 8 * 1024
"""What is kept of a worker's output for the message of a crash."""

ALONE_AT_ONCE = 4
"""How many suspect lines are run at once, each in a process of its own."""

# As an interpreter or an allocator says it on its way out; what a line prints about memory is no sign.
_OUT_OF_MEMORY = re.compile(
    rb"^(MemoryError\b|.*\bstd::bad_alloc\b|memory allocation of \d+ bytes failed)", re.MULTILINE
)


class _WorkerLostError(Exception):
    """The worker was ended for another line's sake; this one is to be run again, its attempt not counted."""


class _SuspectError(Exception):
    """The worker died, or hung, with several lines in it; which of them did it shows when each runs alone."""


@dataclass(slots=True)
class _Job:
    """What a worker is doing: a line or the aggregation, until its answer comes."""

    what: str
    """For messages: `Line 7`."""
    answer: asyncio.Future[wire.Frame]
    line_number: int | None
    """`None` for the aggregation."""
    deadline: asyncio.TimerHandle | None = None
    timed_out: bool = False


class _Worker:
    """One worker process: its pipes, what it is doing, and its end."""

    def __init__(
        self, token: str, cwd: str, on_exit: Callable[[_Worker], None], on_stuck: Callable[[_Worker], None]
    ) -> None:
        self.token = token
        self.jobs: dict[int, _Job] = {}
        self.ready: asyncio.Future[wire.Frame] = asyncio.get_running_loop().create_future()
        self.exited = asyncio.Event()
        self.ending = False
        self.silent = False
        """Its event loop does not answer."""
        self.retiring = False
        """It gets no more lines, and ends with those it has."""
        self.tail = bytearray()
        self._on_exit = on_exit
        self._on_stuck = on_stuck
        self._unpacker = wire.Unpacker()
        self._transports: list[asyncio.ReadTransport | asyncio.WriteTransport] = []
        self._process = subprocess.Popen(
            # -P: the current directory, which is the flow's, does not come before the standard library.
            [sys.executable, "-P", "-m", "prefect_batchflow.execution.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=cwd,
            env={**os.environ, TOKEN_VARIABLE: token},
            start_new_session=True,
        )
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        process = self._process
        assert process.stdin is not None
        self._stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)
        stdout, _ = await loop.connect_read_pipe(lambda: _Pipe(self._on_answer), process.stdout)
        stderr, _ = await loop.connect_read_pipe(lambda: _Pipe(self._on_output), process.stderr)
        self._transports = [self._stdin, stdout, stderr]
        # Last: a process that has ended already is seen at once, and its end closes the pipes.
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pidfd, self._reap)

    def send(self, message: bytes) -> None:
        self._stdin.write(message)

    def end(self) -> None:
        """Kill the process, its session, and whatever it started that left its session."""
        self.ending = True
        end_session(self.pid)
        end_with_token(self.token)

    def _on_output(self, data: bytes) -> None:
        self.tail += data
        del self.tail[:-TAIL_BYTES]

    def _on_answer(self, data: bytes) -> None:
        for head, body in self._unpacker.feed(data):
            op = head["op"]
            if op in ("ready", "refused"):
                if not self.ready.done():
                    self.ready.set_result((head, body))
                continue
            if op == "stuck":
                self._on_stuck(self)
                continue
            job = self.jobs.get(head["id"])
            if job is None:
                continue
            if op == "canceled":
                if job.timed_out and not job.answer.done():
                    job.answer.set_exception(TimeoutError())
            elif not job.answer.done():
                job.answer.set_result((head, body))

    def _reap(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        # What the process wrote last is in its pipes still: let the loop read it first.
        loop.call_soon(loop.call_soon, self._exit)

    def _exit(self) -> None:
        # A descendant may live on in the session or out of it, and write.
        end_session(self.pid)
        end_with_token(self.token)
        self._drain_output()
        for transport in self._transports:
            # The one to the process's standard input has closed itself when the process went.
            if not transport.is_closing():
                transport.close()
        self.exited.set()
        self._on_exit(self)

    def _drain_output(self) -> None:
        stderr = self._process.stderr
        with contextlib.suppress(OSError, ValueError):
            while stderr is not None and (data := os.read(stderr.fileno(), 1 << 16)):
                self._on_output(data)


class _Pipe(asyncio.Protocol):
    """Hands what a pipe brings to a function."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def data_received(self, data: bytes) -> None:
        self._take(data)


class WorkerPool:
    """The `Executor` of Python flows.

    Args:
        flow: What to run.
        init_kwargs: Arguments of a class entry's constructor; may hold any picklable value.
        worker_count: Processes for sync code.
        max_concurrency: Lines at once for async code.
        line_memory_mb: MiB a worker may grow by once its flow is loaded.
    """

    def __init__(
        self,
        flow: Flow,
        *,
        init_kwargs: Mapping[str, Any] | None = None,
        worker_count: int = 4,
        max_concurrency: int = 64,
        line_memory_mb: int | None = None,
    ) -> None:
        self.slots = worker_count
        self._flow = flow
        self._init_kwargs = dict(init_kwargs or {})
        self._worker_count = worker_count
        self._max_concurrency = max_concurrency
        self._line_memory_mb = line_memory_mb
        self._token = uuid.uuid4().hex
        self._started = 0
        self._job_ids = 0
        self._lines_per_worker = 1
        self._workers: set[_Worker] = set()
        self._free: collections.deque[_Worker] = collections.deque()
        self._waiting: collections.deque[asyncio.Future[_Worker]] = collections.deque()
        self._loading: set[asyncio.Task[None]] = set()
        self._alone = asyncio.Semaphore(ALONE_AT_ONCE)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._closed = False

    async def start(self) -> FlowDescription:
        """Start the supervisor and the first worker, which loads the flow.

        Raises:
            UserErrorException: The flow's code does not load; the class is the worker's own (`PythonLoadError`, …).
            WorkerStartError: The process ended before it said anything.
        """
        self._supervisor = subprocess.Popen(  # noqa: ASYNC220, S603 - returns at once; our own program
            [sys.executable, "-P", "-m", "prefect_batchflow.execution.supervisor", self._token],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A run inside another run's line: what ends that line must leave this one's supervisor to do its work.
            env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
            start_new_session=True,
        )
        worker = self._new_worker()
        description = _description(await self._load(worker))
        if description.is_async:
            self._worker_count, self._lines_per_worker = 1, self._max_concurrency
            self.slots = self._max_concurrency
        self._offer(worker, self._lines_per_worker)
        return description

    async def run_line(self, line: Line, *, attempt: int, timeout_sec: float) -> LineOutcome:
        """Run one attempt of one line once a worker is free; its clock starts then."""
        if line.error is not None:
            return failed_outcome(line, attempt=attempt, error=line.error, duration_sec=0.0)
        job = _LineJob(line, attempt, timeout_sec)
        while True:
            try:
                return await self._attempt(await self._acquire(), job)
            except _WorkerLostError:
                continue
            except _SuspectError:
                return await self._run_alone(job)

    async def aggregate(self, lines: Sequence[Mapping[str, Any]], *, timeout_sec: float) -> dict[str, Any]:
        """Run the aggregation in a worker; a crash or a hang of it is its error, like an exception."""
        body = json.dumps(list(lines)).encode()
        while True:
            worker = await self._acquire()
            try:
                _, run = await self._ask(worker, {"op": "aggregate"}, body, timeout_sec, "The aggregation")
            except _WorkerLostError:
                continue
            except TimeoutError:
                return failed_aggregation(aggregation_timed_out(timeout_sec))
            except ProcessCrashError as exc:
                return failed_aggregation(exc)
            return dict(json.loads(run))

    def running(self) -> set[int]:
        """The numbers of the lines that a worker has."""
        return {job.line_number for w in self._workers for job in w.jobs.values() if job.line_number is not None}

    async def close(self) -> None:
        """Kill every worker with all it started, and let the supervisor go; lines that still run are cancelled."""
        self._closed = True
        for waiter in self._waiting:
            waiter.cancel()
        workers = list(self._workers)
        for worker in workers:
            worker.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_WITHIN_SEC):
                for worker in workers:
                    await worker.exited.wait()
        end_with_token(self._token)
        if self._supervisor is not None:
            assert self._supervisor.stdin is not None
            # It reads the end of the pipe, finds nothing to end, and goes; waited for, so that no zombie is left.
            self._supervisor.stdin.close()
            await asyncio.to_thread(_wait_or_kill, self._supervisor)

    async def _attempt(self, worker: _Worker, job: _LineJob) -> LineOutcome:
        """One attempt of one line on one worker; a limit or a crash is made a failed outcome here."""
        clock = time.perf_counter()
        try:
            reply, record = await self._ask(worker, job.head, job.body, job.timeout_sec, job.what)
        except TimeoutError:
            error = timed_out(job.line, job.timeout_sec)
        except ProcessCrashError as exc:
            error = error_dict(exc)
        else:
            return LineOutcome(_receipt(job.line, job.attempt, reply), record, job.input_hash)
        return failed_outcome(
            job.line,
            attempt=job.attempt,
            error=error,
            duration_sec=time.perf_counter() - clock,
            logs=_text(worker.tail) if self._lines_per_worker == 1 else "",
        )

    async def _run_alone(self, job: _LineJob) -> LineOutcome:
        """Run a line whose worker died or hung with many lines in it in a process of its own: only the guilty one fails."""
        async with self._alone:
            worker = self._new_worker()
            try:
                await self._load(worker)
                return await self._attempt(worker, job)
            finally:
                worker.end()

    def _new_worker(self) -> _Worker:
        if self._closed:
            raise asyncio.CancelledError(_CLOSED)
        self._started += 1
        # With an end of its own: tokens are looked for by how they begin, and 1 begins 10.
        token = f"{self._token}-{self._started}."
        worker = _Worker(token, str(self._flow.working_dir), self._on_exit, self._retire)
        self._workers.add(worker)
        return worker

    async def _load(self, worker: _Worker) -> dict[str, Any]:
        """Have a new worker load the flow; what it says of it."""
        await worker.connect()
        worker.send(wire.pack({"op": "init"}, self._job()))
        try:
            async with asyncio.timeout(START_TIMEOUT_SEC):
                head, _ = await worker.ready
        except TimeoutError:
            worker.end()
            raise WorkerStartError(
                f"The flow {self._flow.name!r} was not loaded within {START_TIMEOUT_SEC:g} seconds. Its modules do too "
                f"much on import. Last output: {_text(worker.tail) or 'none'}"
            ) from None
        if head["op"] == "refused":
            worker.end()
            raise _rebuilt(head["error"])
        worker.tail.clear()
        return head

    def _job(self) -> bytes:
        # Live objects, such as a class of the caller's own script, need cloudpickle; only the worker ever reads this.
        import cloudpickle

        job = {
            "flow": self._flow,
            "init_kwargs": self._init_kwargs,
            "sys_path": [os.path.abspath(entry) for entry in sys.path],  # noqa: PTH100 - "" means the current folder
            "line_memory_mb": self._line_memory_mb,
            "lines_at_once": self._max_concurrency,
        }
        try:
            return bytes(cloudpickle.dumps(job))
        except Exception as exc:  # whatever the objects' own pickling raises
            raise InvalidOptionError(
                f"The init_kwargs of the flow {self._flow.name!r} ({', '.join(self._init_kwargs)}) cannot be sent to a worker "
                f"process: ({type(exc).__name__}) {exc}. Give plain values, and build clients in the class's constructor."
            ) from exc

    async def _acquire(self) -> _Worker:
        """The next free worker; another one is started when all are busy and there may be more."""
        if self._closed:
            raise asyncio.CancelledError(_CLOSED)
        if self._free:
            return self._free.popleft()
        waiter: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        if self._may_grow():
            self._grow()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._offer(waiter.result())
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiter)  # one that nobody waits for must start no worker
            raise

    def _may_grow(self) -> bool:
        return not self._closed and sum(not worker.retiring for worker in self._workers) < self._worker_count

    def _grow(self) -> None:
        """Start one more worker, which offers itself once it has loaded the flow; counted as one from here on."""
        try:
            worker = self._new_worker()
        except OSError as exc:
            self._fail_waiting(exc)
            return
        task = asyncio.get_running_loop().create_task(self._load_and_offer(worker))
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    async def _load_and_offer(self, worker: _Worker) -> None:
        try:
            await self._load(worker)
        except (BatchflowException, OSError) as exc:
            self._fail_waiting(exc)
        else:
            self._offer(worker, self._lines_per_worker)

    def _fail_waiting(self, exc: Exception) -> None:
        # The first worker loaded this flow, so one that does not is worth saying, to whoever waits for it.
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(WorkerStartError(f"A further worker did not start: {exc}"))

    def _offer(self, worker: _Worker, slots: int = 1) -> None:
        if worker.ending or worker.retiring or worker not in self._workers:
            return
        for _ in range(slots):
            while self._waiting and self._waiting[0].done():
                self._waiting.popleft()
            if self._waiting:
                self._waiting.popleft().set_result(worker)
            else:
                self._free.append(worker)

    async def _ask(
        self, worker: _Worker, head: dict[str, Any], body: bytes, timeout_sec: float, what: str
    ) -> wire.Frame:
        """Send one job and wait for its answer, its limit or its worker's end."""
        if worker.ending or worker not in self._workers:
            raise _WorkerLostError
        loop = asyncio.get_running_loop()
        self._job_ids += 1
        key = self._job_ids
        job = _Job(what, loop.create_future(), head.get("line_number"))
        worker.jobs[key] = job
        if self._lines_per_worker == 1:
            worker.tail.clear()
        job.deadline = loop.call_later(timeout_sec, self._on_deadline, worker, key)
        worker.send(wire.pack({**head, "id": key}, body))
        try:
            reply, record = await job.answer
        except asyncio.CancelledError:
            self._give_up(worker, key)
            raise
        finally:
            job.deadline.cancel()
            worker.jobs.pop(key, None)
            if worker.retiring and not worker.jobs:
                worker.end()
            self._offer(worker)
        if reply.get("spent"):
            # The line was refused memory: what it left allocated would be refused to the next one.
            worker.end()
        return reply, record

    def _on_deadline(self, worker: _Worker, key: int) -> None:
        job = worker.jobs.get(key)
        if job is None or job.answer.done():
            return
        job.timed_out = True
        self._give_up(worker, key)

    def _give_up(self, worker: _Worker, key: int) -> None:
        """Stop one job: kill the process that has it alone, ask the one that has others too."""
        if self._lines_per_worker == 1:
            worker.end()
        elif not worker.ending:
            worker.send(wire.pack({"op": "cancel", "id": key}))
            job = worker.jobs[key]
            job.deadline = asyncio.get_running_loop().call_later(CANCEL_GRACE_SEC, self._on_silence, worker, job)

    def _on_silence(self, worker: _Worker, job: _Job) -> None:
        if not job.answer.done():
            worker.silent = True
            worker.end()

    def _retire(self, worker: _Worker) -> None:
        """Replace a worker in which a line goes on behind its limit, in a thread or against its cancellation.

        Only the end of the process ends that line; the other lines of it are let come to their own ends first.
        """
        worker.retiring = True
        self._free = collections.deque(free for free in self._free if free is not worker)
        if not worker.jobs:
            worker.end()
        if self._waiting and self._may_grow():
            self._grow()

    def _on_exit(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        self._free = collections.deque(free for free in self._free if free is not worker)
        was_ready = worker.ready.done()
        if not was_ready:
            worker.ready.set_exception(
                WorkerStartError(
                    f"The worker process for the flow {self._flow.name!r} {_how(worker.returncode)} while it loaded the "
                    f"flow. Last output: {_text(worker.tail) or 'none'}"
                )
            )
            worker.ready.exception()
        jobs = [job for job in worker.jobs.values() if not job.answer.done()]
        for job in jobs:
            if job.timed_out:
                # One line that blocks the event loop takes the others past their limits with it.
                suspect = worker.silent and len(jobs) > 1
                job.answer.set_exception(_SuspectError() if suspect else TimeoutError())
            elif worker.ending:
                job.answer.set_exception(_WorkerLostError())
            elif len(jobs) > 1:
                job.answer.set_exception(_SuspectError())
            else:
                job.answer.set_exception(_crash(worker, job.what))
        if self._waiting and was_ready and self._may_grow():
            self._grow()


class _LineJob:
    """One attempt of one line as a worker gets it; encoded once, however often it is sent."""

    def __init__(self, line: Line, attempt: int, timeout_sec: float) -> None:
        self.line = line
        self.attempt = attempt
        self.timeout_sec = timeout_sec
        self.what = f"Line {line.line_number}"
        self.input_hash = input_hash(line.inputs)
        self.head = {
            "op": "line",
            "line_number": line.line_number,
            "attempt": attempt,
            "input_hash": self.input_hash,
        }
        self.body = json.dumps(line.inputs).encode()


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_SUPERVISOR_ENDS_WITHIN_SEC)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _description(head: dict[str, Any]) -> FlowDescription:
    inputs = {
        i["name"]: FlowInput(i["name"], i["type"], i.get("default", NO_DEFAULT), i["description"])
        for i in head["inputs"]
    }
    return FlowDescription(inputs, is_async=head["is_async"], has_aggregation=head["has_aggregation"])


def _receipt(line: Line, attempt: int, reply: dict[str, Any]) -> Receipt:
    return Receipt(
        line_number=line.line_number,
        status=Status(reply["status"]),
        attempt=attempt,
        duration_sec=reply["duration_sec"],
        tokens=Tokens(*reply["tokens"]),
        nodes=tuple((name, Status(status)) for name, status in reply["nodes"]),
        error=None if reply["error"] is None else receipt_error(reply["error"]),
    )


def _rebuilt(error: dict[str, Any]) -> BatchflowException:
    """The exception that a worker described; an unknown one is unexpected."""
    cls = getattr(exceptions, innermost_code(error), UnexpectedError)
    info = {item["type"]: item["info"] for item in error.get("additionalInfo", [])}
    return cls(error["message"], target=error["referenceCode"], additional_info=info)


def _how(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:  # a real-time signal has a number only
            return f"was killed by signal {-returncode}"
    return f"exited with status {returncode}"


def _crash(worker: _Worker, what: str) -> ProcessCrashError:
    tail = bytes(worker.tail)
    details = {"exit_code": worker.returncode, "output": _text(tail)}
    if _OUT_OF_MEMORY.search(tail):
        return LineOutOfMemoryError(
            f"{what}: its process {_how(worker.returncode)}, out of memory. Raise line_memory_mb, or make the line smaller.",
            target="Executor",
            additional_info={"ProcessCrashDetails": details},
        )
    hint = (
        " Nobody here sent it: the system's out-of-memory killer is the usual sender."
        if worker.returncode == -signal.SIGKILL
        else ""
    )
    output = _text(tail).strip().splitlines()
    # faulthandler says the cause first and where it was after.
    last = next((text for text in output if text.startswith("Fatal Python error")), output[-1] if output else "")
    said = f" Its last output: {last[:300]}" if last else ""
    return ProcessCrashError(
        f"{what}: its process {_how(worker.returncode)} while the line ran.{hint}{said}",
        target="Executor",
        additional_info={"ProcessCrashDetails": details},
    )


def _text(output: bytes | bytearray) -> str:
    return bytes(output).decode("utf-8", "replace")
