"""How images are written in data, outputs and messages.

A flow's `message_format` names one of two forms. `form_of` is the only place that reads that text.

Source: promptflow `_utils/multimedia_utils.py`.
"""

from __future__ import annotations

import base64
import re
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from prefect_batchflow.definition.flow import MESSAGE_FORMATS
from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.images.image import ANY_TYPE, Image, Text, guess_mime_type, is_image
from prefect_batchflow.images.places import MAX_IMAGE_BYTES, fetched, place_within, read_within
from prefect_batchflow.inputs.formats import shorten

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_batchflow.results.records import ImageFolders

_MAX_PATH = 4096
_SUFFIXES = (
    *(
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".heic",
        ".heif",
        ".ico",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".jxl",
    ),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".svg", ".tga", ".tif", ".tiff", ".webp"),
)
"""The names of image files, also of kinds whose first bytes say little."""
_KEY = re.compile(r"data:(image/[\w.+*-]+);(path|base64|url)")
# Bounded where parts overlap, because rows supply the text.
_DATA_URL = re.compile(r"data:(image/[\w.+*-]{1,100})?[^,]{0,200};base64,")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}")


class ImageForm(ABC):
    """One way to write images as JSON."""

    example: ClassVar[str]
    """An example of an image dictionary, for messages."""

    @abstractmethod
    def is_image_dict(self, value: Any) -> bool:
        """Whether a value is an image dictionary."""

    @abstractmethod
    def path_dict(self, mime_type: str, path: str) -> dict[str, Any]:
        """Give the image dictionary for a file's path."""

    @abstractmethod
    def url_dict(self, image: Any) -> dict[str, Any]:
        """Give the image dictionary with the image's address or, without one, its content."""

    @abstractmethod
    def _parts(self, value: dict[str, Any]) -> tuple[str | None, str, Any]:
        """Give an image dictionary's type, its kind (`path`, `url` or `base64`) and its content."""

    def text(self, text: Any) -> Any:
        """Give a `Text` as JSON."""
        return str(text)

    def _is_text_dict(self, value: dict[Any, Any]) -> bool:
        return False

    def holds_images(self, value: Any) -> bool:
        """Whether lists and dicts hold, at any depth, a value that `load_images` changes."""
        level = [value]
        while level := [part for part in level if type(part) in (dict, list)]:
            for part in level:
                if self.is_image_dict(part) or (type(part) is dict and self._is_text_dict(part)):
                    return True
            level = [child for part in level for child in (part.values() if type(part) is dict else part)]
        return False

    def load_images(self, value: Any, folder: ImageFolders) -> Any:
        """Give the value with each image dictionary, at any depth, as an `Image` and each text dictionary as a `Text`.

        Paths are relative to the folder and cannot leave it and the image roots; `None` if there is none.

        Raises:
            InvalidImageInput: An image cannot be read, or is outside the folder.
        """
        if type(value) is list:
            return [self.load_images(part, folder) for part in value]
        if type(value) is not dict:
            return value
        if self.is_image_dict(value):
            return self._load_dict(value, folder)
        if self._is_text_dict(value):
            return Text.deserialize(value)
        return {key: self.load_images(part, folder) for key, part in value.items()}

    def place_images(self, value: Any, folder: ImageFolders) -> Any:
        """Give the value with full paths, which code can open, in its image dictionaries; nothing is read.

        Paths are relative to the folder and cannot leave it and the image roots; `None` leaves them as they are.

        Raises:
            InvalidImageInput: A path leads out of the folder, or is not valid.
        """
        if type(value) is list:
            return [self.place_images(part, folder) for part in value]
        if type(value) is not dict:
            return value
        if not self.is_image_dict(value):
            return {key: self.place_images(part, folder) for key, part in value.items()}
        path = self.path_in(value)
        if path is None or folder is None:
            return value
        try:
            return self.with_path(value, place_within(path, folder))
        except ValueError as exc:  # a null byte
            raise InvalidImageInput(f"The path {shorten(path)} is not valid: {exc}.") from exc

    def path_in(self, value: Any) -> str | None:
        """Give the path in a value that stands for an image; `None` if it holds an address, the image itself, or no image.

        Args:
            value: An image dictionary, or the text of an input of type image.
        """
        if self.is_image_dict(value):
            _, resource, content = self._parts(value)
            return content if resource == "path" and isinstance(content, str) else None
        if not isinstance(value, str) or len(value) > _MAX_PATH or _DATA_URL.match(value):
            return None
        if value.startswith(("http://", "https://")):
            return None
        content = _decoded(value) if _BASE64.fullmatch(value.strip()) else None
        return value if content is None or not guess_mime_type(content) else None

    def is_whole(self, value: Any) -> bool:
        """Whether a value is an image dictionary, or a data URL, that holds the image itself."""
        if isinstance(value, str):
            return _DATA_URL.match(value) is not None
        if not self.is_image_dict(value):
            return False
        _, resource, content = self._parts(value)
        return isinstance(content, str) and (resource == "base64" or _DATA_URL.match(content) is not None)

    def with_path(self, value: Any, path: str) -> Any:
        """Give the value with another path; `path_in` must give one for it."""
        if isinstance(value, str):
            return path
        mime_type, _, _ = self._parts(value)
        return self.path_dict(mime_type or ANY_TYPE, path)

    def load_image(self, value: Any, folders: Sequence[ImageFolders]) -> Any:
        """Load the image of an input of type image.

        Args:
            value: An image dictionary, a path, an address, or base64 text with or without `data:…;base64,` before it.
            folders: A plain path is looked for in these folders, in order. A path in an image dictionary is relative to
                the last one, the data's own.

        Raises:
            InvalidImageInput: The value is not an image, or the image cannot be read or is outside the folders.
        """
        if is_image(value):
            return value
        if self.is_image_dict(value):
            return self._load_dict(value, folders[-1])
        if not isinstance(value, str) or not value:
            expected = f"a path, an address, base64 text or {self.example}"
            raise InvalidImageInput(f"Expected an image as {expected}, found {shorten(value)}.")
        if _DATA_URL.match(value):
            return _of_base64(value)
        if value.startswith(("http://", "https://")):
            return _image(fetched(value), None, value)
        content = _decoded(value) if _BASE64.fullmatch(value.strip()) else None
        if content is not None and guess_mime_type(content):
            return _image(content)
        *others, own = dict.fromkeys(folders)
        for folder in others:
            with suppress(InvalidImageInput):
                return _image_file(value, read_within(value, folder))
        try:
            return _image_file(value, read_within(value, own))
        except InvalidImageInput:
            if content:
                return _image(content)
            raise

    def _load_dict(self, value: dict[str, Any], folder: ImageFolders) -> Any:
        mime_type, resource, content = self._parts(value)
        if not isinstance(content, str) or not content:
            raise InvalidImageInput(f"The {resource} of an image must be text, found {shorten(content)}.")
        if resource == "path":
            return _image_file(content, read_within(content, folder), mime_type)
        if resource == "base64" or _DATA_URL.match(content):
            return _of_base64(content, mime_type)
        return _image(fetched(content), mime_type, content)


class _Basic(ImageForm):
    """`{"data:image/png;path": …}`, or `;base64` or `;url` in its place."""

    example = '{"data:image/<type>;path|base64|url": …}'

    def is_image_dict(self, value: Any) -> bool:
        if type(value) is not dict or len(value) != 1:
            return False
        return isinstance(key := next(iter(value)), str) and _KEY.fullmatch(key) is not None

    def path_dict(self, mime_type: str, path: str) -> dict[str, Any]:
        return {f"data:{mime_type};path": path}

    def url_dict(self, image: Any) -> dict[str, Any]:
        url = image.source_url
        return {f"data:{image._mime_type};url": url} if url else {f"data:{image._mime_type};base64": image.to_base64()}

    def _parts(self, value: dict[str, Any]) -> tuple[str | None, str, Any]:
        ((key, content),) = value.items()
        match = _KEY.fullmatch(key)
        assert match is not None, "is_image_dict has checked it"
        return match[1], match[2], content


class _OpenaiVision(ImageForm):
    """The parts of OpenAI's messages: `image_url`, `image_file` and `text`."""

    example = '{"type": "image_url", …}'

    def is_image_dict(self, value: Any) -> bool:
        if type(value) is not dict or len(value) != 2:
            return False
        kind = value.get("type")
        if kind not in ("image_url", "image_file"):
            return False
        inner = value.get(kind)
        return isinstance(inner, dict) and ("url" if kind == "image_url" else "path") in inner

    def path_dict(self, mime_type: str, path: str) -> dict[str, Any]:
        return {"type": "image_file", "image_file": {"path": path}}

    def url_dict(self, image: Any) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": image.source_url or image.to_base64(with_type=True)}}

    def text(self, text: Any) -> Any:
        return text.serialize()

    def _parts(self, value: dict[str, Any]) -> tuple[str | None, str, Any]:
        resource = "path" if value["type"] == "image_file" else "url"
        return None, resource, value[value["type"]][resource]

    def _is_text_dict(self, value: dict[Any, Any]) -> bool:
        if len(value) != 2 or value.get("type") != "text":
            return False
        text = value.get("text")
        return isinstance(text, str) or (isinstance(text, dict) and isinstance(text.get("value"), str))


BASIC: Final = _Basic()
OPENAI_VISION: Final = _OpenaiVision()
_FORMS: Final[Mapping[str, ImageForm]] = dict(zip(MESSAGE_FORMATS, (BASIC, OPENAI_VISION), strict=True))


def form_of(message_format: str) -> ImageForm:
    """Give the form that a flow's `message_format` names."""
    return _FORMS[message_format]


def _of_base64(text: str, mime_type: str | None = None) -> Any:
    prefix = _DATA_URL.match(text)
    content = _decoded(text[prefix.end() :] if prefix else text)
    if content is None:
        raise InvalidImageInput(f"Expected base64 text, found {shorten(text)}.")
    return _image(content, mime_type or (prefix[1] if prefix else None))


def _decoded(text: str) -> bytes | None:
    if len(text) * 3 // 4 > MAX_IMAGE_BYTES + 4:
        raise InvalidImageInput(
            f"The image in the base64 text is larger than {MAX_IMAGE_BYTES:,} bytes. Give a smaller one."
        )
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def _image_file(path: str, content: bytes, mime_type: str | None = None) -> Any:
    """Make an image of a file that a row names. Folders of data and flows also have code, settings and keys."""
    if guess_mime_type(content) is None and not path.lower().endswith(_SUFFIXES):
        raise InvalidImageInput(
            f"{shorten(path)} is not an image: neither its name nor its first bytes say so. Give the path of an image, such as "
            "a png or jpeg."
        )
    return _image(content, mime_type)


def _image(content: bytes, mime_type: str | None = None, source_url: str | None = None) -> Any:
    """Make an image of the class that the flow's code imports."""
    kind = getattr(sys.modules.get("promptflow.contracts.multimedia"), "Image", Image)
    return kind(content, mime_type, source_url)
