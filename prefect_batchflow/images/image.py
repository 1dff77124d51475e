"""Images as user code sees them, and their types.

Imported by the first line that has an image. The standard library only.

Source: promptflow `contracts/multimedia.py`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)
ANY_TYPE = "image/*"


class Image(bytes):
    """An image's bytes, with its type and, if it was fetched, its address.

    `promptflow.contracts.multimedia.Image` is this class if promptflow is not installed.
    """

    def __new__(cls, value: bytes, mime_type: str | None = None, source_url: str | None = None) -> Image:
        """Take the bytes. Without a type, it is guessed from them."""
        return super().__new__(cls, value)

    def __init__(self, value: bytes, mime_type: str | None = None, source_url: str | None = None) -> None:
        self._mime_type = (mime_type or guess_mime_type(value) or ANY_TYPE).lower()
        self._source_url = source_url
        self._hash = hashlib.sha1(value, usedforsecurity=False).hexdigest()[:8]

    @property
    def mime_type(self) -> str:
        """The type, such as `image/png`; `image/*` if unknown."""
        return self._mime_type

    @property
    def source_url(self) -> str | None:
        """The address that the image was fetched from."""
        return self._source_url

    def to_base64(self, with_type: bool = False) -> str:
        """Give the image as base64 text; with its type, as a data URL."""
        text = base64.b64encode(self).decode("ascii")
        return f"data:{self._mime_type};base64,{text}" if with_type else text

    def serialize(self, encoder: Callable[[Image], Any] | None = None) -> Any:
        """Give the encoder's result; without an encoder, a short text."""
        return str(self) if encoder is None else encoder(self)

    def __repr__(self) -> str:
        return f"Image({self._hash})"

    __str__ = __repr__


class Text(str):
    """A text of an openai-vision message, with its annotations."""

    _annotations: list[Any] | None

    def __new__(cls, value: str, annotations: list[Any] | None = None) -> Text:
        """Take the text and its annotations."""
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
    """Guess an image's type from its first bytes; `None` if unknown."""
    for signature, mime_type in _SIGNATURES:
        if content.startswith(signature):
            return mime_type
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    if content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"heic"):
        return f"image/{content[8:12].decode()}"
    return None


def is_image(value: Any) -> bool:
    """Whether a value is an image object: ours, or promptflow's if it is installed."""
    return isinstance(value, bytes) and hasattr(value, "_mime_type")


def file_name(image: Any) -> str:
    """Give a file name that is made from the image's content."""
    kind = str(image._mime_type).removeprefix("image/").partition("+")[0]
    if not re.fullmatch(r"[a-z0-9]{1,10}", kind):
        kind = (guess_mime_type(image) or "image/img").removeprefix("image/")
    return f"{hashlib.sha256(image).hexdigest()[:32]}.{kind}"
