"""A whole batch run without Prefect's server and without workers, in some milliseconds: for tests that run hundreds of them.

The stages of the run and its storage are the package's own. Replaced are Prefect's task runs, by plain calls of what they
call, its artifacts and its logger, and the worker processes, by a function of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from prefect_batchflow import tasks
from prefect_batchflow.exceptions import BatchflowException
from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy
from prefect_batchflow.flows import request_of
from prefect_batchflow.line_runner import ChunkRun
from prefect_batchflow.run import ending, feeding, resuming, state
from prefect_batchflow.run.batch_run import run_stages
from prefect_batchflow.run.handle import LiveRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.models import BatchResult


class CalledLines(AbstractExecutorProxy):
    """Runs each line by a call of `line`, which gets the inputs and gives the output, or raises."""

    def __init__(self, line: Callable[[Mapping[str, Any]], Any]) -> None:
        self._line = line

    @classmethod
    async def create(cls, *_: Any, **__: Any) -> CalledLines:
        raise AssertionError("it is given")

    async def exec_line_async(
        self, inputs: Mapping[str, Any], index: int | None = None, run_id: str | None = None
    ) -> Any:
        return {"output": self._line(inputs), "run_info": {"status": "Completed"}}


class _Feed(tasks.LocalFeed):
    """Calls what a task run of a chunk calls."""

    async def _run_task(self, lines: Sequence[Line]) -> None:
        with contextlib.suppress(BatchflowException):  # the run has it, and stops
            await ChunkRun(self, None).run(lines)
        self._ended += 1


class _Progress:
    """A progress artifact that nobody sees."""

    def __init__(self, *_: Any) -> None: ...

    async def __aenter__(self) -> _Progress:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def update(self, *_: int) -> None: ...


async def _yes(*_: Any) -> bool:
    return True


async def _no(*_: Any) -> bool:
    return False


@contextlib.contextmanager
def without_prefect() -> Iterator[None]:
    """Let runs inside of the block do without a Prefect server."""
    replaced: dict[Any, dict[str, Any]] = {
        state: {
            "get_run_logger": lambda: logging.getLogger("bare-run"),
            "current_flow_run": lambda: SimpleNamespace(id=uuid4(), deployment_id=None),
        },
        feeding: {
            "LocalFeed": _Feed,
            "ProgressArtifact": _Progress,
            "is_cancelled_in_prefect": _no,
            "few_task_runs_logged": lambda _: contextlib.nullcontext(),
        },
        resuming: {"set_right": _yes},
        ending: {
            "write_summary": _yes,
            "write_failed_lines": _yes,
            "server_answers": _yes,
            "has_own_server": lambda: False,
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        for module, names in replaced.items():
            for name, value in names.items():
                patch.setattr(module, name, value)
        yield


def bare_run(line: Callable[[Mapping[str, Any]], Any], **parameters: Any) -> BatchResult:
    """Run a batch, inside of `without_prefect`: the parameters of `batch_run`, and what a line does.

    Raises:
        BatchflowException: There is no result.
    """
    request = request_of({"run_id": "r1", "granularity": "chunk", "worker_count": 1, **parameters})
    return asyncio.run(run_stages(request, LiveRun(executor_proxy=CalledLines(line))))
