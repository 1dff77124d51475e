"""A cluster with the cluster left out: its tasks are threads of this process."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any

from prefect.states import Completed

from prefect_batchflow.cluster.clusters import DaskCluster
from prefect_batchflow.cluster.node import run_assignment
from prefect_batchflow.prefect_runtime.task_runs import in_memory_result

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State


def travelled(value: Any) -> Any:
    """What arrives in another process."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - its own


class FakeCluster(DaskCluster):
    """Runs tasks in threads; loses those that it is told to."""

    def __init__(self) -> None:
        self.losses: list[Exception | State[Any]] = []
        """What the next submissions give instead of a report."""
        self.submitted = 0

    async def run(self, task: Task[..., Any], parameters: dict[str, Any]) -> State[Any]:
        self.submitted += 1
        if self.losses:
            loss = self.losses.pop(0)
            if isinstance(loss, Exception):
                raise loss
            return loss
        assignment = travelled(parameters["assignment"])
        report = await asyncio.to_thread(run_assignment, assignment)
        state: State[Any] = Completed()
        state.data = in_memory_result(travelled(report))
        state.data = in_memory_result(travelled(report))
        return state
