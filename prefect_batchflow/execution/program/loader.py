"""Loading a flow's program: imports and checks its code, with the mirror of promptflow in place.

This module imports only the standard library and light parts of the package. Code that only some flows need is imported
where it is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from prefect_batchflow import promptflow_shim
from prefect_batchflow.connections.given import Connections
from prefect_batchflow.definition.flow import Dag, Prompt
from prefect_batchflow.errors.packages import is_installed, pip_install
from prefect_batchflow.exceptions import PythonLoadError, UnsupportedFeatureError
from prefect_batchflow.execution.program.dag_loader import load_dag
from prefect_batchflow.execution.program.entry_loader import load_entry, load_prompt, no_init
from prefect_batchflow.execution.program.images import FlowImages
from prefect_batchflow.tools.context import give_connections, log_metric
from prefect_batchflow.tools.usage import count_model_calls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.program.program import Program


def load_program(
    flow: Flow, init_kwargs: Mapping[str, Any] | None = None, connections: Mapping[str, Any] | None = None
) -> Program:
    """Import a flow's code and give the program that runs its lines. The flow's folder stays first on `sys.path`.

    Args:
        flow: From `load_flow`.
        init_kwargs: Arguments for a class entry's constructor, to which the yaml's `init` adds defaults and types; `model`
            for a prompty.
        connections: Name to promptflow's dictionary, or to a connection. The environment of this process completes them.

    Raises:
        PythonLoadError: The code cannot be imported, or lacks the entry.
        ResolveToolError: A node's file has no tool or several, or the node's inputs do not fit it.
        GetConnectionError: A connection was not given or cannot be built; a `ResolveToolError`.
        FlowEntryInitializationError: The class entry's constructor raised.
        InvalidOptionError: There are `init_kwargs`, but the flow is not a class.
        UnsupportedFeatureError: The flow has another language, or a kind of tool that is not supported.
    """
    given = Connections(connections, os.environ)
    give_connections(given)
    program = program_of(flow, init_kwargs or {}, given)
    given.load_is_done()
    return program


def program_of(flow: Flow, init_kwargs: Mapping[str, Any], connections: Connections) -> Program:
    """The same with existing connections, for a flow that another flow's code calls."""
    if flow.service is not None:
        raise UnsupportedFeatureError(
            f"The flow '{flow.name}' is written in {flow.language}. Register an executor for it: "
            f"register_executor('{flow.language}', …)."
        )
    check_packages(flow)
    folder = str(flow.working_dir)
    mirrored = prepare_imports(folder)
    if isinstance(flow.program, Dag):
        if init_kwargs:
            raise no_init(flow.name, "a DAG flow", init_kwargs)
        program: Program = load_dag(flow, flow.program, connections)
    elif isinstance(flow.program, Prompt):
        program = load_prompt(flow, init_kwargs, connections)
    else:
        program = load_entry(flow, flow.program, init_kwargs, connections)
    images = flow.program.loads_images
    program.images = FlowImages(folder, flow.message_format, program.description.inputs, loads=images)
    if not mirrored and program.description.has_aggregation:
        _take_promptflow_metrics()
    return program


def prepare_imports(folder: str) -> bool:
    """Let the flow's code find its modules and promptflow's. False if promptflow itself is installed."""
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    mirrored = promptflow_shim.install()
    if mirrored and promptflow_shim.FOR_PROCESSES not in sys.path:
        sys.path.append(promptflow_shim.FOR_PROCESSES)
    count_model_calls()
    importlib.invalidate_caches()
    return mirrored


def check_packages(flow: Flow) -> None:
    """Refuse a flow whose kind needs a package that is not installed."""
    if missing := [name for name in flow.program.packages if not is_installed(name)]:
        nodes = [f"node '{node.name}'" for node in flow.program.nodes if node.has_template]
        raise PythonLoadError(
            f"The flow '{flow.name}'{f', {nodes[0]},' if nodes else ''} needs {' and '.join(missing)}, which this Python "
            f"lacks: {pip_install('openai')}",
            target="Executor",
        )


def _take_promptflow_metrics() -> None:
    """If promptflow is installed, take the metrics that flows log through it."""
    try:
        metric_logger = importlib.import_module("promptflow._core.metric_logger")
    except ImportError:
        return
    metric_logger.add_metric_logger(log_metric)
