"""A run that names no server: Prefect's ephemeral one keeps all of it, and goes when the run does."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from prefect_api import wait_for
from prefect_processes import interrupt_group, prefect_home, processes_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefect_processes import Home
    from steering import Steering

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]


@pytest.fixture
def home() -> Iterator[Home]:
    """A Prefect home without a server."""
    with prefect_home() as home:
        yield home


def test_the_ephemeral_server_keeps_every_task_run(home: Home, steering: Callable[[int], Steering]) -> None:
    steered = steering(164)

    run = home.local_run(steered, granularity="line")

    assert run.result()["completed_lines"] == 164
    assert _task_runs(home) == {"COMPLETED": 164}
    assert "Traceback" not in run.log.read_text()
    assert processes_with("PREFECT_HOME", str(home.folder)) == []


def test_ctrl_c_ends_the_run_before_its_server(home: Home, steering: Callable[[int], Steering]) -> None:
    steered = steering(60)
    steered.wait_from(20)
    run = home.local_run(steered, run_id="interrupted", granularity="line")
    wait_for(lambda: len(steered.executed()) == 22, "two lines wait, the ones before them are done")

    seconds = interrupt_group(run.process)

    result = run.result()
    assert (result["status"], result["completed_lines"]) == ("Canceled", 20)
    assert seconds < 30
    assert _flow_runs(home) == [
        ("CANCELLED", "20 of 60 lines completed, 2 canceled, 38 not started. Canceled by SIGINT.")
    ]
    assert "Traceback" not in run.log.read_text()
    assert processes_with("PREFECT_HOME", str(home.folder)) == []


def test_a_killed_run_leaves_no_server_behind(home: Home, steering: Callable[[int], Steering]) -> None:
    steered = steering(10)
    steered.wait_from(0)
    run = home.local_run(steered, run_id="killed")
    wait_for(lambda: len(steered.executed()) == 2, "two lines wait")

    os.kill(run.process.pid, signal.SIGKILL)

    wait_for(lambda: not processes_with("PREFECT_HOME", str(home.folder)), "no process of the run is left", 15)


def _task_runs(home: Home) -> dict[str, int]:
    """The task runs in the database of a server that has ended, by state type."""
    return dict(_query(home, "SELECT state_type, count(*) FROM task_run GROUP BY state_type"))


def _flow_runs(home: Home) -> list[tuple[str, str]]:
    query = (
        "SELECT flow_run.state_type, message FROM flow_run JOIN flow_run_state ON flow_run.state_id = flow_run_state.id"
    )
    return _query(home, query)


def _query(home: Home, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(home.database)) as database:
        return list(database.execute(query))


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_not_asked_for_the_own_server(
    variable: str, home: Home, steering: Callable[[int], Steering]
) -> None:
    """Nobody listens at the proxy: every request that asked it would fail."""
    steered = steering(3)
    environment = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"), "")
    run = home.local_run(steered, environment={**environment, variable: "http://127.0.0.1:9"}, granularity="line")
    assert run.result()["completed_lines"] == 3
    assert _task_runs(home) == {"COMPLETED": 3}


@pytest.mark.parametrize("content", ["newer", "garbage"])
def test_a_database_that_the_own_server_cannot_use_is_told(
    content: str, home: Home, steering: Callable[[int], Steering]
) -> None:
    database = home.database
    database.unlink(missing_ok=True)
    if content == "newer":
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("create table alembic_version (version_num varchar(32) not null)")
            connection.execute("insert into alembic_version values ('ffffffffffff')")
    else:
        database.write_bytes(b"no database\n" * 1000)
    run = home.local_run(steering(3))
    assert run.process.wait(200) != 0
    # Prefect can log that it stops the server, after the error.
    last = [line for line in run.log.read_text().rstrip().splitlines() if " | INFO " not in line][-1]
    cause = "Can't locate revision identified by 'ffffffffffff'" if content == "newer" else "file is not a database"
    assert "The Prefect server of this run did not start: its database" in last
    assert cause in last
    assert "prefect.db" in last
    assert processes_with("PREFECT_HOME", str(home.folder)) == []
