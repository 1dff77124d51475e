"""A temporary Prefect server for the whole session, with nothing of this machine's Prefect in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings
from prefect.testing.utilities import prefect_test_harness

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server on 127.0.0.1, its database and home in a temporary folder."""
    home = tmp_path_factory.mktemp("prefect-home")
    with temporary_settings({PREFECT_HOME: home, PREFECT_SERVER_ANALYTICS_ENABLED: False}), prefect_test_harness():
        yield
