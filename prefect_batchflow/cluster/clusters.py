"""Dask and Ray as a run uses them: connect, count the places for tasks, submit a task and wait for its state, disconnect.

Prefect's own task runners submit the tasks. Connecting takes up to a second and submitting up to 70 ms, so both run in
threads. If a cluster does not answer, connecting takes minutes or never ends, so that thread is a daemon.
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
"""How long to wait for a cluster's first worker."""
CONNECTED_WITHIN_SEC = 30.0 + WORKERS_WITHIN_SEC
"""How long connecting may take, waiting for workers included. For some addresses Ray alone would wait forever."""
CONNECT_ENDS_WITHIN_SEC = 3.0
"""How long `close` waits for a connect in progress, so that a cluster that is starting here ends properly."""
LEFT_WITHIN_SEC = 60.0
"""How long disconnecting from a cluster may take."""

logger = logging.getLogger(__name__)


class LostTaskError(Exception):
    """The state of a task did not come back: its worker died, or the cluster dropped the task."""


class Cluster(ABC):
    """A cluster that a run is connected to.

    An empty address starts one on this machine for the time of the run, with at most one place per line that runs at once.
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
        """Connect, and return the number of tasks that the cluster runs at once. Call it once.

        Raises:
            ClusterError: The cluster does not answer in time, or has no worker within a minute.
        """
        self._is_holding = True
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=[self._hold], name="batchflow-cluster", daemon=True).start()
        if not await _has_ended(self._connected, CONNECTED_WITHIN_SEC):
            raise ClusterError(
                f"{self._name} has not answered within {CONNECTED_WITHIN_SEC:g} s. Check that it runs, and that "
                "task_runner_address is right."
            )
        try:
            places = self._connected.result()
        except BatchflowException:
            raise
        except Exception as exc:
            raise ClusterError(
                f"{self._name} cannot be reached: {told(exc)}. Check that it runs, and that task_runner_address is right."
            ) from exc
        if places < 1:
            raise ClusterError(f"{self._name} has no workers. Start some, then resume the run.")
        return places

    async def run(self, task: Task[..., Any], parameters: dict[str, Any]) -> State[Any]:
        """Submit a task and wait for its state. If this call is cancelled, so is the task.

        Raises:
            LostTaskError: No state came back.
            ClusterError: The cluster's workers cannot run the task.
        """
        # Tasks report to the server of this run, also if it is its own server, which no setting names.
        with own_server_named():
            submitting = asyncio.ensure_future(asyncio.to_thread(self._submit, task, parameters))
        try:
            # A submitted task must be known, even if this is cancelled meanwhile: someone waits for it or cancels it.
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
                f"A worker of {self._name} cannot import a package that the run needs: {exc}. Install "
                f"prefect-batchflow[{self.kind}] there, in the same version as here."
            ) from exc
        except Exception as exc:
            raise LostTaskError(f"({type(exc).__name__}) {exc}") from exc

    async def close(self) -> None:
        """Disconnect from the cluster, or end it if it was started here. A connect in progress disconnects when it is done."""
        self._is_closing.set()
        if not self._is_holding or not await _has_ended(self._connected, CONNECT_ENDS_WITHIN_SEC):
            return
        if not await _has_ended(self._left, LEFT_WITHIN_SEC):
            logger.warning("Could not disconnect from %s within %g s", self._name, LEFT_WITHIN_SEC)

    def _hold(self) -> None:
        """Connect, and disconnect on request: in one thread, because processes that Ray starts end with their thread."""
        try:
            places = self._connect()
        except BaseException as exc:  # noqa: BLE001 - handed to the caller that waits for it
            self._connected.set_exception(exc)
        else:
            self._connected.set_result(places)
        self._is_closing.wait()
        try:
            if self._is_open:
                self._leave()
        except Exception as exc:  # noqa: BLE001 - a cluster that is gone must not fail the run
            logger.warning("Could not disconnect from %s: (%s) %s", self._name, type(exc).__name__, exc)
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
        """Its name as an option and as an extra."""

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
        """Give up a task. If it runs, it may continue; it gets orders through the run's storage."""


class DaskCluster(Cluster):
    """Dask: one task at a time per thread of each worker."""

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
            # In slices, so that a run that is stopped does not wait for workers that may never come.
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
    """Ray: one task at a time per CPU, each in its own process."""

    kind = "ray"

    async def connect(self) -> int:
        """Connect, and restore the handler of SIGTERM, even if nobody waits for the connect any longer.

        Ray installs its own handler in C, which aborts the process 3 s after the signal, whatever the run is doing.
        """
        loop = asyncio.get_running_loop()
        # The first callback, so it runs before anyone hears that Ray is connected.
        self._connected.add_done_callback(lambda _: _call_soon(loop, _keep_sigterm))
        return await super().connect()

    def _task_runner(self) -> Any:
        try:
            import ray  # noqa: F401 - prefect-ray would fail later, with another message
            from prefect_ray import RayTaskRunner
        except ImportError as exc:
            raise _missing("ray", exc) from exc
        # The logs of workers are in Ray's own files and in Prefect.
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address == "auto":
            # prefect-ray reads "auto" as no address, and would start a cluster if none runs.
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
    with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits any longer
        loop.call_soon_threadsafe(call)


async def _has_ended(work: concurrent.futures.Future[Any], within_sec: float) -> bool:
    """Wait for work in another thread. The work continues if this call is cancelled or takes too long."""
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
    """The cluster that a run's options name: `dask` or `ray`.

    Raises:
        InvalidOptionError: The package for it is not installed.
    """
    return {"dask": DaskCluster, "ray": RayCluster}[name](address, lines_at_once)
