"""Images in the records of lines and nodes, and in prompts."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import ImageTooLargeError
from prefect_batchflow.images.image import file_name, is_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.images.forms import ImageForm

MAX_OUTPUT_BYTES = 32 * 1024 * 1024
"""The size limit of all images in one line's record."""


class ImageWriter:
    """Turns values with images into plain JSON, and remembers where the images are.

    Attributes:
        places: The keys and indexes that lead to each image whose bytes are in the JSON.
        found: Whether there was any image or `Text`.
    """

    def __init__(self, form: ImageForm) -> None:
        self.places: list[list[str | int]] = []
        self.found = False
        self._form = form
        self._bytes = 0

    def plain(self, value: Any, place: tuple[str | int, ...] = ()) -> Any:
        """Give the value with its images as dictionaries that need no file.

        Raises:
            ImageTooLargeError: The line's images are too large for a record.
        """
        if is_image(value):
            self.found = True
            if not value.source_url:
                self._bytes += len(value)
                if self._bytes > MAX_OUTPUT_BYTES:
                    raise ImageTooLargeError(
                        f"The images in the line's output have more than {MAX_OUTPUT_BYTES:,} bytes, the limit of a record. "
                        "Return smaller images, or save them yourself and return their paths.",
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
    """Give the value with a text in place of each image: type, size, and the name of its file if it is an output."""
    if is_image(value):
        return f"Image({value._mime_type}, {len(value):,} bytes, {file_name(value)})"
    if type(value) in (list, tuple):
        return type(value)(map(placeheld, value))
    if type(value) is dict:
        return {key: placeheld(part) for key, part in value.items()}
    return value


def mark_images(
    values: Mapping[str, Any], parts: dict[str, Mapping[str, Any]], detail: str | None = None
) -> dict[str, Any]:
    """Give a template's values with a mark in place of each image, also inside lists and dicts.

    A mark is text that the template puts into the prompt. It holds the image's hash, so a row cannot write the mark of an
    image that it does not have. Markdown in a row reads no file and no address.

    Args:
        values: The template's variables.
        parts: Filled with each mark and the part of a message, in OpenAI's form, that replaces it. The part has the image's
            address or, without one, a data URL.
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
