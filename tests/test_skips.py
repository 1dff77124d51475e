"""Where nothing may be missing, a test that would skip fails; elsewhere it skips."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS_FOLDER = Path(__file__).parent
VARIABLE = "BATCHFLOW_TESTS_SKIP_NOTHING"
TESTS = """
import pytest

@pytest.fixture
def cluster():
    pytest.importorskip("no_such_module", reason="no cluster here")

def test_that_asks_for_something(cluster): ...

def test_that_looks_itself():
    pytest.skip("no control group here")

@pytest.mark.xfail(strict=True)
def test_that_is_known_to_fail():
    raise AssertionError
"""


@pytest.mark.parametrize(
    ("value", "status", "said"), [("", 0, "2 skipped, 1 xfailed"), ("1", 1, "1 failed, 1 xfailed, 1 error")]
)
def test_a_skip_is_a_failure_where_it_is_asked_for(value: str, status: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "test_skipping.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-c",
        str(TESTS_FOLDER.parent / "pyproject.toml"),
        "-n",
        "0",
        str(tmp_path),
    ]
    env = {**os.environ, VARIABLE: value, "PYTHONPATH": str(TESTS_FOLDER)}

    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout
    assert "no control group here" in done.stdout
