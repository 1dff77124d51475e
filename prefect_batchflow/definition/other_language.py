"""Flows in other languages: their yaml says how to start the service that runs them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.document import Problems, read_environment, read_service
from prefect_batchflow.definition.flow import Flow
from prefect_batchflow.definition.includes import read_includes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from prefect_batchflow.definition.flow import Dag, Entry, FlowInput


def flow_of_service(
    document: dict[str, Any],
    file: Path,
    working_dir: Path,
    program: Dag | Entry,
    inputs: Mapping[str, FlowInput],
    problems: Problems,
    *,
    language: str,
    message_format: str = "basic",
) -> Flow:
    """Give the flow. The code of its service is not checked.

    Raises:
        InvalidFlowRequest: The yaml is wrong; the message lists every problem, including those already in `problems`.
    """
    service, environment = read_service(document, problems), read_environment(document, problems)
    includes = read_includes(document, file.parent, problems)
    problems.raise_any()
    nodes = document.get("nodes") or []
    if any(node.get("aggregation") for node in nodes if isinstance(node, dict)):
        service = replace(service, aggregation=True)
    return Flow(
        file.parent.name,
        working_dir,
        program,
        inputs,
        language=language,
        definition_file=file,
        service=service,
        environment_variables=environment,
        additional_includes=includes,
        message_format=message_format,
    )
