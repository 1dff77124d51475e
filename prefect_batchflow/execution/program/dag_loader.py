"""Building the program of a DAG flow: importing its nodes' tools, checking and converting their inputs."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.flow import Constant, FlowDescription, Reference
from prefect_batchflow.definition.node_connections import MODEL_INPUTS
from prefect_batchflow.exceptions import (
    TO_GIVE,
    InvalidImageInput,
    InvalidOptionError,
    NodeInputValidationError,
    ResolveToolError,
    listed,
)
from prefect_batchflow.execution.program.connecting import connect, connection_types
from prefect_batchflow.execution.program.dag import DagProgram, NodeTool
from prefect_batchflow.execution.program.images import FlowImages
from prefect_batchflow.execution.program.importing import import_file, loading, own_objects
from prefect_batchflow.execution.program.node_tools import FoundTool, tool_of_package, tool_of_source
from prefect_batchflow.execution.program.signatures import is_async_callable, named_parameters, signature_of, to_type
from prefect_batchflow.execution.program.steps import UserFunction
from prefect_batchflow.execution.program.user_errors import describe, exception_text, passes_through
from prefect_batchflow.execution.program.wanted import builders_of, constant_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import ModuleType

    from prefect_batchflow.connections.given import Connections
    from prefect_batchflow.definition.flow import Dag, Flow, Node
    from prefect_batchflow.execution.program.wanted import Builder

    Inputs = dict[str, Constant | Reference]
    """Parameter to value, of one node."""


PROMPTFLOW_TOOLS = frozenset(
    f"promptflow.tools.{name}"
    for name in (
        "aoai", "aoai_gpt4v", "azure_content_safety", "common", "embedding", "exception", "list", "llm", "llm_vision",
        "open_model_llm", "openai", "openai_gpt4v", "serpapi", "template_rendering",
    )
)  # fmt: skip
"""The modules of promptflow-tools 1.6."""


def load_dag(flow: Flow, dag: Dag, connections: Connections) -> DagProgram:
    """Give the program of a DAG flow; raises as `load_program` does."""
    modules: dict[Path, ModuleType] = {}
    images = FlowImages(str(flow.working_dir), flow.message_format, flow.inputs)
    tools = {node.name: _tool_of_node(flow, node, modules, connections, images) for node in dag.nodes}
    line_tools = [tools[node.name] for node in dag.line_nodes]
    aggregation_tools = [tools[node.name] for node in dag.aggregation_nodes]
    description = FlowDescription(
        inputs=flow.inputs,
        is_async=any(tool.function.is_async for tool in line_tools),
        has_aggregation=bool(aggregation_tools),
    )
    return DagProgram(description, line_tools, aggregation_tools, dag.outputs)


def _tool_of_node(
    flow: Flow, node: Node, modules: dict[Path, ModuleType], connections: Connections, images: FlowImages
) -> NodeTool:
    # promptflow's own modules of this kind only register providers of models, which are not needed here.
    if node.module and node.module not in PROMPTFLOW_TOOLS:
        with loading(f"The module '{node.module}' of the node '{node.name}' cannot be imported"):
            importlib.import_module(node.module)
    if node.type == "python":
        return _node_tool(node, _found_tool(flow, node, modules), connections, images)
    from prefect_batchflow.execution.program import model_nodes

    node = model_nodes.with_images(flow, node, images)
    if node.type == "prompt":
        return model_nodes.prompt_node(flow, node)
    if node.type == "llm":
        return model_nodes.llm_node(flow, node, connections)
    found = _found_tool(flow, node, modules)
    signature = signature_of(found.function) or inspect.Signature()
    return _node_tool(with_template(flow, node, signature, found.place), found, connections, images)


def with_template(flow: Flow, node: Node, signature: inspect.Signature, tool: str) -> Node:
    """Give a `custom_llm` node its template as an input of its tool.

    Args:
        flow: The flow.
        node: The node.
        signature: The tool's.
        tool: The tool, for messages.
    """
    from prefect_batchflow.execution.program import model_nodes

    names = named_parameters(signature)
    prompt = next((name for name, p in names.items() if constant_type(p) == "prompt_template"), None)
    if prompt is None:
        raise ResolveToolError(
            f"Node '{node.name}': {tool} has no PromptTemplate parameter for the template {node.source}. Use the tool "
            "in a python node, with the source type 'package'.",
            target="Tool",
        )
    model_nodes.refuse_template_collisions(flow, node, names)
    # As in promptflow, an input of this name replaces the template.
    given = {prompt: Constant(model_nodes.template_text(flow, node)), **set_inputs(node)}
    from_rows = sorted(model_nodes.inputs_of_the_line(node))
    if from_rows and any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        # promptflow's own tools escape these inputs, so that no row can add a chat role.
        given["_inputs_to_escape"] = Constant(from_rows)
    return replace(node, inputs=given)


def _node_tool(node: Node, found: FoundTool, connections: Connections, images: FlowImages) -> NodeTool:
    place = f"Node '{node.name}': {found.place}"
    inputs, function = set_inputs(node), found.function
    if found.owner is not None:
        function, inputs = _method(found.owner, found, inputs, node, place, connections, images)
    signature = signature_of(function)
    optional: set[str] = set()
    builders: dict[str, Builder] = {}
    if signature is not None:
        check_arguments(signature, inputs, node, place)
        named = named_parameters(signature)
        optional = {name for name, parameter in named.items() if parameter.default is not parameter.empty}
        inputs = converted_constants(inputs, named, found.types, node, place, connections, images)
        builders = {} if node.aggregation else _builders(inputs, named, found.types)
    called = UserFunction(function, node.name, is_async=is_async_callable(function))
    return NodeTool(node.name, called, inputs, optional=optional, activate=node.activate, builders=builders)


def _found_tool(flow: Flow, node: Node, modules: dict[Path, ModuleType]) -> FoundTool:
    if node.package_tool:
        from prefect_batchflow.execution.program.package_tools import find_package_tool

        tool = find_package_tool(node.package_tool)
        with loading(
            f"{tool.module} of {tool.package}, which has the tool of the node '{node.name}', cannot be imported"
        ):
            module = importlib.import_module(tool.module)
        found = tool_of_package(node.name, tool, module)
    else:
        file = (flow.working_dir / node.source).resolve()
        if file not in modules:
            modules[file] = import_file(file, f"node '{node.name}'")
        found = tool_of_source(node.name, own_objects(modules[file]), file)
    signatures = [signature_of(found.function)]
    if found.owner is not None:
        signatures.append(signature_of(inspect.getattr_static(found.owner, "__init__")))
    check_choice(flow, node, signatures)
    return found


def check_choice(flow: Flow, node: Node, signatures: Iterable[inspect.Signature | None]) -> None:
    """Refuse a choice for an input that takes no connection, except for the model's inputs.

    Args:
        flow: The flow, with the choices.
        node: One of its nodes.
        signatures: Those of its tool and of the tool's class.
    """
    if not (chosen := flow.node_connections.get(node.name)):
        return
    named = {name: p for signature in signatures if signature for name, p in named_parameters(signature).items()}
    takes = [name for name, p in named.items() if connection_types(p.annotation)]
    if others := [name for name in chosen if name not in (*takes, *MODEL_INPUTS)]:
        raise InvalidOptionError(
            f"Node '{node.name}': {listed(others)} was chosen as a connection for this run. Parameters of its tool that take "
            f"a connection: {listed(takes) or 'none'}. Choose one of these, or {listed(MODEL_INPUTS)}; other inputs are set "
            "in the flow."
        )


def _method(
    owner: type, found: FoundTool, inputs: Inputs, node: Node, place: str, connections: Connections, images: FlowImages
) -> tuple[Callable[..., Any], Inputs]:
    """Build a tool's class; give its method and the inputs that the constructor does not take.

    Source: promptflow `_core/tools_manager.py`, `BuiltinsManager._load_tool_from_module`.
    """
    name = found.function.__name__
    # The signature of __init__, not of the class: promptflow's ToolProvider has a __new__ that takes anything.
    constructor = signature_of(inspect.getattr_static(owner, "__init__"))
    parameters = [] if constructor is None else list(constructor.parameters.values())[1:]
    constructor = inspect.Signature(parameters)
    signature = signature_of(found.function) or inspect.Signature()
    taken = constructor_inputs(f"{owner.__qualname__}.{name}", constructor, signature, inputs, node, place)
    taken = converted_constants(taken, named_parameters(constructor), found.types, node, place, connections, images)
    try:
        built = owner(**{key: value.value for key, value in taken.items() if isinstance(value, Constant)})
    except BaseException as exc:
        if passes_through(exc):
            raise
        # Only names: a value can be a key.
        given = ", ".join(taken) or "no arguments"
        raise ResolveToolError(
            f"{place}: {owner.__qualname__} cannot be built with {given}: ({type(exc).__name__}) {exception_text(exc)}",
            target="Tool",
            additional_info={"ToolLoadErrorDetails": describe(exc)},
        ) from exc
    return getattr(built, name), {key: value for key, value in inputs.items() if key not in taken}


def _builders(inputs: Inputs, named: Mapping[str, inspect.Parameter], types: Mapping[str, str]) -> dict[str, Builder]:
    """The builders of parameters that get a value of the row, and have a type for which promptflow has no rule.

    Constants stay as promptflow gives them: the text of an enum's member, the dict of a dataclass. Flows rely on it.
    """
    of_rows = {name for name, value in inputs.items() if isinstance(value, Reference) and value.section == "inputs"}
    asked = [parameter for name, parameter in named.items() if name in of_rows and name not in types]
    return builders_of(asked, lambda wanted: wanted.is_rich)


def constructor_inputs(
    name: str, constructor: inspect.Signature, method: inspect.Signature, inputs: Inputs, node: Node, place: str
) -> Inputs:
    """Give the inputs that a tool's class takes.

    Args:
        name: Class and method, `Tool.run`.
        constructor: The parameters of the class, without `self`.
        method: Those of the method.
        inputs: The node's.
        node: The node.
        place: For messages.
    """
    owner, _, function = name.rpartition(".")
    own = named_parameters(constructor)
    twice = own.keys() & named_parameters(method).keys() - {"self"}
    if twice:
        raise ResolveToolError(
            f"{place} has the parameter '{min(twice)}', and its class's __init__ has it too. Rename one of them.",
            target="Tool",
        )
    taken = {key: value for key, value in inputs.items() if key in own}
    for key, value in taken.items():
        if isinstance(value, Reference):
            raise ResolveToolError(
                f"{place}, input '{key}' is {value.text}, but it is an argument of {owner}, which is built once, "
                f"before any line. Write a value instead, or make it a parameter of '{function}'.",
                target="Tool",
            )
    check_arguments(constructor, taken, node, f"{place}, its class {owner}")
    return taken


def set_inputs(node: Node) -> Inputs:
    """The inputs of a node that have a value.

    promptflow's yaml editor writes an empty text or null for "not set". Then the tool's default applies.
    """
    return {k: v for k, v in node.inputs.items() if not (isinstance(v, Constant) and v.value in (None, ""))}


def converted_constants(
    inputs: Inputs,
    named: Mapping[str, inspect.Parameter],
    types: Mapping[str, str],
    node: Node,
    place: str,
    connections: Connections,
    images: FlowImages,
) -> Inputs:
    """The inputs, constants converted to their parameters' types and names to connections; those for `**kwargs` stay."""
    converted = dict(inputs)
    for name, value in inputs.items():
        kinds = connection_types(named[name].annotation) if name in named else []
        if isinstance(value, Constant) and kinds:
            where = f"node '{node.name}', input '{name}'"
            converted[name] = Constant(connect(value.value, kinds, connections, where))
            continue
        type_name = types.get(name) or (constant_type(named[name]) if name in named else None)
        if isinstance(value, Constant) and type_name is not None:
            try:
                is_image = type_name == "image"
                converted[name] = Constant(
                    images.load_constant(value.value) if is_image else to_type(value.value, type_name)
                )
            except (ValueError, InvalidImageInput) as exc:
                raise NodeInputValidationError(
                    f"{place}, input '{name}' is {value.value!r}: {exc}", target="Tool"
                ) from exc
    return converted


def check_arguments(signature: inspect.Signature, given: Mapping[str, Any], node: Node, place: str) -> None:
    """Refuse inputs that a tool does not take, and parameters that no input gives."""
    named = named_parameters(signature)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    problems = [] if takes_any else [f"has no parameter '{name}'" for name in given if name not in named]
    lacking = [name for name, p in named.items() if p.default is p.empty and name not in given]
    for name in lacking:
        empty = " (an empty value counts as none)" if name in node.inputs else ""
        problems.append(f"needs '{name}', which the node's inputs lack{empty}")
    if problems:
        connections = [name for name in lacking if connection_types(named[name].annotation)]
        choose = " ".join(f"--node-connections {node.name}.{name}=CONNECTION" for name in connections)
        raise ResolveToolError(
            f"{place} {'; it '.join(problems)}. Parameters: {signature}."
            + f" Write the connection's name there, or choose it for one run: {choose}." * bool(choose),
            target="Tool",
            additional_info={TO_GIVE: {"connection": ""}} if len(connections) == len(problems) else None,
        )
