"""How images are written in data, outputs and messages: read from there, and written as such.

Source: promptflow `_utils/multimedia_utils.py`.
"""

from __future__ import annotations

import base64
import binascii
import re
import sys
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.flow import MESSAGE_FORMATS
from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.images.image import ANY_TYPE, Image, Text, guess_mime_type, is_image
from prefect_batchflow.images.places import MAX_IMAGE_BYTES, fetched, place_within, read_within, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

BASIC, OPENAI_VISION = MESSAGE_FORMATS

_MAX_PATH = 4096
_KEY = re.compile(r"data:(image/[\w.+*-]+);(path|base64|url)")
# Bounded where parts overlap: rows choose the text.
_DATA_URL = re.compile(r"data:(image/[\w.+*-]{1,100})?[^,]{0,200};base64,")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}")


def is_image_dict(value: Any, message_format: str) -> bool:
    """Whether a value of the data stands for an image, in the flow's own form."""
    if type(value) is not dict:
        return False
    if message_format == BASIC:
        return len(value) == 1 and isinstance(key := next(iter(value)), str) and _KEY.fullmatch(key) is not None
    kind = value.get("type")
    if len(value) != 2 or kind not in ("image_url", "image_file"):
        return False
    inner = value.get(kind)
    return isinstance(inner, dict) and ("url" if kind == "image_url" else "path") in inner


def _is_text_dict(value: dict[Any, Any]) -> bool:
    if len(value) != 2 or value.get("type") != "text":
        return False
    text = value.get("text")
    return isinstance(text, str) or (isinstance(text, dict) and isinstance(text.get("value"), str))


def holds_images(value: Any, message_format: str) -> bool:
    """Whether lists and dicts of data have something in them, at any depth, that `load_images` changes."""
    level = [value]
    while level := [part for part in level if type(part) in (dict, list)]:
        for part in level:
            if is_image_dict(part, message_format):
                return True
            if message_format == OPENAI_VISION and type(part) is dict and _is_text_dict(part):
                return True
        level = [child for part in level for child in (part.values() if type(part) is dict else part)]
    return False


def load_images(value: Any, folder: str | None, message_format: str) -> Any:
    """Give the value with each image dictionary in its lists and dicts as an `Image`, each text dictionary as a `Text`.

    Args:
        value: JSON.
        folder: Where paths are looked for, and which they may not leave; `None` where there is none.
        message_format: `basic` or `openai-vision`.

    Raises:
        InvalidImageInput: An image cannot be read, or may not be.
    """
    if type(value) is list:
        return [load_images(part, folder, message_format) for part in value]
    if type(value) is not dict:
        return value
    if is_image_dict(value, message_format):
        return _of_dict(value, folder, message_format)
    if message_format == OPENAI_VISION and _is_text_dict(value):
        return Text.deserialize(value)
    return {key: load_images(part, folder, message_format) for key, part in value.items()}


def place_images(value: Any, folder: str | None, message_format: str) -> Any:
    """Give the value with each path in its image dictionaries as a place that can be opened; nothing is read.

    Args:
        value: JSON.
        folder: What paths are relative to, and may not leave; `None` where there is none: they stay as they are.
        message_format: `basic` or `openai-vision`.

    Raises:
        InvalidImageInput: A path leads out of the folder, or is none.
    """
    if type(value) is list:
        return [place_images(part, folder, message_format) for part in value]
    if type(value) is not dict:
        return value
    if not is_image_dict(value, message_format):
        return {key: place_images(part, folder, message_format) for key, part in value.items()}
    mime_type, resource, content = _told(value, message_format)
    if resource != "path" or folder is None or not isinstance(content, str):
        return value
    try:
        place = place_within(content, folder)
    except ValueError as exc:  # a null byte
        raise InvalidImageInput(f"The path {shorten(content)} is none: {exc}.") from exc
    return path_dict(mime_type or ANY_TYPE, place, message_format)


def path_in(value: Any, message_format: str) -> str | None:
    """The path by which a value of the data gives an image; `None` for an address, for an image itself, and for what is none.

    Args:
        value: An image dictionary, or the text of an input of type image.
        message_format: `basic` or `openai-vision`.
    """
    if is_image_dict(value, message_format):
        _, resource, content = _told(value, message_format)
        return content if resource == "path" and isinstance(content, str) else None
    if not isinstance(value, str) or len(value) > _MAX_PATH or _DATA_URL.match(value):
        return None
    if value.startswith(("http://", "https://")):
        return None
    content = _decoded(value) if _BASE64.fullmatch(value.strip()) else None
    return value if content is None or not guess_mime_type(content) else None


def with_path(value: Any, path: str, message_format: str) -> Any:
    """Give the same with another path, where `path_in` gives one."""
    if isinstance(value, str):
        return path
    mime_type, _, _ = _told(value, message_format)
    return path_dict(mime_type or ANY_TYPE, path, message_format)


def load_image(value: Any, folders: Sequence[str | None], message_format: str) -> Any:
    """Give the image that an input of type image stands for.

    Args:
        value: An image dictionary, a path, an address, or base64 text with or without `data:…;base64,` before it.
        folders: Where a path is looked for, the first that has it; a dictionary's in the last, the data's own.
        message_format: `basic` or `openai-vision`.

    Raises:
        InvalidImageInput: It is none, or cannot be read, or may not be.
    """
    if is_image(value):
        return value
    if is_image_dict(value, message_format):
        return _of_dict(value, folders[-1], message_format)
    if not isinstance(value, str) or not value:
        known = '{"data:image/<type>;path|base64|url": …}' if message_format == BASIC else '{"type": "image_url", …}'
        found = "an empty text" if value == "" else f"a {type(value).__name__}"
        raise InvalidImageInput(f"Found {found}, expected a path, an address, base64 text or {known}.")
    if _DATA_URL.match(value):
        return _of_base64(value)
    if value.startswith(("http://", "https://")):
        return _of_url(value)
    content = _decoded(value) if _BASE64.fullmatch(value.strip()) else None
    if content is not None and guess_mime_type(content):
        return _image(content)
    problem: InvalidImageInput | None = None
    for folder in dict.fromkeys(folders):
        try:
            return _of_path(value, folder)
        except InvalidImageInput as exc:
            problem = exc
    if content:
        return _image(content)
    assert problem is not None, "there is one folder at least"
    raise problem


def _told(value: dict[str, Any], message_format: str) -> tuple[str | None, str, Any]:
    """What an image dictionary says: the type, whether it is a `path`, a `url` or `base64`, and that itself."""
    if message_format != BASIC:
        resource = "path" if value["type"] == "image_file" else "url"
        return None, resource, value[value["type"]][resource]
    ((key, content),) = value.items()
    match = _KEY.fullmatch(key)
    assert match is not None, "that is what made it an image"
    return match[1], match[2], content


def _of_dict(value: dict[str, Any], folder: str | None, message_format: str) -> Any:
    mime_type, resource, content = _told(value, message_format)
    if not isinstance(content, str) or not content:
        raise InvalidImageInput(f"The {resource} of an image should be a text, found {shorten(content)}.")
    if resource == "path":
        return _of_path(content, folder, mime_type)
    if resource == "base64" or _DATA_URL.match(content):
        return _of_base64(content, mime_type)
    return _of_url(content, mime_type)


def _of_path(path: str, folder: str | None, mime_type: str | None = None) -> Any:
    return _image(read_within(path, folder), mime_type)


def _of_base64(text: str, mime_type: str | None = None) -> Any:
    prefix = _DATA_URL.match(text)
    content = _decoded(text[prefix.end() :] if prefix else text)
    if content is None:
        raise InvalidImageInput(f"Expected base64 text, found {shorten(text)}.")
    return _image(content, mime_type or (prefix[1] if prefix else None))


def _of_url(url: str, mime_type: str | None = None) -> Any:
    return _image(fetched(url), mime_type, url)


def _decoded(text: str) -> bytes | None:
    if len(text) * 3 // 4 > MAX_IMAGE_BYTES + 4:
        raise InvalidImageInput(
            f"The base64 text is longer than {MAX_IMAGE_BYTES:,} bytes of image. Give a smaller image."
        )
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _image(content: bytes, mime_type: str | None = None, source_url: str | None = None) -> Any:
    """An image of the class that the flow's own code imports."""
    theirs = sys.modules.get("promptflow.contracts.multimedia")
    made = getattr(theirs, "Image", Image)
    return made(content, mime_type, source_url)


def url_dict(image: Any, message_format: str) -> dict[str, Any]:
    """A dictionary that holds the image's address, or the image itself where it has none."""
    url = image.source_url
    if message_format == OPENAI_VISION:
        return {"type": "image_url", "image_url": {"url": url or image.to_base64(with_type=True)}}
    return {f"data:{image._mime_type};url": url} if url else {f"data:{image._mime_type};base64": image.to_base64()}


def path_dict(mime_type: str, path: str, message_format: str) -> dict[str, Any]:
    """A dictionary that holds the path of an image's file."""
    if message_format == OPENAI_VISION:
        return {"type": "image_file", "image_file": {"path": path}}
    return {f"data:{mime_type};path": path}
