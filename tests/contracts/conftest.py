"""What the contract tests stand on."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """What async tests here run on, by anyio's own plugin."""
    return "asyncio"
