"""The program of a flow that is one call: of a function, an object or a prompty."""

from __future__ import annotations

import logging
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prefect_batchflow.execution.program.program import Program, copied
from prefect_batchflow.execution.program.record import own_failure
from prefect_batchflow.execution.program.steps import Raised, UserFunction, joined
from prefect_batchflow.execution.program.user_errors import script_error
from prefect_batchflow.promptflow_shim.types import AttrDict
from prefect_batchflow.results.records import Clock, line_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_batchflow.definition.flow import FlowDescription
    from prefect_batchflow.execution.program.steps import Steps
    from prefect_batchflow.execution.program.wanted import Builder
    from prefect_batchflow.results.records import AggregationRun, CompletedLine
    from prefect_batchflow.tools.context import RunContext

logger = logging.getLogger(__name__)


class EntryProgram(Program):
    """One callable: each line is a call, and a class's `__aggregate__` gets all outputs."""

    def __init__(
        self,
        description: FlowDescription,
        function: UserFunction,
        *,
        parameters: Sequence[str],
        takes_any: bool = False,
        positional: Mapping[str, Any] = MappingProxyType({}),
        builders: Mapping[str, Builder] = MappingProxyType({}),
        others: Builder | None = None,
        aggregate: UserFunction | None = None,
    ) -> None:
        """Take the parts that the loader found.

        Args:
            description: For the run.
            function: The entry, or the object's `__call__`.
            parameters: Names of its parameters.
            takes_any: Whether it takes other names, too, by `**row`.
            positional: Those of its parameters that are positional-only, in order, with their defaults.
            builders: Parameter to what builds its values.
            others: The same for all other names.
            aggregate: The object's `__aggregate__`.
        """
        self.description = description
        self._function = function
        self._parameters = tuple(parameters)
        self._takes_any = takes_any
        self._positional = positional
        self._builders = builders
        self._others = others
        self._aggregate = aggregate

    def _line(self, context: RunContext, inputs: dict[str, Any]) -> Steps:
        clock = Clock()
        named = copied(inputs if self._takes_any else {n: inputs[n] for n in self._parameters if n in inputs})
        if self._builders or self._others is not None:
            named = yield _BUILT, (self, named, context.line_number), {}
            if isinstance(named, Raised):
                error = own_failure(named.error)
                return line_run(inputs, clock.span(), error=error, metrics=context.metrics, tokens=context.tokens)
        result = yield self._function, self._by_position(named) if self._positional else (), named
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
        # `__aggregate__` gets the returned value itself, not wrapped as in the record's output.
        aggregated = dict(output) if wrapped and self._aggregate is not None else {}
        return line_run(
            inputs,
            clock.span(),
            output=output,
            aggregation_inputs=aggregated,
            metrics=context.metrics,
            tokens=context.tokens,
        )

    def build(self, named: dict[str, Any], line_number: int | None) -> dict[str, Any]:
        """The arguments that the annotations ask for.

        Raises:
            InputTypeError: A value does not fit.
        """
        for name, value in named.items():
            builder = self._builders.get(name) if name in self._parameters else self._others
            if builder is not None:
                named[name] = builder.of_line(value, f"Line {line_number}: input '{name}'")
        return named

    def _by_position(self, named: dict[str, Any]) -> tuple[Any, ...]:
        """Take the values of positional-only parameters; for one between others, its default."""
        given = [name for name in self._positional if name in named]
        before = list(self._positional)[: list(self._positional).index(given[-1]) + 1] if given else []
        return tuple([named.pop(name, self._positional[name]) for name in before])

    def _aggregation(self, context: RunContext, lines: Sequence[CompletedLine]) -> Steps:
        run: AggregationRun = {"output": {}, "metrics": context.metrics, "nodes": [], "error": None}
        if self._aggregate is None:
            return run
        results = [
            line["aggregation_inputs"]["output"] if line["aggregation_inputs"] else AttrDict(line["output"] or {})
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
            logger.warning("%s returned no dict, so the run has no metrics from it.", self._aggregate.name)
        else:
            context.metrics.update(run["output"])
        return run


def _as_output(value: Any) -> tuple[dict[str, Any], bool]:
    """A callable's result as a dict of outputs, and whether it was wrapped in one.

    Source: promptflow `_utils/dataclass_serializer.py`, `convert_eager_flow_output_to_dict`.
    """
    if isinstance(value, dict):
        return dict(value), False
    if hasattr(type(value), "__dataclass_fields__"):
        return {found.name: getattr(value, found.name) for found in fields(value)}, False
    return {"output": value}, True


_BUILT = UserFunction(EntryProgram.build, "inputs", is_async=True)
_AS_OUTPUT = UserFunction(_as_output, "output", is_async=True)
