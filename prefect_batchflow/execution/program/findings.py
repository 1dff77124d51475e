"""What keeps a flow from running, found without running any of its code.

The rules are those of the loaders, applied to what the source files say. What only an import can tell is never a reason to
refuse a flow: it is left out, or found as `unsure`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prefect_batchflow import promptflow_shim
from prefect_batchflow.connections.given import MISSING, WANTED, Connections, how_to_give
from prefect_batchflow.definition.flex import find_module_file
from prefect_batchflow.definition.flow import Constant, Dag, Entry, Prompt
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import TO_GIVE, BatchflowException, FlowDefinitionError
from prefect_batchflow.execution.program import dag_loader, entry_loader
from prefect_batchflow.execution.program.connecting import connection_types, model_types
from prefect_batchflow.execution.program.environment import resolved
from prefect_batchflow.execution.program.images import FlowImages
from prefect_batchflow.execution.program.loader import check_packages
from prefect_batchflow.execution.program.node_tools import no_tool, several_tools
from prefect_batchflow.execution.program.signatures import named_parameters
from prefect_batchflow.execution.program.source_code import Opaque, SourceCode, SourceTool
from prefect_batchflow.execution.program.source_imports import ImportCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from prefect_batchflow.definition.flow import Flow, Node

Level = Literal["stops", "needs", "unsure", "note"]
"""`stops`: the flow cannot run. `needs`: you must give something. `unsure`: lines can fail, or only an import can tell. `note`:
good to know."""

_STAND_IN = "https://given.by.the.run.invalid"
"""Stands for the value of a variable that is not set, to find what else is missing."""


@dataclass(frozen=True)
class Finding:
    """One thing to know before a flow runs."""

    level: Level
    place: str
    """A node, a file with its line, or the flow's own file."""
    text: str
    """The fact, and what to do."""


def level_of(exc: BatchflowException) -> Level:
    """The level of an error that refuses a flow: whether you can give the run what it lacks."""
    return "needs" if {MISSING, TO_GIVE} & exc.additional_info.keys() else "stops"


def needed_connection(name: str, kinds: Sequence[str]) -> str:
    """The text of a connection that was not given; `kinds` are the classes that fit, if that is known."""
    return f"It needs the connection '{name}'. {how_to_give(name, kinds)}; see docs/connections.md."


class FlowFindings:
    """The findings of one flow, in the form in which it runs: its includes are merged.

    Args:
        flow: The flow.
        init_kwargs: Arguments for a class entry's constructor, or `model` for a prompty.
        connections: The connections of the run.
        environment_variables: Those of the run.
    """

    def __init__(
        self,
        flow: Flow,
        init_kwargs: Mapping[str, Any],
        connections: Mapping[str, Any],
        environment_variables: Mapping[str, str],
    ) -> None:
        self._flow = flow
        self._init_kwargs = init_kwargs
        self._connections = dict(connections)
        self._environment = {**flow.environment_variables, **environment_variables}
        self._files: dict[Path, SourceCode] = {}
        self._found: list[Finding] = []
        self._follows_calls = True
        self.missing: dict[str, list[str]] = {}
        """Connections that were not given, each with the places that need it."""
        self.wanted: dict[str, list[str]] = {}
        """The same with the classes that fit, as far as that is known."""

    def all(self) -> list[Finding]:
        """Every finding. The environment of this process is changed meanwhile, as a worker's is."""
        with _surroundings():
            unset = self._set_environment()
            if self._attempt(self._name(), lambda _: check_packages(self._flow)):
                program = self._flow.program
                if isinstance(program, Dag):
                    self._of_nodes(program)
                elif isinstance(program, Prompt):
                    self._attempt(self._name(), self._load_prompt)
                else:
                    self._of_entry(program)
            self._of_environment(unset)
            imports = ImportCheck(self._flow, self._code)
            self._found += [Finding(level, place, text) for level, place, text in imports.findings()]
            if self._follows_calls:
                self._of_called_flows()
        needs = [
            Finding("needs", ", ".join(places), needed_connection(name, self.wanted[name]))
            for name, places in self.missing.items()
        ]
        return list(dict.fromkeys([*self._found, *needs]))

    def _attempt(self, place: str, load: Callable[[Connections], object]) -> bool:
        """Load a part as a worker does, again and again with stand-ins for what the run must give; whether all was well."""
        stand_ins: dict[str, Any] = {}
        variables: set[str] = set()
        while True:
            try:
                load(Connections({**self._connections, **stand_ins}, os.environ))
            except BatchflowException as exc:
                name = exc.additional_info.get(MISSING)
                variable = (exc.additional_info.get(TO_GIVE) or {}).get("variable")
                if name and name not in stand_ins:
                    self._needs(name, place, exc.additional_info.get(WANTED) or ())
                    stand_ins[name] = {"type": "OpenAIConnection", "value": {"api_key": _STAND_IN}}
                elif variable and variable not in variables:
                    self._found.append(Finding("needs", place, exc.message))
                    variables.add(variable)
                    os.environ[variable] = _STAND_IN
                else:
                    if _STAND_IN not in exc.message:
                        self._found.append(Finding(level_of(exc), place, exc.message))
                    return False
            else:
                return not (stand_ins or variables)

    def _needs(self, name: str, place: str, kinds: Iterable[str] = ()) -> None:
        wanted = self.wanted.setdefault(name, [])
        wanted += [kind for kind in kinds if kind not in wanted]
        places = self.missing.setdefault(name, [])
        if place not in places:
            places.append(place)

    def _name(self) -> str:
        file = self._flow.definition_file
        return self._flow.name if file is None else file.name

    def _place_of(self, file: Path) -> str:
        folder = self._flow.working_dir
        return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)

    def _code(self, file: Path) -> SourceCode | None:
        """A file, read once; `None` if it is not Python, which is found once."""
        if file not in self._files:
            try:
                self._files[file] = SourceCode(file)
            except FlowDefinitionError as exc:
                self._found.append(Finding("stops", self._place_of(file), exc.message))
                self._files[file] = None  # type: ignore[assignment]
        return self._files[file]

    # --- the parts of a flow -----------------------------------------------------------------------------------------

    def _set_environment(self) -> dict[str, BatchflowException]:
        """Set the variables of the run; the errors of those that cannot be resolved, by name."""
        errors = {}
        for name, text in self._environment.items():
            try:
                os.environ.update(resolved({name: text}, self._connections))
            except BatchflowException as exc:
                errors[name] = exc
        return errors

    def _of_environment(self, errors: Mapping[str, BatchflowException]) -> None:
        for name, exc in errors.items():
            place = f"environment variable {name}"
            if missing := exc.additional_info.get(MISSING):
                self._needs(missing, place, exc.additional_info.get(WANTED) or ())
            else:
                self._found.append(Finding(level_of(exc), place, exc.message))

    def _load_prompt(self, connections: Connections) -> None:
        entry_loader.load_prompt(self._flow, self._init_kwargs, connections)

    def _of_nodes(self, dag: Dag) -> None:
        from prefect_batchflow.execution.program import model_nodes

        if self._init_kwargs:
            error = entry_loader.no_init(self._flow.name, "a DAG flow", self._init_kwargs)
            self._found.append(Finding("stops", "init", error.message))
        for node in dag.nodes:
            place = f"node '{node.name}'"
            if node.type == "prompt":
                self._attempt(place, lambda _, node=node: model_nodes.prompt_node(self._flow, node))  # type: ignore[misc]
            elif node.type == "llm":
                self._attempt(
                    place,
                    lambda connections, node=node: model_nodes.llm_node(self._flow, node, connections),  # type: ignore[misc]
                )
            elif node.package_tool:
                self._of_package_tool(node, place)
            else:
                self._of_source_tool(node, place)

    def _of_called_flows(self) -> None:
        """Flows that the code loads: lines that call one fail if it cannot run."""
        for file, code in list(self._files.items()):
            for path, line in (code.loaded_flows() if code is not None else {}).items():
                place = f"{self._place_of(file)}, line {line}"
                try:
                    called = load_flow(str(self._flow.working_dir / path))
                except BatchflowException as exc:
                    self._found.append(Finding("unsure", place, f"It loads the flow '{path}'. {exc.message}"))
                    continue
                whole = FlowFindings(called, {}, self._connections, {})
                whole._follows_calls = False  # flows can call each other
                for finding in whole.all():
                    if finding.level != "note":
                        self._found.append(
                            Finding("unsure", place, f"It calls the flow '{path}', {finding.place}: {finding.text}")
                        )

    def _of_package_tool(self, node: Node, place: str) -> None:
        from prefect_batchflow.execution.program.package_tools import find_package_tool

        try:
            tool = find_package_tool(node.package_tool)
        except BatchflowException as exc:
            self._found.append(Finding(level_of(exc), place, exc.message))
            # Its usual name, because the parameters are not known.
            name = node.constants.get("connection")
            if isinstance(name, str) and name and name not in self._connections:
                self._needs(name, place)
            return
        file = find_module_file(tool.module, sys.path)
        found = None
        if file is not None and file.suffix == ".py":
            with contextlib.suppress(FlowDefinitionError):
                found = SourceCode(file).tool(tool.function, tool.class_name)
        if found is not None:
            self._of_tool(node, place, f"the tool '{tool.id}' of {tool.package} {tool.version}", found)

    def _of_source_tool(self, node: Node, place: str) -> None:
        file = (self._flow.working_dir / node.source).resolve()
        code = self._code(file)
        if code is None:
            return
        tools, more = code.tools()
        names = [tool.name for tool in tools]
        if len(tools) > 1:
            self._found.append(Finding("stops", place, several_tools(node.name, file, names).message))
        elif not tools and not more:
            self._found.append(Finding("stops", place, no_tool(node.name, file, code.functions()).message))
        elif len(tools) == 1 and (not more or code.definition(names[0].partition(".")[0]) is not None):
            # A second tool would be refused, so that this one's inputs count.
            self._of_tool(node, place, f"the tool '{names[0]}' of {file}", tools[0])

    def _of_tool(self, node: Node, place: str, name: str, tool: SourceTool) -> None:
        """Check a node's inputs by its tool's parameters, as the loader does."""
        flow, signature, constructor = self._flow, tool.signature, tool.constructor
        if signature is None or (tool.is_method and constructor is None):
            self._of_likely_connections(node, place, [signature, constructor])
            return
        where = f"Node '{node.name}': {name}"
        images = FlowImages(str(flow.working_dir), flow.message_format, flow.inputs)

        def load(connections: Connections) -> None:
            dag_loader.check_choice(flow, node, [signature, constructor])
            full = node
            if node.type == "custom_llm":
                full = dag_loader.with_template(flow, node, signature, name)
            inputs = dag_loader.set_inputs(full)
            parameters = dict(named_parameters(signature))
            if constructor is not None:
                taken = dag_loader.constructor_inputs(tool.name, constructor, signature, inputs, node, where)
                parameters |= named_parameters(constructor)
                rest = {key: value for key, value in inputs.items() if key not in taken}
                dag_loader.check_arguments(signature, rest, node, where)
            else:
                dag_loader.check_arguments(signature, inputs, node, where)
            plain = {}
            for key, value in inputs.items():
                kinds = connection_types(parameters[key].annotation) if key in parameters else []
                named = key in parameters and _names_connection(parameters[key])
                names = [kind.__name__ for kind in kinds]
                if isinstance(value, Constant) and (kinds or named) and self._asked(value.value, place, names):
                    continue
                if not named:
                    plain[key] = value
            dag_loader.converted_constants(plain, parameters, {}, node, where, connections, images)

        self._attempt(place, load)

    def _of_likely_connections(self, node: Node, place: str, signatures: list[inspect.Signature | None]) -> None:
        for signature in filter(None, signatures):
            for name, parameter in named_parameters(signature).items():
                if connection_types(parameter.annotation) or _names_connection(parameter):
                    self._asked(node.constants.get(name), place)

    def _asked(self, name: object, place: str, kinds: Iterable[str] = ()) -> bool:
        """Whether it names a connection that was not given, which is noted."""
        lacks = isinstance(name, str) and name != "" and name not in self._connections
        if lacks:
            self._needs(str(name), place, kinds)
        return lacks

    def _of_entry(self, entry: Entry) -> None:
        if entry.pickled is not None or entry.script is not None:
            self._of_object(entry)
            return
        if entry.file is None or entry.file.suffix != ".py":
            return  # a missing module is found with the imports
        code = self._code(entry.file.resolve())
        if code is None:
            return
        name, _, more = entry.attribute.partition(".")
        if not code.binds(name):
            if entry.module.endswith(".py") or not _is_package(entry.file):
                self._found.append(
                    Finding("stops", self._name(), entry_loader.no_entry(entry, entry.file, code.functions()).message)
                )
            return
        code, definition = self._defined(code, name)
        if more or definition is None:
            return
        name = definition.name
        if not code.is_class(name):
            if self._init_kwargs and not definition.decorator_list:
                error = entry_loader.no_init(entry.attribute, "not a class", self._init_kwargs)
                self._found.append(Finding("stops", "init", error.message))
            return
        assert not isinstance(definition, inspect.Signature)
        call, can_call = code.method(definition, "__call__")
        if call is None and not can_call:
            self._found.append(Finding("stops", self._name(), entry_loader.not_callable(entry).message))
            return
        self._of_constructor(entry, code.constructor(definition))
        aggregate, _ = code.method(definition, "__aggregate__")
        self._attempt(
            self._name(),
            lambda _: entry_loader.check_aggregation(f"{entry.attribute}.__aggregate__", aggregate),
        )

    def _defined(self, code: SourceCode, name: str) -> tuple[SourceCode, Any]:
        """The function or class of a name, also if the file imports it from another one of the flow."""
        folder = self._flow.working_dir.resolve()
        for _ in range(10):
            imported = code.imported_name(name)
            if imported is None:
                return code, code.definition(name)
            module, name, dots = imported
            start = folder if not dots else code.file.parents[dots - 1]
            file = find_module_file(module, [str(start)]) if module else None
            found = self._code(file) if file is not None and file.is_relative_to(folder) else None
            if found is None:
                break
            code = found
        return code, None

    def _of_object(self, entry: Entry) -> None:
        """A callable of the caller, which is in this process already."""
        import pickle

        if entry.pickled is not None:
            target = pickle.loads(entry.pickled)  # noqa: S301 - this process made it
        else:
            target = functools.reduce(getattr, entry.attribute.split("."), sys.modules["__main__"])
        if isinstance(target, type):
            with contextlib.suppress(ValueError, TypeError):
                self._of_constructor(entry, inspect.signature(target))
        elif self._init_kwargs:
            error = entry_loader.no_init(entry.attribute, "not a class", self._init_kwargs)
            self._found.append(Finding("stops", "init", error.message))

    def _of_constructor(self, entry: Entry, signature: inspect.Signature | None) -> None:
        flow = self._flow
        given = {name: declared.default for name, declared in flow.init.items() if not declared.required}
        given |= self._init_kwargs or entry.sample_init
        for name, value in given.items():
            parameter = None if signature is None else signature.parameters.get(name)
            if parameter is not None and _names_connection(parameter):
                self._asked(value, f"init '{name}'")
                continue
            kind = flow.init[name].type if name in flow.init else ""

            if parameter is not None and isinstance(parameter.annotation, Opaque):
                parameter = parameter.replace(annotation=parameter.empty)
            annotation = None if parameter is None else parameter.annotation
            named = value.get("connection") if isinstance(value, dict) else None
            kinds = [each.__name__ for each in connection_types(annotation)]
            kinds += [
                each.__name__.replace("ModelConfiguration", "Connection") for each in model_types(annotation)
            ] * bool(named)
            kinds = kinds or [kind] * kind.endswith("Connection")
            if (named or kinds) and self._asked(named or value, f"init '{name}'", kinds):
                continue

            def load(
                connections: Connections, name: str = name, value: Any = value, parameter: Any = parameter
            ) -> None:
                entry_loader.constructor_argument(flow, entry, name, value, parameter, connections)

            self._attempt(f"init '{name}'", load)
        if signature is None:
            if not given and not flow.init and isinstance(flow.program, Entry) and flow.program.file is not None:
                text = f"Only an import can tell what the constructor of {entry.attribute} takes: check with --import."
                self._found.append(Finding("unsure", "init", text))
            for name, declared in flow.init.items():
                if declared.required and name not in given:
                    text = f"The constructor takes a value of type {declared.type}. Run with --init {name}=…."
                    self._found.append(Finding("needs", f"init '{name}'", text))
            return
        try:
            signature.bind(**given)
        except TypeError as exc:
            error = entry_loader.not_built(entry, signature, given, exc)
            lacking = (error.additional_info.get(TO_GIVE) or {}).get("init", [])
            others = [name for name in given if not _takes(signature, name)]
            if others or not lacking:
                self._found.append(Finding("stops", "init", error.message))
                return
            for name in lacking:
                self._found.append(
                    Finding("needs", f"init '{name}'", _needed_argument(signature.parameters[name], flow))
                )


def _needed_argument(parameter: inspect.Parameter, flow: Flow) -> str:
    name = parameter.name
    declared = flow.init[name].type if name in flow.init else ""
    is_connection = bool(connection_types(parameter.annotation)) or _names_connection(parameter)
    if is_connection or declared.endswith("Connection"):
        what = "the name of a connection"
    elif declared:
        what = f"a value of type {declared}"
    else:
        what = "a value"
    return f"The constructor takes {what}. Run with --init {name}=…."


def _takes(signature: inspect.Signature, name: str) -> bool:
    return name in named_parameters(signature) or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _names_connection(parameter: inspect.Parameter) -> bool:
    """Whether an annotation that was not evaluated names a connection class, such as one that the flow defines."""
    annotation = parameter.annotation
    text = str(annotation) if isinstance(annotation, Opaque) else ""
    return re.search(r"\w*Connection\b", text) is not None


def _is_package(file: Path) -> bool:
    return file.name == "__init__.py"


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """The mirror of promptflow as in a worker, and the environment, which is restored at the end."""
    environment = dict(os.environ)
    was_there = promptflow_shim.is_in_place()
    promptflow_shim.install()
    try:
        yield
    finally:
        if not was_there:
            promptflow_shim.uninstall()
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
