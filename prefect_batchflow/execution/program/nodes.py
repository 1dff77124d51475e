"""Programs: the DAG walk and the single entry, a line or the aggregation at a time, and a record as bytes.

What user code does is data: a program never raises for it. `steps` tells how one walk serves sync and async.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from prefect_batchflow.connections.kinds import is_connection
from prefect_batchflow.definition.flow import Constant, Reference
from prefect_batchflow.exceptions import (
    FlowOutputUnserializable,
    ImageTooLargeError,
    InputNotFound,
    InvalidReferenceProperty,
    LineOutOfMemoryError,
    LoadMultimediaDataError,
    UnexpectedError,
    error_dict,
)
from prefect_batchflow.execution.program.driving import drive, drive_async
from prefect_batchflow.execution.program.steps import (
    END,
    Begin,
    Branch,
    Canceled,
    Raised,
    Stream,
    UserFunction,
    join_text,
    join_text_async,
)
from prefect_batchflow.execution.program.user_errors import exception_text, script_error, tool_error
from prefect_batchflow.results.records import Clock, line_run, node_record
from prefect_batchflow.tools.context import inside, running

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence

    from prefect_batchflow.definition.flow import Activate, FlowDescription, FlowOutput
    from prefect_batchflow.execution.program.images import FlowImages
    from prefect_batchflow.execution.program.steps import Step, Steps
    from prefect_batchflow.results.records import AggregationRun, CompletedLine, LineRun, NodeRecord, Origins
    from prefect_batchflow.tools.context import RunContext

logger = logging.getLogger(__name__)


class Program:
    """A flow whose code is imported: what a worker runs. One walk each for lines and aggregation, behind two doors."""

    description: FlowDescription
    images: FlowImages | None = None
    """What loads and records its images; the loader sets it."""

    def run_line(self, line_number: int, inputs: dict[str, Any], images: Origins | None = None) -> LineRun:
        """Run one line in this thread; `images` names the inputs that have some."""
        with running(line_number) as context:
            try:
                steps = self._line(context, inputs) if images is None else self._image_line(context, inputs, images)
                return self._recorded(drive(steps), images)
            except Exception as exc:  # noqa: BLE001 - a line that cannot even be recorded fails; its worker goes on
                return self.failed_line(line_number, inputs, exc)

    async def run_line_async(self, line_number: int, inputs: dict[str, Any], images: Origins | None = None) -> LineRun:
        """Run one line on this event loop, its sync functions in threads; `images` names the inputs that have some."""
        with running(line_number) as context:
            try:
                steps = self._line(context, inputs) if images is None else self._image_line(context, inputs, images)
                return self._recorded(await drive_async(steps), images)
            except Exception as exc:  # noqa: BLE001 - as in `run_line`
                return self.failed_line(line_number, inputs, exc)

    def failed_line(self, line_number: int, inputs: dict[str, Any], exc: BaseException) -> LineRun:
        """What a line is that could not be run to its end."""
        with running(line_number) as context:
            return line_run(inputs, Clock().span(), error=own_failure(exc), tokens=context.tokens)

    def aggregate(self, lines: list[CompletedLine]) -> AggregationRun:
        """Run the aggregation over completed lines in this thread."""
        with running() as context:
            run: AggregationRun = drive(self._image_aggregation(context, _by_number(lines)))
            return run

    async def aggregate_async(self, lines: list[CompletedLine]) -> AggregationRun:
        """Run the aggregation over completed lines on this event loop, its sync functions in threads."""
        with running() as context:
            run: AggregationRun = await drive_async(self._image_aggregation(context, _by_number(lines)))
            return run

    def _image_line(self, context: RunContext, inputs: dict[str, Any], images: Origins) -> Steps:
        """A line whose inputs have images in them, which its record keeps as they came."""
        assert self.images is not None, "the loader set it"
        clock = Clock()
        loaded = yield UserFunction(self.images.loaded, "inputs"), (inputs, images), {}
        if isinstance(loaded, Raised):
            error = loaded.error
            known = error_dict(error) if isinstance(error, LoadMultimediaDataError) else own_failure(error)
            return line_run(inputs, clock.span(), error=known, tokens=context.tokens)
        run: LineRun = yield from self._line(context, loaded)
        run["inputs"] = inputs
        return run

    def _recorded(self, run: LineRun, images: Origins | None) -> LineRun:
        if self.images is not None:
            try:
                self.images.record(run, images)
            except ImageTooLargeError as exc:
                fail_run(run, error_dict(exc))
        return run

    def _image_aggregation(self, context: RunContext, lines: list[CompletedLine]) -> Steps:
        """The aggregation, with the images of lines that have some loaded again."""
        if self.images is not None:
            for index, line in enumerate(lines):
                if "images" not in line:
                    continue
                loaded = yield UserFunction(self.images.reloaded, "images"), (line,), {}
                if isinstance(loaded, Raised):
                    error = loaded.error
                    known = error_dict(error) if isinstance(error, LoadMultimediaDataError) else own_failure(error)
                    return {"output": {}, "metrics": {}, "nodes": [], "error": known}
                lines[index] = loaded
        return (yield from self._aggregation(context, lines))

    def _line(self, context: RunContext, inputs: dict[str, Any]) -> Steps:
        raise NotImplementedError

    def _aggregation(self, context: RunContext, lines: Sequence[CompletedLine]) -> Steps:
        raise NotImplementedError


class NodeTool:
    """One node ready to run: its function, where the arguments come from, and when it runs."""

    def __init__(
        self,
        name: str,
        function: UserFunction,
        inputs: Mapping[str, Reference | Constant],
        *,
        optional: Collection[str] = (),
        activate: Activate | None = None,
    ) -> None:
        """Take what the loader found.

        Args:
            name: The node's.
            function: Its tool.
            inputs: Parameter to its value.
            optional: Parameters with a default, left out where their value is a bypassed node's.
            activate: When it runs; `None` is always.
        """
        self.name = name
        self.function = function
        self.literals = {key: value.value for key, value in inputs.items() if isinstance(value, Constant)}
        self.connections = {key: value.name for key, value in self.literals.items() if is_connection(value)}
        """Of the literals that are connections the names: what is recorded of them."""
        self.references = [(key, value) for key, value in inputs.items() if isinstance(value, Reference)]
        self.optional = frozenset(optional)
        self.activate = activate
        self._sources = {r.name for _, r in self.references if r.section == "node"}

    @property
    def waits_for(self) -> set[str]:
        """The nodes it refers to."""
        when = self.activate.when if self.activate is not None else None
        return self._sources | ({when.name} if isinstance(when, Reference) and when.section == "node" else set())

    def is_bypassed(self, bypassed: Collection[str], value_of: Callable[[Reference], Any]) -> bool:
        """Whether it does not run, since its condition does not hold or all that it refers to did not run either.

        Args:
            bypassed: The nodes that did not run.
            value_of: Looks a reference up.

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
        """What its function is called with; a bypassed node's value is the parameter's default, else `None`."""
        arguments = copied(self.literals)
        for name, reference in self.references:
            if reference.section != "node" or reference.name not in bypassed:
                arguments[name] = value_of(reference)
            elif name not in self.optional:
                arguments[name] = None
        return dict(arguments)


class _Walk:
    """How far a line has come."""

    __slots__ = ("bypassed", "given", "nodes", "values")

    def __init__(self, inputs: dict[str, Any]) -> None:
        # User code may change what it is given; the record, and aggregation after it, keep what came.
        self.given = copied(inputs)
        self.values: dict[str, Any] = {}
        self.bypassed: set[str] = set()
        self.nodes: list[NodeRecord] = []
        """The records of nodes, in the order of the flow."""

    def value_of(self, reference: Reference) -> Any:
        return _look_up(reference, self.given, self.values, self.bypassed)


class DagProgram(Program):
    """The nodes of a DAG flow: each comes after what it refers to.

    Those of a line that need not wait for each other run at once, those of an aggregation one after another.
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
        # One value however many nodes ask for it.
        self._aggregated = {
            reference.text: reference
            for tool in aggregation_tools
            for _, reference in tool.references
            if reference.section == "node" and reference.name not in after_lines
        }
        self._awaited = {tool.name: tool.waits_for & after_lines for tool in aggregation_tools}
        # An order is the only one there is if each node refers to the one before it.
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
        except (InputNotFound, InvalidReferenceProperty) as exc:
            error = error_dict(exc)
        # Beside branches, the line's own: what threads logged that user code has started.
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
        """Run the nodes one after another; gives the error of the one that failed."""
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
        """Run each node as soon as all that it refers to is done; gives the error of the first one that failed."""
        records: dict[str, NodeRecord] = {}
        waiting = list(self._line_tools)
        running: set[str] = set()
        error: dict[str, Any] | None = None
        while error is None:
            try:
                ready = self._ready(context, walk, waiting, records)
            except (InputNotFound, InvalidReferenceProperty) as exc:
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
        """Take those out of `waiting` that wait no more; those that are bypassed get their record here."""
        ready = []
        done = walk.values.keys() | walk.bypassed
        # In the order of the flow, in which a node comes after all that it refers to: one look at each is enough.
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
                continue  # a node it needs has failed or was left out itself
            arguments: dict[str, Any] = {}
            try:
                if tool.is_bypassed(bypassed, value_of):
                    bypassed.add(tool.name)
                    nodes.append(_bypassed_record(tool.name))
                    continue
                arguments = tool.arguments(bypassed, value_of)
            except (InputNotFound, InvalidReferenceProperty) as exc:
                nodes.append(node_record(tool.name, Clock().span(), inputs=arguments, error=error_dict(exc)))
                continue
            record, value = yield from _run_node(context, tool, arguments)
            nodes.append(record)
            metrics |= record["metrics"]
            if record["error"] is None:
                values[tool.name] = value
        return {"output": {}, "metrics": metrics, "nodes": nodes, "error": None}

    def _gathered(self, reference: Reference, lines: Sequence[CompletedLine], values: dict[str, Any]) -> Any:
        """A value of each line, or one value of an aggregation node; a line without it gives `None`."""
        if reference.section == "inputs":
            return [line["inputs"].get(reference.name) for line in lines]
        if reference.text in self._aggregated:
            return [line["aggregation_inputs"].get(reference.text) for line in lines]
        return _look_up(reference, {}, values)


class EntryProgram(Program):
    """One callable: a line is a call, and a class's `__aggregate__` gets all outputs."""

    def __init__(
        self,
        description: FlowDescription,
        function: UserFunction,
        *,
        parameters: Sequence[str] | None,
        positional: Sequence[str] = (),
        aggregate: UserFunction | None = None,
    ) -> None:
        """Take what the loader found.

        Args:
            description: Told to the engine.
            function: The entry, or the built object's `__call__`.
            parameters: Names it takes; `None` for all there are, as with `**kwargs`.
            positional: Names among these that it takes by position only, in order.
            aggregate: The built object's `__aggregate__`.
        """
        self.description = description
        self._function = function
        self._parameters = parameters
        self._positional = positional
        self._aggregate = aggregate

    def _line(self, context: RunContext, inputs: dict[str, Any]) -> Steps:
        clock = Clock()
        named = inputs if self._parameters is None else {n: inputs[n] for n in self._parameters if n in inputs}
        named = copied(named)
        by_position = []
        for name in self._positional:
            if name not in named:
                break
            by_position.append(named.pop(name))
        result = yield self._function, tuple(by_position), named
        if not isinstance(result, Raised):
            result = yield _AS_OUTPUT, (result,), {}
        if isinstance(result, Raised):
            error = script_error(self._function.name, result.error)
            return line_run(inputs, clock.span(), error=error, metrics=context.metrics, tokens=context.tokens)
        output, wrapped = result
        for key, value in output.items():
            whole = yield from joined(value)
            if isinstance(whole, Raised):
                error = script_error(self._function.name, whole.error)
                return line_run(inputs, clock.span(), error=error, metrics=context.metrics, tokens=context.tokens)
            output[key] = whole
        # `__aggregate__` gets what the call returned; the record's output has it wrapped.
        aggregated = dict(output) if wrapped and self._aggregate is not None else {}
        return line_run(
            inputs,
            clock.span(),
            output=output,
            aggregation_inputs=aggregated,
            metrics=context.metrics,
            tokens=context.tokens,
        )

    def _aggregation(self, context: RunContext, lines: Sequence[CompletedLine]) -> Steps:
        run: AggregationRun = {"output": {}, "metrics": context.metrics, "nodes": [], "error": None}
        if self._aggregate is None:
            return run
        results = [
            line["aggregation_inputs"]["output"] if line["aggregation_inputs"] else LineOutput(line["output"] or {})
            for line in lines
        ]
        returned = yield self._aggregate, (results,), {}
        if returned is None:
            return run
        if not isinstance(returned, Raised):
            returned = yield _AS_OUTPUT, (returned,), {}
        if isinstance(returned, Raised):
            run["error"] = script_error(self._aggregate.name, returned.error)
            return run
        run["output"], wrapped = returned
        if wrapped:
            logger.warning("%s returned no dict: no metrics are taken from it.", self._aggregate.name)
        else:
            context.metrics.update(run["output"])
        return run


class LineOutput(dict[str, Any]):
    """A line's output as `__aggregate__` gets it: `result["grade"]` and `result.grade`.

    Source: promptflow `contracts/types.py`, `AttrDict`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the line's output has no '{name}', it has {', '.join(map(str, self))}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def encode_record(record: LineRun) -> bytes:
    """Give a line's record as one JSON object in ASCII; NaN and infinity stay.

    Datetimes, enum members, dataclasses and pydantic models become what promptflow makes of them. What still is no JSON
    becomes its `repr`; but if it is in the output, or in what aggregation needs, the line fails: `record` is changed in
    place then, and its receipt is to be made after this. `PF_SKIP_SERIALIZATION_CHECK=true` keeps its `repr` instead.
    """
    try:
        return _STRICT.encode(record).encode("ascii")
    except MemoryError as exc:
        fail_run(record, own_failure(exc))
        record["nodes"] = [{**node, "inputs": {}, "output": None} for node in record["nodes"]]
    except Exception:  # noqa: BLE001, S110 - objects of user code; looked at one by one below
        pass
    parts = {"output": record["output"] or {}, "aggregation_inputs": record["aggregation_inputs"]}
    for part, values in () if _takes_any_output() else parts.items():
        for name, value in values.items():
            try:
                _STRICT.encode({name: value})
            except Exception as exc:  # noqa: BLE001 - objects of user code
                what = f"'{name}' of the output" if part == "output" else f"{name}, which aggregation needs,"
                message = (
                    f"{what} is no JSON: ({type(exc).__name__}) {exception_text(exc)}. Return text, numbers, booleans, "
                    "None, lists and dicts of these."
                )
                fail_run(record, error_dict(FlowOutputUnserializable(message, target="Executor")))
                return _lenient(record).encode("ascii")
    return _lenient(record).encode("ascii")


def _takes_any_output() -> bool:
    """Whether an output that is no JSON is kept as its repr, and the line is none the worse.

    Source: promptflow `_core/run_tracker.py`, `_skip_serialization_check`.
    """
    return os.environ.get("PF_SKIP_SERIALIZATION_CHECK", "").lower() == "true"


def fail_run(record: LineRun, error: dict[str, Any]) -> None:
    """Make a failed line of a run, in place."""
    record.update({"status": "Failed", "output": None, "aggregation_inputs": {}, "error": error})


def own_failure(exc: BaseException) -> dict[str, Any]:
    """The error of a line that failed in this package, not in user code."""
    text = f"({type(exc).__name__}) {exception_text(exc)}"
    if isinstance(exc, MemoryError):
        return error_dict(LineOutOfMemoryError(f"The line's record cannot be made: {text}", target="Executor"))
    return error_dict(UnexpectedError(f"The line cannot be run: {text}", target="Executor"))


def _run_node(
    context: RunContext, tool: NodeTool, arguments: dict[str, Any]
) -> Generator[Step, Any, tuple[NodeRecord, Any]]:
    """Call one node's function; gives its record and its value."""
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


def plain_stream(value: Any) -> Any:
    """A value as a record shows it: a stream is its text."""
    return value.text if isinstance(value, Stream) else value


def joined(value: Any) -> Generator[Step, Any, Any]:
    """A value of an output, with a stream read to its end; `Raised` if that raised."""
    if isinstance(value, Stream):
        return value.text
    kind = type(value)
    if hasattr(kind, "__next__"):
        value = yield _JOIN, (value,), {}
    elif hasattr(kind, "__anext__"):
        value = yield _JOIN_ASYNC, (value,), {}
    return value


def _origin(output: FlowOutput) -> str:
    """The node to name when an output's stream raised."""
    return output.value.name if isinstance(output.value, Reference) else output.name


def _look_up(
    reference: Reference, inputs: dict[str, Any], values: dict[str, Any], bypassed: Collection[str] = ()
) -> Any:
    if reference.section == "inputs":
        try:
            return inputs[reference.name]
        except KeyError:
            raise InputNotFound(
                f"The line has no input '{reference.name}', as {reference.text} asks. Map it, or give it a default.",
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
        except Exception as exc:  # noqa: BLE001 - properties and indexes are user code too
            found = f"a {type(value).__name__}" if value is not None else "None"
            if isinstance(value, dict):
                found = f"a dict with the keys {', '.join(map(repr, list(value)[:10])) or '(none)'}"
            raise InvalidReferenceProperty(
                f"{reference.text}: no {part!r} in {found} ({type(exc).__name__}). Correct the reference, or what the "
                f"node '{reference.name}' returns.",
                target="Executor",
            ) from None
    return value


def _property(value: Any, part: str | int) -> Any:
    """One step into a value: an index, a key of a dict, an attribute, a key of anything else.

    Source: promptflow `executor/_input_assignment_parser.py`, `parse_node_property`.
    """
    if isinstance(part, int) or isinstance(value, dict) or not hasattr(value, part):
        return value[part]
    return getattr(value, part)


def _by_number(lines: list[CompletedLine]) -> list[CompletedLine]:
    return sorted(lines, key=lambda line: line["line_number"])


def copied(value: Any) -> Any:
    """Copy JSON values; one frame a level, since data may be nested hundreds of levels deep."""
    if type(value) is dict:
        return dict(zip(value, map(copied, value.values()), strict=True))
    if type(value) is list:
        return list(map(copied, value))
    return value


def _as_output(value: Any) -> tuple[dict[str, Any], bool]:
    """What a callable returned as a dict of outputs, and whether it was wrapped for that.

    Source: promptflow `_utils/dataclass_serializer.py`, `convert_eager_flow_output_to_dict`.
    """
    if isinstance(value, dict):
        return dict(value), False
    if hasattr(type(value), "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}, False
    return {"output": value}, True


_AS_OUTPUT = UserFunction(_as_output, "output", is_async=True)
_JOIN = UserFunction(join_text, "output")
_JOIN_ASYNC = UserFunction(join_text_async, "output", is_async=True)


def _to_json(value: Any) -> Any:
    """What promptflow writes of an object that JSON does not know.

    Source: promptflow `tracing/_utils.py`, `serialize`.
    """
    if isinstance(value, datetime):
        return value.isoformat() + "Z" * (value.tzinfo is None)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes) and hasattr(value, "_mime_type"):
        # An image within an object that is none of JSON's; all others are dictionaries by now.
        return {f"data:{value._mime_type};base64": value.to_base64()}  # type: ignore[attr-defined]
    if isinstance(value, type):
        pass
    elif hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    elif hasattr(value, "model_dump") and hasattr(value, "model_fields_set"):
        return value.model_dump()
    raise TypeError(f"a {type(value).__name__} is no JSON")


def _to_json_or_repr(value: Any) -> Any:
    try:
        return _to_json(value)
    except Exception:  # noqa: BLE001 - objects of user code
        return _repr(value)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as exc:  # noqa: BLE001 - objects of user code
        return f"<{type(value).__name__}, its repr raised {type(exc).__name__}>"


_STRICT = json.JSONEncoder(separators=(",", ":"), default=_to_json)
_LENIENT = json.JSONEncoder(separators=(",", ":"), default=_to_json_or_repr)


def _lenient(value: Any, depth: int = 4) -> str:
    """JSON of any value; what has none (circles, odd keys) becomes its repr, by parts down to a node's input."""
    try:
        return _LENIENT.encode(value)
    except Exception:  # noqa: BLE001 - objects of user code
        if depth and type(value) is dict and all(isinstance(key, str) for key in value):
            parts = (f"{_LENIENT.encode(key)}:{_lenient(part, depth - 1)}" for key, part in value.items())
            return "{" + ",".join(parts) + "}"
        if depth and type(value) is list:
            return "[" + ",".join(_lenient(part, depth - 1) for part in value) + "]"
        return _LENIENT.encode(_repr(value))
