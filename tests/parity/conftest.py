"""What the parity tests share: the model server, and a folder for a case's files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from echo_model import running_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    with running_model() as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a case's files go; modules that are imported from it are forgotten afterwards."""
    path = tmp_path / "flow"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    yield path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(path)):
            del sys.modules[name]
