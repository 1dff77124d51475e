"""Dask and Ray as a run uses them: connect, count the places for tasks, submit a task and wait for its state, let go.

Prefect's own task runners do the submitting. Connecting and submitting take up to a second and 70 ms: both in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_batchflow.exceptions import BatchflowException, ClusterError, InvalidOptionError
from prefect_batchflow.own_server import own_server_url

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State

WORKERS_WITHIN_SEC = 60.0
"""How long a cluster may have no worker."""

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
        self._changing = threading.Lock()
        self._is_closing = threading.Event()

    async def connect(self) -> int:
        """Connect, and give the number of tasks that the cluster runs at once.

        Raises:
            ClusterError: It cannot be reached, or has no worker within a minute.
        """
        try:
            places = await asyncio.to_thread(self._connect)
        except BatchflowException:
            raise
        except Exception as exc:
            raise ClusterError(
                f"{self._name} cannot be reached: ({type(exc).__name__}) {str(exc).rstrip('.')}. See that it runs, "
                "and that task_runner_address is right."
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
        with self._settings():
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
        """Let go of the cluster, or end the one that was started."""
        self._is_closing.set()
        await asyncio.to_thread(self._close)

    def _connect(self) -> int:
        with self._changing:
            self._runner.__enter__()
            self._is_open = True
            return self._places()

    def _close(self) -> None:
        with self._changing:
            if self._is_open:
                self._is_open = False
                try:
                    self._leave()
                except Exception as exc:  # noqa: BLE001 - a cluster that is gone must not cost the run its result
                    logger.warning("Could not let go of %s: (%s) %s", self._name, type(exc).__name__, exc)

    def _leave(self) -> None:
        self._runner.__exit__(None, None, None)

    def _submit(self, task: Task[..., Any], parameters: dict[str, Any]) -> Any:
        return self._runner.submit(task, parameters=parameters).wrapped_future

    def _cancel_submitted(self, submitting: asyncio.Future[Any]) -> None:
        if not submitting.cancelled() and submitting.exception() is None:
            threading.Thread(target=self._cancel, args=[submitting.result()], daemon=True).start()

    @contextlib.contextmanager
    def _settings(self) -> Any:
        """Tasks tell their states to the server of this run, also to one of its own, which no setting names."""
        url = own_server_url()
        with temporary_settings({PREFECT_API_URL: url}) if url else contextlib.nullcontext():
            yield

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

        def on_done(_: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        future.add_done_callback(on_done)
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
        """Connect, as others do, and keep SIGTERM for those who had it.

        Ray puts a handler of its own in C over it, which aborts the process 3 s later, whatever the run does meanwhile.
        """
        try:
            return await super().connect()
        finally:
            if threading.current_thread() is threading.main_thread() and (handler := signal.getsignal(signal.SIGTERM)):
                signal.signal(signal.SIGTERM, handler)

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


def _missing(extra: str, exc: ImportError) -> InvalidOptionError:
    return InvalidOptionError(
        f"task_runner={extra!r} needs a package that is not installed ({exc}). pip install 'prefect-batchflow[{extra}]'"
    )


def cluster_of(name: str, address: str, lines_at_once: int) -> Cluster:
    """The cluster that a run's options name, `dask` or `ray`.

    Raises:
        InvalidOptionError: Its package is not installed.
    """
    return {"dask": DaskCluster, "ray": RayCluster}[name](address, lines_at_once)
