"""What every program does: a line or the aggregation at a time, images loaded before and recorded after.

What user code does is data: a program never raises for it. `steps` tells how one walk serves sync and async.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import ImageTooLargeError, LoadMultimediaDataError, error_dict
from prefect_batchflow.execution.program.driving import drive, drive_async
from prefect_batchflow.execution.program.record import fail_run, own_failure
from prefect_batchflow.execution.program.steps import Raised, UserFunction
from prefect_batchflow.results.records import Clock, line_run
from prefect_batchflow.tools.context import running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.definition.flow import FlowDescription
    from prefect_batchflow.execution.program.images import FlowImages
    from prefect_batchflow.execution.program.steps import Steps
    from prefect_batchflow.results.records import AggregationRun, CompletedLine, LineRun, Origins
    from prefect_batchflow.tools.context import RunContext


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


def _by_number(lines: list[CompletedLine]) -> list[CompletedLine]:
    return sorted(lines, key=lambda line: line["line_number"])


def copied(value: Any) -> Any:
    """Copy JSON values; one frame a level, since data may be nested hundreds of levels deep."""
    if type(value) is dict:
        return dict(zip(value, map(copied, value.values()), strict=True))
    if type(value) is list:
        return list(map(copied, value))
    return value
