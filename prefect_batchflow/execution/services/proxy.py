"""Executors of other languages: promptflow's proxy class, and the executor that drives one."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.flow import FlowDescription, FlowInput
from prefect_batchflow.errors.classes import INFO_KEY, class_of_error, class_of_exception
from prefect_batchflow.errors.waits import wait_asked_by
from prefect_batchflow.exceptions import BatchflowException, UnexpectedError, WorkerStartError, error_dict
from prefect_batchflow.execution.executor import (
    LineOutcome,
    aggregation_timed_out,
    failed_aggregation,
    failed_outcome,
    outcome_of,
    timed_out,
)
from prefect_batchflow.execution.scrubbing import Scrubber
from prefect_batchflow.results.records import Clock, Status, Tokens, line_run, node_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.executor import Wait
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import AggregationRun, CompletedLine, NodeRecord

logger = logging.getLogger(__name__)

DESTROY_SEC = 10.0
"""How long an executor proxy can take to end what it started."""


class AbstractExecutorProxy(ABC):
    """An executor of another language: subclass it and register it with `BatchEngine.register_executor`.

    Source: promptflow `batch/_base_executor_proxy.py`, `AbstractExecutorProxy`.
    """

    @classmethod
    @abstractmethod
    async def create(
        cls,
        flow_file: Path,
        working_dir: Path | None = None,
        *,
        connections: Mapping[str, Any] | None = None,
        storage: Any = None,
        **kwargs: Any,
    ) -> AbstractExecutorProxy:
        """Start whatever runs the flow; `kwargs` has `init_kwargs`, `worker_count` and, if any, `environment_variables`."""

    async def destroy(self) -> None:
        """End what `create` started."""
        return

    @property
    def has_aggregation(self) -> bool:
        """Whether the run must call `exec_aggregation_async`."""
        return False

    async def wait_until_ready(self) -> None:
        """Return once a line can be sent; this time does not count as the line's. Raise to stop the run.

        Promptflow does not have this method, because its proxies do not replace what they started.
        """
        return

    def get_inputs_definition(self) -> Mapping[str, Any]:
        """Input name to a dictionary; it can have `type` and `default`."""
        return {}

    @abstractmethod
    async def exec_line_async(
        self, inputs: Mapping[str, Any], index: int | None = None, run_id: str | None = None
    ) -> Any:
        """Run one line; a `LineResult`, or its dictionary as in the service protocol."""

    async def exec_aggregation_async(
        self, batch_inputs: Mapping[str, Any], aggregation_inputs: Mapping[str, Any], run_id: str | None = None
    ) -> Any:
        """Run the aggregation over lists; an `AggregationResult`, or its dictionary."""
        raise NotImplementedError


class ProxyExecutor:
    """Drives a promptflow executor proxy: many lines at once, each with its time limit."""

    def __init__(
        self,
        flow: Flow,
        proxy: AbstractExecutorProxy | type[AbstractExecutorProxy],
        *,
        run_id: str,
        slots: int,
        init_kwargs: Mapping[str, Any] | None = None,
        connections: Mapping[str, Any] | None = None,
        storage: Any = None,
        environment_variables: Mapping[str, str] | None = None,
    ) -> None:
        self.slots = self.most_slots = slots
        self.on_slots: Callable[[], None] = lambda: None
        self.lines_left: Callable[[], int | None] = lambda: None
        self._flow = flow
        self._given = proxy
        self._run_id = run_id
        environment = {**flow.environment_variables, **(environment_variables or {})}
        self._create_kwargs: dict[str, Any] = {
            "connections": connections,
            "storage": storage,
            "init_kwargs": dict(init_kwargs or {}),
        }
        if environment:
            self._create_kwargs["environment_variables"] = environment
        self._scrubber = Scrubber.of_run(flow, connections or {}, init_kwargs or {}, environment)
        self._free = asyncio.Semaphore(slots)
        self._running: set[int] = set()
        self._proxy: AbstractExecutorProxy | None = None

    async def start(self) -> FlowDescription:
        """Create the proxy, unless one was given, and ask it for its inputs.

        Raises:
            WorkerStartError: `create` raised an exception that is not this package's own.
        """
        flow, given = self._flow, self._given
        if isinstance(given, type):
            file = flow.definition_file or flow.working_dir
            try:
                proxy = await given.create(file, flow.working_dir, worker_count=self.slots, **self._create_kwargs)
            except BatchflowException:
                raise
            except Exception as exc:
                what = self._scrubber.text(f"({type(exc).__name__}) {exc}")
                raise WorkerStartError(f"{given.__name__}.create failed for the flow {flow.name!r}: {what}") from exc
        else:
            proxy = given
        self._proxy = proxy
        inputs = {
            name: FlowInput(name, **{k: v for k, v in dict(definition).items() if k in ("type", "default")})
            for name, definition in proxy.get_inputs_definition().items()
        }
        return FlowDescription(inputs or flow.inputs, is_async=True, has_aggregation=proxy.has_aggregation)

    async def run_line(self, line: Line, *, attempt: int, timeout_sec: float) -> LineOutcome:
        """Call the proxy for one line. If it raises, is late or answers nonsense, the line fails."""
        assert self._proxy is not None, "start() comes first"
        if line.error is not None:
            return failed_outcome(line, attempt=attempt, error=line.error)
        async with self._free:
            await self._proxy.wait_until_ready()
            clock = Clock()
            self._running.add(line.line_number)
            try:
                async with asyncio.timeout(timeout_sec) as limit:
                    result = await self._proxy.exec_line_async(line.inputs, line.line_number, self._run_id)
                return _outcome(line, _plain(result), attempt, clock, self._scrubber)
            except Exception as exc:  # noqa: BLE001 - the border around code that is not ours
                error = timed_out(line, timeout_sec) if limit.expired() else _described(exc)
                error = self._scrubber.value(error)
                return failed_outcome(line, attempt=attempt, error=error, duration_sec=clock.span()[2])
            finally:
                self._running.discard(line.line_number)

    async def aggregate(self, lines: Sequence[CompletedLine], *, timeout_sec: float) -> AggregationRun:
        """Give the proxy lists over the completed lines, in line_number order; an exception becomes the aggregation's error."""
        assert self._proxy is not None, "start() comes first"
        inputs = {name: [line["inputs"].get(name) for line in lines] for name in (lines[0]["inputs"] if lines else ())}
        keys = {key: None for line in lines for key in line["aggregation_inputs"]}
        references = {key: [line["aggregation_inputs"].get(key) for line in lines] for key in keys}
        await self._proxy.wait_until_ready()
        started = datetime.now(UTC).isoformat()
        try:
            async with asyncio.timeout(timeout_sec) as limit:
                result = _plain(await self._proxy.exec_aggregation_async(inputs, references, self._run_id))
            nodes = [_node(info, started) for info in (result.get("node_run_infos") or {}).values()]
        except Exception as exc:  # noqa: BLE001 - the border around code that is not ours
            failed = failed_aggregation(aggregation_timed_out(timeout_sec) if limit.expired() else _known(exc))
            return self._scrubber.record(failed)
        run: AggregationRun = {
            "output": result.get("output") or {},
            "metrics": result.get("metrics") or {},
            "nodes": nodes,
            "error": result.get("error"),
        }
        return self._scrubber.record(run)

    def given(self) -> None:
        """`None`, because only this process has the proxy."""

    def told(self) -> str:
        """Nothing: the number of lines at once is given."""
        return ""

    def waits(self) -> dict[int, Wait]:
        """Nothing: a service does not tell."""
        return {}

    def running(self) -> set[int]:
        """The numbers of the lines that the proxy runs now."""
        return set(self._running)

    async def close(self) -> None:
        """Destroy the proxy if this executor created it."""
        if self._proxy is not None and isinstance(self._given, type):
            try:
                async with asyncio.timeout(DESTROY_SEC):
                    await self._proxy.destroy()
            except Exception as exc:  # noqa: BLE001 - an error at the end must not cost the run its result
                logger.warning("%s.destroy() failed: (%s) %s", type(self._proxy).__name__, type(exc).__name__, exc)


def _known(exc: Exception) -> BatchflowException:
    return exc if isinstance(exc, BatchflowException) else UnexpectedError(f"({type(exc).__name__}) {exc}")


def _described(exc: Exception) -> dict[str, Any]:
    """The error of a line whose proxy raised, with the error class and, if the exception asks for one, the wait."""
    error, kind, asked = error_dict(_known(exc)), class_of_exception(exc), wait_asked_by(exc)
    if kind is class_of_error(error) and asked is None:
        return error
    info = {"type": type(exc).__name__, INFO_KEY: str(kind)} | ({} if asked is None else {"retry_after_sec": asked})
    error["additionalInfo"] = [*error.get("additionalInfo", []), {"type": "ExecutorErrorDetails", "info": info}]
    return error


def _plain(result: Any) -> dict[str, Any]:
    """A proxy's answer as a dictionary; it can be a model or a dictionary already."""
    return result.model_dump() if hasattr(result, "model_dump") else dict(result)


def _node(info: Mapping[str, Any], started: str) -> NodeRecord:
    span = _iso(info.get("start_time") or started), _iso(info.get("end_time") or datetime.now(UTC)), 0.0
    kept: dict[str, Any] = {key: info.get(key) for key in ("node", "inputs", "output", "error", "metrics")}
    return node_record(span=span, status=str(info.get("status")), **kept)


def _iso(time: datetime | str) -> str:
    return time.isoformat() if isinstance(time, datetime) else time


def _outcome(line: Line, result: dict[str, Any], attempt: int, clock: Clock, scrubber: Scrubber) -> LineOutcome:
    run_info = result.get("run_info") or {}
    status, error = run_info.get("status") or Status.Completed, run_info.get("error")
    if status != Status.Completed and not error:
        error = error_dict(
            UnexpectedError(f"The executor answered that the line is {status}, but gave no error.", target="Executor")
        )
    run = line_run(
        line.inputs,
        clock.span(),
        status=status,
        output=result.get("output"),
        aggregation_inputs=result.get("aggregation_inputs"),
        error=error,
        metrics=run_info.get("metrics"),
        tokens=Tokens.of(run_info.get("system_metrics")).metrics(),
        nodes=[_node(info, clock.start_time) for info in (result.get("node_run_infos") or {}).values()],
    )
    return outcome_of(line, attempt, run, scrubber)
