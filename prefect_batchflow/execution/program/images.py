"""A flow's images in a worker: loaded before nodes and prompts get them, plain JSON again in its records.

A callable gets image dictionaries as they are written, with paths that it can open: so promptflow has it.

What it needs is imported by the first line that has an image; a flow that has none pays a look into `sys.modules` a line.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.classes import INFO_KEY, PASSING
from prefect_batchflow.exceptions import InvalidImageInput, LoadMultimediaDataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.definition.flow import FlowInput
    from prefect_batchflow.images.forms import ImageForm
    from prefect_batchflow.results.records import CompletedLine, LineRun, Origins

_MODULES = ("prefect_batchflow.images.image", "promptflow.contracts.multimedia")
"""Without one of these in the process there is no image object."""


class FlowImages:
    """What one flow does with images.

    Args:
        working_dir: The flow's folder, where plain paths are looked for first, as in promptflow.
        message_format: How it writes images.
        inputs: Its inputs, of which those of type image are images whatever their form.
        loads: Whether its code gets images; a callable does not.
    """

    def __init__(
        self, working_dir: str, message_format: str, inputs: Mapping[str, FlowInput], *, loads: bool = True
    ) -> None:
        self._working_dir = working_dir
        self._message_format = message_format
        self._loads = loads
        self._image_inputs = {name for name, declared in inputs.items() if declared.type == "image"}

    @property
    def _form(self) -> ImageForm:
        from prefect_batchflow.images.forms import form_of

        return form_of(self._message_format)

    def loaded(self, inputs: dict[str, Any], origins: Origins) -> dict[str, Any]:
        """Give a line's inputs with its images as its code gets them; the given ones stay as they are.

        Raises:
            LoadMultimediaDataError: One cannot be, or may not be; the message names its input.
        """
        given = dict(inputs)
        for name, (_, folder) in origins.items():
            if name in given:
                given[name] = self._loaded_input(name, given[name], folder)
        return given

    def _loaded_input(self, name: str, value: Any, folder: str | None) -> Any:
        try:
            if not self._loads:
                return self._form.place_images(value, folder)
            if name in self._image_inputs:
                return self._form.load_image(value, (self._working_dir, folder))
            return self._form.load_images(value, folder)
        except InvalidImageInput as exc:
            raise LoadMultimediaDataError(
                f"Failed to load image for input '{name}': ({type(exc).__name__}) {exc}",
                target="Executor",
                additional_info=_passing_failure(exc),
            ) from exc

    def literal(self, value: Any) -> Any:
        """Give the image that a node's literal stands for.

        Raises:
            InvalidImageInput: It cannot be loaded.
        """
        return self._form.load_image(value, (self._working_dir,))

    def reloaded(self, line: CompletedLine) -> CompletedLine:
        """Give a completed line as aggregation gets it: its images loaded again, where the line's code had them loaded.

        Raises:
            LoadMultimediaDataError: One cannot be any more.
        """
        if not self._loads:
            return line
        inputs = self.loaded(line["inputs"], line["images"])
        loaded = {}
        for part, value in (("output", line["output"]), ("aggregation_inputs", line["aggregation_inputs"])):
            try:
                loaded[part] = self._form.load_images(value, self._working_dir)
            except InvalidImageInput as exc:
                raise LoadMultimediaDataError(
                    f"Failed to load an image of line {line['line_number']}, {part}: {exc}", target="Executor"
                ) from exc
        return {
            **line,
            "inputs": inputs,
            "output": loaded["output"],
            "aggregation_inputs": loaded["aggregation_inputs"],
        }

    def record(self, run: LineRun, origins: Origins | None) -> None:
        """Make plain JSON of the images in a line's record, and note where they are.

        Raises:
            ImageTooLargeError: They are too large for a record.
        """
        sources = {name: source for name, (source, _) in (origins or {}).items()}
        if sources:
            run["images"] = {"inputs": sources, "output": []}
        if not any(module in sys.modules for module in _MODULES):
            return
        from prefect_batchflow.images.written import ImageWriter, placeheld

        for node in run["nodes"]:
            node["inputs"], node["output"] = placeheld(node["inputs"]), placeheld(node["output"])
        writer = ImageWriter(self._form)
        run["output"] = writer.plain(run["output"])
        places = list(writer.places)
        run["aggregation_inputs"] = writer.plain(run["aggregation_inputs"])
        if writer.found or sources:
            run["images"] = {"inputs": sources, "output": places}


def _passing_failure(exc: InvalidImageInput) -> dict[str, Any] | None:
    """The class of an error that is not the row's: what has the image may have it again later."""
    kind = getattr(exc, INFO_KEY, None)
    return {"ImageErrorDetails": {INFO_KEY: str(kind)}} if kind in PASSING else None
