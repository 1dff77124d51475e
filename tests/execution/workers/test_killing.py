"""Ending processes for good: the session, and by the token what has left it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from pools import is_alive
from waiting import wait_until

from prefect_batchflow.execution.workers.killing import TOKEN_VARIABLE, end_session, end_with_token, with_token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def token() -> str:
    return uuid.uuid4().hex


@contextmanager
def process(
    code: str = SLEEP, *, name: str = TOKEN_VARIABLE, token: str | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own that is ended with the block."""
    environment = {**os.environ, **({} if token is None else {name: token})}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=cwd, start_new_session=True) as started:
        try:
            yield started
        finally:
            started.kill()


def test_a_token_is_found_by_how_it_begins(token: str) -> None:
    with process(token=f"{token}-1.") as one, process(token=f"{token}-10.") as ten, process() as stranger:
        assert sorted(with_token(token)) == sorted([one.pid, ten.pid])
        assert with_token(f"{token}-1.") == [one.pid]
        assert stranger.pid not in with_token("")


def test_a_token_in_another_variable_is_none(token: str) -> None:
    with process(name=f"MORE_{TOKEN_VARIABLE}", token=token):
        assert with_token(token) == []


def test_what_left_its_session_is_ended_by_token(token: str, tmp_path: Path) -> None:
    code = f"""
import subprocess, sys, time
for number in range(2):
    child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=bool(number))
    with open("pids", "a") as file:
        file.write(f"{{child.pid}}\\n")
time.sleep(600)
"""
    with process(code, token=token, cwd=tmp_path) as parent:
        wait_until(lambda: len(_pids(tmp_path)) == 2, description="both children are there")
        in_session, out_of_session = _pids(tmp_path)

        end_session(parent.pid)
        wait_until(lambda: not is_alive(parent.pid) and not is_alive(in_session), description="the session is gone")
        assert is_alive(out_of_session)

        assert end_with_token(token) == 1
        wait_until(lambda: not is_alive(out_of_session), description="the child out of the session is gone")
        assert with_token(token) == []


def test_what_is_gone_already_is_no_error(token: str) -> None:
    with process(token=token) as gone:
        gone.kill()
        gone.wait()

    end_session(gone.pid)
    assert end_with_token(token) == 0


def test_the_caller_is_never_found(token: str) -> None:
    script = f"""
from prefect_batchflow.execution.workers.killing import end_with_token, with_token
print(with_token({token!r}), end_with_token({token!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, TOKEN_VARIABLE: token},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == "[] 0\n"


def _pids(folder: Path) -> list[int]:
    path = folder / "pids"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []
