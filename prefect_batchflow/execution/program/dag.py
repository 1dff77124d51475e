"""The program of a DAG flow: the walk through its nodes, for a line and for the aggregation."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from prefect_batchflow.connections.kinds import is_connection_type
from prefect_batchflow.definition.flow import Constant, Reference
from prefect_batchflow.exceptions import InputNotFound, InputTypeError, InvalidReferenceProperty, error_dict
from prefect_batchflow.execution.program.program import Program, copied
from prefect_batchflow.execution.program.steps import END, Begin, Branch, Canceled, Raised, Stream, joined, plain_stream
from prefect_batchflow.execution.program.user_errors import tool_error
from prefect_batchflow.results.records import Clock, line_run, node_record
from prefect_batchflow.tools.context import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence

    from prefect_batchflow.definition.flow import Activate, FlowDescription, FlowOutput
    from prefect_batchflow.execution.program.steps import Step, Steps, UserFunction
    from prefect_batchflow.execution.program.wanted import Builder
    from prefect_batchflow.results.records import CompletedLine, NodeRecord
    from prefect_batchflow.tools.context import RunContext


class NodeTool:
    """A node ready to run: its function, its arguments' sources, and its condition."""

    def __init__(
        self,
        name: str,
        function: UserFunction,
        inputs: Mapping[str, Reference | Constant],
        *,
        optional: Collection[str] = (),
        activate: Activate | None = None,
        builders: Mapping[str, Builder] | None = None,
    ) -> None:
        """Take the parts that the loader found.

        Args:
            name: The node's name.
            function: Its tool.
            inputs: Parameter to value.
            optional: Parameters with a default. They get no argument if their value comes from a bypassed node.
            activate: When it runs; `None` means always.
            builders: Parameter to what builds its values.
        """
        self.name = name
        self.function = function
        self._constants = {key: value.value for key, value in inputs.items() if isinstance(value, Constant)}
        self.connections = {
            key: value.name for key, value in self._constants.items() if is_connection_type(type(value))
        }
        """The names of constants that are connections; a record shows only these."""
        self.references = [(key, value) for key, value in inputs.items() if isinstance(value, Reference)]
        self.optional = frozenset(optional)
        self.activate = activate
        self._builders = builders or {}
        self._sources = {r.name for _, r in self.references if r.section == "node"}

    @property
    def waits_for(self) -> set[str]:
        """The nodes that it refers to."""
        when = self.activate.when if self.activate is not None else None
        return self._sources | ({when.name} if isinstance(when, Reference) and when.section == "node" else set())

    def is_bypassed(self, bypassed: Collection[str], value_of: Callable[[Reference], Any]) -> bool:
        """Whether it does not run, because its condition is not met or all nodes that it refers to were bypassed.

        Args:
            bypassed: The nodes that did not run.
            value_of: Looks up a reference.

        Source: promptflow `executor/_dag_manager.py`, `_is_node_bypassable`.
        """
        if self.activate is None:
            return bool(self._sources) and all(name in bypassed for name in self._sources)
        when = self.activate.when
        if isinstance(when, Reference):
            if when.section == "node" and when.name in bypassed:
                return True
            return bool(plain_stream(value_of(when)) != self.activate.expected)
        return bool(when.value != self.activate.expected)

    def arguments(self, bypassed: Collection[str], value_of: Callable[[Reference], Any]) -> dict[str, Any]:
        """The arguments of its function. A bypassed node gives the parameter's default, otherwise `None`.

        Raises:
            InputTypeError: A value of the row does not fit the parameter's annotation.
        """
        arguments = copied(self._constants)
        for name, reference in self.references:
            if reference.section != "node" or reference.name not in bypassed:
                arguments[name] = value_of(reference)
            elif name not in self.optional:
                arguments[name] = None
        for name, builder in self._builders.items():
            if name in arguments:
                arguments[name] = builder.of_line(arguments[name], f"Node '{self.name}', input '{name}'")
        return dict(arguments)


class _Walk:
    """How far a line has come."""

    __slots__ = ("bypassed", "given", "nodes", "values")

    def __init__(self, inputs: dict[str, Any]) -> None:
        # A copy, because user code can change it; the record and the aggregation need the original.
        self.given = copied(inputs)
        self.values: dict[str, Any] = {}
        self.bypassed: set[str] = set()
        self.nodes: list[NodeRecord] = []
        """The nodes' records, in the order of the flow."""

    def value_of(self, reference: Reference) -> Any:
        return _look_up(reference, self.given, self.values, self.bypassed)


class DagProgram(Program):
    """The nodes of a DAG flow. Each comes after the nodes that it refers to.

    In a line, nodes that need not wait for each other run at once. Aggregation nodes run one after another.
    """

    def __init__(
        self,
        description: FlowDescription,
        line_tools: Sequence[NodeTool],
        aggregation_tools: Sequence[NodeTool],
        outputs: Sequence[FlowOutput],
    ) -> None:
        self.description = description
        self._line_tools = line_tools
        self._aggregation_tools = aggregation_tools
        self._outputs = outputs
        after_lines = {tool.name for tool in aggregation_tools}
        # One value, however many nodes refer to it.
        self._aggregated = {
            reference.text: reference
            for tool in aggregation_tools
            for _, reference in tool.references
            if reference.section == "node" and reference.name not in after_lines
        }
        self._awaited = {tool.name: tool.waits_for & after_lines for tool in aggregation_tools}
        # If each node refers to the one before, no two nodes can run at once.
        self._is_chain = all(before.name in tool.waits_for for before, tool in pairwise(line_tools))
        self._waits = {tool.name: tool.waits_for for tool in line_tools}

    def _line(self, context: RunContext, inputs: dict[str, Any]) -> Steps:
        clock = Clock()
        walk = _Walk(inputs)
        output: dict[str, Any] = {}
        aggregated: dict[str, Any] = {}
        try:
            error = yield from self._in_turn(context, walk) if self._is_chain else self._at_once(context, walk)
            for wanted in self._outputs if error is None else ():
                value = wanted.value
                found = yield from joined(walk.value_of(value) if isinstance(value, Reference) else copied(value.value))
                if isinstance(found, Raised):
                    error = tool_error(_origin(wanted), found.error)
                    break
                output[wanted.name] = found
            if error is None:
                aggregated = {text: plain_stream(walk.value_of(r)) for text, r in self._aggregated.items()}
        except (InputNotFound, InputTypeError, InvalidReferenceProperty) as exc:
            error = error_dict(exc)
        # With branches, the line has metrics of its own: those logged by threads of user code.
        metrics = {} if self._is_chain else dict(context.metrics)
        for record in walk.nodes:
            metrics |= record["metrics"]
        return line_run(
            inputs,
            clock.span(),
            output=output if error is None else None,
            error=error,
            aggregation_inputs=aggregated,
            metrics=metrics,
            nodes=walk.nodes,
            tokens=context.tokens,
        )

    def _in_turn(self, context: RunContext, walk: _Walk) -> Generator[Step, Any, dict[str, Any] | None]:
        """Run the nodes one after another; give the error of the failed one."""
        for tool in self._line_tools:
            if tool.is_bypassed(walk.bypassed, walk.value_of):
                walk.bypassed.add(tool.name)
                walk.nodes.append(_bypassed_record(tool.name))
                continue
            arguments = tool.arguments(walk.bypassed, walk.value_of)
            record, walk.values[tool.name] = yield from _run_node(context, tool, arguments)
            walk.nodes.append(record)
            if record["error"] is not None:
                return record["error"]
        return None

    def _at_once(self, context: RunContext, walk: _Walk) -> Generator[Step, Any, dict[str, Any] | None]:
        """Run each node as soon as the nodes that it refers to are done; give the error of the first failed one."""
        records: dict[str, NodeRecord] = {}
        waiting = list(self._line_tools)
        running: set[str] = set()
        error: dict[str, Any] | None = None
        while error is None:
            try:
                ready = self._ready(context, walk, waiting, records)
            except (InputNotFound, InputTypeError, InvalidReferenceProperty) as exc:
                error = error_dict(exc)
                break
            running.update(branch.name for branch in ready)
            if not running:
                break
            for name, (record, value) in (yield Begin(ready)):
                running.remove(name)
                records[name], walk.values[name] = record, value
                error = error or record["error"]
        if running:
            records.update({name: record for name, (record, _) in (yield END)})
        walk.nodes += [records[tool.name] for tool in self._line_tools if tool.name in records]
        return error

    def _ready(
        self, context: RunContext, walk: _Walk, waiting: list[NodeTool], records: dict[str, NodeRecord]
    ) -> list[Branch]:
        """Take the nodes that can run out of `waiting`; bypassed ones get their record here."""
        ready = []
        done = walk.values.keys() | walk.bypassed
        # In the flow's order each node comes after those that it refers to, so one look at each is enough.
        for tool in list(waiting):
            if not self._waits[tool.name] <= done:
                continue
            waiting.remove(tool)
            if tool.is_bypassed(walk.bypassed, walk.value_of):
                walk.bypassed.add(tool.name)
                done.add(tool.name)
                records[tool.name] = _bypassed_record(tool.name)
                continue
            own = context.of_node()
            steps = _run_node(own, tool, tool.arguments(walk.bypassed, walk.value_of))
            ready.append(Branch(tool.name, steps, inside(own), is_async=tool.function.is_async))
        return ready

    def _aggregation(self, context: RunContext, lines: Sequence[CompletedLine]) -> Steps:
        values: dict[str, Any] = {}
        nodes: list[NodeRecord] = []
        metrics: dict[str, Any] = {}
        bypassed: set[str] = set()

        def value_of(reference: Reference) -> Any:
            return self._gathered(reference, lines, values)

        for tool in self._aggregation_tools:
            if not self._awaited[tool.name] <= values.keys() | bypassed:
                continue  # a node that it needs has failed or was left out
            arguments: dict[str, Any] = {}
            try:
                if tool.is_bypassed(bypassed, value_of):
                    bypassed.add(tool.name)
                    nodes.append(_bypassed_record(tool.name))
                    continue
                arguments = tool.arguments(bypassed, value_of)
            except (InputNotFound, InputTypeError, InvalidReferenceProperty) as exc:
                nodes.append(node_record(tool.name, Clock().span(), inputs=arguments, error=error_dict(exc)))
                continue
            record, value = yield from _run_node(context, tool, arguments)
            nodes.append(record)
            metrics |= record["metrics"]
            if record["error"] is None:
                values[tool.name] = value
        return {"output": {}, "metrics": metrics, "nodes": nodes, "error": None}

    def _gathered(self, reference: Reference, lines: Sequence[CompletedLine], values: dict[str, Any]) -> Any:
        """One value per line (`None` if the line has none), or the one value of an aggregation node."""
        if reference.section == "inputs":
            return [line["inputs"].get(reference.name) for line in lines]
        if reference.text in self._aggregated:
            return [_of_line(reference, line["aggregation_inputs"]) for line in lines]
        return _look_up(reference, {}, values)


def _run_node(
    context: RunContext, tool: NodeTool, arguments: dict[str, Any]
) -> Generator[Step, Any, tuple[NodeRecord, Any]]:
    """Call a node's function; give its record and its value."""
    clock = Clock()
    context.metrics = {}
    replayed = {name: v.replay() if isinstance(v, Stream) else v for name, v in arguments.items()}
    try:
        value = yield tool.function, (), replayed
    except Canceled as exc:
        value = exc
    span = clock.span()
    shown = {name: plain_stream(argument) for name, argument in arguments.items()} | tool.connections
    if isinstance(value, Raised):
        error = tool_error(tool.name, value.error)
        return node_record(tool.name, span, inputs=shown, error=error, metrics=context.metrics), None
    if isinstance(value, Canceled):
        return node_record(tool.name, span, status="Canceled", inputs=shown, metrics=context.metrics), None
    return node_record(tool.name, span, inputs=shown, output=plain_stream(value), metrics=context.metrics), value


def _bypassed_record(name: str) -> NodeRecord:
    return node_record(name, Clock().span(), status="Bypassed", inputs={})


def _origin(output: FlowOutput) -> str:
    """The node to name if an output's stream raises."""
    return output.value.name if isinstance(output.value, Reference) else output.name


def _of_line(reference: Reference, values: dict[str, Any]) -> Any:
    """The value for a line; `None` if it has none. A line taken over from a storage has the whole outputs of its nodes."""
    whole = f"${{{reference.name}.output}}"
    if reference.text in values or whole not in values:
        return values.get(reference.text)
    return _look_up(reference, {}, {reference.name: values[whole]})


def _look_up(
    reference: Reference, inputs: dict[str, Any], values: dict[str, Any], bypassed: Collection[str] = ()
) -> Any:
    if reference.section == "inputs":
        try:
            return inputs[reference.name]
        except KeyError:
            raise InputNotFound(
                f"The line has no input '{reference.name}' for {reference.text}. Map it, or give it a default.",
                target="Executor",
            ) from None
    if reference.name in bypassed:
        return None
    value = values[reference.name]
    if not reference.path:
        return value
    if isinstance(value, Stream):
        value = value.replay()
    for part in reference.path:
        try:
            value = _property(value, part)
        except Exception as exc:  # noqa: BLE001 - properties and indexes can be user code
            found = f"a {type(value).__name__}" if value is not None else "None"
            if isinstance(value, dict):
                found = f"a dict with the keys {', '.join(map(repr, list(value)[:10])) or '(none)'}"
            raise InvalidReferenceProperty(
                f"{reference.text}: no {part!r} in {found} ({type(exc).__name__}). Correct the reference, or the value that "
                f"the node '{reference.name}' returns.",
                target="Executor",
            ) from None
    return value


def _property(value: Any, part: str | int) -> Any:
    """Take one step into a value: an index, a key of a dict, an attribute, or a key of another object.

    Source: promptflow `executor/_input_assignment_parser.py`, `parse_node_property`.
    """
    if isinstance(part, int) or isinstance(value, dict) or not hasattr(value, part):
        return value[part]
    return getattr(value, part)
