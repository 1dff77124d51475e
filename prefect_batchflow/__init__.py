"""Run promptflow flows over datasets on Prefect.

The public names load on first use: `from prefect_batchflow import tool` in a flow's code does not import Prefect.
"""

from __future__ import annotations

from importlib import import_module
from sys import modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_batchflow.blocks import AzureOpenAIConnectionBlock as AzureOpenAIConnectionBlock
    from prefect_batchflow.blocks import CustomConnectionBlock as CustomConnectionBlock
    from prefect_batchflow.blocks import OpenAIConnectionBlock as OpenAIConnectionBlock
    from prefect_batchflow.blocks import RunStorageBlock as RunStorageBlock
    from prefect_batchflow.definition.flow import Flow as Flow
    from prefect_batchflow.definition.load import load_flow as load_flow
    from prefect_batchflow.engine import BatchEngine as BatchEngine
    from prefect_batchflow.exceptions import BatchflowException as BatchflowException
    from prefect_batchflow.exceptions import LineFailureError as LineFailureError
    from prefect_batchflow.exceptions import SystemErrorException as SystemErrorException
    from prefect_batchflow.exceptions import UserErrorException as UserErrorException
    from prefect_batchflow.execution.services.http import HttpExecutorProxy as HttpExecutorProxy
    from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy as AbstractExecutorProxy
    from prefect_batchflow.flows import batch_run as batch_run
    from prefect_batchflow.results.models import AggregationResult as AggregationResult
    from prefect_batchflow.results.models import BatchResult as BatchResult
    from prefect_batchflow.results.models import ErrorSummary as ErrorSummary
    from prefect_batchflow.results.models import FlowRunInfo as FlowRunInfo
    from prefect_batchflow.results.models import LineError as LineError
    from prefect_batchflow.results.models import LineResult as LineResult
    from prefect_batchflow.results.models import RunInfo as RunInfo
    from prefect_batchflow.results.models import SystemMetrics as SystemMetrics
    from prefect_batchflow.results.records import Status as Status
    from prefect_batchflow.run.handle import ProgressReport as ProgressReport
    from prefect_batchflow.settings import LinePolicy as LinePolicy
    from prefect_batchflow.storage.custom import AbstractBatchRunStorage as AbstractBatchRunStorage
    from prefect_batchflow.storage.custom import AbstractRunStorage as AbstractRunStorage
    from prefect_batchflow.storage.promptflow_runs import PromptflowRunStorage as PromptflowRunStorage
    from prefect_batchflow.tools.context import log_metric as log_metric
    from prefect_batchflow.tools.python import ToolProvider as ToolProvider
    from prefect_batchflow.tools.python import tool as tool

_HOMES = {
    name: module
    for module, names in {
        "blocks": "AzureOpenAIConnectionBlock CustomConnectionBlock OpenAIConnectionBlock RunStorageBlock",
        "definition.flow": "Flow",
        "definition.load": "load_flow",
        "engine": "BatchEngine",
        "exceptions": "BatchflowException LineFailureError SystemErrorException UserErrorException",
        "execution.services.http": "HttpExecutorProxy",
        "execution.services.proxy": "AbstractExecutorProxy",
        "flows": "batch_run",
        "results.models": "AggregationResult BatchResult ErrorSummary FlowRunInfo LineError LineResult RunInfo SystemMetrics",
        "results.records": "Status",
        "run.handle": "ProgressReport",
        "settings": "LinePolicy",
        "storage.custom": "AbstractBatchRunStorage AbstractRunStorage",
        "storage.promptflow_runs": "PromptflowRunStorage",
        "tools.context": "log_metric",
        "tools.python": "ToolProvider tool",
    }.items()
    for name in names.split()
}
"""Each public name to its module."""

_WITH_PREFECT = {"blocks", "engine", "flows"}
"""Modules that import Prefect at once, which fails without a word about the cause if the network settings are wrong."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home in {*_WITH_PREFECT, "results.models"} and f"{__name__}.{home}" not in modules:
        # A worker that imports the caller's script needs neither Prefect nor pydantic.
        importing = modules.get(f"{__name__}.execution.program.importing")
        if importing is not None and importing.is_loading():
            return importing.later(lambda: _load(name, home), name)
    value = globals()[name] = _load(name, home)
    return value


def _load(name: str, home: str) -> Any:
    if home in _WITH_PREFECT:
        import_module(f"{__name__}.prefect_runtime.network").prepare_network()
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
