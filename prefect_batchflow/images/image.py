"""Images: as user code has them, as data, outputs and prompts write them, and where they may be read from.

Imported by the first line that has one. The standard library only; fsspec where the data lies on another storage.

Source: promptflow `contracts/multimedia.py`, `_utils/multimedia_utils.py`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from prefect_batchflow.definition.flow import MESSAGE_FORMATS
from prefect_batchflow.exceptions import ImageTooLargeError, InvalidImageInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BASIC, OPENAI_VISION = MESSAGE_FORMATS
MAX_IMAGE_BYTES = 20 * 1024 * 1024
"""Of one image, read or fetched."""
MAX_OUTPUT_BYTES = 32 * 1024 * 1024
"""Of all images that one line's record keeps."""

_MAX_PATH = 4096
_KEY = re.compile(r"data:(image/[\w.+*-]+);(path|base64|url)")
# Bounded where parts overlap: rows choose the text.
_DATA_URL = re.compile(r"data:(image/[\w.+*-]{1,100})?[^,]{0,200};base64,")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}")
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)
_ANY = "image/*"


class Image(bytes):
    """An image's bytes, with its type and, for one that was fetched, its address.

    `promptflow.contracts.multimedia.Image` is this class where promptflow is not installed.
    """

    def __new__(cls, value: bytes, mime_type: str | None = None, source_url: str | None = None) -> Image:
        """Take the bytes; a type that is not given is told from them."""
        return super().__new__(cls, value)

    def __init__(self, value: bytes, mime_type: str | None = None, source_url: str | None = None) -> None:
        self._mime_type = (mime_type or guess_mime_type(value) or _ANY).lower()
        self._source_url = source_url
        self._hash = hashlib.sha1(value, usedforsecurity=False).hexdigest()[:8]

    @property
    def mime_type(self) -> str:
        """As `image/png`; `image/*` where it cannot be told."""
        return self._mime_type

    @property
    def source_url(self) -> str | None:
        """Where it was fetched from."""
        return self._source_url

    def to_base64(self, with_type: bool = False) -> str:
        """Its base64 text; with its type, a data URL."""
        text = base64.b64encode(self).decode("ascii")
        return f"data:{self._mime_type};base64,{text}" if with_type else text

    def serialize(self, encoder: Callable[[Image], Any] | None = None) -> Any:
        """What an encoder makes of it, else a short text."""
        return str(self) if encoder is None else encoder(self)

    def __repr__(self) -> str:
        return f"Image({self._hash})"

    __str__ = __repr__


class Text(str):
    """A text of an openai-vision message, with its annotations."""

    _annotations: list[Any] | None

    def __new__(cls, value: str, annotations: list[Any] | None = None) -> Text:
        """Take the text and what belongs to it."""
        text = super().__new__(cls, value)
        text._annotations = annotations
        return text

    @classmethod
    def deserialize(cls, data: Mapping[str, Any]) -> Text:
        """Read `{"type": "text", "text": …}`."""
        text = data.get("text", "")
        if isinstance(text, dict):
            return cls(text.get("value", ""), text.get("annotations", []))
        return cls(text)

    def serialize(self) -> dict[str, Any]:
        """Write it as `deserialize` reads it."""
        text: Any = str(self)
        return {
            "type": "text",
            "text": text if self._annotations is None else {"value": text, "annotations": self._annotations},
        }


def guess_mime_type(content: bytes) -> str | None:
    """The type that an image's first bytes tell; `None` for what is none of the usual."""
    for signature, mime_type in _SIGNATURES:
        if content.startswith(signature):
            return mime_type
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    if content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"heic"):
        return f"image/{content[8:12].decode()}"
    return None


def is_image(value: Any) -> bool:
    """Whether it is an image object: ours, or that of promptflow where it is installed."""
    return isinstance(value, bytes) and hasattr(value, "_mime_type")


def file_name(image: Any) -> str:
    """A name that is the image's content, for a file that holds it."""
    kind = str(image._mime_type).removeprefix("image/").partition("+")[0]
    if not re.fullmatch(r"[a-z0-9]{1,10}", kind):
        kind = (guess_mime_type(image) or "image/img").removeprefix("image/")
    return f"{hashlib.sha256(image).hexdigest()[:32]}.{kind}"


# --- what is written ------------------------------------------------------------------------------------------------


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
    return path_dict(mime_type or _ANY, place, message_format)


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
    return path_dict(mime_type or _ANY, path, message_format)


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
    return _image(_fetched(url), mime_type, url)


def _fetched(url: str) -> bytes:
    # Here, and not before: what speaks TLS takes a worker longer to import than most images to load.
    from prefect_batchflow.images.fetch import fetch, shown_url

    content, content_type = fetch(url, MAX_IMAGE_BYTES)
    if not content_type.startswith("image/") and guess_mime_type(content) is None:
        raise InvalidImageInput(f"{shown_url(url)} is {content_type}, expected an image. Check the address.")
    return content


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


# --- files ----------------------------------------------------------------------------------------------------------


def read_within(path: str, folder: str | None) -> bytes:
    """Read a file below a folder, which neither `..`, nor an absolute path, nor a link may leave.

    Args:
        path: Relative to the folder, or absolute and below it.
        folder: A folder of this machine, or a URL.

    Raises:
        InvalidImageInput: It leads out of the folder, is not there, is no file, or is too large.
    """
    if folder is None:
        raise InvalidImageInput(
            f"The path {shorten(path)} belongs to data that lies in no folder, such as a pipe's. Give data in a file, or the "
            "image as base64 text."
        )
    try:
        return _read_local(path, folder) if _is_local(folder) else _read_remote(path, folder)
    except InvalidImageInput:
        raise
    except FileNotFoundError:
        raise InvalidImageInput(
            f"No image {shorten(path)} in {shown_folder(folder)}. Paths are relative to the folder of the data."
        ) from None
    except Exception as exc:
        raise InvalidImageInput(
            f"The image {shorten(path)} in {shown_folder(folder)} cannot be read: ({type(exc).__name__}) {exc}."
        ) from exc


def shown_folder(folder: str) -> str:
    """A folder for messages."""
    if "://" not in folder:
        return folder
    from prefect_batchflow.images.fetch import shown_url

    return shown_url(folder)


def place_within(path: str, folder: str) -> str:
    """Give the place of a file below a folder: an absolute path, or a URL where the folder is one. Nothing is read.

    Raises:
        InvalidImageInput: It leads out of the folder.
    """
    return _local_within(path, folder)[0] if _is_local(folder) else _url_within(path, folder)


def _local_within(path: str, folder: str) -> tuple[str, str]:
    """An absolute path, and the same with links followed."""
    root = os.path.realpath(re.sub(r"^\w+://", "", folder))
    place = os.path.join(root, path)  # noqa: PTH118 - an absolute path counts as it is
    target = os.path.realpath(place)
    if not target.startswith(root.rstrip("/") + "/"):
        raise _leads_out(path, folder)
    return place, target


def _is_local(folder: str) -> bool:
    return "://" not in folder or folder.startswith(("file://", "local://"))


def _read_local(path: str, folder: str) -> bytes:
    _, target = _local_within(path, folder)
    # Links were followed above; none may have come into the last place since, and a pipe must not hold the line.
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidImageInput(f"{shorten(path)} in {folder} is no file. Give the path of an image.")
        return _within_limit(file.read(MAX_IMAGE_BYTES + 1), path)


def _url_within(path: str, folder: str) -> str:
    folder = folder.rstrip("/")
    inner = path.removeprefix(f"{folder}/")
    if inner.startswith("/") or "://" in inner or "::" in inner or ".." in re.split(r"[/\\]", unquote(inner)):
        raise _leads_out(path, folder)
    return f"{folder}/{inner}"


def _read_remote(path: str, folder: str) -> bytes:
    url = _url_within(path, folder)
    if url.startswith(("http://", "https://")):
        return _fetched(url)
    from fsspec.core import url_to_fs

    from prefect_batchflow.inputs.places import fresh_listings

    file_system, place = url_to_fs(url, **fresh_listings(url))
    with file_system.open(place, "rb") as file:
        return _within_limit(file.read(MAX_IMAGE_BYTES + 1), path)


def _leads_out(path: str, folder: str) -> InvalidImageInput:
    return InvalidImageInput(
        f"The path {shorten(path)} leads out of {shown_folder(folder)}, where its images must be. Put the image below that "
        "folder."
    )


def _within_limit(content: bytes, path: str) -> bytes:
    if len(content) > MAX_IMAGE_BYTES:
        raise InvalidImageInput(
            f"The image {shorten(path)} is larger than {MAX_IMAGE_BYTES:,} bytes. Give a smaller one."
        )
    return content


def shorten(value: Any) -> str:
    """A value of the data for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


# --- what is recorded -----------------------------------------------------------------------------------------------


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


def placeholder(image: Any) -> str:
    """What stands for an image in a node's record: its type and size, and the name its file has if it is an output."""
    return f"Image({image._mime_type}, {len(image):,} bytes, {file_name(image)})"


class ImageWriter:
    """Makes plain JSON of values with images in them, and remembers the places of those it wrote out.

    Attributes:
        places: Keys and indexes that lead to each image whose bytes are in what was made.
        found: Whether there was any image, or `Text`.
    """

    def __init__(self, message_format: str) -> None:
        self.places: list[list[str | int]] = []
        self.found = False
        self._format = message_format
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
            return url_dict(value, self._format)
        if isinstance(value, str) and hasattr(value, "_annotations"):
            self.found = True
            text: Any = value
            return text.serialize() if self._format == OPENAI_VISION else str(text)
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


# --- prompts --------------------------------------------------------------------------------------------------------


def mark_images(
    values: Mapping[str, Any], parts: dict[str, dict[str, Any]], detail: str | None = None
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
