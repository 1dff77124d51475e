"""What every test stands on: a Prefect home of its own, one test server a session, and small flows made on the spot."""

from __future__ import annotations

import compileall
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import prefect_database
import pytest

# Before Prefect is imported anywhere: its settings are read then.
_HOME = tempfile.TemporaryDirectory(prefix="batchflow-tests-")
os.environ["PREFECT_HOME"] = _HOME.name
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("BATCHFLOW_STORAGE", None)

# A shell that starts the tests in the background, or nohup, has them ignore signals, and the processes they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("batchflow", deadline=None)
hypothesis.settings.load_profile("batchflow")

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from model_server import ModelServer
    from s3_server import Bucket, S3Server

ROOT = Path(__file__).parent.parent
NO_SKIPS = "BATCHFLOW_TESTS_SKIP_NOTHING"
"""Set in the environment where all that tests need must be there."""


def pytest_addoption(parser: pytest.Parser) -> None:
    kills = parser.getgroup("kills", "Random kills, in tests/faults")
    kills.addoption("--random-kills", type=int, default=50, help="how often runs are killed at random times")
    kills.addoption("--kill-seed", type=int, default=None, help="repeats the choices of an earlier test")


KEEPS_NO_BYTECODE = sys.dont_write_bytecode


def pytest_configure(config: pytest.Config) -> None:
    """Keep what takes long to make, also where the environment asks Python to write no bytecode.

    pip compiles what it installs, but not an editable package, which each of the many processes here would compile anew.
    """
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(ROOT / "prefect_batchflow", quiet=1)
    # pytest's versions of the test files, with all that an `assert` shows. The flows that tests write are not kept.
    sys.dont_write_bytecode = False
    if hasattr(config, "cache"):
        prefect_database.folder = config.cache.mkdir("prefect-database")


def pytest_collection_finish() -> None:
    sys.dont_write_bytecode = KEEPS_NO_BYTECODE


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores, since many tests wait: for processes, and for limits of time."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_unconfigure() -> None:
    _HOME.cleanup()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips for what is missing has failed, where nothing may be."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(NO_SKIPS):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{reason}; {NO_SKIPS} is set, so this is a failure."
    return report


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server, in a database of its own, for all tests that run Prefect flows."""
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="batchflow-tests-")  # Prefect removes it
        database = Path(folder) / "prefect-test.db"
        prefect_database.put(database)
        patch.setattr("prefect.testing.utilities.mkdtemp", lambda: folder)
        with prefect_test_harness(server_startup_timeout=60):
            prefect_database.keep(database)
            yield


@pytest.fixture
def no_blocks(prefect_server: None) -> Iterator[None]:
    """Delete the connection blocks that a test saves, because the flows of later tests would find them by name."""
    yield
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for block in client.read_block_documents():
            if block.block_type is not None and block.block_type.slug.endswith("-connection"):
                client.delete_block_document(block.id)


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    """A model service over HTTP, which echoes what it is asked."""
    from model_server import ModelServer

    with ModelServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests that need one, which this process's environment names, too."""
    pytest.importorskip("moto", reason="pip install -c constraints.txt -e '.[s3-test]'")
    from s3_server import s3_server

    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> Iterator[Bucket]:
    """A bucket of its own."""
    with s3.bucket() as made:
        yield made


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """The folder of a run storage."""
    return tmp_path / "runs"


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as a jsonl file and give its path."""
    import json

    def write(rows: list[dict[str, object]], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What Prefect logs of task runs, at its default level."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("prefect.task_runs")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.setLevel(level)
    logger.removeHandler(handler)
    assert not [kept for kept in logger.filters if type(kept).__name__ == "TaskRunLog"], (
        "the run has taken its filter with it"
    )
