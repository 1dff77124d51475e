"""Images in what a line leaves: in its record, in its nodes' records, in prompts."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import ImageTooLargeError
from prefect_batchflow.images.image import file_name, is_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.images.forms import ImageForm

MAX_OUTPUT_BYTES = 32 * 1024 * 1024
"""Of all images that one line's record keeps."""


def placeholder(image: Any) -> str:
    """What stands for an image in a node's record: its type and size, and the name its file has if it is an output."""
    return f"Image({image._mime_type}, {len(image):,} bytes, {file_name(image)})"


class ImageWriter:
    """Makes plain JSON of values with images in them, and remembers the places of those it wrote out.

    Attributes:
        places: Keys and indexes that lead to each image whose bytes are in what was made.
        found: Whether there was any image, or `Text`.
    """

    def __init__(self, form: ImageForm) -> None:
        self.places: list[list[str | int]] = []
        self.found = False
        self._form = form
        self._bytes = 0

    def plain(self, value: Any, place: tuple[str | int, ...] = ()) -> Any:
        """Give the value with its images as dictionaries that need nothing else.

        Raises:
            ImageTooLargeError: The images of this line are too large for a record.
        """
        if is_image(value):
            self.found = True
            if not value.source_url:
                self._bytes += len(value)
                if self._bytes > MAX_OUTPUT_BYTES:
                    raise ImageTooLargeError(
                        f"The images in the line's output have more than {MAX_OUTPUT_BYTES:,} bytes, as many as its record "
                        "takes. Return smaller ones, or write them to a place of your own and return their paths.",
                        target="Executor",
                    )
                self.places.append(list(place))
            return self._form.url_dict(value)
        if isinstance(value, str) and hasattr(value, "_annotations"):
            self.found = True
            return self._form.text(value)
        if type(value) in (list, tuple):
            return type(value)(self.plain(part, (*place, index)) for index, part in enumerate(value))
        if type(value) is dict:
            return {key: self.plain(part, (*place, key)) for key, part in value.items()}
        return value


def placeheld(value: Any) -> Any:
    """Give the value with a short text in each image's place."""
    if is_image(value):
        return placeholder(value)
    if type(value) in (list, tuple):
        return type(value)(map(placeheld, value))
    if type(value) is dict:
        return {key: placeheld(part) for key, part in value.items()}
    return value


def mark_images(
    values: Mapping[str, Any], parts: dict[str, Mapping[str, Any]], detail: str | None = None
) -> dict[str, Any]:
    """Give a template's values with a mark in the place of each image, also in lists and dicts.

    A mark is text that a template puts into the prompt; it holds the image's hash, so that no row can write one of another
    image, and the markdown of a row reads no file and asks no address.

    Args:
        values: What the template is rendered with.
        parts: Filled: a mark to the part of a message, in OpenAI's form, that takes its place. An image that has an address is
            given by it, any other as a data URL.
        detail: OpenAI's `detail` of each image, `low` or `high`; `None` leaves it to the model.
    """

    def marked(value: Any) -> Any:
        if is_image(value):
            mark = f"image-{hashlib.sha256(value).hexdigest()}"
            url = {"url": value.source_url or value.to_base64(with_type=True)}
            parts[mark] = {"type": "image_url", "image_url": url if detail is None else {**url, "detail": detail}}
            return mark
        if isinstance(value, list):
            return type(value)(map(marked, value))
        if type(value) is dict:
            return {key: marked(part) for key, part in value.items()}
        return value

    return {name: marked(value) for name, value in values.items()}
