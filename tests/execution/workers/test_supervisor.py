"""The program that outlives a run: whatever the run left is ended, and soon."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import signal
import subprocess
import sys
import termios
import textwrap
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pools import is_alive
from waiting import eventually, wait_until

from prefect_batchflow.execution.workers import supervision
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


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP], ids=["killed", "ended", "stopped"])
async def test_another_one_takes_the_place_of_one_that_dies(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(supervision, "LOOK_EVERY_SEC", 0.05)
    supervisor = supervision.Supervisor()
    supervisor.start()
    try:
        for _ in range(2):
            before = supervisor.process
            os.kill(before.pid, number)
            await eventually(lambda b=before: supervisor.process is not b, description="another one")  # type: ignore[misc]
            assert before.poll() is not None
        token = supervisor.new_token()
        with process(["-c", "import time; time.sleep(600)"], {TOKEN_VARIABLE: token}) as worker:
            after = supervisor.process
            assert after.stdin is not None
            after.stdin.close()  # as if the run were gone
            await eventually(lambda: not is_alive(worker.pid), description="it does its work")
    finally:
        await supervisor.close()
    assert supervisor.process.returncode is not None


@pytest.mark.anyio
async def test_one_that_cannot_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "LOOK_EVERY_SEC", 0.02)
    supervisor = supervision.Supervisor()
    supervisor.start()
    first, really, failures = supervisor.process, subprocess.Popen, 2

    def full(*arguments: Any, **options: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise BlockingIOError(errno.EAGAIN, "no process left")
        return really(*arguments, **options)

    try:
        monkeypatch.setattr(subprocess, "Popen", full)
        first.kill()
        await eventually(lambda: supervisor.process is not first, description="another one")
    finally:
        await supervisor.close()
    assert failures == -1


@pytest.mark.faults
@pytest.mark.parametrize("before", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_nothing_outlives_a_run_whose_supervisor_was_killed_first(tmp_path: Path, before: signal.Signals) -> None:
    (tmp_path / "flow_code.py").write_text(
        textwrap.dedent(
            """
            import ctypes, os, signal, subprocess, sys

            def main(n):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
                with open("pids", "a") as file:
                    file.write(f"{child.pid}\\n{os.getpid()}\\n")
                ctypes.CDLL(None).pause()
            """
        )
    )
    (tmp_path / "parent.py").write_text(
        textwrap.dedent(
            """
            import asyncio
            from prefect_batchflow.definition.load import load_flow
            from prefect_batchflow.execution.workers.pool import WorkerPool
            from prefect_batchflow.lines import Line

            async def tell(pool):
                said = None
                while True:
                    if said != pool._supervisor.process.pid:
                        said = pool._supervisor.process.pid
                        with open("supervisors", "a") as file:
                            file.write(f"{said}\\n")
                    await asyncio.sleep(0.05)

            async def main():
                pool = WorkerPool(load_flow("flow_code.py:main"), worker_count=2)
                await pool.start()
                telling = asyncio.create_task(tell(pool))
                await asyncio.gather(
                    *(pool.run_line(Line(n, {"n": n}), attempt=1, timeout_sec=600) for n in range(2))
                )

            asyncio.run(main())
            """
        )
    )

    def written(name: str) -> list[int]:
        path = tmp_path / name
        return [int(text) for text in path.read_text().split()] if path.exists() else []

    with subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, start_new_session=True) as parent:
        try:
            wait_until(lambda: len(written("pids")) == 4, description="two lines and their children")
            os.kill(written("supervisors")[0], before)
            wait_until(lambda: len(written("supervisors")) == 2, description="the run has replaced it")
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait()

            wait_until(
                lambda: not any(is_alive(pid) for pid in [*written("pids"), *written("supervisors")]),
                description="all is gone",
                timeout_sec=GONE_WITHIN_SEC,
            )
        finally:
            for pid in [*written("pids"), *written("supervisors")]:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)


def _unread_bytes(pipe: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]
