"""The images of lines that are taken over from a caller's storage: kept whole in this run's records, as in its own lines.

A storage can have an image in three ways: whole, as this package hands it over; by its path, as promptflow writes it; or as
the placeholder that records of nodes have.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.images.image import file_name, is_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prefect_batchflow.images.forms import ImageForm
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.records import ImageFolders

_PLACEHOLDER = re.compile(r"Image\([^,()]+, [\d,]+ bytes, ([0-9a-f]{32}\.[a-z0-9]+)\)")
"""As `images.written.placeheld` writes it."""
_MOST_PARTS = 3
"""The parts of a path inside promptflow's run folder: node_artifacts/<node>/<file>."""

Place = tuple[str | int, ...]


class ImageLostError(Exception):
    """The storage has only a placeholder of an image that the aggregation needs."""


@dataclass(frozen=True)
class TakenImages:
    """How images are taken over."""

    form: ImageForm
    """How the flow writes images."""
    folder: str | None = None
    """Where paths of images in the storage are; `None` if it has none."""
    flow_folder: str = ""
    """Where plain paths in inputs are looked up first."""

    def whole(self, value: Any) -> Any:
        """Give a stored value with the images that it names by path as dictionaries that need no file."""
        if type(value) is list:
            return [self.whole(part) for part in value]
        if type(value) is not dict:
            return value
        if not self.form.is_image_dict(value):
            return {key: self.whole(part) for key, part in value.items()}
        path = self.form.path_in(value)
        if path is None or self.folder is None:
            return value
        # The folder can have moved since the path was written.
        parts = PurePath(path).parts
        for place in (path, *("/".join(parts[-count:]) for count in range(1, min(_MOST_PARTS + 1, len(parts))))):
            try:
                return self.form.url_dict(self.form.load_images(self.form.with_path(value, place), self.folder))
            except InvalidImageInput:
                continue
        return value

    def found(self, value: Any, folder: ImageFolders = None, place: Place = ()) -> Iterator[tuple[Place, Any]]:
        """Give the images in a value, each with the keys and indexes that lead to it: whole ones, and files in the folder."""
        if type(value) is dict or not place:
            image = self._loaded(value, folder)
            if image is not None:
                yield place, image
                return
        parts = enumerate(value) if type(value) is list else value.items() if type(value) is dict else ()
        for key, part in parts:
            yield from self.found(part, folder, (*place, key))

    def known(self, output: Any, line: Line) -> dict[str, Any]:
        """Give the whole images of a line by the name that placeholders have: those in its output and its inputs."""
        images = [image for _, image in self.found(output)]
        for name, (_, folder) in (line.images or {}).items():
            images += [image for _, image in self.found(line.inputs.get(name), folder)]
        return {file_name(image): self.form.url_dict(image) for image in images}

    def restored(self, value: Any, known: Mapping[str, Any]) -> Any:
        """Give a node's stored output with images in place of their placeholders.

        Raises:
            ImageLostError: An image is not among the known ones.
        """
        if type(value) is list:
            return [self.restored(part, known) for part in value]
        if type(value) is dict:
            return {key: self.restored(part, known) for key, part in value.items()}
        if isinstance(value, str) and (placeholder := _PLACEHOLDER.fullmatch(value)):
            if placeholder[1] not in known:
                raise ImageLostError(placeholder[1])
            return known[placeholder[1]]
        return value

    def same_input(self, stored: Any, line: Line, name: str) -> bool:
        """Whether a stored input has the same images as the line's, wherever they are."""
        if name not in (line.images or {}):
            return False
        _, folder = line.images[name]  # type: ignore[index] # it is there
        return bool(self._content(self.whole(stored), None) == self._content(line.inputs[name], folder))

    def _content(self, value: Any, folder: ImageFolders) -> Any:
        """Give a value with a hash in place of each image."""
        if (image := self._loaded(value, folder)) is not None:
            return ("image", hashlib.sha256(image).hexdigest())
        if type(value) is list:
            return [self._content(part, folder) if isinstance(part, (dict, list)) else part for part in value]
        if type(value) is dict and not self.form.is_image_dict(value):
            return {
                key: self._content(part, folder) if isinstance(part, (dict, list)) else part
                for key, part in value.items()
            }
        return value

    def _loaded(self, value: Any, folder: ImageFolders = None) -> Any:
        """Give the image of a dictionary or an image input, if it is whole or in a folder; nothing is fetched."""
        by_path = folder is not None and self.form.path_in(value) is not None
        if not by_path and not self.form.is_whole(value):
            return None
        try:
            image = self.form.load_image(value, (self.flow_folder or folder, folder))
        except InvalidImageInput:
            return None
        return image if is_image(image) else None
