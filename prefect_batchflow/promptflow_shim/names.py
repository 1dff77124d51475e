"""The mirrored names of promptflow, where each one is, and what to use instead of the others.

Written by hand from the public names of promptflow 1.18.5.
"""

from __future__ import annotations

from typing import Final

_CONNECTIONS: Final = {
    name: f"connections.kinds:{name}"
    for name in (
        "AzureAIServicesConnection", "AzureContentSafetyConnection", "AzureOpenAIConnection", "CognitiveSearchConnection",
        "CustomConnection", "CustomStrongTypeConnection", "FormRecognizerConnection", "OpenAIConnection",
        "QdrantConnection", "SerpConnection", "ServerlessConnection", "WeaviateConnection",
    )
}  # fmt: skip
_TOOL: Final = {"tool": "tools.python:tool", "ToolProvider": "tools.python:ToolProvider"}
_SETTINGS: Final = {"InputSetting": "tools.python:InputSetting", "DynamicList": "tools.python:DynamicList"}
_FLOWS: Final = {
    "AsyncFlow": "execution.program.called_flow:AsyncFlow",
    "AsyncPrompty": "tools.prompty:AsyncPrompty",
    "Flow": "execution.program.called_flow:CallableFlow",
    "Prompty": "tools.prompty:Prompty",
}
_CONFIGURATIONS: Final = {
    name: f"connections.model_configurations:{name}"
    for name in ("AzureOpenAIModelConfiguration", "ModelConfiguration", "OpenAIModelConfiguration")
}
_LOAD_FLOW: Final = {"load_flow": "execution.program.called_flow:load_called_flow"}
_TRACE: Final = {"trace": "promptflow_shim.tracing:trace"}
_START_TRACE: Final = {"start_trace": "promptflow_shim.tracing:start_trace"}
_POOL: Final = {"ThreadPoolExecutorWithContext": "promptflow_shim.tracing:ThreadPoolExecutorWithContext"}
_LOG_METRIC: Final = {"log_metric": "tools.context:log_metric"}

PROVIDED: Final[dict[str, dict[str, str]]] = {
    "promptflow": {**_TOOL, **_LOG_METRIC, **_LOAD_FLOW, "log_flow_metric": "tools.context:log_metric"},
    "promptflow._cli": {},
    "promptflow._cli._utils": {
        "get_workspace_triad_from_local": "promptflow_shim.types:get_workspace_triad_from_local"
    },
    "promptflow._constants": {},
    "promptflow._core": {},
    "promptflow._core.metric_logger": _LOG_METRIC,
    "promptflow._core.tool": {**_TOOL, **_SETTINGS},
    "promptflow._internal": {
        **_TOOL,
        "AttrDict": "promptflow_shim.types:AttrDict",
        "ToolExecutionError": "exceptions:ToolExecutionError",
        "enable_cache": "promptflow_shim.types:enable_cache",
        "register_api_method": "promptflow_shim.types:registered",
        "register_apis": "promptflow_shim.types:registered",
        "register_builtin_method": "promptflow_shim.types:registered",
        "register_builtins": "promptflow_shim.types:registered",
        "register_connections": "promptflow_shim.types:registered",
    },
    "promptflow._sdk": {},
    "promptflow._sdk._load_functions": _LOAD_FLOW,
    "promptflow._sdk._constants": {"ConnectionType": "promptflow_shim.types:ConnectionType"},
    "promptflow._sdk.entities": _CONNECTIONS,
    "promptflow._sdk.entities._connection": _CONNECTIONS,
    "promptflow.batch": {"BatchEngine": "engine:BatchEngine", "BatchResult": "results.models:BatchResult"},
    "promptflow.client": _LOAD_FLOW,
    "promptflow.connections": _CONNECTIONS,
    "promptflow.contracts": {},
    "promptflow.contracts.multimedia": {"Image": "images.image:Image", "Text": "images.image:Text"},
    "promptflow.contracts.run_info": {
        "FlowRunInfo": "results.models:FlowRunInfo",
        "RunInfo": "results.models:RunInfo",
        "Status": "results.records:Status",
    },
    "promptflow.contracts.types": {
        "AssistantDefinition": "promptflow_shim.types:AssistantDefinition",
        "AttrDict": "promptflow_shim.types:AttrDict",
        "FilePath": "tools.python:FilePath",
        "PromptTemplate": "tools.python:PromptTemplate",
        "Secret": "tools.python:Secret",
    },
    "promptflow.core": {
        **_TOOL,
        **_LOG_METRIC,
        **_FLOWS,
        **_CONFIGURATIONS,
    },
    "promptflow.core._connection": _CONNECTIONS,
    "promptflow.core._flow": _FLOWS,
    "promptflow.core._model_configuration": _CONFIGURATIONS,
    "promptflow.entities": {**_CONNECTIONS, **_SETTINGS},
    "promptflow.exceptions": {
        "ErrorCategory": "promptflow_shim.types:ErrorCategory",
        "ErrorTarget": "promptflow_shim.types:ErrorTarget",
        "PromptflowException": "exceptions:BatchflowException",
        "SystemErrorException": "exceptions:SystemErrorException",
        "UserErrorException": "exceptions:UserErrorException",
        "ValidationException": "exceptions:ValidationError",
    },
    "promptflow.executor": {},
    "promptflow.operations": {},
    "promptflow.storage": {
        "AbstractBatchRunStorage": "storage.custom:AbstractBatchRunStorage",
        "AbstractRunStorage": "storage.custom:AbstractRunStorage",
    },
    "promptflow.tracing": {**_POOL, **_START_TRACE, **_TRACE},
    "promptflow.tracing._context_utils": _POOL,
    "promptflow.tracing._operation_context": {"OperationContext": "promptflow_shim.tracing:OperationContext"},
    "promptflow.tracing._start_trace": _START_TRACE,
    "promptflow.tracing._trace": _TRACE,
    "promptflow.tracing.contracts": {},
    "promptflow.tracing.contracts.trace": {"TraceType": "promptflow_shim.tracing:TraceType"},
}
"""Import path to name to `module:name` in this package. To mirror a new name, add a row."""

_BATCH: Final = "Run flows with `batchflow run`, or BatchEngine of prefect_batchflow."
_CALL: Final = "Import the flow's function and call it, or run the flow with BatchEngine of prefect_batchflow."
_RUNS: Final = "Runs are shown by `batchflow list` and `batchflow show`; BatchEngine's BatchResult has a run's results."
_CONNECTION_SOURCE: Final = (
    "Give `connections` to BatchEngine, or save a block. A tool's parameter of a connection type gets the connection."
)
_SERVICE: Final = {
    "PFClient": _BATCH,
    "load_run": "Use PromptflowRunStorage of prefect_batchflow.storage.promptflow_runs to resume a run of promptflow.",
}

REPLACED: Final[dict[str, dict[str, str]]] = {
    "promptflow": _SERVICE,
    "promptflow._core.metric_logger": {
        "MetricLoggerManager": "log_metric is enough: BatchResult.metrics has the logged metrics.",
        "add_metric_logger": "BatchResult.metrics has the logged metrics.",
        "remove_metric_logger": "BatchResult.metrics has the logged metrics.",
    },
    "promptflow._core.tool": {"ToolInvoker": "Call the tool's function directly; @tool leaves it unchanged."},
    "promptflow._internal": {"ToolInvoker": "Call the tool's function directly; @tool leaves it unchanged."},
    "promptflow._sdk.entities": {"FlowContext": _CALL, "Run": _RUNS, "ValidationResult": _BATCH},
    "promptflow.client": _SERVICE,
    "promptflow.connections": {"ConnectionProvider": _CONNECTION_SOURCE},
    "promptflow.contracts.multimedia": {"PFBytes": "Use Image."},
    "promptflow.entities": {"FlowContext": _CALL, "Run": _RUNS},
    "promptflow.executor": {"FlowExecutor": _BATCH, "FlowValidator": "Use load_flow of prefect_batchflow."},
    "promptflow.operations": {
        "ConnectionOperations": _CONNECTION_SOURCE,
        "FlowOperations": _BATCH,
        "RunOperations": _RUNS,
    },
    "promptflow.storage": {"AbstractCacheStorage": "Leave it out: promptflow never cached either."},
}
"""Import path to name to advice. These names can be imported, and raise the advice when used."""

MODULE_HINTS: Final[dict[str, str]] = {
    "promptflow.tools": "Use an llm or prompt node, or the openai package in a python node. Or install the package alone: "
    "pip install --no-deps promptflow-tools.",
    "promptflow.evals": "Use the package that replaced it: pip install azure-ai-evaluation.",
    "promptflow.rag": "Call the vector store's own package in a python node.",
    "promptflow.parallel": _BATCH,
    "promptflow.integrations": "Remove it: calls through the openai package are counted without a handler.",
    "promptflow.core._serving": "This package does not serve flows. " + _BATCH,
    "promptflow._core": "Only the names that tools use are provided, such as promptflow._core.tool.tool.",
    "promptflow._orchestrator": _BATCH,
    "promptflow._proxy": _BATCH,
    "promptflow.azure": "This package does not run flows on Azure. " + _BATCH,
    "promptflow._utils": "Use Python's logging for its loggers.",
    "promptflow._sdk": _BATCH,
    "promptflow._cli": _BATCH,
    "promptflow.batch": _BATCH,
    "promptflow.executor": _BATCH,
    "promptflow.client": _BATCH,
    "promptflow.contracts": "Annotate with plain types.",
    "promptflow.tracing": "Remove tracing; tokens are counted without it.",
}
"""Advice for all other names in a module or below it."""
