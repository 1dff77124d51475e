"""Writes the images of outputs and failed lines as files beside them, named by their content.

A file that exists under a name has the same content, so a resume writes no image twice.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.images.fetch import in_daemon_thread
from prefect_batchflow.images.image import Image, file_name, is_image
from prefect_batchflow.images.places import read_within
from prefect_batchflow.inputs.places import is_local_path
from prefect_batchflow.storage.files import storage_errors, write_beside
from prefect_batchflow.storage.keys import IMAGES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_batchflow.images.forms import ImageForm
    from prefect_batchflow.results.records import ImageFolders, LineRecord
    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys

RECORDS_ARE_KEPT = "The line records are kept; resume the run to write it again."


@dataclass(frozen=True)
class ImageInputs:
    """How the inputs of lines name image files."""

    folders: Mapping[str, ImageFolders] = field(default_factory=dict)
    """The folder of relative paths, by source; `""` is the flow. Image files of other sources are not copied."""
    plain_paths: bool = False
    """Whether a plain text in an input of type image is a path. False for callables, which get texts unchanged."""
    remote_sec: float = 0.0
    """Total seconds allowed for reading remote image files."""


class ImageFiles:
    """Writes images to the run's folder, and to `output_dir`, a folder on this machine, if there is one."""

    def __init__(
        self, files: RunFiles, keys: RunKeys, output_dir: Path | None, form: ImageForm, inputs: ImageInputs
    ) -> None:
        self._files = files
        self._inputs = inputs
        self._keys = keys
        self._output_dir = output_dir
        self._form = form
        self._there: set[str] | None = None
        self._remote_sec = inputs.remote_sec
        self.left = 0
        """Number of input images that were not read because time had run out."""

    async def with_outputs(self, record: LineRecord) -> LineRecord:
        """Write the images in a completed line's output, and give its record with their paths instead.

        Raises:
            StorageError: An image cannot be written.
        """
        places = images["output"] if (images := record.get("images")) else ()
        if not places:
            return record
        output: Any = record["output"]
        for place in places:
            found = _at(output, place)
            if not self._form.is_image_dict(found):
                continue
            image = self._form.load_images(found, None)
            if is_image(image):
                name = await self._write(image)
                output = _replaced(output, place, self._form.path_dict(image._mime_type, f"{IMAGES}/{name}"))
        return {**record, "output": output}

    async def with_inputs(self, record: LineRecord) -> LineRecord:
        """Copy the image files of a failed line's inputs, and give its record with the new paths.

        The paths are relative to the folder of the failed lines, so that these can be the data of a new run. A path that
        cannot be read stays unchanged, and fails its line again.

        Raises:
            StorageError: An image cannot be written.
        """
        sources = images["inputs"] if (images := record.get("images")) else {}
        if not sources:
            return record
        inputs = dict(record["inputs"])
        for name, source in sources.items():
            value, folder = inputs.get(name), self._inputs.folders.get(source)
            if not isinstance(value, str):
                inputs[name] = await self._copied(value, folder)
            # The flow's folder comes first, in a new run too: an image found there needs no copy.
            elif self._inputs.plain_paths and await self._read(value, self._inputs.folders.get("")) is None:
                inputs[name] = await self._copied_file(value, folder)
        return {**record, "inputs": inputs}

    async def _copied(self, value: Any, folder: ImageFolders) -> Any:
        if self._form.is_image_dict(value):
            return await self._copied_file(value, folder)
        if isinstance(value, list):
            return [await self._copied(part, folder) for part in value]
        if isinstance(value, dict):
            return {key: await self._copied(part, folder) for key, part in value.items()}
        return value

    async def _copied_file(self, value: Any, folder: ImageFolders) -> Any:
        image = await self._read(value, folder)
        return value if image is None else self._form.with_path(value, f"{IMAGES}/{await self._write(image)}")

    async def _read(self, value: Any, folder: ImageFolders) -> Image | None:
        """The image that a value names by its path; `None` if it names none, or the image cannot be read."""
        path = self._form.path_in(value)
        if path is None:
            return None
        try:
            if all(map(is_local_path, (folder,) if isinstance(folder, str) else folder or ())):
                return Image(await asyncio.to_thread(read_within, path, folder))
            return Image(await self._read_remote(path, folder))
        except InvalidImageInput:
            return None
        except TimeoutError:
            self.left += 1
            return None

    async def _read_remote(self, path: str, folder: ImageFolders) -> bytes:
        if self._remote_sec <= 0:
            raise TimeoutError
        began = time.monotonic()
        try:
            reading = in_daemon_thread(lambda: read_within(path, folder), "batchflow-remote-image")
            return await asyncio.wait_for(asyncio.wrap_future(reading), self._remote_sec)
        finally:
            self._remote_sec -= time.monotonic() - began

    async def _write(self, image: Any) -> str:
        name = file_name(image)
        key, content = self._keys.image(name), bytes(image)
        with storage_errors(self._files, "write", key, RECORDS_ARE_KEPT):
            if self._there is None:
                self._there = set(await self._files.list_names(self._keys.images))
            if name not in self._there:
                await self._files.write_path(key, content)
                self._there.add(name)
        if self._output_dir is not None:
            write = partial(Path.write_bytes, data=content)
            await asyncio.to_thread(write_beside, self._output_dir, name, write, again=False, inner=IMAGES)
        return name


def _at(value: Any, place: Sequence[str | int]) -> Any:
    """The value at a place; `None` if there is none."""
    for part in place:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _replaced(value: Any, place: Sequence[str | int], by: Any) -> Any:
    """A copy of the value with something else at a place; parts off the path are shared."""
    if not place:
        return by
    first, *rest = place
    copy: Any = list(value) if isinstance(value, list) else dict(value)
    copy[first] = _replaced(value[first], rest, by)
    return copy
