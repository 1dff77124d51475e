"""An image as user code has it."""

from __future__ import annotations

import base64
import pickle

import pytest

from prefect_batchflow.images.image import Image, file_name

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
JPEG = b"\xff\xd8\xff" + bytes(9)
B64 = base64.b64encode(PNG).decode()


class TestImage:
    def test_it_is_its_bytes_and_knows_its_type(self) -> None:
        image = Image(PNG)

        assert (image, image.mime_type, image.source_url) == (PNG, "image/png", None)
        assert image.to_base64() == B64
        assert image.to_base64(with_type=True) == f"data:image/png;base64,{B64}"

    @pytest.mark.parametrize(
        ("content", "mime_type"),
        [
            (JPEG, "image/jpeg"),
            (b"GIF89a", "image/gif"),
            (b"RIFF\0\0\0\0WEBP", "image/webp"),
            (b"\0\0\0 ftypavif", "image/avif"),
            (b"?", "image/*"),
        ],
    )
    def test_types(self, content: bytes, mime_type: str) -> None:
        assert Image(content).mime_type == mime_type

    def test_it_survives_pickling(self) -> None:
        image = pickle.loads(pickle.dumps(Image(PNG, "image/x", "http://a/b")))  # noqa: S301 - of this line

        assert (image, image.mime_type, image.source_url) == (PNG, "image/x", "http://a/b")

    def test_its_text_is_short(self) -> None:
        assert str(Image(PNG)) == repr(Image(PNG)) == f"{Image(PNG).serialize()}"
        assert len(str(Image(PNG))) == 15

    def test_file_names_are_the_content(self) -> None:
        assert file_name(Image(PNG)) == file_name(Image(PNG, "image/png"))
        assert file_name(Image(b"<svg/>", "image/svg+xml")).endswith(".svg")
        assert file_name(Image(PNG, "image/../../x")).endswith(".png"), "a type is no way to choose a path"
