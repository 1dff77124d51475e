"""One worker process as the pool holds it: its pipes, the jobs it has, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from prefect_batchflow.execution.workers import wire
from prefect_batchflow.execution.workers.killing import end_session, end_with_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefect_batchflow.execution.scrubbing import Scrubber
    from prefect_batchflow.execution.workers.started import StartedProcess

CANCEL_GRACE_SEC = 2.0
"""How long a worker can take to confirm that it cancels a line; after that it counts as hung and is replaced."""
TAIL_BYTES = 8 * 1024
"""Bytes of a worker's output that are kept for the message about a crash."""
_READ_BYTES = 1 << 18


class SuspectError(Exception):
    """The worker died or hung while it ran several lines; running each alone shows which line caused it."""


@dataclass(slots=True, eq=False)
class Job:
    """A line or the aggregation, until it is answered."""

    key: int
    head: dict[str, Any]
    body: bytes
    timeout_sec: float
    what: str
    """For messages: `Line 7`."""
    answer: asyncio.Future[wire.Frame]
    worker: WorkerProcess | None = None
    """The worker that has it, or had it last."""
    began: float = 0.0
    """When its worker began it, on the monotonic clock."""
    deadline: asyncio.TimerHandle | None = None
    timed_out: bool = False
    logs: str = ""
    """What it printed, if it was never answered."""
    deaths: int = 0
    """How many workers died by themselves while it was next and not begun."""

    @property
    def duration_sec(self) -> float:
        """How long its worker has run it; 0 if it was never begun."""
        return time.monotonic() - self.began if self.began else 0.0


class WorkerProcess:
    """One worker process.

    Args:
        started: Its process.
        scrubber: Takes secrets out of what it printed.
        on_room: Called when it can take another job.
        on_exit: Called once it is gone, with the jobs it had not begun and the jobs it had begun but not answered.
        on_stuck: Called when it reports that a line still runs after it was cancelled.
        on_async: Called when it reports that its flow is async.
        on_wait: Called with its message that a line waits for a service.
    """

    def __init__(
        self,
        started: StartedProcess,
        *,
        scrubber: Scrubber,
        on_room: Callable[[WorkerProcess], None],
        on_exit: Callable[[WorkerProcess, list[Job], list[Job]], None],
        on_stuck: Callable[[WorkerProcess], None],
        on_async: Callable[[WorkerProcess], None],
        on_wait: Callable[[dict[str, Any]], None],
    ) -> None:
        self.token = started.token
        self.jobs: dict[int, Job] = {}
        """By key, in the order they were sent."""
        self.lines_at_once = 1
        self.ready: asyncio.Future[wire.Frame] = asyncio.get_running_loop().create_future()
        self.exited = asyncio.Event()
        self.ending = False
        """It was killed on purpose: no line is to blame for its end."""
        self.silent = False
        """Its event loop does not answer."""
        self.retiring = False
        """It gets no more lines and ends after those it has."""
        self.ended_lines = 0
        """Lines that it has answered."""
        self._ended_sec = 0.0
        """How long they ran, all together."""
        self._tail = bytearray()
        self._tail_of: Job | None = None
        """The job that printed the tail; `None` if several jobs did."""
        self.scrubber = scrubber
        self._on_room, self._on_exit, self._on_stuck, self._on_async = on_room, on_exit, on_stuck, on_async
        self._on_wait = on_wait
        self._unpacker = wire.Unpacker()
        self._transports: list[asyncio.ReadTransport | asyncio.WriteTransport] = []
        self._takes_permits = True
        self._permits, self._process = started.permits, started.popen
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.returncode

    @property
    def tail(self) -> str:
        """The end of what it printed since its current job began, or since the first of several, without secrets."""
        text = bytes(self._tail).decode("utf-8", "replace")
        is_cut = len(self._tail) == TAIL_BYTES
        return self.scrubber.end(text) if is_cut else self.scrubber.text(text)

    @property
    def line_sec(self) -> float:
        """How long lines have run in it, the running one included; for sync code."""
        return self._ended_sec + sum(job.duration_sec for job in self.running())

    async def connect(self) -> None:
        """Attach its pipes to the event loop. Call this first, and once."""
        try:
            await self._connect()
        except BaseException:
            # For example, no descriptors are left. Nothing would ever see its end.
            self.end()
            self._process.wait()
            self.exited.set()
            self._permits.close()
            pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
            for pipe in pipes[len(self._transports) :]:
                if pipe is not None:
                    pipe.close()
            for transport in self._transports:
                transport.close()
            self._on_exit(self, [], [])
            raise

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        process = self._process
        assert process.stdin is not None
        self._stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)
        self._transports.append(self._stdin)
        for pipe, take in ((process.stdout, self._on_answers), (process.stderr, self._on_output)):
            transport, _ = await loop.connect_read_pipe(functools.partial(_Pipe, take), pipe)
            self._transports.append(transport)
        # Last: if the process has already ended, `_reap` runs at once and closes the pipes.
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pidfd, self._reap)

    def load(self, job: bytes) -> None:
        """Tell it to load its flow; `ready` gets its answer."""
        self._stdin.write(wire.pack({"op": "init"}, job))

    def loaded(self, lines_at_once: int, *, is_async: bool) -> None:
        """Note that its flow is loaded and runs that many lines at once; an async flow begins each line as it arrives."""
        self.lines_at_once = lines_at_once
        self._takes_permits = not is_async
        self._tail.clear()

    def becomes_async(self, lines_at_once: int) -> None:
        """Follow a worker whose flow has turned out to be async: it runs many lines at once, and needs no permits."""
        begun = self.running()
        self._takes_permits, self.lines_at_once = False, lines_at_once
        for job in list(self.jobs.values())[len(begun) :]:
            self._begin(job)
        self._stdin.write(wire.pack({"op": "async"}))

    def room(self, fair_share: int) -> int:
        """How many more jobs it can be sent: those it runs at once, and short ones ahead, at most its fair share."""
        if self.ending or self.retiring or self.exited.is_set() or self._stdin.is_closing():
            return 0
        ahead = self._permits.most_ahead(fair_share) if self._takes_permits else 0
        return self.lines_at_once + ahead - len(self.jobs)

    def take(self, jobs: list[Job]) -> None:
        """Send it jobs, at most its room. If it is already gone, they come back through `on_exit`."""
        if self.exited.is_set():
            self._on_exit(self, jobs, [])
            return
        if self._takes_permits:
            self._permits.give(len(jobs))
        for job in jobs:
            job.worker = self
            self.jobs[job.key] = job
            if len(self.jobs) == 1:
                self._tail.clear()
            if len(self.jobs) == 1 or self.lines_at_once > 1:
                self._begin(job)
        self._stdin.write(b"".join(wire.pack({**job.head, "id": job.key}, job.body) for job in jobs))

    def running(self) -> list[Job]:
        """The jobs that it has begun, as far as is known."""
        jobs = list(self.jobs.values())
        return jobs if self.lines_at_once > 1 else jobs[:1]

    def recall(self) -> list[Job]:
        """Take back the jobs that it has not begun, except the first, which keeps its limit."""
        jobs = list(self.jobs.values())[self._permits.recall(len(self.jobs)) :]
        for job in jobs:
            del self.jobs[job.key]
        return jobs

    def abandon(self, job: Job) -> list[Job]:
        """Stop a job whose answer nobody waits for, and take back the jobs behind it."""
        if job.key not in self.jobs:
            return []
        if self.lines_at_once > 1:
            self._stop(job)
            self._drop(job)
            return []
        recalled = self.recall()
        if job.key in self.jobs:
            self.end()
        return recalled

    def end(self) -> None:
        """Kill the process, its session, and every process it started outside its session."""
        self.ending = True
        if not self.exited.is_set():
            end_session(self.pid)
            end_with_token(self.token)

    def _stop(self, job: Job) -> None:
        """Stop one job: kill the process if it runs only this job, otherwise ask it to cancel the job."""
        if self.lines_at_once == 1:
            self.end()
        elif not self.ending:
            self._stdin.write(wire.pack({"op": "cancel", "id": job.key}))

    def _begin(self, job: Job) -> None:
        self._tail_of = job if self.lines_at_once == 1 or len(self.jobs) == 1 else None
        job.began, job.timed_out = time.monotonic(), False
        job.deadline = asyncio.get_running_loop().call_later(job.timeout_sec, self._on_deadline, job)

    def _on_deadline(self, job: Job) -> None:
        if job.answer.done():
            return
        job.timed_out = True
        self._stop(job)
        if not self.ending:
            job.deadline = asyncio.get_running_loop().call_later(CANCEL_GRACE_SEC, self._on_silence, job)

    def _on_silence(self, job: Job) -> None:
        if not job.answer.done():
            self.silent = True
            self.end()

    def _on_output(self, data: bytes) -> None:
        # Take earlier answers first, so that this output goes to the job that runs now.
        for earlier in _waiting_in(self._process.stdout):
            self._on_answers(earlier)
        self._keep_output(data)

    def _keep_output(self, data: bytes) -> None:
        self._tail += data
        if (last := self._tail.rfind(wire.NEXT_LINE)) >= 0:
            del self._tail[: last + len(wire.NEXT_LINE)]
        del self._tail[:-TAIL_BYTES]

    def _on_answers(self, data: bytes) -> None:
        for head, body in self._unpacker.feed(data):
            op = head["op"]
            if op in ("ready", "refused"):
                if not self.ready.done():
                    self.ready.set_result((head, body))
            elif op == "stuck":
                self._on_stuck(self)
            elif op == "async":
                self._on_async(self)
            elif op == "wait":
                self._on_wait(head)
            elif (job := self.jobs.get(head["id"])) is None:
                continue
            elif op != "canceled":
                self._answered(job, head, body)
            elif job.timed_out:
                job.logs = body.decode()
                self._drop(job)
                if not job.answer.done():
                    job.answer.set_exception(TimeoutError())

    def _answered(self, job: Job, head: dict[str, Any], body: bytes) -> None:
        if (seconds := head.get("duration_sec")) is not None:
            self._permits.took(seconds)
            self._ended_sec += seconds
            self.ended_lines += 1
        if head.get("spent"):
            # The line hit the memory limit. What it left allocated would be missing for the next line.
            self.end()
        self._drop(job)
        if not job.answer.done():
            job.answer.set_result((head, body))

    def _drop(self, job: Job) -> None:
        """Forget a job; the next one begins, or there is room for another."""
        if self.jobs.pop(job.key, None) is None:
            return
        if job.deadline is not None:
            job.deadline.cancel()
        if self.ending or self.exited.is_set():
            return
        if self.retiring and not self.jobs:
            self.end()
            return
        if self.lines_at_once == 1:
            self._tail.clear()
            for following in self.running():
                self._begin(following)
        self._on_room(self)

    def _reap(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self.exited.set()
        # Processes that it started may still run and write, inside its session or outside.
        end_session(self.pid)
        end_with_token(self.token)
        # Its last words are still in its pipes.
        for data in _waiting_in(self._process.stdout):
            self._on_answers(data)
        for data in _waiting_in(self._process.stderr):
            self._keep_output(data)
        for transport in self._transports:
            # The one to standard input closed itself when the process ended.
            if not transport.is_closing():
                transport.close()
        jobs = list(self.jobs.values())
        begun = self._permits.close(len(jobs))
        self.jobs.clear()
        if self._tail_of is not None:
            self._tail_of.logs = self.tail
        for job in jobs:
            if job.deadline is not None:
                job.deadline.cancel()
        self._on_exit(self, jobs[begun:], [job for job in jobs[:begun] if not job.answer.done()])


class _Pipe(asyncio.Protocol):
    """Hands the data of a pipe to a function."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def data_received(self, data: bytes) -> None:
        self._take(data)


def _waiting_in(pipe: IO[bytes] | None) -> Iterator[bytes]:
    """Everything that is in a pipe now."""
    assert pipe is not None
    with contextlib.suppress(OSError, ValueError):  # it is empty, or closed
        while data := os.read(pipe.fileno(), _READ_BYTES):
            yield data
