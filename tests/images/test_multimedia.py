"""Images as objects, as data and in prompts, and the folders that they must stay in."""

from __future__ import annotations

import base64
import os
import pickle
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from prefect_batchflow.exceptions import ImageTooLargeError, InvalidImageInput
from prefect_batchflow.images import fetch, forms, places, written
from prefect_batchflow.images.forms import BASIC, OPENAI_VISION
from prefect_batchflow.images.image import Image, Text, file_name
from prefect_batchflow.images.places import read_within
from prefect_batchflow.images.written import ImageWriter, mark_images, placeheld

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
JPEG = b"\xff\xd8\xff" + bytes(9)
B64 = base64.b64encode(PNG).decode()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder with images, beside it a secret that is none of them."""
    inner = tmp_path / "data"
    (inner / "deep").mkdir(parents=True)
    (inner / "a.png").write_bytes(PNG)
    (inner / "deep" / "b.jpg").write_bytes(JPEG)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "data-too").mkdir()
    (tmp_path / "data-too" / "c.png").write_bytes(b"secret")
    (inner / "link.png").symlink_to(tmp_path / "secret.png")
    (inner / "out").symlink_to(tmp_path / "data-too")
    (inner / "same.png").symlink_to("a.png")
    os.mkfifo(inner / "pipe.png")
    return str(inner)


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
            ("", "an empty text"),
            (3, "Found a int"),
            ({"a": 1}, "Found a dict, expected"),
            ("../secret.png", "leads out of"),
            ("nowhere.png", "No image 'nowhere.png' in"),
            ({"data:image/png;base64": "?"}, "Expected base64 text, found '\\?'"),
            ({"data:image/png;path": 3}, "should be a text, found 3"),
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


class TestFolders:
    @pytest.mark.parametrize(
        "path",
        [
            "../secret.png",
            "deep/../../secret.png",
            "/etc/passwd",
            "{parent}/secret.png",
            "../data-too/c.png",
            "link.png",
            "out/c.png",
            "",
            ".",
        ],
    )
    def test_nothing_leads_out(self, folder: str, path: str) -> None:
        with pytest.raises(InvalidImageInput, match="leads out of"):
            read_within(path.format(parent=os.path.dirname(folder)), folder)  # noqa: PTH120

    def test_a_pipe_holds_nobody(self, folder: str) -> None:
        with pytest.raises(InvalidImageInput, match=r"'pipe\.png' in .* is no file"):
            read_within("pipe.png", folder)

    def test_data_from_nowhere_has_no_paths(self) -> None:
        with pytest.raises(InvalidImageInput, match="lies in no folder"):
            read_within("a.png", None)

    def test_what_is_too_large_is_refused(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (forms, places):
            monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 10)

        with pytest.raises(InvalidImageInput, match=r"'a\.png' is larger than 10 bytes"):
            read_within("a.png", folder)
        with pytest.raises(InvalidImageInput, match="longer than 10 bytes of image"):
            BASIC.load_image({"data:image/png;base64": B64}, (folder,))

    def test_another_storage(self) -> None:
        with fsspec.open("memory://images/data/a.png", "wb") as file:
            file.write(PNG)

        assert read_within("a.png", "memory://images/data") == PNG
        assert read_within("memory://images/data/a.png", "memory://images/data/") == PNG

    @pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "memory://other/x", "a/%2e%2e/x", "..\\x", "zip::x"])
    def test_nothing_leads_out_of_another_storage(self, path: str) -> None:
        with pytest.raises(InvalidImageInput, match="leads out of memory://images/data"):
            read_within(path, "memory://images/data")


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


class TestRecords:
    def test_images_become_dictionaries_that_need_nothing_else(self) -> None:
        writer = ImageWriter(BASIC)

        plain = writer.plain({"a": [Image(PNG), "x"], "b": {"c": Image(JPEG)}})

        assert plain["a"] == [{"data:image/png;base64": B64}, "x"]
        assert writer.places == [["a", 0], ["b", "c"]]
        assert BASIC.load_images(plain, None) == {"a": [PNG, "x"], "b": {"c": JPEG}}

    def test_all_else_stays_what_it_is(self) -> None:
        value = {"a": (1, [Image(PNG)]), 2: {3}}

        assert ImageWriter(BASIC).plain(value) == {"a": (1, [{"data:image/png;base64": B64}]), 2: {3}}
        assert placeheld((1, [])) == (1, [])

    def test_a_record_takes_only_so_much(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(written, "MAX_OUTPUT_BYTES", 30)

        with pytest.raises(ImageTooLargeError, match="more than 30 bytes"):
            ImageWriter(BASIC).plain([Image(PNG), Image(PNG)])

    def test_nodes_have_a_word_in_its_place(self) -> None:
        assert placeheld({"a": [Image(PNG)]}) == {"a": [f"Image(image/png, 16 bytes, {file_name(Image(PNG))})"]}


class TestPrompts:
    def test_images_are_marked_for_the_prompt(self) -> None:
        parts: dict[str, Any] = {}

        values = mark_images({"p": Image(PNG), "more": [Image(JPEG, None, "https://a/b"), "x"]}, parts, detail="low")

        assert [parts[values["p"]], parts[values["more"][0]]] == [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://a/b", "detail": "low"}},
        ]
        assert values["more"][1] == "x"
        assert len(parts) == 2


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
        with pytest.raises(InvalidImageInput, match=r"is none: .*null (byte|character)"):
            BASIC.place_images({"data:image/png;path": "a\0.png"}, folder)
