"""Dask and Ray as a run uses them: connect, count the places for tasks, submit a task and wait for its state, let go.

Prefect's own task runners do the submitting. Connecting and submitting take up to a second and 70 ms: both in threads. One
that does not answer takes minutes to connect to, or for ever: that thread is a daemon, for which no process waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import logging
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.packages import pip_install
from prefect_batchflow.exceptions import BatchflowException, ClusterError, InvalidOptionError, told
from prefect_batchflow.prefect_runtime.own_server import own_server_named

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import Task
    from prefect.client.schemas.objects import State

WORKERS_WITHIN_SEC = 60.0
"""How long a cluster may have no worker."""
CONNECTED_WITHIN_SEC = 30.0 + WORKERS_WITHIN_SEC
"""How long connecting may take with all that it waits for; Ray itself would wait for ever for some addresses."""
CONNECT_ENDS_WITHIN_SEC = 3.0
"""How long letting go waits for a connect that goes on: a cluster that is started here is then ended in order."""
LEFT_WITHIN_SEC = 60.0
"""How long letting go of a cluster may take."""

logger = logging.getLogger(__name__)


class LostTaskError(Exception):
    """A task whose state did not come back: its worker died, or the cluster let go of it."""


class Cluster(ABC):
    """A cluster that a run is connected to.

    Args:
        address: Where it is; empty starts one on this machine for the time of the run.
        lines_at_once: Of the whole run: a cluster that is started here gets no more places than that.
    """

    def __init__(self, address: str, lines_at_once: int) -> None:
        self._address = address
        self._own_places = max(1, min(lines_at_once, os.cpu_count() or 1))
        self._runner = self._task_runner()
        self._is_open = False
        self._is_closing = threading.Event()
        self._is_holding = False
        self._connected: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._left: concurrent.futures.Future[None] = concurrent.futures.Future()

    async def connect(self) -> int:
        """Connect, and give the number of tasks that the cluster runs at once; to be called once.

        Raises:
            ClusterError: It cannot be reached in time, or has no worker within a minute.
        """
        self._is_holding = True
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=[self._hold], name="batchflow-cluster", daemon=True).start()
        if not await _has_ended(self._connected, CONNECTED_WITHIN_SEC):
            raise ClusterError(
                f"{self._name} has not answered within {CONNECTED_WITHIN_SEC:g} s. See that it runs, and that "
                "task_runner_address is right."
            )
        try:
            places = self._connected.result()
        except BatchflowException:
            raise
        except Exception as exc:
            raise ClusterError(
                f"{self._name} cannot be reached: {told(exc)}. See that it runs, and that task_runner_address is right."
            ) from exc
        if places < 1:
            raise ClusterError(f"{self._name} has no worker. Start some, and resume the run.")
        return places

    async def run(self, task: Task[..., Any], parameters: dict[str, Any]) -> State[Any]:
        """Submit a task and wait for its state; when this is cancelled, so is the task.

        Raises:
            LostTaskError: There is none.
            ClusterError: The cluster's workers cannot run it.
        """
        # Tasks tell their states to the server of this run, also to one of its own, which no setting names.
        with own_server_named():
            submitting = asyncio.ensure_future(asyncio.to_thread(self._submit, task, parameters))
        try:
            # Whatever happens meanwhile, what was submitted must be known: it is waited for, or cancelled.
            future = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(self._cancel_submitted)
            raise
        except Exception as exc:
            raise LostTaskError(f"it could not be submitted: ({type(exc).__name__}) {exc}") from exc
        try:
            return await self._state(future)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.to_thread(self._cancel, future))
            raise
        except ImportError as exc:
            raise ClusterError(
                f"A worker of {self._name} cannot import what a run needs: {exc}. Install prefect-batchflow[{self.kind}] "
                "there, in the version that is here."
            ) from exc
        except Exception as exc:
            raise LostTaskError(f"({type(exc).__name__}) {exc}") from exc

    async def close(self) -> None:
        """Let go of the cluster, or end the one that was started; one that still connects is let go of when it has."""
        self._is_closing.set()
        if not self._is_holding or not await _has_ended(self._connected, CONNECT_ENDS_WITHIN_SEC):
            return
        if not await _has_ended(self._left, LEFT_WITHIN_SEC):
            logger.warning("Could not let go of %s within %g s", self._name, LEFT_WITHIN_SEC)

    def _hold(self) -> None:
        """Connect, and leave when that is asked for: in one thread, for the processes that Ray starts end with theirs."""
        try:
            places = self._connect()
        except BaseException as exc:  # noqa: BLE001 - carried to who waits for it
            self._connected.set_exception(exc)
        else:
            self._connected.set_result(places)
        self._is_closing.wait()
        try:
            if self._is_open:
                self._leave()
        except Exception as exc:  # noqa: BLE001 - a cluster that is gone must not cost the run its result
            logger.warning("Could not let go of %s: (%s) %s", self._name, type(exc).__name__, exc)
        finally:
            self._left.set_result(None)

    def _connect(self) -> int:
        self._runner.__enter__()
        self._is_open = True
        return self._places()

    def _leave(self) -> None:
        self._runner.__exit__(None, None, None)

    def _submit(self, task: Task[..., Any], parameters: dict[str, Any]) -> Any:
        return self._runner.submit(task, parameters=parameters).wrapped_future

    def _cancel_submitted(self, submitting: asyncio.Future[Any]) -> None:
        if not submitting.cancelled() and submitting.exception() is None:
            threading.Thread(target=self._cancel, args=[submitting.result()], daemon=True).start()

    @property
    def _name(self) -> str:
        return f"The {self.kind.capitalize()} cluster" + (f" at {self._address}" if self._address else "")

    @property
    @abstractmethod
    def kind(self) -> str:
        """Its name as an option, and as an extra."""

    @abstractmethod
    def _task_runner(self) -> Any:
        """Prefect's task runner for it."""

    @abstractmethod
    def _places(self) -> int:
        """How many tasks it runs at once."""

    @abstractmethod
    async def _state(self, future: Any) -> State[Any]:
        """Wait for a task's state."""

    @abstractmethod
    def _cancel(self, future: Any) -> None:
        """Give a task up; one that runs may go on, and is told through the run's storage."""


class DaskCluster(Cluster):
    """Dask: a task for each thread of each worker."""

    kind = "dask"

    def _task_runner(self) -> Any:
        try:
            from prefect_dask import DaskTaskRunner
        except ImportError as exc:
            raise _missing("dask", exc) from exc
        if self._address:
            return DaskTaskRunner(address=self._address)
        return DaskTaskRunner(
            cluster_kwargs={
                "n_workers": self._own_places,
                "threads_per_worker": 1,
                "dashboard_address": None,
                "silence_logs": logging.CRITICAL,
            }
        )

    def _places(self) -> int:
        deadline = time.monotonic() + WORKERS_WITHIN_SEC
        while not self._is_closing.is_set() and time.monotonic() < deadline:
            # In slices: a run that is stopped meanwhile must not wait for workers that may never come.
            with contextlib.suppress(TimeoutError):
                self._runner.client.wait_for_workers(1, timeout=1)
                break
        return sum(self._runner.client.nthreads().values())

    async def _state(self, future: Any) -> State[Any]:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        future.add_done_callback(lambda _: _call_soon(loop, done.set))
        await done.wait()
        state: State[Any] = await asyncio.to_thread(future.result)
        return state

    def _cancel(self, future: Any) -> None:
        with contextlib.suppress(Exception):
            future.cancel()


class RayCluster(Cluster):
    """Ray: a task for each CPU, each in a process."""

    kind = "ray"

    async def connect(self) -> int:
        """Connect, as others do, and keep SIGTERM for those who had it, also when nobody waits for the connect any more.

        Ray puts a handler of its own in C over it, which aborts the process 3 s later, whatever the run does meanwhile.
        """
        loop = asyncio.get_running_loop()
        # The first of its callbacks: done before anybody hears that it is connected.
        self._connected.add_done_callback(lambda _: _call_soon(loop, _keep_sigterm))
        return await super().connect()

    def _task_runner(self) -> Any:
        try:
            import ray  # noqa: F401 - prefect-ray finds out later, and says it otherwise
            from prefect_ray import RayTaskRunner
        except ImportError as exc:
            raise _missing("ray", exc) from exc
        # Workers' logs are in Ray's own files, and in Prefect.
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address == "auto":
            # prefect-ray takes it for "none", and would start a cluster where there is none.
            return RayTaskRunner(init_kwargs={"address": "auto", **options})
        if self._address:
            return RayTaskRunner(address=self._address, init_kwargs=options)
        own = {"address": "local", "num_cpus": self._own_places, "include_dashboard": False}
        return RayTaskRunner(init_kwargs={**own, **options})

    def _places(self) -> int:
        import ray

        return int(ray.cluster_resources().get("CPU", 0))

    async def _state(self, future: Any) -> State[Any]:
        state: State[Any] = await asyncio.wrap_future(future.future())
        return state

    def _cancel(self, future: Any) -> None:
        import ray

        with contextlib.suppress(Exception):
            ray.cancel(future)


def _keep_sigterm() -> None:
    if threading.current_thread() is threading.main_thread() and (handler := signal.getsignal(signal.SIGTERM)):
        signal.signal(signal.SIGTERM, handler)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(call)


async def _has_ended(work: concurrent.futures.Future[Any], within_sec: float) -> bool:
    """Wait for work in another thread; it goes on when this is cancelled, or takes too long."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    work.add_done_callback(lambda _: _call_soon(loop, ended.set))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_sec):
            await ended.wait()
    return work.done()


def _missing(kind: str, exc: ImportError) -> InvalidOptionError:
    return InvalidOptionError(
        f"task_runner={kind!r} needs a package that is not installed ({exc}). {pip_install(f'prefect_{kind}')}"
    )


def cluster_of(name: str, address: str, lines_at_once: int) -> Cluster:
    """The cluster that a run's options name, `dask` or `ray`.

    Raises:
        InvalidOptionError: Its package is not installed.
    """
    return {"dask": DaskCluster, "ray": RayCluster}[name](address, lines_at_once)
