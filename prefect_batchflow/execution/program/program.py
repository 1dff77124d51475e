"""The base of all programs: runs a line or the aggregation, loads images before and records them after.

A program never raises what user code raises: it becomes an error in the record. `steps` explains how one walk serves sync and
async code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from prefect_batchflow.exceptions import ImageTooLargeError, error_dict
from prefect_batchflow.execution.program.driving import drive, drive_async
from prefect_batchflow.execution.program.record import fail_run, own_failure
from prefect_batchflow.execution.program.steps import Handover, Raised, UserFunction
from prefect_batchflow.results.records import Clock, line_run
from prefect_batchflow.tools.context import running

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from prefect_batchflow.definition.flow import FlowDescription
    from prefect_batchflow.execution.program.images import FlowImages
    from prefect_batchflow.execution.program.steps import Steps
    from prefect_batchflow.results.records import AggregationRun, CompletedLine, LineRun, Origins
    from prefect_batchflow.tools.context import RunContext

Result = TypeVar("Result")


class Program:
    """A flow whose code is imported, for a worker to run: lines and the aggregation, each from sync or async code."""

    description: FlowDescription
    images: FlowImages | None = None
    """Loads and records its images; set by the loader."""

    def run_line(self, line_number: int, inputs: dict[str, Any], images: Origins | None = None) -> LineRun:
        """Run one line in this thread, what is async in it on a loop beside; `images` names the inputs with images."""
        run = self.begin_line(line_number, inputs, images)
        return run if isinstance(run, dict) else _run_beside(run)

    def begin_line(
        self, line_number: int, inputs: dict[str, Any], images: Origins | None = None
    ) -> LineRun | Coroutine[Any, Any, LineRun]:
        """Run one line in this thread. If its code turns out to be async, give a coroutine that runs the rest."""
        with running(line_number) as context:
            try:
                steps = self._line(context, inputs) if images is None else self._image_line(context, inputs, images)
                done = drive(steps)
                if type(done) is Handover:
                    return self._finish_line(context, done, inputs, images)
                return self._recorded(context, done, images)
            except Exception as exc:  # noqa: BLE001 - the line fails if it cannot be recorded; the worker continues
                return self.failed_line(line_number, inputs, exc)

    async def _finish_line(
        self, context: RunContext, rest: Handover, inputs: dict[str, Any], images: Origins | None
    ) -> LineRun:
        assert context.line_number is not None
        with running(context.line_number, context):
            try:
                return self._recorded(context, await drive_async(rest.steps, rest), images)
            except Exception as exc:  # noqa: BLE001 - as in `begin_line`
                return self.failed_line(context.line_number, inputs, exc)

    async def run_line_async(self, line_number: int, inputs: dict[str, Any], images: Origins | None = None) -> LineRun:
        """Run one line on this event loop, sync functions in threads; `images` names the inputs with images."""
        with running(line_number) as context:
            try:
                steps = self._line(context, inputs) if images is None else self._image_line(context, inputs, images)
                return self._recorded(context, await drive_async(steps), images)
            except Exception as exc:  # noqa: BLE001 - as in `begin_line`
                return self.failed_line(line_number, inputs, exc)

    def failed_line(self, line_number: int, inputs: dict[str, Any], exc: BaseException) -> LineRun:
        """The run of a line that broke."""
        with running(line_number) as context:
            return line_run(inputs, Clock().span(), error=own_failure(exc), tokens=context.tokens)

    def aggregate(self, lines: list[CompletedLine]) -> AggregationRun:
        """Run the aggregation over completed lines in this thread, what is async in it on a loop beside."""
        run = self.begin_aggregation(lines)
        return run if isinstance(run, dict) else _run_beside(run)

    def begin_aggregation(self, lines: list[CompletedLine]) -> AggregationRun | Coroutine[Any, Any, AggregationRun]:
        """Run the aggregation in this thread. If its code turns out to be async, give a coroutine that runs the rest."""
        with running() as context:
            done = drive(self._image_aggregation(context, lines))
            if type(done) is Handover:
                return self._finish_aggregation(context, done)
            run: AggregationRun = done
            return run

    async def _finish_aggregation(self, context: RunContext, rest: Handover) -> AggregationRun:
        with running(context.line_number, context):
            run: AggregationRun = await drive_async(rest.steps, rest)
            return run

    async def aggregate_async(self, lines: list[CompletedLine]) -> AggregationRun:
        """Run the aggregation over completed lines on this event loop, sync functions in threads."""
        with running() as context:
            run: AggregationRun = await drive_async(self._image_aggregation(context, lines))
            return run

    def _image_line(self, context: RunContext, inputs: dict[str, Any], images: Origins) -> Steps:
        """A line with images in its inputs; its record keeps the inputs as given."""
        assert self.images is not None, "the loader set it"
        clock = Clock()
        loaded = yield UserFunction(self.images.loaded, "inputs"), (inputs, images), {}
        if isinstance(loaded, Raised):
            return line_run(inputs, clock.span(), error=own_failure(loaded.error), tokens=context.tokens)
        run: LineRun = yield from self._line(context, loaded)
        run["inputs"] = inputs
        return run

    def _recorded(self, context: RunContext, run: LineRun, images: Origins | None) -> LineRun:
        if context.calls is not None:
            run["model_calls"] = context.calls
        if self.images is not None:
            try:
                self.images.record(run, images)
            except ImageTooLargeError as exc:
                fail_run(run, error_dict(exc))
        return run

    def _image_aggregation(self, context: RunContext, lines: list[CompletedLine]) -> Steps:
        """The aggregation over lines in their order, after loading their images again."""
        lines = sorted(lines, key=lambda line: line["line_number"])
        if self.images is not None:
            for index, line in enumerate(lines):
                if "images" not in line:
                    continue
                loaded = yield UserFunction(self.images.reloaded, "images"), (line,), {}
                if isinstance(loaded, Raised):
                    return {"output": {}, "metrics": {}, "nodes": [], "error": own_failure(loaded.error)}
                lines[index] = loaded
        return (yield from self._aggregation(context, lines))

    def _line(self, context: RunContext, inputs: dict[str, Any]) -> Steps:
        raise NotImplementedError

    def _aggregation(self, context: RunContext, lines: Sequence[CompletedLine]) -> Steps:
        raise NotImplementedError


def _run_beside(coroutine: Coroutine[Any, Any, Result]) -> Result:
    from prefect_batchflow.tools.side_loop import run_beside

    return run_beside(coroutine)


def copied(value: Any) -> Any:
    """Copy JSON values, with one frame per level, because data can be nested hundreds of levels deep."""
    if type(value) is dict:
        return dict(zip(value, map(copied, value.values()), strict=True))
    if type(value) is list:
        return list(map(copied, value))
    return value
