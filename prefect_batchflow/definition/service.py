"""Flows in other languages: their yaml says how to start the service that runs them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prefect_batchflow.definition.document import Problems, mapping_at, refuse_other_keys
from prefect_batchflow.definition.flow import Flow, Service


def with_service(flow: Flow, document: dict[str, Any], problems: Problems) -> Flow:
    """Give the flow with the `service` of its yaml. The code of the service is not checked.

    Raises:
        InvalidFlowRequest: The yaml is wrong; the message lists every problem, including those already in `problems`.
    """
    service = _read_service(document, problems)
    problems.raise_any()
    nodes = document.get("nodes") or []
    if any(node.get("aggregation") for node in nodes if isinstance(node, dict)):
        service = replace(service, aggregation=True)
    return replace(flow, service=service)


def _read_service(given: dict[str, Any], problems: Problems) -> Service:
    """Read `service`, for a flow in another language."""
    spec = mapping_at(given, "service", "top level", problems)
    refuse_other_keys(spec, {"command", "aggregation", "start_timeout_sec"}, "service", problems)
    command = spec.get("command") or []
    if not isinstance(command, list) or not all(isinstance(argument, str) and argument for argument in command):
        text = f"'command' should be a list of texts: a program and its arguments. Found {command!r}. Write numbers in quotes."
        problems.add("service", text)
        command = []
    aggregation = spec.get("aggregation") or False
    if not isinstance(aggregation, bool):
        problems.add("service", f"'aggregation' should be true or false, found {aggregation!r}.")
        aggregation = False
    timeout = spec.get("start_timeout_sec")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0):
        problems.add("service", f"'start_timeout_sec' should be a number of seconds above 0, found {timeout!r}.")
        timeout = None
    return Service(tuple(command), aggregation, None if timeout is None else float(timeout))
