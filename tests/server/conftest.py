"""One real server, worker and set of deployments for all tests here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prefect_api import PrefectAPI
from prefect_processes import PREFECT, Home, prefect_home, start_server
from steering import Steering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def server() -> Iterator[Home]:
    """A Prefect home with a running server."""
    with prefect_home() as home:
        start_server(home)
        yield home


@pytest.fixture(scope="session")
def deployed(server: Home, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The server with a process worker and `deployments/prefect.yaml` deployed, as its README says."""
    root = pytestconfig.rootpath
    pool = ["--type", "process", "--base-job-template", "deployments/work-pool.json"]
    server.prefect("work-pool", "create", "batchflow", *pool, cwd=root)
    server.prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml", cwd=root)
    worker = [*PREFECT, "worker", "start", "--pool", "batchflow", "--type", "process"]
    server.start(
        "worker",
        worker,
        BATCHFLOW_HOME=str(root),
        BATCHFLOW_ROOTS=f"{root},{tmp_path_factory.getbasetemp()}",
        PREFECT_WORKER_QUERY_SECONDS="1",
    )
    return server


@pytest.fixture
def api(server: Home) -> Iterator[PrefectAPI]:
    """The server's API."""
    client = PrefectAPI(server.api_url)
    yield client
    client.close()


@pytest.fixture
def steering(tmp_path: Path) -> Callable[[int], Steering]:
    """Make the data of so many lines of the steered flow."""
    return lambda lines: Steering.over(tmp_path, lines)
