"""A run's workers: the pool starts, feeds, times, kills and replaces them. A crash or a hang fails a line, never the run.

Sync code runs in `worker_count` processes, one line at a time in each. `autoscaling` can let their number follow the lines.
Async code runs in one process, `max_concurrency` lines at a time. Everything happens on the run's event loop, without
threads: protocols read the pipes, pidfds show exits. The file is long because starting, changing and ending workers work on
the same few sets of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import pickle
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect_batchflow import exceptions
from prefect_batchflow.definition.flow import Entry, FlowDescription, FlowInput
from prefect_batchflow.errors.classes import ErrorClass, class_of_error
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
from prefect_batchflow.execution.executor import (
    Given,
    LineOutcome,
    Wait,
    aggregation_timed_out,
    failed_aggregation,
    failed_outcome,
    timed_out,
)
from prefect_batchflow.execution.scrubbing import Scrubber
from prefect_batchflow.execution.workers.autoscaling import Autoscaler
from prefect_batchflow.execution.workers.crashes import crash_error, how_it_ended
from prefect_batchflow.execution.workers.job_queue import JobQueue
from prefect_batchflow.execution.workers.memory import OomKills
from prefect_batchflow.execution.workers.started import ReadyWorker, StartedProcess, take_ready_worker
from prefect_batchflow.execution.workers.supervision import Supervisor
from prefect_batchflow.execution.workers.worker_count import MOST_WORKERS
from prefect_batchflow.execution.workers.worker_process import Job, SuspectError, WorkerProcess
from prefect_batchflow.results.records import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.workers import wire
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import AggregationRun, CompletedLine

START_TIMEOUT_SEC = 120.0
"""How long a worker can take to import the flow."""
_END_WITHIN_SEC = 5.0
_CLOSED = "The workers are gone: the run was closed."
START_AGAIN_SEC = (0.1, 0.3, 1.0, 2.0)
"""The waits before a worker that did not start is tried again. A start can fail for a moment: the system killed the process
while it loaded the flow, or had no memory, descriptors or processes left."""
DESCRIPTORS_KEPT = 32
"""File descriptors that workers leave to the rest of the run, such as its records. A worker needs about six."""
LOADING_AT_ONCE = 4
"""How many workers load the flow at once when their number follows the lines."""
RATE_LIMITED = 429
"""The status of a call that a service refuses for its rate."""
ALONE_AT_ONCE = 4
"""How many suspect lines run at once, each in its own process."""


class WorkerPool:
    """The `Executor` of Python flows.

    Args:
        flow: The flow to run.
        init_kwargs: Arguments for the constructor of a class entry: any picklable values.
        connections: Name to promptflow's dictionary or a connection. They reach the workers through the pipe only.
        environment_variables: Set in the workers before the flow's code is imported. They override the flow's own.
        worker_count: Processes for sync code. 0 begins with a few and follows what lines do, up to `max_concurrency` and
            `MOST_WORKERS`.
        max_concurrency: Lines at once for async code.
        line_memory_mb: MiB by which a worker can grow once its flow is loaded.
        given: From another process's pool. It replaces `init_kwargs`, `connections` and `environment_variables`.
        alone: Whether it is the only pool of its run on this machine.
    """

    def __init__(
        self,
        flow: Flow,
        *,
        init_kwargs: Mapping[str, Any] | None = None,
        connections: Mapping[str, Any] | None = None,
        environment_variables: Mapping[str, str] | None = None,
        worker_count: int = 4,
        max_concurrency: int = 64,
        line_memory_mb: int | None = None,
        given: Given | None = None,
        alone: bool = True,
    ) -> None:
        self.on_slots: Callable[[], None] = lambda: None
        self.on_note: Callable[[str], None] = lambda _text: None
        """Gets a sentence for people when the run continues with fewer workers."""
        self.lines_left: Callable[[], int | None] = lambda: None
        self._flow = flow
        self._init_kwargs = dict(init_kwargs or {})
        self._connections = dict(connections or {})
        self._environment = {**flow.environment_variables, **(environment_variables or {})}
        self._given = given
        self._scrubber = (
            Scrubber.of_run(flow, self._connections, self._init_kwargs, self._environment)
            if given is None
            else given.scrubber
        )
        self._max_concurrency = max_concurrency
        self._line_memory_mb = line_memory_mb
        self._autoscaler: Autoscaler | None = None
        self._tells_count = not worker_count
        """Whether the number of lines at once is not the one that was given."""
        if not worker_count:
            self._autoscaler = Autoscaler(
                self._taking_lines,
                lambda: self._queue.has_waiting,
                self._change_count,
                most=min(max_concurrency, MOST_WORKERS),
                line_memory_mb=line_memory_mb,
                lines_left=lambda: self.lines_left(),
                alone=alone,
            )
            worker_count = self._autoscaler.wanted
        self._worker_count = self.slots = worker_count
        self.most_slots = worker_count if self._autoscaler is None else min(max_concurrency, MOST_WORKERS)
        self._keys = itertools.count()
        self._waits: dict[int, Wait] = {}
        self._workers: set[WorkerProcess] = set()
        self._queue = JobQueue(self._workers, self._on_shortage)
        self._loading: set[asyncio.Task[None]] = set()
        """Starts of workers, with their further tries."""
        self._most_started = sys.maxsize
        """The most workers that the machine lets this pool have, once a start has failed."""
        self._alone = asyncio.Semaphore(ALONE_AT_ONCE)
        self._supervisor = Supervisor()
        self._ready_worker: ReadyWorker | None = None
        """The process of the first worker, if it has started already."""
        self._oom_kills = OomKills()
        self._closed = False
        self._is_async = False
        """Whether the flow is async, or has turned out to be."""

    async def start(self) -> FlowDescription:
        """Start the supervisor and the first worker, which loads the flow.

        Raises:
            UserErrorException: The flow's code does not load; a subclass such as `PythonLoadError`.
            WorkerStartError: The process ended before it answered, or did not answer in time.
        """
        self._ready_worker = take_ready_worker()
        self._supervisor.start(None if self._ready_worker is None else self._ready_worker.run_token)
        worker, head = await self._started_worker(OSError)
        inputs = {i["name"]: FlowInput(**i) for i in head["inputs"]}
        known = {name: head[name] for name in ("is_async", "has_aggregation", "takes_any")}
        description = FlowDescription(inputs, **known)
        if description.is_async:
            self._run_async()
        elif self._autoscaler is not None:
            self._autoscaler.start()
        self._queue.offer(worker)
        return description

    def told(self) -> str:
        """How many workers it used and why, for people; empty if their number was given."""
        if self._is_async and self._tells_count:
            return f"1 worker process with up to {self.slots} lines at once, because the flow's code is async"
        return "" if self._autoscaler is None else self._autoscaler.told()

    async def run_line(self, line: Line, *, attempt: int, timeout_sec: float) -> LineOutcome:
        """Run one attempt of one line once a worker is free; its time starts then."""
        if line.error is not None:
            return failed_outcome(line, attempt=attempt, error=line.error)
        number = line.line_number
        head = {"op": "line", "line_number": number, "attempt": attempt, "input_hash": line.input_hash}
        if line.images is not None:
            head["images"] = line.images
        job = self._job(f"Line {number}", head, json.dumps(line.inputs).encode(), timeout_sec)
        try:
            reply, record = await self._run(job)
        except TimeoutError:
            error = timed_out(line, timeout_sec)
        except ProcessCrashError as exc:
            error = error_dict(exc)
        else:
            receipt = Receipt.from_row(reply["receipt"], reply["error"])
            if self._autoscaler is not None and class_of_error(receipt.error or {}) is ErrorClass.RATE_LIMIT:
                self._autoscaler.refused()
            return LineOutcome(receipt, record, line.input_hash, reply.get("printed", ""))
        return failed_outcome(line, attempt=attempt, error=error, duration_sec=job.duration_sec, logs=job.logs)

    async def aggregate(self, lines: Sequence[CompletedLine], *, timeout_sec: float) -> AggregationRun:
        """Run the aggregation in a worker. A crash or a hang becomes its error, like an exception."""
        job = self._job("The aggregation", {"op": "aggregate"}, json.dumps(list(lines)).encode(), timeout_sec)
        try:
            _, encoded = await self._run(job)
        except TimeoutError:
            return failed_aggregation(aggregation_timed_out(timeout_sec))
        except ProcessCrashError as exc:
            return failed_aggregation(exc)
        run: AggregationRun = json.loads(encoded)
        return run

    def waits(self) -> dict[int, Wait]:
        """The running lines that wait before they call a model again, by number."""
        now, running = time.monotonic(), self.running()
        self._waits = {n: wait for n, wait in self._waits.items() if wait.until > now and n in running}
        return self._waits

    def _on_wait(self, head: dict[str, Any]) -> None:
        self._waits[head["line_number"]] = Wait(time.monotonic() + head["sec"], head["status"])
        if self._autoscaler is not None and head["status"] == RATE_LIMITED:
            self._autoscaler.refused()

    def running(self) -> set[int]:
        """The numbers of the lines that workers run now."""
        jobs = (job for worker in self._workers for job in worker.running() if not job.answer.done())
        return {job.head["line_number"] for job in jobs if job.head["op"] == "line"}

    async def close(self) -> None:
        """Kill every worker with everything it started, and stop the supervisor; running lines are cancelled."""
        self._closed = True
        if self._autoscaler is not None:
            self._autoscaler.stop()
        self._queue.close()
        for start in list(self._loading):
            start.cancel()
        if self._ready_worker is not None:
            self._ready_worker.process.end()
        workers = list(self._workers)
        for worker in workers:
            worker.end()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_WITHIN_SEC):
                    for worker in workers:
                        await worker.exited.wait()
        finally:
            # Even if this is cancelled, because nobody else would wait for the supervisor.
            await self._supervisor.close()

    def _job(self, what: str, head: dict[str, Any], body: bytes, timeout_sec: float) -> Job:
        return Job(next(self._keys), head, body, timeout_sec, what, asyncio.get_running_loop().create_future())

    async def _run(self, job: Job) -> wire.Frame:
        """Have a worker run a job; the answer, or an exception for its time limit or the worker's end."""
        if self._closed:
            raise asyncio.CancelledError(_CLOSED)
        self._queue.add(job)
        try:
            return await job.answer
        except SuspectError:
            return await self._run_alone(job)
        except asyncio.CancelledError:
            if job.worker is not None:
                self._queue.put_back(job.worker.abandon(job))
            self._queue.remove(job)
            raise

    async def _run_alone(self, job: Job) -> wire.Frame:
        """Run a suspect line in its own process, so that only the line that kills its worker fails."""
        async with self._alone:
            worker, _ = await self._started_worker(OSError, WorkerStartError)
            try:
                worker.retiring = True
                job.answer = asyncio.get_running_loop().create_future()
                worker.take([job])
                return await job.answer
            finally:
                worker.end()

    async def _started_worker(self, *again: type[OSError | BatchflowException]) -> tuple[WorkerProcess, dict[str, Any]]:
        """A new worker that has loaded the flow, and the head of its answer. After the errors `again` it tries once more.

        Raises:
            BatchflowException: It does not start.
        """
        for wait_sec in (*START_AGAIN_SEC, None):
            try:
                worker = self._new_worker()
                try:
                    return worker, await self._load(worker)
                except BaseException:
                    worker.end()
                    raise
            except again as exc:
                if wait_sec is None:
                    raise exc if isinstance(exc, BatchflowException) else WorkerStartError(_not_started(exc)) from exc
            await asyncio.sleep(wait_sec or 0)
        raise AssertionError("the last try returns or raises")

    def _new_worker(self) -> WorkerProcess:
        if self._closed:
            raise asyncio.CancelledError(_CLOSED)
        if self._workers and _free_descriptors() < DESCRIPTORS_KEPT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        token = self._supervisor.new_token()
        if self._ready_worker is not None:
            started, self._ready_worker = self._ready_worker.process, None
        else:
            started = StartedProcess(token, str(self._flow.working_dir))
        worker = WorkerProcess(
            started,
            scrubber=self._scrubber,
            on_room=self._queue.offer,
            on_exit=self._on_exit,
            on_stuck=self._retire,
            on_async=self._run_async_in,
            on_wait=self._on_wait,
        )
        self._workers.add(worker)
        return worker

    async def _load(self, worker: WorkerProcess) -> dict[str, Any]:
        """Have a new worker load the flow; the head of its answer."""
        await worker.connect()
        given = self.given()
        job = {
            "flow": self._flow,
            "cwd": str(self._flow.working_dir),
            "packed": given.packed,
            "environment_variables": given.environment,
            "sys_path": given.sys_path,
            "line_memory_mb": self._line_memory_mb,
            "lines_at_once": self._max_concurrency,
            "is_async": self._is_async,
        }
        worker.load(pickle.dumps(job))
        try:
            async with asyncio.timeout(START_TIMEOUT_SEC):
                head, _ = await worker.ready
        except TimeoutError:
            worker.end()
            raise WorkerStartError(
                f"The flow {self._flow.name!r} was not loaded within {START_TIMEOUT_SEC:g} seconds. Its modules do too "
                f"much on import: move that work into functions. Last output: {worker.tail or 'none'}"
            ) from None
        if head["op"] == "refused":
            worker.end()
            raise _rebuilt(head["error"])
        self._scrubber = worker.scrubber = self._scrubber.knowing(head["secrets"])
        worker.loaded(self._max_concurrency if head["is_async"] else 1, is_async=head["is_async"])
        return head

    def given(self) -> Given:
        """What the caller gave this pool, for pools of the same flow in other processes."""
        if self._given is not None:
            return self._given
        # Some objects need cloudpickle, such as those of a class in the caller's notebook. Only workers read the result.
        from prefect_batchflow.definition.sending import MainModule, pickled

        is_of_script = isinstance(self._flow.program, Entry) and self._flow.program.script is not None
        main = MainModule.of_caller() if is_of_script else None
        try:
            given = {"init_kwargs": pickled(self._init_kwargs, main), "connections": self._connections}
            packed = pickled(given, main)
        except Exception as exc:  # the objects' own pickling can raise anything
            raise InvalidOptionError(
                f"The init_kwargs of the flow {self._flow.name!r} ({', '.join(self._init_kwargs)}) cannot be sent to a worker "
                f"process: ({type(exc).__name__}) {exc}. Give plain values, and build clients in the class's constructor."
            ) from exc
        sys_path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - "" means the current folder
        self._given = Given(packed, self._environment, sys_path, self._scrubber)
        return self._given

    def _on_shortage(self) -> None:
        """Start one more worker, unless there are enough. It gets jobs once it has loaded the flow."""
        loaded = sum(not worker.retiring and worker.ready.done() for worker in self._workers)
        if self._closed or loaded + len(self._loading) >= self._worker_count:
            return
        if self._autoscaler is not None and len(self._loading) >= LOADING_AT_ONCE:
            return  # each import takes a processor; the next worker starts when one of these has loaded
        task = asyncio.get_running_loop().create_task(self._load_and_offer())
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    async def _load_and_offer(self) -> None:
        this = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            worker, _ = await self._started_worker(OSError, BatchflowException)
        except BatchflowException as exc:
            self._loading.discard(this)
            self._go_on_without(exc)
        else:
            if worker.retiring and not worker.jobs:
                worker.end()
            self._queue.offer(worker)
            self._loading.discard(this)
            self._queue.feed()

    def _go_on_without(self, exc: BatchflowException) -> None:
        """Continue with the workers that there are. If there is none, the waiting lines report why."""
        if self._closed:
            return
        left = len(self._taking_lines()) + len(self._loading)
        if not left:
            # The first worker did load this flow, so the waiting lines should report this failure.
            self._queue.fail(WorkerStartError, f"A further worker did not start: {exc}")
        elif left < self._worker_count:
            self.on_note(
                f"A further worker process did not start in {len(START_AGAIN_SEC) + 1} tries: {exc} "
                f"The run continues with {left} of {self._worker_count} workers."
            )
            self._most_started = left
            self._change_count(left)

    def _taking_lines(self) -> list[WorkerProcess]:
        """The workers that have loaded the flow and take lines."""
        return [w for w in self._workers if w.ready.done() and not (w.retiring or w.ending)]

    def _change_count(self, wanted: int) -> None:
        """Have another number of workers. Further ones start as lines wait for them; the others end after their line."""
        wanted = min(wanted, self._most_started)
        self._worker_count = self.slots = wanted
        idle_first = sorted(self._taking_lines(), key=lambda worker: len(worker.jobs))
        for worker in idle_first[: max(0, len(idle_first) - wanted)]:
            recalled = worker.recall() if worker.jobs else []
            self._retire(worker)
            self._queue.put_back(recalled)
        self._queue.feed()
        self.on_slots()

    def _run_async(self) -> None:
        self._is_async = True
        self._worker_count, self.slots, self.most_slots = 1, self._max_concurrency, self._max_concurrency
        if self._autoscaler is not None:
            self._autoscaler.stop()
            self._autoscaler = None
        self.on_slots()

    def _run_async_in(self, worker: WorkerProcess) -> None:
        """Run all further lines in the first worker whose flow has turned out to be async; the others end after theirs."""
        if self._is_async or worker.retiring:
            return
        self._tells_count = True
        self._run_async()
        worker.becomes_async(self._max_concurrency)
        others = [other for other in self._workers if other is not worker and not other.retiring]
        for other in others:
            other.retiring = True
            self._queue.withdraw(other)
        self._queue.offer(worker)
        for other in others:
            if other.ready.done():  # one that still loads the flow ends after that
                self._queue.put_back(other.recall())
                self._retire(other)

    def _retire(self, worker: WorkerProcess) -> None:
        """Replace a worker in which a cancelled line still runs, in a thread or because it ignores the cancellation.

        Only the end of the process ends that line. The worker's other lines are finished first.
        """
        worker.retiring = True
        self._queue.withdraw(worker)
        if not worker.jobs:
            worker.end()
        self._queue.feed()

    def _on_exit(self, worker: WorkerProcess, unbegun: list[Job], begun: list[Job]) -> None:
        self._workers.discard(worker)
        self._queue.withdraw(worker)
        if not worker.ready.done():
            if self._closed:
                worker.ready.cancel()
                return
            worker.ready.set_exception(
                WorkerStartError(
                    f"The worker process for the flow {self._flow.name!r} {how_it_ended(worker.returncode)} while it "
                    f"loaded the flow. Last output: {worker.tail or 'none'}"
                )
            )
            worker.ready.exception()
            return
        lost: list[Job] = []
        if not worker.ending and not begun and unbegun:
            # Once, no line is to blame. But if the inputs of a line kill every worker that reads them, it would repeat forever.
            unbegun[0].deaths += 1
            if unbegun[0].deaths > 1:
                begun = [unbegun.pop(0)]
        for job in begun:
            if job.timed_out:
                # A line that blocks the event loop makes the others exceed their limits, too.
                suspect = worker.silent and len(begun) > 1
                job.answer.set_exception(SuspectError() if suspect else TimeoutError())
            elif worker.ending:
                lost.append(job)
            elif len(begun) > 1:
                job.answer.set_exception(SuspectError())
            else:
                error = crash_error(worker, job.what, self._oom_kills)
                if isinstance(error, LineOutOfMemoryError) and self._autoscaler is not None:
                    self._autoscaler.out_of_memory()
                job.answer.set_exception(error)
        self._queue.put_back([*lost, *unbegun])


def _not_started(exc: OSError) -> str:
    """Why the system started no process, and what to do."""
    cure = "Give the run fewer workers (worker_count), or the machine more memory and processes"
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        cure = "Give the run fewer workers (worker_count), or raise the limit of open files (ulimit -n)"
    return f"The system did not start a worker process: ({type(exc).__name__}) {exc}. {cure}."


def _free_descriptors() -> int:
    """How many more files this process can open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        DESCRIPTORS_KEPT if most == resource.RLIM_INFINITY else most - sum(1 for _ in Path("/proc/self/fd").iterdir())
    )


def _rebuilt(error: dict[str, Any]) -> BatchflowException:
    """The exception that a worker described; `UnexpectedError` for an unknown one."""
    cls = getattr(exceptions, innermost_code(error), UnexpectedError)
    info = {item["type"]: item["info"] for item in error.get("additionalInfo", [])}
    return cls(error["message"], target=error["referenceCode"], additional_info=info)
