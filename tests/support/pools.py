"""Small flows written on the spot, and worker pools that must leave no process behind."""

from __future__ import annotations

import asyncio
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.execution.workers.killing import with_token
from prefect_batchflow.execution.workers.pool import WorkerPool
from prefect_batchflow.lines import Line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.executor import Executor, LineOutcome

CLOSE_WITHIN_SEC = 20.0
"""Far beyond what closing takes; a test that gets there has found something that never ends."""


def flow_of(folder: Path, code: str, entry: str = "main", file: str = "flow_code.py") -> Flow:
    """Write the code of a flow and load it as `file:entry`."""
    path = folder / file
    path.write_text(textwrap.dedent(code))
    return load_flow(f"{path}:{entry}")


@asynccontextmanager
async def running_pool(flow: Flow, **options: Any) -> AsyncIterator[WorkerPool]:
    """A started pool; whatever the test does, no process of it is alive afterwards."""
    pool = WorkerPool(flow, **options)
    try:
        await pool.start()
        yield pool
    finally:
        async with asyncio.timeout(CLOSE_WITHIN_SEC):
            await pool.close()
        assert with_token(token_of(pool)) == []


def token_of(pool: WorkerPool) -> str:
    """What every process of a pool has in its environment."""
    return pool._supervisor.token


async def run(executor: Executor, number: int = 0, /, *, timeout_sec: float = 60.0, **inputs: Any) -> LineOutcome:
    """Run one line; the limit is only there so that a mistake ends."""
    return await executor.run_line(Line(number, inputs), attempt=1, timeout_sec=timeout_sec)


def code_of(outcome: LineOutcome) -> str:
    """The innermost code of a failed line's error."""
    from prefect_batchflow.exceptions import innermost_code

    assert outcome.receipt.error is not None, outcome.parsed()["output"]
    return innermost_code(outcome.receipt.error)


def message_of(outcome: LineOutcome) -> str:
    """What a failed line's error says."""
    assert outcome.receipt.error is not None, outcome.parsed()["output"]
    return str(outcome.receipt.error["message"])


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
