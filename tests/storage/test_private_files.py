"""Files of a run are for their owner, and nobody else decides which file a run writes."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.storage.files import write_beside
from prefect_batchflow.storage.keys import IMAGES
from prefect_batchflow.storage.private_files import make_folder, unfinished

if TYPE_CHECKING:
    from collections.abc import Callable

CONTENT = partial(Path.write_bytes, data=b"new")


def test_an_output_folder_and_its_files_are_for_the_owner(tmp_path: Path) -> None:
    write_beside(tmp_path / "a" / "out", "output.jsonl", CONTENT)
    write_beside(tmp_path / "a" / "out", "x.png", CONTENT, inner=IMAGES)

    modes = {str(path.relative_to(tmp_path)): stat.filemode(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {
        "a": "drwx------",
        "a/out": "drwx------",
        "a/out/output.jsonl": "-rw-------",
        "a/out/images": "drwx------",
        "a/out/images/x.png": "-rw-------",
    }


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", [".writing-output.jsonl", "output.jsonl"])
def test_a_planted_link_overwrites_nothing(tmp_path: Path, name: str, link: Callable[[Path, Path], None]) -> None:
    precious, out = tmp_path / "precious", tmp_path / "out"
    precious.write_text("precious")
    out.mkdir()
    link(out / name, precious)

    write_beside(out, "output.jsonl", CONTENT)

    assert precious.read_text() == "precious"
    assert (out / "output.jsonl").read_bytes() == b"new"
    assert not (out / "output.jsonl").is_symlink()


def test_a_folder_of_images_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / IMAGES).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StorageError, match=r"images is a link, which can lead anywhere\. Remove it"):
        write_beside(tmp_path / "out", "x.png", CONTENT, inner=IMAGES)

    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_output_folder_can_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")

    write_beside(tmp_path / "out", "output.jsonl", CONTENT)

    assert (tmp_path / "elsewhere" / "output.jsonl").read_bytes() == b"new"


def test_names_of_unfinished_files_cannot_be_foreseen(tmp_path: Path) -> None:
    with unfinished(tmp_path) as one, unfinished(tmp_path) as other:
        assert one.name.startswith(".writing-")
        assert len({one.name, other.name}) == 2
        assert oct(one.stat().st_mode & 0o777) == "0o600"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".writing-known").symlink_to(tmp_path / "precious")

    with pytest.raises(FileExistsError), unfinished(tmp_path):
        pass

    assert (tmp_path / "precious").read_text() == "precious"


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, os.strerror(28))

    with pytest.raises(StorageError, match="No space left"):
        write_beside(tmp_path, "output.jsonl", fail)

    assert list(tmp_path.iterdir()) == []


def test_folders_above_are_made_for_the_owner_too(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")

    assert [oct(path.stat().st_mode & 0o777) for path in (tmp_path / "a", tmp_path / "a" / "b")] == ["0o700"] * 2
