"""A flow to a program: imports user code, with the mirror of promptflow in place, and checks what it finds.

The import chain of this module is the standard library and the package's own light part; what only some flows need is
imported where it is used.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import types
import zlib
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from prefect_batchflow import promptflow_shim
from prefect_batchflow.connections.given import Connections
from prefect_batchflow.definition.flow import (
    NO_DEFAULT,
    Constant,
    Dag,
    Entry,
    FlowDescription,
    FlowInput,
    Node,
    Prompt,
    Reference,
)
from prefect_batchflow.definition.node_connections import refuse_other_inputs
from prefect_batchflow.exceptions import (
    FlowEntryInitializationError,
    InvalidAggregationFunction,
    InvalidConnectionError,
    InvalidImageInput,
    InvalidOptionError,
    NodeInputValidationError,
    PythonLoadError,
    ResolveToolError,
    UnsupportedFeatureError,
)
from prefect_batchflow.execution.program.connecting import connect, connection_types, constructor_value
from prefect_batchflow.execution.program.images import FlowImages
from prefect_batchflow.execution.program.node_tools import FoundTool, tool_of_package, tool_of_source
from prefect_batchflow.execution.program.nodes import DagProgram, EntryProgram, NodeTool, Program
from prefect_batchflow.execution.program.steps import UserFunction
from prefect_batchflow.execution.program.user_errors import describe, exception_text, passes_through
from prefect_batchflow.tools.context import give_connections, log_metric
from prefect_batchflow.tools.usage import count_model_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType

    from prefect_batchflow.definition.flow import Flow

    Inputs = dict[str, Constant | Reference]
    """Parameter to value, of one node."""

TYPE_NAMES: Mapping[Any, str] = {
    int: "int",
    float: "double",
    bool: "bool",
    str: "string",
    list: "list",
    dict: "object",
}
"""promptflow's names of the annotations it converts for."""
MARKER_TYPES: Mapping[str, str] = {
    "AssistantDefinition": "assistant_definition",
    "FilePath": "file_path",
    "Image": "image",
    "PromptTemplate": "prompt_template",
    "Secret": "secret",
}
"""The same of promptflow's own classes, by name: promptflow's, or those of the mirror."""


def load_program(
    flow: Flow, init_kwargs: Mapping[str, Any] | None = None, connections: Mapping[str, Any] | None = None
) -> Program:
    """Import a flow's code and give what runs its lines. The flow's folder stays first on `sys.path`.

    Args:
        flow: From `load_flow`.
        init_kwargs: Arguments of a class entry's constructor; the yaml's `init` adds defaults and types. `model` of a
            prompty.
        connections: Name to promptflow's dictionary, or to a connection; the environment of this process completes them.

    Raises:
        PythonLoadError: The code cannot be imported, or lacks the entry.
        ResolveToolError: A node's file has no tool or several, or the node's inputs do not fit it.
        GetConnectionError: A connection was not given, or cannot be made; a `ResolveToolError`.
        FlowEntryInitializationError: The class entry's constructor raised.
        InvalidOptionError: `init_kwargs` for a flow that is no class.
        UnsupportedFeatureError: Another language, or a tool of a kind that is not supported.
    """
    given = Connections(connections, os.environ)
    give_connections(given)
    return program_of(flow, init_kwargs or {}, given)


def program_of(flow: Flow, init_kwargs: Mapping[str, Any], connections: Connections) -> Program:
    """The same with connections that are there already: for a flow that another one's code calls."""
    if not flow.is_python:
        raise UnsupportedFeatureError(
            f"The flow '{flow.name}' is written in {flow.language}. Register an executor for it: "
            f"register_executor('{flow.language}', …)."
        )
    folder = str(flow.working_dir)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    mirrored = promptflow_shim.install()
    count_model_calls()
    importlib.invalidate_caches()
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


# --- DAG flows ------------------------------------------------------------------------------------------------------


def load_dag(flow: Flow, dag: Dag, connections: Connections) -> DagProgram:
    """Give the program of a DAG flow, its nodes' tools imported and checked; raises as `load_program` does."""
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
    if node.type == "python":
        found = _found_tool(flow, node, modules)
        _check_choice(flow, node, found)
        return _node_tool(node, found, connections, images)
    from prefect_batchflow.execution.program import model_nodes

    if node.type == "prompt":
        return model_nodes.prompt_node(flow, node)
    if node.type == "llm":
        return model_nodes.llm_node(flow, node, connections)
    found = _found_tool(flow, node, modules)
    _check_choice(flow, node, found)
    signature = signature_of(found.function) or inspect.Signature()
    names = named_parameters(signature)
    prompt = next((name for name, p in names.items() if literal_type(p) == "prompt_template"), None)
    if prompt is None:
        raise ResolveToolError(
            f"Node '{node.name}': {found.place} has no parameter that is a PromptTemplate, to which the template "
            f"{node.source} could go. Use it in a python node, with the source type 'package'.",
            target="Tool",
        )
    model_nodes.refuse_template_collisions(flow, node, names)
    given = {**node.inputs, prompt: Constant(model_nodes.template_text(flow, node))}
    from_rows = sorted(model_nodes.inputs_of_the_line(node))
    if from_rows and any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        # What promptflow's own tools go by, so that no row brings a role.
        given["_inputs_to_escape"] = Constant(from_rows)
    return _node_tool(replace(node, inputs=given), found, connections, images)


def _node_tool(node: Node, found: FoundTool, connections: Connections, images: FlowImages) -> NodeTool:
    place = f"Node '{node.name}': {found.place}"
    # promptflow's yaml editor writes an empty text or null for "not set": the tool's own default applies then.
    inputs = {k: v for k, v in node.inputs.items() if not (isinstance(v, Constant) and v.value in (None, ""))}
    function = found.function
    if found.owner is not None:
        function, inputs = _method(found.owner, found, inputs, node, place, connections, images)
    signature = signature_of(function)
    optional: set[str] = set()
    if signature is not None:
        _check_arguments(signature, inputs, node, place)
        named = named_parameters(signature)
        optional = {name for name, parameter in named.items() if parameter.default is not parameter.empty}
        inputs = _converted_literals(inputs, named, found.types, node, place, connections, images)
    called = UserFunction(function, node.name, is_async=is_async_callable(function))
    return NodeTool(node.name, called, inputs, optional=optional, activate=node.activate)


def _found_tool(flow: Flow, node: Node, modules: dict[Path, ModuleType]) -> FoundTool:
    # Of promptflow's own modules nothing is needed here: they are named to register the providers of models.
    if node.module and not node.module.startswith("promptflow."):
        with loading(f"The module '{node.module}' of the node '{node.name}' cannot be imported"):
            importlib.import_module(node.module)
    if node.package_tool:
        from prefect_batchflow.execution.program.package_tools import find_package_tool

        tool = find_package_tool(node.package_tool)
        with loading(
            f"{tool.module} of {tool.package}, which has the tool of the node '{node.name}', cannot be imported"
        ):
            module = importlib.import_module(tool.module)
        return tool_of_package(node.name, tool, module)
    file = (flow.working_dir / node.source).resolve()
    if file not in modules:
        modules[file] = import_file(file, f"node '{node.name}'")
    return tool_of_source(node.name, own_objects(modules[file]), file)


def _check_choice(flow: Flow, node: Node, found: FoundTool) -> None:
    """See that what was chosen for the node, beside the model, is a connection for its tool."""
    if not (chosen := flow.node_connections.get(node.name)):
        return
    signatures = [signature_of(found.function)]
    if found.owner is not None:
        signatures.append(signature_of(inspect.getattr_static(found.owner, "__init__")))
    named = {name: p for signature in signatures if signature for name, p in named_parameters(signature).items()}
    refuse_other_inputs(node.name, chosen, (name for name, p in named.items() if connection_types(p.annotation)))


def _method(
    owner: type, found: FoundTool, inputs: Inputs, node: Node, place: str, connections: Connections, images: FlowImages
) -> tuple[Callable[..., Any], Inputs]:
    """Build a tool's class, and give its method and the inputs that are not the constructor's.

    Source: promptflow `_core/tools_manager.py`, `BuiltinsManager._load_tool_from_module`.
    """
    name = found.function.__name__
    # Of __init__ itself: promptflow's ToolProvider has a __new__ that takes anything.
    constructor = signature_of(inspect.getattr_static(owner, "__init__"))
    parameters = [] if constructor is None else list(constructor.parameters.values())[1:]
    constructor = inspect.Signature(parameters)
    own = named_parameters(constructor)
    twice = own.keys() & named_parameters(signature_of(found.function) or inspect.Signature()).keys() - {"self"}
    if twice:
        raise ResolveToolError(
            f"{place} has the parameter '{min(twice)}', and so has the class's __init__. Rename one of them.",
            target="Tool",
        )
    taken = {key: value for key, value in inputs.items() if key in own}
    for key, value in taken.items():
        if isinstance(value, Reference):
            raise ResolveToolError(
                f"{place}, input '{key}' is {value.text}, and an argument of {owner.__qualname__}, which is built once, "
                f"before any line. Write a value there, or make it a parameter of '{name}'.",
                target="Tool",
            )
    _check_arguments(constructor, taken, node, f"{place}, its class {owner.__qualname__}")
    taken = _converted_literals(taken, own, found.types, node, place, connections, images)
    try:
        built = owner(**{key: value.value for key, value in taken.items() if isinstance(value, Constant)})
    except BaseException as exc:
        if passes_through(exc):
            raise
        # Names only: a value may be a key.
        given = ", ".join(taken) or "no arguments"
        raise ResolveToolError(
            f"{place}: {owner.__qualname__} cannot be built with {given}: ({type(exc).__name__}) {exception_text(exc)}",
            target="Tool",
            additional_info={"ToolLoadErrorDetails": describe(exc)},
        ) from exc
    return getattr(built, name), {key: value for key, value in inputs.items() if key not in taken}


def _converted_literals(
    inputs: Inputs,
    named: Mapping[str, inspect.Parameter],
    types: Mapping[str, str],
    node: Node,
    place: str,
    connections: Connections,
    images: FlowImages,
) -> Inputs:
    """The inputs with literals as their parameters' types, connections by name; what `**kwargs` takes stays as it is."""
    converted = dict(inputs)
    for name, value in inputs.items():
        kinds = connection_types(named[name].annotation) if name in named else []
        if isinstance(value, Constant) and kinds:
            where = f"node '{node.name}', input '{name}'"
            converted[name] = Constant(connect(value.value, kinds, connections, where))
            continue
        type_name = types.get(name) or (literal_type(named[name]) if name in named else None)
        if isinstance(value, Constant) and type_name is not None:
            try:
                is_image = type_name == "image"
                converted[name] = Constant(images.literal(value.value) if is_image else to_type(value.value, type_name))
            except (ValueError, InvalidImageInput) as exc:
                raise NodeInputValidationError(
                    f"{place}, input '{name}' is {value.value!r}: {exc}", target="Tool"
                ) from exc
    return converted


def _check_arguments(signature: inspect.Signature, given: Mapping[str, Any], node: Node, place: str) -> None:
    named = named_parameters(signature)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    problems = [] if takes_any else [f"has no parameter '{name}'" for name in given if name not in named]
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in given:
            empty = ", where an empty value counts as none" if name in node.inputs else ""
            problems.append(f"needs '{name}', which the node's inputs lack{empty}")
    if problems:
        raise ResolveToolError(f"{place} {'; it '.join(problems)}. Parameters: {signature}.", target="Tool")


def named_parameters(signature: inspect.Signature) -> dict[str, inspect.Parameter]:
    """The parameters that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in signature.parameters.items() if parameter.kind in kinds}


def literal_type(parameter: inspect.Parameter) -> str:
    """The type that a literal is converted to: the annotation's, else that of the default.

    Source: promptflow `_utils/tool_utils.py`, `param_to_definition`.
    """
    annotation = parameter.annotation
    if annotation is parameter.empty and parameter.default is not parameter.empty:
        annotation = type(parameter.default)
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        annotation = members[0] if len(members) == 1 else object
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        annotation = str
    return type_name_of(annotation, "object")


# --- prompties ------------------------------------------------------------------------------------------------------


def load_prompt(flow: Flow, init_kwargs: Mapping[str, Any], connections: Connections) -> EntryProgram:
    """Give the program of a `.prompty` file."""
    from prefect_batchflow.tools.prompty import AsyncPrompty

    prompty = AsyncPrompty.of_flow(flow, init_kwargs, connections.get)
    description = FlowDescription(inputs=flow.inputs, is_async=True, has_aggregation=False)
    return EntryProgram(description, UserFunction(prompty, flow.name, is_async=True), parameters=list(flow.inputs))


# --- callables ------------------------------------------------------------------------------------------------------


def load_entry(flow: Flow, entry: Entry, init_kwargs: Mapping[str, Any], connections: Connections) -> EntryProgram:
    """Give the program of a callable, imported; a class is built. Raises as `load_program` does."""
    target = _unpickled(entry) if entry.pickled is not None else _imported(entry)
    name = entry.attribute
    aggregate = None
    if isinstance(target, type):
        target = _built(flow, entry, target, init_kwargs, connections)
    elif init_kwargs:
        raise no_init(name, "no class", init_kwargs)
    if not callable(target):
        raise PythonLoadError(
            f"'{name}' of {entry.module} is {target!r}. Expected a function or a class with __call__."
        )
    if not inspect.isroutine(target) and not isinstance(target, functools.partial):
        name = f"{type(target).__qualname__}.__call__"
        aggregate = _aggregate_of(target)
    signature = signature_of(target)
    parameters = () if signature is None else signature.parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_any = signature is None or any(p.kind is p.VAR_KEYWORD for p in parameters)
    description = FlowDescription(
        inputs=_described_inputs(flow.inputs, parameters, takes_any=takes_any),
        is_async=is_async_callable(target),
        has_aggregation=aggregate is not None,
    )
    return EntryProgram(
        description,
        UserFunction(target, name, is_async=description.is_async),
        parameters=None if takes_any else names,
        positional=[p.name for p in parameters if p.kind is p.POSITIONAL_ONLY],
        aggregate=aggregate,
    )


def _unpickled(entry: Entry) -> Any:
    import pickle

    with loading(f"The callable '{entry.attribute}' cannot be rebuilt"):
        return pickle.loads(entry.pickled or b"")  # noqa: S301 - made by the process that started this one


def _imported(entry: Entry) -> Any:
    if entry.module.endswith(".py"):
        module = import_file(Path(entry.module), f"entry '{entry.attribute}'")
    else:
        module = _import_module(entry)
    found: Any = module
    for part in entry.attribute.split("."):
        if not hasattr(found, part):
            names = ", ".join(value.__qualname__ for value in own_objects(module)) or "no function or class"
            raise PythonLoadError(f"{module.__file__ or entry.module} has no '{entry.attribute}'. It defines {names}.")
        found = getattr(found, part)
    return found


def _import_module(entry: Entry) -> ModuleType:
    with loading(f"The module '{entry.module}' of the entry '{entry.attribute}' cannot be imported"):
        module = importlib.import_module(entry.module)
    found = Path(module.__file__).resolve() if module.__file__ else None
    if entry.file is None or found == entry.file:
        return module
    if "." in entry.module:
        raise PythonLoadError(
            f"The module '{entry.module}' was expected from {entry.file}, but this name is taken by {found}. Rename it."
        )
    # The flow's module has the name of one that is imported already, as `types` or another flow's.
    return import_file(entry.file, f"entry '{entry.attribute}'")


def _built(flow: Flow, entry: Entry, target: type, init_kwargs: Mapping[str, Any], connections: Connections) -> Any:
    """The one object of a class entry.

    Source: promptflow `executor/_script_executor.py`, `_resolve_init_kwargs`.
    """
    if not any("__call__" in base.__dict__ for base in target.__mro__):
        raise PythonLoadError(
            f"The class '{entry.attribute}' of {entry.module} has no __call__. A line is a call of it."
        )
    arguments = {name: declared.default for name, declared in flow.init.items() if not declared.required}
    arguments |= init_kwargs or entry.sample_init
    signature = signature_of(target)
    parameters = {} if signature is None else signature.parameters
    for name, value in arguments.items():
        annotation = parameters[name].annotation if name in parameters else None
        type_name = flow.init[name].type if name in flow.init else ""
        try:
            arguments[name] = constructor_value(value, annotation, type_name, connections, f"init '{name}'")
        except (ResolveToolError, InvalidConnectionError) as exc:
            raise FlowEntryInitializationError(
                f"'{entry.attribute}' cannot be built: {exc}", target="Executor", additional_info=exc.additional_info
            ) from exc
    for name, declared in flow.init.items():
        # A class, as OpenAIConnection, was seen to above.
        if name in arguments and declared.type[:1].islower():
            try:
                arguments[name] = to_type(arguments[name], declared.type)
            except ValueError as exc:
                raise InvalidOptionError(f"init '{name}' of the flow '{flow.name}': {exc}") from exc
    try:
        return target(**arguments)
    except BaseException as exc:
        if passes_through(exc):
            raise
        # Names only: a value may be a key.
        given = ", ".join(arguments) or "no arguments"
        raise FlowEntryInitializationError(
            f"'{entry.attribute}' cannot be built with {given}: ({type(exc).__name__}) {exception_text(exc)}"
            f"{_not_given(parameters, arguments)}",
            target="Executor",
            additional_info={"FlexFlowExecutionErrorDetails": describe(exc)},
        ) from exc


def _not_given(parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]) -> str:
    """How to give the arguments that a constructor needs and did not get."""
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in arguments
    ]
    options = " ".join(f"--init {name}=…" for name in missing)
    return (
        f". Give {options} on the command line, `init_kwargs` in Python, or `sample: {{init: …}}` in its yaml."
        * bool(missing)
    )


def _aggregate_of(target: Any) -> UserFunction | None:
    aggregate = getattr(target, "__aggregate__", None)
    if aggregate is None:
        return None
    name = f"{type(target).__qualname__}.__aggregate__"
    signature = signature_of(aggregate)
    if signature is not None and len(signature.parameters) != 1:
        raise InvalidAggregationFunction(
            f"{name}{signature} should take one parameter beside self: the list of the lines' outputs."
        )
    return UserFunction(aggregate, name, is_async=is_async_callable(aggregate))


def _described_inputs(declared: Mapping[str, FlowInput], parameters: Any, *, takes_any: bool) -> dict[str, FlowInput]:
    """A callable's inputs: names from its signature, types and defaults from the yaml first; null stays null where it has none.

    A default of the code that is no JSON is not told: such a parameter is left to Python, unless the mapping names it.
    """
    inputs = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        known = declared.get(parameter.name)
        default = known.default if known is not None else NO_DEFAULT
        if default is NO_DEFAULT and parameter.default is not parameter.empty:
            if not _is_plain(parameter.default):
                continue
            default = parameter.default
        type_name = known.type if known is not None else type_name_of(parameter.annotation, "any")
        description = known.description if known is not None else ""
        inputs[parameter.name] = FlowInput(parameter.name, type_name, default, description, nullable=known is None)
    if takes_any:
        inputs |= {name: known for name, known in declared.items() if name not in inputs}
    return inputs


def _is_plain(value: Any) -> bool:
    """Whether JSON gives back the same value."""
    if type(value) is dict:
        return all(type(key) is str and _is_plain(part) for key, part in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


# --- both -----------------------------------------------------------------------------------------------------------


def import_file(file: Path, whose: str) -> ModuleType:
    """Import a file under a name of its own, known to `sys.modules`, so that dataclasses and pickle find it."""
    stem = "".join(character if character.isalnum() else "_" for character in file.stem)
    name = f"batchflow_{stem}_{zlib.crc32(str(file).encode()):08x}"
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise PythonLoadError(f"The source of {whose} is not there: {file}.")
    module = module_from_spec(spec)
    sys.modules[name] = module
    with loading(f"{file}, the source of {whose}, cannot be imported"):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def own_objects(module: ModuleType) -> list[Any]:
    """The functions and classes that a module defines, each once, in the file's order."""
    return list(
        {
            id(value): value
            for value in vars(module).values()
            if callable(value)
            and getattr(value, "__module__", None) == module.__name__
            and hasattr(value, "__qualname__")
        }.values()
    )


@contextmanager
def loading(failed: str) -> Iterator[None]:
    """Report what user code raises while it loads; an interrupt stays one."""
    try:
        yield
    except BaseException as exc:
        if passes_through(exc):
            raise
        hint = ""
        if isinstance(exc, ModuleNotFoundError) and not str(exc.name).startswith("promptflow"):
            hint = f". Install what provides '{exc.name}' in this Python, or put it into the flow's folder"
        raise PythonLoadError(
            f"{failed}: ({type(exc).__name__}) {exception_text(exc)}{hint}",
            target="Executor",
            additional_info={"PythonLoadErrorDetails": describe(exc)},
        ) from exc


def no_init(name: str, what: str, init_kwargs: Mapping[str, Any]) -> InvalidOptionError:
    """The error of `init_kwargs` for a flow that builds nothing."""
    given = ", ".join(init_kwargs)
    return InvalidOptionError(
        f"init_kwargs ({given}) were given, but '{name}' is {what}: nothing is built. Leave them out."
    )


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """A callable's signature, annotations evaluated where they can be; `None` where Python does not know it."""
    for eval_str in (True, False):
        try:
            return inspect.signature(function, eval_str=eval_str)
        except ValueError:
            return None
        except Exception:  # noqa: BLE001, S112 - annotations are user code, often of names for type checkers only
            continue
    return None


def type_name_of(annotation: Any, otherwise: str) -> str:
    """Promptflow's name of an annotation; one left as text is known by its spelling."""
    for known, name in TYPE_NAMES.items():
        if annotation is known or annotation == known.__name__:
            return name
    if isinstance(annotation, type) and annotation.__module__.startswith(("promptflow.", "prefect_batchflow.")):
        return MARKER_TYPES.get(annotation.__name__, otherwise)
    return MARKER_TYPES.get(annotation, otherwise) if isinstance(annotation, str) else otherwise


def to_type(value: Any, type_name: str) -> Any:
    """A literal as promptflow's type; a `ValueError` says what was expected, not what was found: it may be a secret."""
    from prefect_batchflow.inputs.types import CONVERSION_ERRORS, CONVERTERS

    if type_name not in CONVERTERS:
        return value
    try:
        return CONVERTERS[type_name](value)
    except CONVERSION_ERRORS as exc:
        raise ValueError(f"expected a value of type {type_name}, found a {type(value).__name__} that is none.") from exc


def is_async_callable(function: Any) -> bool:
    """Whether a call gives a coroutine or an async generator, also through partials and promptflow's decorator."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__original_function", function)
    if not inspect.isroutine(function):
        function = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _take_promptflow_metrics() -> None:
    """Where promptflow is installed, flows log metrics through it."""
    try:
        metric_logger = importlib.import_module("promptflow._core.metric_logger")
    except ImportError:
        return
    metric_logger.add_metric_logger(log_metric)
