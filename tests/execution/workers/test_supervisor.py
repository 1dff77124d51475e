"""The program that outlives a run: whatever the run left is ended, and soon."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import subprocess
import sys
import termios
import textwrap
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pools import is_alive
from waiting import wait_until

from prefect_batchflow.execution.workers.killing import TOKEN_VARIABLE, with_token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GONE_WITHIN_SEC = 5.0
"""Invariant I6 of a run."""


@contextmanager
def process(arguments: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def test_a_closed_pipe_ends_what_has_the_token_and_nothing_else() -> None:
    token = uuid.uuid4().hex
    sleep = ["-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
    with (
        process(sleep, {TOKEN_VARIABLE: f"{token}-1."}) as mine,
        process(sleep, {TOKEN_VARIABLE: uuid.uuid4().hex}) as foreign,
        process(["-P", "-m", "prefect_batchflow.execution.workers.supervisor", token]) as supervisor,
    ):
        assert supervisor.stdin is not None
        supervisor.stdin.close()

        assert supervisor.wait(20) == 0
        assert not is_alive(mine.pid)
        assert is_alive(foreign.pid)


def test_it_waits_as_long_as_its_parent_lives() -> None:
    token = uuid.uuid4().hex
    code = "import time; time.sleep(600)"
    with (
        process(["-c", code], {TOKEN_VARIABLE: token}) as mine,
        process(["-P", "-m", "prefect_batchflow.execution.workers.supervisor", token]) as supervisor,
    ):
        assert supervisor.stdin is not None
        supervisor.stdin.write(b"nothing is ever sent, and it would be no end")
        supervisor.stdin.flush()
        pipe = supervisor.stdin.fileno()
        wait_until(lambda: _unread_bytes(pipe) == 0, description="the supervisor has read it")

        assert supervisor.poll() is None
        assert is_alive(mine.pid)


def test_nothing_of_a_run_outlives_its_killed_parent(tmp_path: Path) -> None:
    """Invariant I6: lines deaf to SIGTERM and blocked in C, their children, children in sessions of their own."""
    (tmp_path / "flow_code.py").write_text(
        textwrap.dedent(
            """
            import ctypes, os, signal, subprocess, sys

            def main(n):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                for own_session in (True, False):
                    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                                             start_new_session=own_session)
                    with open("pids", "a") as file:
                        file.write(f"{child.pid}\\n")
                with open("pids", "a") as file:
                    file.write(f"{os.getpid()}\\n")
                ctypes.CDLL(None).pause()
            """
        )
    )
    (tmp_path / "parent.py").write_text(
        textwrap.dedent(
            """
            import asyncio, multiprocessing, time
            from prefect_batchflow.definition.load import load_flow
            from prefect_batchflow.execution.workers.pool import WorkerPool
            from prefect_batchflow.lines import Line

            async def main():
                pool = WorkerPool(load_flow("flow_code.py:main"), worker_count=2)
                await pool.start()
                # A forked child keeps the run's pipes open: their end is no sign then.
                fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
                fork.start()
                with open("started", "w") as file:
                    file.write(f"{pool._supervisor.token} {fork.pid}")
                await asyncio.gather(
                    *(pool.run_line(Line(n, {"n": n}), attempt=1, timeout_sec=600) for n in range(4))
                )

            asyncio.run(main())
            """
        )
    )
    pids = tmp_path / "pids"

    with subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, start_new_session=True) as parent:
        try:
            wait_until(
                lambda: pids.exists() and len(pids.read_text().split()) == 6, description="two lines and four children"
            )
            token, fork = (tmp_path / "started").read_text().split()
            assert len(with_token(token)) == 6
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait()

            wait_until(
                lambda: not with_token(token) and not any(is_alive(int(pid)) for pid in pids.read_text().split()),
                description="all is gone",
                timeout_sec=GONE_WITHIN_SEC,
            )
            assert is_alive(int(fork)), "it holds the pipes, and is nobody's worker"
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def _unread_bytes(pipe: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]
