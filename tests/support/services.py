"""Flows that `line_service` serves, and executors of them that must leave no process behind."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from line_service import PROGRAM
from pools import CLOSE_WITHIN_SEC

from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.execution.services.http import HttpExecutorProxy
from prefect_batchflow.execution.services.proxy import ProxyExecutor
from prefect_batchflow.execution.workers.killing import with_token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from prefect_batchflow.definition.flow import Flow


def served_flow(folder: Path, *start: str, **service: Any) -> Flow:
    """A flow whose service starts as told; `service` are keys of the yaml's."""
    service = {"command": [sys.executable, str(PROGRAM), "{port}", *start], "aggregation": True, **service}
    yaml = {"language": "test", "entry": "any", "inputs": {"do": {"type": "string"}}, "service": service}
    (folder / "flow.flex.yaml").write_text(json.dumps(yaml))
    return load_flow(folder)


@asynccontextmanager
async def running_service(
    flow: Flow, proxy: type[HttpExecutorProxy] = HttpExecutorProxy, *, slots: int = 4, **options: Any
) -> AsyncIterator[ProxyExecutor]:
    """A started executor; whatever the test does, no process of it is alive afterwards."""
    executor = ProxyExecutor(flow, proxy, run_id="run", slots=slots, **options)
    await executor.start()
    try:
        yield executor
    finally:
        async with asyncio.timeout(CLOSE_WITHIN_SEC):
            await executor.close()
        assert with_token(proxy_of(executor)._keeper.supervisor.token) == []


def proxy_of(executor: ProxyExecutor) -> HttpExecutorProxy:
    """The proxy that an executor has created."""
    assert isinstance(executor._proxy, HttpExecutorProxy)
    return executor._proxy


def pid_of(executor: ProxyExecutor) -> int:
    """The process that serves it now."""
    served = proxy_of(executor)._keeper.served
    assert served is not None
    return served.process.pid
