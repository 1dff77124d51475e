"""Flows that are imported into the test's own process leave no trace in it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from prefect_batchflow import promptflow_shim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def fresh_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`sys.path`, promptflow and the modules below `tmp_path` as a new process has them."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    promptflow_shim.uninstall()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(str(tmp_path)) or name.partition(".")[0] == "promptflow":
            del sys.modules[name]


@pytest.fixture
def anyio_backend() -> str:
    """What async tests here run on, by anyio's own plugin."""
    return "asyncio"
