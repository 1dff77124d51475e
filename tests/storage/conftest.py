"""Run storages on both kinds of file systems, and what async tests run on."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.storage.keys import RunKeys

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def anyio_backend() -> str:
    """What async tests here run on, by anyio's own plugin."""
    return "asyncio"


@pytest.fixture
def local(tmp_path: Path) -> RunStorageBlock:
    return RunStorageBlock(url=str(tmp_path / "runs"))


@pytest.fixture
def remote() -> RunStorageBlock:
    """What is not of this machine's disks: no file locks, no rename."""
    return RunStorageBlock(url=f"memory://{uuid.uuid4().hex}/runs")


@pytest.fixture
def keys() -> RunKeys:
    return RunKeys("run-1")
