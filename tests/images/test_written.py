"""Images in records and prompts."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from prefect_batchflow.exceptions import ImageTooLargeError
from prefect_batchflow.images import written
from prefect_batchflow.images.forms import BASIC
from prefect_batchflow.images.image import Image, file_name
from prefect_batchflow.images.written import ImageWriter, mark_images, placeheld

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
JPEG = b"\xff\xd8\xff" + bytes(9)
B64 = base64.b64encode(PNG).decode()


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
