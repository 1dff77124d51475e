"""The registry of languages: which class runs flows of which language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_batchflow.execution.services.http import HttpExecutorProxy, JavaScriptExecutorProxy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy


_REGISTRY: dict[str, type[AbstractExecutorProxy]] = {}
_BUILT_IN: Mapping[str, type[AbstractExecutorProxy]] = {"javascript": JavaScriptExecutorProxy}
"""The classes that need no registration."""


def register_executor(language: str, executor_proxy_cls: type[AbstractExecutorProxy]) -> None:
    """Let flows whose yaml says `language: <language>` run through this class."""
    _REGISTRY[language.lower()] = executor_proxy_cls


def registered_executor(language: str) -> type[AbstractExecutorProxy] | None:
    """The class registered for a language, or else the built-in one; `None` if there is neither."""
    language = language.lower()
    return _REGISTRY.get(language) or _BUILT_IN.get(language)


def registered_languages() -> list[str]:
    """The languages with a class, sorted."""
    return sorted({*_REGISTRY, *_BUILT_IN})


def executor_for(flow: Flow) -> type[AbstractExecutorProxy] | None:
    """The class for a flow's language, or else the one that starts the command in its yaml; `None` for Python."""
    has_command = flow.service is not None and flow.service.command
    return registered_executor(flow.language) or (HttpExecutorProxy if has_command else None)
