"""Building the programs that are one call: of a callable or class, imported, or of a `.prompty` file."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, get_args, get_origin, is_typeddict

from prefect_batchflow.definition.flow import NO_DEFAULT, FlowDescription, FlowInput
from prefect_batchflow.exceptions import (
    TO_GIVE,
    FlowEntryInitializationError,
    InvalidAggregationFunction,
    InvalidConnectionError,
    InvalidOptionError,
    PythonLoadError,
    ResolveToolError,
)
from prefect_batchflow.execution.program.connecting import constructor_value
from prefect_batchflow.execution.program.entry import EntryProgram
from prefect_batchflow.execution.program.importing import give_values, import_file, import_script, loading, own_objects
from prefect_batchflow.execution.program.signatures import is_async_callable, signature_of, to_type
from prefect_batchflow.execution.program.steps import UserFunction
from prefect_batchflow.execution.program.user_errors import describe, exception_text, passes_through
from prefect_batchflow.execution.program.wanted import builders_of, keys_of, spelled, wanted_by

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from types import ModuleType

    from prefect_batchflow.connections.given import Connections
    from prefect_batchflow.definition.flow import Entry, Flow


def load_prompt(flow: Flow, init_kwargs: Mapping[str, Any], connections: Connections) -> EntryProgram:
    """Give the program of a `.prompty` file."""
    from prefect_batchflow.tools.prompty import AsyncPrompty

    prompty = AsyncPrompty.of_flow(flow, init_kwargs, connections.get)
    description = FlowDescription(inputs=flow.inputs, is_async=True, has_aggregation=False)
    return EntryProgram(description, UserFunction(prompty, flow.name, is_async=True), parameters=list(flow.inputs))


def load_entry(flow: Flow, entry: Entry, init_kwargs: Mapping[str, Any], connections: Connections) -> EntryProgram:
    """Import a callable or build a class, and give its program; raises as `load_program` does."""
    if entry.script is not None:
        import_script(entry.script)
        give_values(entry.script)
    target = _unpickled(entry) if entry.pickled is not None else _imported(entry)
    name = entry.attribute
    aggregate = None
    if isinstance(target, type):
        target = _built(flow, entry, target, init_kwargs, connections)
    elif init_kwargs:
        raise no_init(name, "not a class", init_kwargs)
    if not callable(target):
        raise PythonLoadError(
            f"'{name}' of {entry.module} is {target!r}. Expected a function or a class with __call__."
        )
    if not inspect.isroutine(target) and not isinstance(target, functools.partial):
        name = f"{type(target).__qualname__}.__call__"
        aggregate = _aggregate_of(target)
    signature = signature_of(target)
    parameters = [] if signature is None else list(_each_parameter(signature))
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    others = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
    takes_any = signature is None or others is not None
    builders = builders_of(p for p in parameters if p.name in names)
    description = FlowDescription(
        inputs=_described_inputs(flow.inputs, parameters, builders, takes_any=takes_any),
        is_async=is_async_callable(target),
        has_aggregation=aggregate is not None,
        takes_any=takes_any,
    )
    return EntryProgram(
        description,
        UserFunction(target, name, is_async=description.is_async),
        parameters=names,
        takes_any=takes_any,
        positional={p.name: p.default for p in parameters if p.kind is p.POSITIONAL_ONLY},
        builders=builders,
        others=None if others is None else builders_of([others], lambda wanted: True).get(others.name),
        aggregate=aggregate,
    )


def _unpickled(entry: Entry) -> Any:
    import pickle

    with loading(f"The callable '{entry.attribute}' cannot be rebuilt"):
        return pickle.loads(entry.pickled or b"")  # noqa: S301 - from the process that started this one


def _imported(entry: Entry) -> Any:
    if entry.module.endswith(".py"):
        module = import_file(Path(entry.module), f"entry '{entry.attribute}'")
    else:
        module = _import_module(entry)
    found: Any = module
    for part in entry.attribute.split("."):
        if not hasattr(found, part):
            raise no_entry(
                entry, module.__file__ or entry.module, [value.__qualname__ for value in own_objects(module)]
            )
        found = getattr(found, part)
    return found


def no_entry(entry: Entry, file: object, names: list[str]) -> PythonLoadError:
    """The error of a file that has these functions and classes, and not the entry."""
    return PythonLoadError(
        f"{file} has no '{entry.attribute}'. It defines {', '.join(names) or 'no function or class'}."
    )


def _import_module(entry: Entry) -> ModuleType:
    with loading(f"The module '{entry.module}' of the entry '{entry.attribute}' cannot be imported"):
        module = importlib.import_module(entry.module)
    found = Path(module.__file__).resolve() if module.__file__ else None
    if entry.file is None or found == entry.file:
        return module
    if "." in entry.module:
        raise PythonLoadError(
            f"The module '{entry.module}' should come from {entry.file}, but {found} has this name already. Rename it."
        )
    # Another module of this name is imported already, such as `types` or another flow's.
    return import_file(entry.file, f"entry '{entry.attribute}'")


def _built(flow: Flow, entry: Entry, target: type, init_kwargs: Mapping[str, Any], connections: Connections) -> Any:
    """Build the one object of a class entry.

    Source: promptflow `executor/_script_executor.py`, `_resolve_init_kwargs`.
    """
    if not any("__call__" in base.__dict__ for base in target.__mro__):
        raise not_callable(entry)
    signature = signature_of(target)
    arguments = constructor_arguments(flow, entry, signature, init_kwargs, connections)
    try:
        return target(**arguments)
    except BaseException as exc:
        if passes_through(exc):
            raise
        raise not_built(entry, signature, arguments, exc) from exc


def not_callable(entry: Entry) -> PythonLoadError:
    """The error of a class whose objects cannot be called."""
    return PythonLoadError(
        f"The class '{entry.attribute}' of {entry.module} has no __call__, which each line calls. Add one."
    )


def constructor_arguments(
    flow: Flow,
    entry: Entry,
    signature: inspect.Signature | None,
    init_kwargs: Mapping[str, Any],
    connections: Connections,
) -> dict[str, Any]:
    """Give the arguments of a class entry's constructor: those of the run, or of the yaml's sample; and the yaml's defaults.

    Args:
        flow: The flow.
        entry: Its entry.
        signature: The constructor's, if it is known.
        init_kwargs: The arguments of the run.
        connections: The connections of the run.
    """
    arguments = {name: declared.default for name, declared in flow.init.items() if not declared.required}
    arguments |= init_kwargs or entry.sample_init
    parameters = {} if signature is None else signature.parameters
    for name, value in arguments.items():
        arguments[name] = constructor_argument(flow, entry, name, value, parameters.get(name), connections)
    return arguments


def constructor_argument(
    flow: Flow, entry: Entry, name: str, value: Any, parameter: inspect.Parameter | None, connections: Connections
) -> Any:
    """Give one argument in its type: a connection for a name, a model configuration for its keys."""
    type_name = flow.init[name].type if name in flow.init else ""
    annotation = None if parameter is None else parameter.annotation
    is_unset = value is None and parameter is not None and parameter.default is None
    try:
        if not is_unset:
            value = constructor_value(value, annotation, type_name, connections, f"init '{name}'")
    except (ResolveToolError, InvalidConnectionError) as exc:
        raise FlowEntryInitializationError(
            f"'{entry.attribute}' cannot be built: {exc}", target="Executor", additional_info=exc.additional_info
        ) from exc
    if type_name[:1].islower():  # types that are classes, such as OpenAIConnection, are done
        try:
            value = to_type(value, type_name)
        except ValueError as exc:
            raise InvalidOptionError(f"init '{name}' of the flow '{flow.name}': {exc}") from exc
    return value if parameter is None else _built_argument(flow, parameter, value)


def _built_argument(flow: Flow, parameter: inspect.Parameter, value: Any) -> Any:
    """Convert a constructor's argument to what its annotation asks for.

    promptflow has no rule here. A command line gives texts, and numbers for texts that are digits, so these are converted;
    other values of plain types stay as they are.
    """
    builder, wanted = builders_of([parameter]).get(parameter.name), wanted_by(parameter.annotation)
    try:
        if builder is not None:
            return builder.build(value)
        if value == "" and wanted.optional and not wanted.takes_text:
            return None
        if (isinstance(value, str) and wanted.type != "string") or (
            wanted.type == "string" and isinstance(value, int | float)
        ):
            return json.dumps(value) if wanted.type == "string" else to_type(value, wanted.type)
    except ValueError as exc:
        what = f"init '{parameter.name}' of the flow '{flow.name}' is annotated {spelled(parameter.annotation)}"
        raise InvalidOptionError(f"{what}, found a {type(value).__name__} ({exc}). Change the value.") from exc
    return value


def not_built(
    entry: Entry, signature: inspect.Signature | None, arguments: Mapping[str, Any], exc: BaseException
) -> FlowEntryInitializationError:
    """The error of a constructor that raised, or does not take its arguments; it says how to give those that it lacks."""
    missing = [
        name
        for name, parameter in (signature.parameters if signature is not None else {}).items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in arguments
    ]
    options = " ".join(f"--init {name}=…" for name in missing)
    how = f". Give {options} on the command line, `init_kwargs` in Python, or `sample: {{init: …}}` in its yaml."
    # Only names: a value can be a key.
    given = ", ".join(arguments) or "no arguments"
    return FlowEntryInitializationError(
        f"'{entry.attribute}' cannot be built with {given}: ({type(exc).__name__}) {exception_text(exc)}"
        f"{how * bool(missing)}",
        target="Executor",
        additional_info={
            "FlexFlowExecutionErrorDetails": describe(exc),
            **({TO_GIVE: {"init": missing}} if missing else {}),
        },
    )


def _aggregate_of(target: Any) -> UserFunction | None:
    aggregate = getattr(target, "__aggregate__", None)
    if aggregate is None:
        return None
    name = f"{type(target).__qualname__}.__aggregate__"
    check_aggregation(name, signature_of(aggregate))
    return UserFunction(aggregate, name, is_async=is_async_callable(aggregate))


def check_aggregation(name: str, signature: inspect.Signature | None) -> None:
    """Refuse an `__aggregate__` that does not take the list of outputs alone."""
    if signature is not None and len(signature.parameters) != 1:
        raise InvalidAggregationFunction(
            f"{name}{signature} should take one parameter besides self: the list of the lines' outputs."
        )


def _each_parameter(signature: inspect.Signature) -> Iterator[inspect.Parameter]:
    """The parameters; in place of `**row: Unpack[Row]`, the keys of the `TypedDict`."""
    for parameter in signature.parameters.values():
        unpacked = get_args(parameter.annotation) if parameter.kind is parameter.VAR_KEYWORD else ()
        if get_origin(parameter.annotation) is not Unpack or not is_typeddict(unpacked[0]):
            yield parameter
            continue
        for name, annotation, is_required in keys_of(unpacked[0]):
            default = parameter.empty if is_required else NO_DEFAULT
            yield inspect.Parameter(name, parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _described_inputs(
    declared: Mapping[str, FlowInput],
    parameters: Sequence[inspect.Parameter],
    builders: Collection[str],
    *,
    takes_any: bool,
) -> dict[str, FlowInput]:
    """A callable's inputs: names of its signature; types and defaults of the yaml, otherwise of the signature.

    Without a type in the yaml, null stays null.
    """
    inputs = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        known = declared.get(parameter.name)
        wanted = wanted_by(parameter.annotation)
        default = known.default if known is not None else NO_DEFAULT
        has_code_default = False
        if default is NO_DEFAULT and parameter.default is not parameter.empty:
            if _is_plain(parameter.default):
                default = parameter.default
            else:
                has_code_default = True
        type_name = known.type if known is not None else wanted.type
        if type_name == "object" and wanted.type == "any" and parameter.name in builders:
            type_name = "any"  # pydantic reads the text itself: "1.10" for a Decimal
        takes_empty_text = known is not None or wanted.takes_text
        inputs[parameter.name] = FlowInput(
            parameter.name,
            type_name,
            default,
            known.description if known is not None else "",
            nullable=known is None,
            takes_empty_text=takes_empty_text,
            allows_none=not takes_empty_text and (wanted.optional or parameter.default is None),
            has_code_default=has_code_default,
        )
    if takes_any:
        inputs |= {name: known for name, known in declared.items() if name not in inputs}
    return inputs


def _is_plain(value: Any) -> bool:
    """Whether the value survives JSON unchanged."""
    if type(value) is dict:
        return all(type(key) is str and _is_plain(part) for key, part in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def no_init(name: str, what: str, init_kwargs: Mapping[str, Any]) -> InvalidOptionError:
    """The error of `init_kwargs` for a flow that has no constructor."""
    given = ", ".join(init_kwargs)
    return InvalidOptionError(
        f"init_kwargs ({given}) were given, but '{name}' is {what} and has no constructor. Leave them out."
    )
