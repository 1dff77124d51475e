"""`batchflow check`: the preparation of a run without its data. None of the flow's code runs, unless an import is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from prefect_batchflow.connections.given import MISSING, WANTED
from prefect_batchflow.connections.variables import connection_of_variables
from prefect_batchflow.definition.load import load_flow, merged
from prefect_batchflow.exceptions import BatchflowException, FlowNotFoundError
from prefect_batchflow.execution.languages import executor_for, no_executor
from prefect_batchflow.execution.program.findings import Finding, FlowFindings, level_of, needed_connection
from prefect_batchflow.execution.services.http import HttpExecutorProxy
from prefect_batchflow.prefect_runtime.bounded_lookup import look_up_connections
from prefect_batchflow.run.starting import FlowRequest, connections_of, environment_of, starting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prefect_batchflow.definition.flow import Flow, FlowDescription, FlowInput, Node
    from prefect_batchflow.execution.program.findings import Level

    FoundOnce = tuple[list[Finding], dict[str, list[str]]]
    """Findings, and the connections that are missing with the classes that the flow takes."""
    Find = Callable[[Mapping[str, Any]], FoundOnce]

Verdict = Literal["can run", "cannot tell", "needs", "cannot run"]


@dataclass(frozen=True)
class CheckedNode:
    """One node, as shown."""

    name: str
    type: str
    source: str
    how: str
    """Whether it aggregates, its `activate` and its connection; empty for a plain node."""


@dataclass
class FlowCheck:
    """The result of a check."""

    source: str
    name: str = ""
    kind: str = ""
    """Such as `DAG flow`; empty when it could not be read."""
    inputs: list[FlowInput] = field(default_factory=list)
    init: list[FlowInput] = field(default_factory=list)
    """Arguments of the constructor that the yaml names. The yaml's sample and the run's arguments are their defaults."""
    nodes: list[CheckedNode] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    is_imported: bool = False
    """Whether a worker has imported the flow's code."""

    @property
    def runs(self) -> bool:
        """Whether nothing in the flow stops it."""
        return all(finding.level != "stops" for finding in self.findings)

    @property
    def verdict(self) -> Verdict:
        """What a run would do."""
        levels = {finding.level for finding in self.findings}
        if "stops" in levels:
            return "cannot run"
        if "needs" in levels:
            return "needs"
        return "cannot tell" if "unsure" in levels else "can run"

    def of(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]


def check_flow(
    source: str | Callable[..., Any],
    working_dir: str | None = None,
    variant: str = "",
    node_connections: Mapping[str, Mapping[str, str]] | None = None,
    *,
    imports: bool = False,
    **given: Any,
) -> FlowCheck:
    """Prepare a run of a flow, without data.

    Args:
        source: As for `load_flow`, like the next three.
        working_dir: Its folder.
        variant: Its variant.
        node_connections: Choices for its nodes.
        imports: Whether a worker imports the flow's code.
        **given: More of the `FlowRequest` of a run, such as `init_kwargs`.

    Raises:
        FlowNotFoundError: There is nothing to check.
        InvalidOptionError: A block that was named does not exist.
    """
    request = FlowRequest(
        flow=source, working_dir=working_dir or "", variant=variant, node_connections=node_connections or {}, **given
    )
    shown = source if isinstance(source, str) else getattr(source, "__qualname__", repr(source))
    checked = FlowCheck(shown)
    try:
        flow = load_flow(source, working_dir or None, variant=variant, node_connections=node_connections)
    except FlowNotFoundError:
        raise
    except BatchflowException as exc:
        checked.findings.append(Finding("stops", shown, exc.message))
        return checked
    checked.name, checked.inputs = flow.name, list(flow.inputs.values())
    defaults = {**flow.program.sample_init, **request.init_kwargs}
    checked.init = [
        replace(item, default=defaults[name]) if name in defaults else item for name, item in flow.init.items()
    ]
    checked.kind = flow.kind
    checked.nodes = [_shown(node) for node in flow.program.nodes]
    connections = asyncio.run(connections_of(request, environment_of(flow, request)))
    checked.findings, connections = _found(flow, request, connections)
    if imports:
        _import(checked, replace(request, blocks={}, connections=connections))
    return checked


def _shown(node: Node) -> CheckedNode:
    how = []
    if node.aggregation:
        how.append("once, after all lines")
    if node.activate is not None:
        when = node.activate.when
        how.append(f"when {getattr(when, 'text', None) or when!r} is {node.activate.expected!r}")
    if node.connection:
        how.append(f"connection {node.connection}")
    return CheckedNode(node.name, node.type, node.package_tool or node.source, ", ".join(how))


def _found(flow: Flow, request: FlowRequest, connections: dict[str, Any]) -> tuple[list[Finding], dict[str, Any]]:
    """The findings, and the connections with those of saved blocks, which a run finds too."""
    find = _of_service if flow.service is not None else _of_program
    environ = environment_of(flow, request)
    if not flow.additional_includes:
        return _with_found(lambda given: find(flow, request, given), environ, connections)
    try:
        with merged(flow) as (whole, notes):
            findings, connections = _with_found(lambda given: find(whole, request, given), environ, connections)
    except BatchflowException as exc:
        return [Finding("stops", flow.name, exc.message)], connections
    return [*findings, *(Finding("note", "additional_includes", note) for note in notes)], connections


def _with_found(
    find: Find, environ: Mapping[str, str], connections: dict[str, Any]
) -> tuple[list[Finding], dict[str, Any]]:
    """Find once; if connections are missing, again with those that have a saved block, or variables alone."""
    findings, missing = find(connections)
    if not missing:
        return findings, connections
    found, problem = look_up_connections(missing)
    notes = [
        Finding("note", f"connection '{name}'", "It comes from the saved Prefect block of this name, as in a run.")
        for name in sorted(found)
    ]
    for name in missing.keys() - found.keys():
        try:
            spec = connection_of_variables(name, environ, missing[name])
        except BatchflowException as exc:
            notes.append(Finding("stops", f"connection '{name}'", exc.message))
            continue
        if spec is not None:
            found[name] = spec
            notes.append(Finding("note", f"connection '{name}'", "It comes from environment variables, as in a run."))
    if found:
        connections = {**found, **connections}
        findings, _ = find(connections)
    if problem:
        notes.append(Finding("note", "connections", problem))
    return [*findings, *notes], connections


def _of_program(flow: Flow, request: FlowRequest, connections: Mapping[str, Any]) -> FoundOnce:
    found = FlowFindings(flow, request.init_kwargs, connections, request.environment_variables)
    return found.all(), found.wanted


def _of_service(flow: Flow, request: FlowRequest, connections: Mapping[str, Any]) -> FoundOnce:
    place = flow.name if flow.definition_file is None else flow.definition_file.name
    executor = executor_for(flow)
    if executor is None:
        return [Finding("needs", place, no_executor(flow))], {}
    if not issubclass(executor, HttpExecutorProxy):
        return [], {}
    try:
        executor(
            flow,
            init_kwargs=request.init_kwargs,
            connections=connections,
            environment_variables={**flow.environment_variables, **request.environment_variables},
        ).check_program()
    except BatchflowException as exc:
        missing = str(exc.additional_info.get(MISSING) or "")
        text = needed_connection(missing, []) if missing else exc.message
        return [Finding(level_of(exc), place, text)], {missing: []} if missing else {}
    return [], {}


def _import(checked: FlowCheck, request: FlowRequest) -> None:
    """Let a worker import the code. What it says counts; what was only read stays if it explains a failure."""
    try:
        description = asyncio.run(_started(request))
    except BatchflowException as exc:
        missing = exc.additional_info.get(MISSING)
        wanted = exc.additional_info.get(WANTED) or []
        text = needed_connection(str(missing), wanted) if missing else exc.message
        finding = Finding(level_of(exc), checked.name, text)
        texts = {found.text for found in checked.findings}
        if finding.text not in texts and not (finding.level == "stops" and checked.of("stops")):
            checked.findings.insert(0, finding)
    else:
        checked.findings = checked.of("note")
        checked.inputs = list(description.inputs.values())
    checked.is_imported = True


async def _started(request: FlowRequest) -> FlowDescription:
    async with starting(request) as start:
        return await start.start()
