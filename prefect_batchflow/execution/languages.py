"""Who runs which language: the registry of executors, and the executor of a flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy


_REGISTRY: dict[str, type[AbstractExecutorProxy]] = {}
_BUILT_IN: Mapping[str, str] = {"javascript": "JavaScriptExecutorProxy"}
"""The classes of `execution.http` that need no registration."""


def register_executor(language: str, executor_proxy_cls: type[AbstractExecutorProxy]) -> None:
    """Let flows whose yaml says `language: <language>` run through this class."""
    _REGISTRY[language.lower()] = executor_proxy_cls


def registered_executor(language: str) -> type[AbstractExecutorProxy] | None:
    """The class registered for a language, else the one that is built in, if any."""
    language = language.lower()
    if language in _REGISTRY or language not in _BUILT_IN:
        return _REGISTRY.get(language)
    from prefect_batchflow.execution.services import http

    built_in: type[AbstractExecutorProxy] = getattr(http, _BUILT_IN[language])
    return built_in


def registered_languages() -> list[str]:
    """The languages with a class, sorted."""
    return sorted({*_REGISTRY, *_BUILT_IN})


def executor_for(flow: Flow) -> type[AbstractExecutorProxy] | None:
    """The class for a flow's language, or the one that starts the command its yaml gives; `None` for Python."""
    proxy = registered_executor(flow.language)
    if proxy is not None or flow.service is None or not flow.service.command:
        return proxy
    from prefect_batchflow.execution.services.http import HttpExecutorProxy

    return HttpExecutorProxy
