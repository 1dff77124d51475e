"""The folders that images must stay in."""

from __future__ import annotations

import base64
import os

import fsspec
import pytest

from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.images import forms, places
from prefect_batchflow.images.forms import BASIC
from prefect_batchflow.images.places import folders_of, place_within, read_within

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
B64 = base64.b64encode(PNG).decode()


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

    @pytest.mark.parametrize(
        ("path", "content"),
        [
            ("a.png", PNG),
            ("deep/b.jpg", b"\xff\xd8\xff" + bytes(9)),
            ("c.png", b"secret"),
            ("{parent}/data-too/c.png", b"secret"),
            ("../data-too/c.png", b"secret"),
            ("out/c.png", b"secret"),
            ("{parent}/data/a.png", PNG),
        ],
    )
    def test_a_root_is_one_more_folder(self, folder: str, path: str, content: bytes) -> None:
        parent = os.path.dirname(folder)  # noqa: PTH120
        path = path.format(parent=parent)

        assert read_within(path, (folder, f"{parent}/data-too")) == content
        assert place_within(path, (folder, f"{parent}/data-too")).endswith(os.path.basename(path))  # noqa: PTH119

    @pytest.mark.parametrize(
        "path", ["../secret.png", "{parent}/secret.png", "/etc/passwd", "link.png", "{parent}/data-to"]
    )
    def test_nothing_leads_out_of_all_roots(self, folder: str, path: str) -> None:
        parent = os.path.dirname(folder)  # noqa: PTH120
        folders = (folder, f"{parent}/data-too", "memory://images/data")
        path = path.format(parent=parent)

        for use in (read_within, place_within):
            with pytest.raises(
                InvalidImageInput, match=r"leads out of .*data and .*image_roots \(--image-root FOLDER\)"
            ):
                use(path, folders)

    def test_a_missing_image_is_told_with_all_places(self, folder: str) -> None:
        with pytest.raises(InvalidImageInput, match=rf"no image 'no\.png' in {folder} or /nowhere"):
            read_within("no.png", (folder, "/nowhere"))

    def test_a_root_can_be_the_only_folder(self, folder: str) -> None:
        assert read_within("a.png", folders_of(None, [folder])) == PNG
        assert folders_of(folder, []) == folder

    def test_a_pipe_holds_nobody(self, folder: str) -> None:
        with pytest.raises(InvalidImageInput, match=r"'pipe\.png' in .* is not a file"):
            read_within("pipe.png", folder)

    def test_data_from_nowhere_has_no_paths(self) -> None:
        with pytest.raises(InvalidImageInput, match="this data has no folder"):
            read_within("a.png", None)

    def test_what_is_too_large_is_refused(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (forms, places):
            monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 10)

        with pytest.raises(InvalidImageInput, match=r"'a\.png' is larger than 10 bytes"):
            read_within("a.png", folder)
        with pytest.raises(InvalidImageInput, match="in the base64 text is larger than 10 bytes"):
            BASIC.load_image({"data:image/png;base64": B64}, (folder,))

    def test_another_storage(self) -> None:
        with fsspec.open("memory://images/data/a.png", "wb") as file:
            file.write(PNG)

        assert read_within("a.png", "memory://images/data") == PNG
        assert read_within("memory://images/data/a.png", "memory://images/data/") == PNG

    @pytest.mark.parametrize("path", [
        "../x", "a/../../x", "/x", "memory://other/x", "a/%2e%2e/x", "..\\x", "zip::x", "a/%252e%252e/x", "a/.\t./.\t./x",
        "a/.\n./x", "a/.%09./x", "a/%5c..%5cx", "a/..%2fx", "a/\x00/x",
    ])  # fmt: skip
    def test_nothing_leads_out_of_another_storage(self, path: str) -> None:
        with pytest.raises(InvalidImageInput, match="leads out of memory://images/data"):
            read_within(path, "memory://images/data")
