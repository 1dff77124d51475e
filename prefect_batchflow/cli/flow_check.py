"""`batchflow check`: what a flow needs to run here. None of the flow's code runs."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from prefect_batchflow.connections.environment import variables_in
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.definition.source_imports import imports_of
from prefect_batchflow.errors.packages import is_installed, pip_install
from prefect_batchflow.exceptions import BatchflowException, FlowDefinitionError, FlowNotFoundError
from prefect_batchflow.execution.program.environment import connections_in
from prefect_batchflow.execution.program.package_tools import install_hint
from prefect_batchflow.promptflow_shim.names import MODULE_HINTS, PROVIDED, REPLACED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from prefect_batchflow.definition.flow import Flow, FlowInput, Node
    from prefect_batchflow.definition.source_imports import SourceImport

Level = Literal["stops", "needs", "note"]
"""`stops`: the flow cannot run. `needs`: you must give something. `note`: good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing to know before the flow runs."""

    level: Level
    place: str
    """A node, a file with its line, or the flow's own file."""
    text: str
    """The fact, and what to do."""


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
    """Arguments of the constructor that the yaml names. The yaml's sample is their default."""
    nodes: list[CheckedNode] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether the flow can run."""
        return all(finding.level != "stops" for finding in self.findings)

    def of(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]


def check_flow(
    source: str,
    working_dir: str | None = None,
    variant: str = "",
    node_connections: Mapping[str, Mapping[str, str]] | None = None,
) -> FlowCheck:
    """Read a flow and its source files, without importing them. The arguments are those of `load_flow`.

    Raises:
        FlowNotFoundError: There is nothing to check.
    """
    checked = FlowCheck(source)
    try:
        flow = load_flow(source, working_dir, variant=variant, node_connections=node_connections)
    except FlowNotFoundError:
        raise
    except BatchflowException as exc:
        checked.findings.append(Finding("stops", source, exc.message))
        return checked
    checked.name, checked.inputs = flow.name, list(flow.inputs.values())
    sample = flow.program.sample_init
    checked.init = [replace(item, default=sample[name]) if name in sample else item for name, item in flow.init.items()]
    checked.kind = flow.kind
    checked.nodes = [_shown(node) for node in flow.program.nodes]
    checked.findings = list(_findings(flow))
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


def _findings(flow: Flow) -> Iterator[Finding]:
    if flow.service is not None:
        yield from _of_service(flow, flow.service.command)
        return
    yield from _of_models(flow)
    yield from _of_packages(flow)
    for name, places in _connections(flow).items():
        yield Finding("needs", ", ".join(places), _connection_text(name))
    yield from _of_constructor(flow)
    yield from _of_environment(flow)
    yield from _of_sources(flow)


# --- other languages, models, environment ---------------------------------------------------------------------------


def _of_service(flow: Flow, command: Sequence[str]) -> Iterator[Finding]:
    from prefect_batchflow.execution.languages import executor_for, no_executor

    place = _name(flow.definition_file, flow)
    if executor_for(flow) is None:
        yield Finding("needs", place, no_executor(flow))
    elif command and shutil.which(command[0]) is None and not (flow.working_dir / command[0]).is_file():
        yield Finding("stops", place, f"The program '{command[0]}' of its service is not on the PATH. Install it.")


def _of_models(flow: Flow) -> Iterator[Finding]:
    if missing := [name for name in flow.program.packages if not is_installed(name)]:
        nodes = [f"node '{node.name}'" for node in flow.program.nodes if node.has_template]
        place = nodes[0] if nodes else _name(flow.definition_file, flow)
        yield Finding(
            "stops", place, f"It needs {' and '.join(missing)}, which this Python lacks: {pip_install('openai')}"
        )


def _of_constructor(flow: Flow) -> Iterator[Finding]:
    """The arguments of the constructor without a default, as the yaml names them."""
    for name, item in flow.init.items():
        if item.required and name not in flow.program.sample_init:
            what = "the name of a connection" if _is_connection(item.type) else f"a value of type {item.type}"
            yield Finding("needs", f"init '{name}'", f"The constructor takes {what}. Run with --init {name}=….")


def _of_packages(flow: Flow) -> Iterator[Finding]:
    """Package tools whose package is not installed. The tools of an installed package are known only when it is imported."""
    for node in flow.program.nodes:
        parts = node.package_tool.split(".")
        package = ".".join(parts[: 2 if parts[0] == "promptflow" else 1])
        if package and not _is_installed(package, flow):
            text = (
                f"The package of its tool {node.package_tool} is not installed here.{install_hint(node.package_tool)}"
            )
            yield Finding("stops", f"node '{node.name}'", text)


# --- connections ----------------------------------------------------------------------------------------------------


def _connections(flow: Flow) -> dict[str, list[str]]:
    """The connections that a flow names, and where, as far as its text shows."""
    found: dict[str, list[str]] = {}
    for place, name in _asked(flow):
        if isinstance(name, str) and name and place not in found.setdefault(name, []):
            found[name].append(place)
    return found


def _asked(flow: Flow) -> Iterator[tuple[str, Any]]:
    program = flow.program
    for node in program.nodes:
        place = f"node '{node.name}'"
        yield place, node.connection
        takes = _connection_parameters(node, flow)
        for name, value in node.constants.items():
            if name in takes:
                yield place, value
    yield _name(flow.definition_file, flow), (program.model.get("configuration") or {}).get("connection")
    defaults = {name: item.default for name, item in flow.init.items() if not item.required}
    for name, value in {**defaults, **program.sample_init}.items():
        if isinstance(value, dict):
            yield f"init '{name}'", value.get("connection")
        elif name in flow.init and _is_connection(flow.init[name].type):
            yield f"init '{name}'", value
    for variable, text in flow.environment_variables.items():
        for name in connections_in({variable: text}):
            yield f"environment variable {variable}", name


def _connection_parameters(node: Node, flow: Flow) -> set[str]:
    """The parameters of a node's tool that take a connection, by their annotations; of a package's by their usual name."""
    if node.package_tool:
        return {"connection"}
    if node.type != "python":
        return set()
    try:
        body = ast.parse((flow.working_dir / node.source).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return set()
    functions = [found for found in ast.walk(body) if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {
        argument.arg
        for function in functions
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        if argument.annotation is not None and _is_connection(ast.unparse(argument.annotation))
    }


def _is_connection(annotation: str) -> bool:
    return re.search(r"\w*Connection\b", annotation) is not None


def _connection_text(name: str) -> str:
    return (
        f"It needs the connection '{name}'. Run with --connection {name}=BLOCK, or save a Prefect block with this name, "
        "or give `connections` to BatchEngine; see docs/connections.md."
    )


def _of_environment(flow: Flow) -> Iterator[Finding]:
    """Variables that `${env:NAME}` in the flow's own file needs and that are not set."""
    file = flow.definition_file
    if file is None:
        return
    for name in variables_in(file.read_text("utf-8", "replace")):
        if name not in os.environ:
            yield Finding("needs", _name(file, flow), f"${{env:{name}}}: the variable {name} is not set here. Set it.")


# --- sources --------------------------------------------------------------------------------------------------------


def _of_sources(flow: Flow) -> Iterator[Finding]:
    """Node sources and entries, and the flow's own modules that they import."""
    code = flow.program.code(flow.working_dir)
    for file, node in code.items():
        if node:
            yield from _of_tool(node, file)
    waiting, seen = list(code), set(code)
    while waiting:
        file = waiting.pop(0)
        try:
            imports = list(imports_of(file))
        except FlowDefinitionError as exc:
            yield Finding("stops", _name(file, flow), exc.message)
            continue
        for imported in imports:
            if imported.module.partition(".")[0] == "promptflow":
                yield from _of_promptflow(imported, flow)
                continue
            own = _own_module(imported, flow)
            if own is None:
                yield from _of_package(imported, flow)
            elif own not in seen:
                seen.add(own)
                waiting.append(own)


def _of_tool(node: str, file: Path) -> Iterator[Finding]:
    """Whether the file has exactly one tool. Decorators are recognised by name, because nothing is imported."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # reported with its imports
    tools = [
        statement.name
        for statement in body
        if (isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and _names_tool(statement.decorator_list))
        or (isinstance(statement, ast.ClassDef) and any(_last_name(base) == "ToolProvider" for base in statement.bases))
    ]
    if len(tools) > 1:
        text = f"{file.name} has {len(tools)} tools: {', '.join(tools)}. Expected one. Put each into its own file."
        yield Finding("stops", f"node '{node}'", text)
    elif not tools:
        text = (
            f"no function of {file.name} has @tool above it. Put @tool from promptflow.core above the node's function."
        )
        yield Finding("stops", f"node '{node}'", text)


def _names_tool(decorators: Sequence[ast.expr]) -> bool:
    return any(_last_name(d.func if isinstance(d, ast.Call) else d) == "tool" for d in decorators)


def _last_name(expression: ast.expr) -> str:
    return str(getattr(expression, "attr", getattr(expression, "id", "")))


def _of_promptflow(imported: SourceImport, flow: Flow) -> Iterator[Finding]:
    module, name = imported.module, imported.name
    place = f"{_name(imported.file, flow)}, line {imported.line}"
    path = f"{module}.{name}" if name else module
    provided = module in PROVIDED and (not name or name == "*" or name in PROVIDED[module])
    if provided or path in PROVIDED or (module not in PROVIDED and _is_installed(module, flow)):
        return
    if hint := REPLACED.get(module, {}).get(name):
        yield Finding("note", place, f"{path} can be imported, but raises an error when it is used. {hint}")
        return
    parts = path.split(".")
    hints = (MODULE_HINTS.get(".".join(parts[:length])) for length in range(len(parts), 1, -1))
    hint = next(filter(None, hints), "Remove it, or install promptflow-core, which is used if it is installed.")
    text = f"{path} is not provided here. {hint}"
    yield Finding("stops" if imported.always and not _is_installed("promptflow.core", flow) else "note", place, text)


def _own_module(imported: SourceImport, flow: Flow) -> Path | None:
    """The file of a module of the flow; for `from package import module` it is the file of `module`."""
    base = flow.working_dir.joinpath(*imported.module.split("."))
    candidates = [base.with_suffix(".py"), base / "__init__.py"]
    if imported.name:
        candidates.insert(0, base / f"{imported.name}.py")
    return next((file.resolve() for file in candidates if file.is_file()), None)


def _of_package(imported: SourceImport, flow: Flow) -> Iterator[Finding]:
    name = imported.module.partition(".")[0]
    if name in sys.stdlib_module_names or _is_installed(name, flow):
        return
    place = f"{_name(imported.file, flow)}, line {imported.line}"
    text = f"The module '{name}' is not installed here and not in {flow.working_dir}. Install its package."
    yield Finding("stops" if imported.always else "note", place, text)


def _is_installed(module: str, flow: Flow) -> bool:
    return is_installed(module, [str(flow.working_dir)])


def _name(file: Path | None, flow: Flow) -> str:
    if file is None:
        return flow.name
    folder = flow.working_dir
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
