"""Images as user code has them, with their types.

Imported by the first line that has one. The standard library only.

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
    """An image's bytes, with its type and, for one that was fetched, its address.

    `promptflow.contracts.multimedia.Image` is this class where promptflow is not installed.
    """

    def __new__(cls, value: bytes, mime_type: str | None = None, source_url: str | None = None) -> Image:
        """Take the bytes; a type that is not given is told from them."""
        return super().__new__(cls, value)

    def __init__(self, value: bytes, mime_type: str | None = None, source_url: str | None = None) -> None:
        self._mime_type = (mime_type or guess_mime_type(value) or ANY_TYPE).lower()
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
