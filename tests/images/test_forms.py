"""Images as data and outputs write them: loaded, placed, and written again."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.images import fetch
from prefect_batchflow.images.forms import BASIC, OPENAI_VISION, form_of
from prefect_batchflow.images.image import Image, Text
from prefect_batchflow.images.written import ImageWriter

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
JPEG = b"\xff\xd8\xff" + bytes(9)
B64 = base64.b64encode(PNG).decode()


class TestBasic:
    @pytest.mark.parametrize(
        ("value", "content", "mime_type"),
        [
            ({"data:image/png;path": "a.png"}, PNG, "image/png"),
            ({"data:image/*;path": "deep/b.jpg"}, JPEG, "image/*"),
            ({"data:image/png;path": "same.png"}, PNG, "image/png"),
            ({"data:image/png;path": "deep/../a.png"}, PNG, "image/png"),
            ({"data:image/jpg;base64": B64}, PNG, "image/jpg"),
            ({"data:image/png;base64": f"data:image/png;base64,{B64}"}, PNG, "image/png"),
        ],
    )
    def test_a_dictionary(self, folder: str, value: Any, content: bytes, mime_type: str) -> None:
        image = BASIC.load_images(value, folder)

        assert type(image) is Image
        assert (image, image.mime_type) == (content, mime_type)

    def test_at_any_depth(self, folder: str) -> None:
        value = {"a": [1, {"b": {"data:image/png;path": "a.png"}}], "c": "data:image/png;path"}

        assert BASIC.holds_images(value)
        assert BASIC.load_images(value, folder) == {"a": [1, {"b": PNG}], "c": "data:image/png;path"}

    @pytest.mark.parametrize(
        "value",
        [
            "data:image/png;path",
            {"data:image/png;path": "x", "other": 1},
            {"data:text/plain;path": "x"},
            {"type": "image_url", "image_url": {"url": "http://a/b"}},
            [[], {}, {"a": [1]}],
        ],
    )
    def test_what_is_no_image_stays(self, value: Any) -> None:
        assert not BASIC.holds_images(value)
        assert BASIC.load_images(value, None) == value

    @pytest.mark.parametrize("path", ["a.png", "{folder}/a.png"])
    def test_an_input_may_be_a_plain_path(self, folder: str, path: str) -> None:
        assert BASIC.load_image(path.format(folder=folder), (None, folder)) == PNG

    def test_a_plain_path_is_looked_for_in_the_flows_folder_first(self, folder: str) -> None:
        (fixed := os.path.join(folder, "deep"))  # noqa: PTH118
        assert BASIC.load_image("b.jpg", (fixed, folder)) == JPEG

    @pytest.mark.parametrize("text", [B64, f"data:image/png;base64,{B64}"])
    def test_an_input_may_be_base64_text(self, folder: str, text: str) -> None:
        assert BASIC.load_image(text, (folder,)) == PNG

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("", "Expected an image as .*, found ''"),
            (3, "Expected an image as .*, found 3"),
            ({"a": 1}, "Expected an image as .*, found {'a': 1}"),
            ("../secret.png", "leads out of"),
            ("nowhere.png", "There is no image 'nowhere.png' in"),
            ({"data:image/png;base64": "?"}, "Expected base64 text, found '\\?'"),
            ({"data:image/png;path": 3}, "must be text, found 3"),
            ({"data:image/png;path": "a\0.png"}, "cannot be read: \\(ValueError\\)"),
        ],
    )
    def test_what_cannot_be_loaded_says_why(self, folder: str, value: Any, text: str) -> None:
        with pytest.raises(InvalidImageInput, match=text):
            BASIC.load_image(value, (folder,))


class TestOpenaiVision:
    def test_files_data_addresses_and_texts(self, folder: str) -> None:
        value = [
            {"type": "text", "text": "hi"},
            {"type": "text", "text": {"value": "ho", "annotations": [1]}},
            {"type": "image_file", "image_file": {"path": "a.png"}},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}", "detail": "low"}},
            {"data:image/png;path": "a.png"},
        ]

        loaded = OPENAI_VISION.load_images(value, folder)

        assert loaded == ["hi", "ho", PNG, PNG, {"data:image/png;path": "a.png"}]
        assert [type(part) for part in loaded] == [Text, Text, Image, Image, dict]
        assert loaded[1].serialize() == value[1]

    def test_outputs_are_of_its_form_too(self) -> None:
        writer = ImageWriter(OPENAI_VISION)

        plain = writer.plain({"i": Image(PNG), "u": Image(PNG, None, "http://a/b"), "t": Text("x")})

        assert plain == {
            "i": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}"}},
            "u": {"type": "image_url", "image_url": {"url": "http://a/b"}},
            "t": {"type": "text", "text": "x"},
        }
        assert writer.places == [["i"]]


class TestAddresses:
    def test_an_image_keeps_its_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "fetch", lambda url, most: (PNG, "application/octet-stream"))

        image = BASIC.load_image("https://a.example/x", (None,))

        assert (image, image.mime_type, image.source_url) == (PNG, "image/png", "https://a.example/x")
        assert ImageWriter(BASIC).plain(image) == {"data:image/png;url": "https://a.example/x"}

    def test_what_is_no_image_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "fetch", lambda url, most: (b"<html>", "text/html"))

        with pytest.raises(InvalidImageInput, match=r"https://a\.example/x is text/html, expected an image"):
            BASIC.load_images({"data:image/png;url": "https://a.example/x?key=secret"}, None)


class TestPlaced:
    """Image dictionaries as a callable gets them: with a place that it can open, nothing read."""

    @pytest.mark.parametrize("before", ["", "file://"])
    def test_paths_become_absolute_at_any_depth(self, folder: str, before: str) -> None:
        root = os.path.realpath(folder)
        value = {"x": [{"data:image/png;path": "none.png"}, {"data:image/png;base64": "?"}], "y": "a.png"}

        placed = BASIC.place_images(value, before + folder)

        assert placed == {**value, "x": [{"data:image/png;path": f"{root}/none.png"}, value["x"][1]]}
        assert value["x"][0] == {"data:image/png;path": "none.png"}

    def test_a_path_on_another_storage_becomes_a_url(self) -> None:
        placed = BASIC.place_images({"data:image/png;path": "deep/a.png"}, "s3://bucket/rows/")

        assert placed == {"data:image/png;path": "s3://bucket/rows/deep/a.png"}

    def test_what_lies_in_no_folder_stays(self) -> None:
        assert BASIC.place_images({"data:image/png;path": "a.png"}, None) == {"data:image/png;path": "a.png"}

    @pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "link.png", "out/c.png"])
    def test_a_path_that_leads_out_is_refused(self, folder: str, path: str) -> None:
        with pytest.raises(InvalidImageInput, match="leads out of"):
            BASIC.place_images([{"data:image/png;path": path}], folder)

    def test_one_with_a_null_byte_is_none(self, folder: str) -> None:
        with pytest.raises(InvalidImageInput, match=r"is not valid: .*null (byte|character)"):
            BASIC.place_images({"data:image/png;path": "a\0.png"}, folder)


@pytest.mark.parametrize("name", [".env", "tool.py", "flow.dag.yaml", "key.pem", "rows.jsonl", "id_rsa", "png"])
@pytest.mark.parametrize("written", ["plain", "basic", "vision"])
def test_a_row_reads_no_file_that_is_not_an_image(tmp_path: Path, name: str, written: str) -> None:
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / name).write_text("OPENAI_API_KEY=sk-secret")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_text("OPENAI_API_KEY=sk-secret")
    value: Any = {
        "plain": name,
        "basic": {"data:image/png;path": name},
        "vision": {"type": "image_file", "image_file": {"path": name}},
    }[written]

    with pytest.raises(InvalidImageInput, match="is not an image: neither its name nor its first bytes say so"):
        form_of("openai-vision" if written == "vision" else "basic").load_image(
            value, (str(tmp_path / "flow"), str(tmp_path / "data"))
        )


@pytest.mark.parametrize(("name", "content"), [("a.svg", b"<svg/>"), ("a.ICO", b"\0\0"), ("a", b"\x89PNG\r\n\x1a\n")])
def test_a_row_reads_an_image_of_the_flow_by_its_name_or_its_content(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / name).write_bytes(content)

    assert form_of("basic").load_image(name, (str(tmp_path / "flow"), str(tmp_path))) == content
