"""Run promptflow flows over datasets on Prefect.

The public names, given when they are first asked for: `from prefect_batchflow import tool` in a flow's code costs no Prefect.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_batchflow.blocks import RunStorageBlock
    from prefect_batchflow.definition.flow import Flow, load_flow
    from prefect_batchflow.engine import BatchEngine
    from prefect_batchflow.exceptions import (
        BatchflowException,
        LineFailureError,
        SystemErrorException,
        UserErrorException,
    )
    from prefect_batchflow.execution.executor import AbstractExecutorProxy
    from prefect_batchflow.flows import batch_run
    from prefect_batchflow.live import ProgressReport
    from prefect_batchflow.results import (
        AggregationResult,
        BatchResult,
        ErrorSummary,
        FlowRunInfo,
        LineError,
        LineResult,
        RunInfo,
        Status,
        SystemMetrics,
    )
    from prefect_batchflow.settings import LinePolicy
    from prefect_batchflow.storage.custom import AbstractBatchRunStorage, AbstractRunStorage
    from prefect_batchflow.tools.context import log_metric
    from prefect_batchflow.tools.python import ToolProvider, tool

_HOMES = {
    "AbstractBatchRunStorage": "storage.custom",
    "AbstractExecutorProxy": "execution.executor",
    "AbstractRunStorage": "storage.custom",
    "AggregationResult": "results",
    "BatchEngine": "engine",
    "BatchResult": "results",
    "ErrorSummary": "results",
    "Flow": "definition.flow",
    "FlowRunInfo": "results",
    "LineError": "results",
    "LinePolicy": "settings",
    "LineResult": "results",
    "ProgressReport": "live",
    "RunInfo": "results",
    "RunStorageBlock": "blocks",
    "Status": "results",
    "SystemMetrics": "results",
    "BatchflowException": "exceptions",
    "LineFailureError": "exceptions",
    "SystemErrorException": "exceptions",
    "ToolProvider": "tools.python",
    "UserErrorException": "exceptions",
    "batch_run": "flows",
    "load_flow": "definition.flow",
    "log_metric": "tools.context",
    "tool": "tools.python",
}

__all__ = [
    "AbstractBatchRunStorage",
    "AbstractExecutorProxy",
    "AbstractRunStorage",
    "AggregationResult",
    "BatchEngine",
    "BatchResult",
    "BatchflowException",
    "ErrorSummary",
    "Flow",
    "FlowRunInfo",
    "LineError",
    "LineFailureError",
    "LinePolicy",
    "LineResult",
    "ProgressReport",
    "RunInfo",
    "RunStorageBlock",
    "Status",
    "SystemErrorException",
    "SystemMetrics",
    "ToolProvider",
    "UserErrorException",
    "batch_run",
    "load_flow",
    "log_metric",
    "tool",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
