"""A flow that another flow's code calls like a function: promptflow's `Flow.load("folder")(question="…")`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from prefect_batchflow.connections.given import Connections
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import (
    InputNotFound,
    InputTypeError,
    InvalidOptionError,
    ScriptExecutionError,
    ToolExecutionError,
    innermost_code,
)
from prefect_batchflow.execution.program.loader import program_of
from prefect_batchflow.inputs.types import CONVERSION_ERRORS, CONVERTERS
from prefect_batchflow.tools.context import current_context, given_connections
from prefect_batchflow.tools.prompty import AsyncPrompty, Prompty
from prefect_batchflow.tools.side_loop import run_beside

if TYPE_CHECKING:
    from os import PathLike

    from prefect_batchflow.results.records import LineRun


class _CalledFlow:
    """A flow loaded once, with the run's connections; its tokens count for the line that calls it.

    Source: promptflow `core/_flow.py`, `FlowBase`.
    """

    def __init__(self, source: str | PathLike[str], **others: Any) -> None:
        if others:
            raise InvalidOptionError(
                f"The flow {os.fspath(source)!r} cannot take {', '.join(others)}. Only a .prompty file takes `model`."
            )
        flow = load_flow(os.fspath(source))
        connections = given_connections()
        self._program = program_of(flow, {}, Connections(None, os.environ) if connections is None else connections)
        self._flow = flow.described(self._program.description)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"A flow that another flow loads can only be called, such as flow(question=…): it has no {name!r}, unlike "
            "promptflow's. It uses the connections of this run.",
            name=name,
            obj=self,
        )

    def _inputs(self, positional: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
        """Apply defaults and types; unknown names are ignored, as in promptflow."""
        name = self._flow.name
        if positional:
            raise InvalidOptionError(f"The flow {name!r} takes its inputs by name, such as {name}(question=…).")
        inputs: dict[str, Any] = {}
        for declared in self._flow.inputs.values():
            if declared.name not in given and declared.required:
                known = ", ".join(self._flow.inputs)
                raise InputNotFound(f"The flow {name!r} needs the input {declared.name!r}. Its inputs: {known}.")
            if declared.name not in given and declared.has_code_default:
                continue
            value = given.get(declared.name, declared.default)
            if value is None and declared.nullable:
                inputs[declared.name] = None
                continue
            try:
                inputs[declared.name] = CONVERTERS.get(declared.type, _as_it_is)(value)
            except CONVERSION_ERRORS as exc:
                raise InputTypeError(
                    f"Input {declared.name!r} of the flow {name!r} must be {declared.type}, found {value!r}: {exc}"
                ) from exc
        return inputs

    def _output(self, run: LineRun) -> dict[str, Any]:
        context = current_context()
        if context is not None:
            context.add_tokens(run["tokens"]["prompt_tokens"], run["tokens"]["completion_tokens"])
        error = run["error"]
        if error is not None:
            kind = ScriptExecutionError if innermost_code(error) == "ScriptExecutionError" else ToolExecutionError
            raise kind(f"The flow {self._flow.name!r} failed: {error['message']}", target="Executor")
        return run["output"] or {}


class CallableFlow(_CalledFlow):
    """promptflow's `Flow`, for sync code. It runs in the caller's thread; if it is async, in another thread on its own loop."""

    @classmethod
    def load(cls, source: str | PathLike[str], **prompty: Any) -> CallableFlow | Prompty:
        """Load a flow folder, yaml or callable, as `load_flow` does.

        Args:
            source: A relative path counts from the current folder, which is the flow's while a run runs.
            prompty: `model`, for a `.prompty` file. Such a file gives a `Prompty`, as in promptflow.

        Raises:
            UserErrorException: As when a run loads the flow.
        """
        return Prompty.load(source, **prompty) if _is_prompty(source) else cls(source, **prompty)

    def __call__(self, *positional: Any, **inputs: Any) -> dict[str, Any]:
        """Run it with inputs by name and return its outputs.

        Raises:
            InputNotFound: An input without default is missing.
            InputTypeError: A value does not fit its input.
            ToolExecutionError: A node failed; for a callable flow `ScriptExecutionError`.
        """
        prepared, number = self._inputs(positional, inputs), _line_number()
        if not self._program.description.is_async:
            return self._output(self._program.run_line(number, prepared))
        # Another thread, because the caller's may have a running loop.
        return self._output(run_beside(self._program.run_line_async(number, prepared)))


class AsyncFlow(_CalledFlow):
    """A flow to await in async code; its sync functions run in threads."""

    @classmethod
    def load(cls, source: str | PathLike[str], **prompty: Any) -> AsyncFlow | AsyncPrompty:
        """Load it as `CallableFlow.load` does."""
        return AsyncPrompty.load(source, **prompty) if _is_prompty(source) else cls(source, **prompty)

    async def __call__(self, *positional: Any, **inputs: Any) -> dict[str, Any]:
        """Run it as `CallableFlow` does."""
        return self._output(await self._program.run_line_async(_line_number(), self._inputs(positional, inputs)))


def load_called_flow(source: str | PathLike[str], **prompty: Any) -> CallableFlow | Prompty:
    """Promptflow's `load_flow` of its client, in a flow's code.

    Source: promptflow `_sdk/_load_functions.py`, `load_flow`.
    """
    return CallableFlow.load(source, **prompty)


def _is_prompty(source: str | PathLike[str]) -> bool:
    return os.fspath(source).lower().endswith(".prompty")


def _line_number() -> int:
    context = current_context()
    return 0 if context is None or context.line_number is None else context.line_number


def _as_it_is(value: Any) -> Any:
    return value
