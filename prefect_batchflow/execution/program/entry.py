"""The program of a flow that is one call: of a function, an object or a prompty."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from prefect_batchflow.execution.program.program import Program, copied
from prefect_batchflow.execution.program.steps import Raised, UserFunction, joined
from prefect_batchflow.execution.program.user_errors import script_error
from prefect_batchflow.promptflow_shim.types import AttrDict
from prefect_batchflow.results.records import Clock, line_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.definition.flow import FlowDescription
    from prefect_batchflow.execution.program.steps import Steps
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
        parameters: Sequence[str] | None,
        positional: Sequence[str] = (),
        aggregate: UserFunction | None = None,
    ) -> None:
        """Take the parts that the loader found.

        Args:
            description: For the run.
            function: The entry, or the object's `__call__`.
            parameters: Names of its parameters; `None`: it takes any, by `**kwargs`.
            positional: Those of its parameters that are positional-only, in order.
            aggregate: The object's `__aggregate__`.
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


_AS_OUTPUT = UserFunction(_as_output, "output", is_async=True)
