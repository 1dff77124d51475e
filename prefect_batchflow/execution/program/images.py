"""A flow's images in a worker: loaded for nodes and prompts, turned back into plain JSON for records.

A callable gets image dictionaries as written, with paths that it can open, as in promptflow.

The code for images is imported by the first line that has one. Without images, the cost is a look into `sys.modules` per line.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.classes import INFO_KEY, PASSING
from prefect_batchflow.exceptions import InvalidImageInput, LoadMultimediaDataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.definition.flow import FlowInput
    from prefect_batchflow.images.forms import ImageForm
    from prefect_batchflow.results.records import CompletedLine, ImageFolders, LineRun, Origins

_MODULES = ("prefect_batchflow.images.image", "promptflow.contracts.multimedia")
"""If neither module is imported, no image object exists."""


class FlowImages:
    """Loads and records the images of one flow.

    Args:
        working_dir: The flow's folder, where plain paths are looked up first, as in promptflow.
        message_format: How it writes images.
        inputs: Its inputs. Those of type image are images whatever their form.
        loads: Whether its code gets image objects; a callable does not.
    """

    def __init__(
        self, working_dir: str, message_format: str, inputs: Mapping[str, FlowInput], *, loads: bool = True
    ) -> None:
        self._working_dir = working_dir
        self._message_format = message_format
        self._loads = loads
        self._image_inputs = {name for name, declared in inputs.items() if declared.type == "image"}

    @cached_property
    def _form(self) -> ImageForm:
        from prefect_batchflow.images.forms import form_of

        return form_of(self._message_format)

    def loaded(self, inputs: dict[str, Any], origins: Origins) -> dict[str, Any]:
        """Give a copy of a line's inputs with its images as the code gets them.

        Raises:
            LoadMultimediaDataError: An image cannot or may not be loaded; the message names its input.
        """
        given = dict(inputs)
        for name, (_, folder) in origins.items():
            if name in given:
                given[name] = self._loaded_input(name, given[name], folder)
        return given

    def _loaded_input(self, name: str, value: Any, folder: ImageFolders) -> Any:
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

    def load_constant(self, value: Any) -> Any:
        """Load the image of a node's constant.

        Raises:
            InvalidImageInput: It cannot be loaded.
        """
        return self._form.load_image(value, (self._working_dir,))

    def reloaded(self, line: CompletedLine) -> CompletedLine:
        """Give a completed line for the aggregation, its images loaded again if the code gets image objects.

        Raises:
            LoadMultimediaDataError: An image can no longer be loaded.
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
        """Turn the images in a line's record into plain JSON, and note their places.

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
    """The class of a passing error: it is not the row's, and the image may be available later."""
    kind = getattr(exc, INFO_KEY, None)
    return {"ImageErrorDetails": {INFO_KEY: str(kind)}} if kind in PASSING else None
