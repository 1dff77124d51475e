"""A folder of images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
JPEG = b"\xff\xd8\xff" + bytes(9)


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
