"""Run promptflow flows over datasets on Prefect.

The public names load on first use: `from prefect_batchflow import tool` in a flow's code does not import Prefect.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_batchflow.blocks import (
        AzureOpenAIConnectionBlock,
        CustomConnectionBlock,
        OpenAIConnectionBlock,
        RunStorageBlock,
    )
    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.definition.load import load_flow
    from prefect_batchflow.engine import BatchEngine
    from prefect_batchflow.exceptions import (
        BatchflowException,
        LineFailureError,
        SystemErrorException,
        UserErrorException,
    )
    from prefect_batchflow.execution.services.http import HttpExecutorProxy
    from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy
    from prefect_batchflow.flows import batch_run
    from prefect_batchflow.results.models import (
        AggregationResult,
        BatchResult,
        ErrorSummary,
        FlowRunInfo,
        LineError,
        LineResult,
        RunInfo,
        SystemMetrics,
    )
    from prefect_batchflow.results.records import Status
    from prefect_batchflow.run.handle import ProgressReport
    from prefect_batchflow.settings import LinePolicy
    from prefect_batchflow.storage.custom import AbstractBatchRunStorage, AbstractRunStorage
    from prefect_batchflow.storage.promptflow_runs import PromptflowRunStorage
    from prefect_batchflow.tools.context import log_metric
    from prefect_batchflow.tools.python import ToolProvider, tool

_HOMES = {
    "AbstractBatchRunStorage": "storage.custom",
    "AbstractExecutorProxy": "execution.services.proxy",
    "AbstractRunStorage": "storage.custom",
    "AggregationResult": "results.models",
    "AzureOpenAIConnectionBlock": "blocks",
    "BatchEngine": "engine",
    "BatchResult": "results.models",
    "BatchflowException": "exceptions",
    "CustomConnectionBlock": "blocks",
    "ErrorSummary": "results.models",
    "Flow": "definition.flow",
    "FlowRunInfo": "results.models",
    "HttpExecutorProxy": "execution.services.http",
    "LineError": "results.models",
    "LineFailureError": "exceptions",
    "LinePolicy": "settings",
    "LineResult": "results.models",
    "OpenAIConnectionBlock": "blocks",
    "ProgressReport": "run.handle",
    "PromptflowRunStorage": "storage.promptflow_runs",
    "RunInfo": "results.models",
    "RunStorageBlock": "blocks",
    "Status": "results.records",
    "SystemErrorException": "exceptions",
    "SystemMetrics": "results.models",
    "ToolProvider": "tools.python",
    "UserErrorException": "exceptions",
    "batch_run": "flows",
    "load_flow": "definition.load",
    "log_metric": "tools.context",
    "tool": "tools.python",
}

__all__ = [
    "AbstractBatchRunStorage",
    "AbstractExecutorProxy",
    "AbstractRunStorage",
    "AggregationResult",
    "AzureOpenAIConnectionBlock",
    "BatchEngine",
    "BatchResult",
    "BatchflowException",
    "CustomConnectionBlock",
    "ErrorSummary",
    "Flow",
    "FlowRunInfo",
    "HttpExecutorProxy",
    "LineError",
    "LineFailureError",
    "LinePolicy",
    "LineResult",
    "OpenAIConnectionBlock",
    "ProgressReport",
    "PromptflowRunStorage",
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
