"""The registry of languages: which class runs flows of which language."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.flow import PYTHON
from prefect_batchflow.exceptions import UnsupportedFeatureError
from prefect_batchflow.execution.services.http import HttpExecutorProxy, JavaScriptExecutorProxy
from prefect_batchflow.execution.services.proxy import ProxyExecutor
from prefect_batchflow.execution.workers.pool import WorkerPool
from prefect_batchflow.execution.workers.worker_count import BEGIN_WITH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.executor import Executor
    from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy
    from prefect_batchflow.settings import RunOptions

_REGISTRY: dict[str, type[AbstractExecutorProxy]] = {"javascript": JavaScriptExecutorProxy}


def register_executor(language: str, executor_proxy_cls: type[AbstractExecutorProxy]) -> None:
    """Run flows whose yaml has `language: <language>` with this class."""
    _REGISTRY[language.lower()] = executor_proxy_cls


def registered_executor(language: str) -> type[AbstractExecutorProxy] | None:
    """The class for a language, if there is one."""
    return _REGISTRY.get(language.lower())


def registered_languages() -> list[str]:
    """All languages that have a class, sorted."""
    return sorted(_REGISTRY)


def executor_for(flow: Flow) -> type[AbstractExecutorProxy] | None:
    """The class for a flow's language, or else the one that starts the command in its yaml; `None` if it has neither."""
    has_command = flow.service is not None and flow.service.command
    return registered_executor(flow.language) or (HttpExecutorProxy if has_command else None)


def no_executor(flow: Flow) -> str:
    """The message for a flow whose language has no executor."""
    known = ", ".join([PYTHON, *registered_languages()])
    return (
        f"The flow {flow.name!r} is written in {flow.language!r}, but only flows in {known} can run. Register an executor: "
        f"BatchEngine.register_executor({flow.language!r}, <AbstractExecutorProxy subclass>). Or give the command that "
        "starts its service in the yaml: `service: {command: […]}`, see docs/other-languages.md."
    )


def new_executor(
    flow: Flow,
    options: RunOptions,
    proxy: AbstractExecutorProxy | type[AbstractExecutorProxy] | None,
    *,
    run_id: str,
    init_kwargs: Mapping[str, Any],
    connections: Mapping[str, Any],
    environment_variables: Mapping[str, str],
    storage: Any = None,
) -> Executor:
    """The executor of a flow: through `proxy` if given, or else the one of its language.

    Raises:
        UnsupportedFeatureError: The flow's language has no executor.
    """
    if proxy := proxy or executor_for(flow):
        return ProxyExecutor(
            flow,
            proxy,
            run_id=run_id,
            slots=options.worker_count or BEGIN_WITH,
            init_kwargs=init_kwargs,
            connections=connections or None,
            storage=storage,
            environment_variables=environment_variables,
        )
    if not flow.is_python:
        raise UnsupportedFeatureError(no_executor(flow))
    return WorkerPool(
        flow,
        init_kwargs=init_kwargs,
        connections=connections,
        environment_variables=environment_variables,
        worker_count=options.worker_count,
        max_concurrency=options.max_concurrency,
        line_memory_mb=options.line_memory_mb or None,
    )
