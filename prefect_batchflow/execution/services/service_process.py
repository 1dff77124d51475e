"""The process that serves a flow in another language: its start, its output and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING

from prefect_batchflow.execution.workers.crashes import how_it_ended
from prefect_batchflow.execution.workers.killing import TOKEN_VARIABLE, end_session, end_with_token
from prefect_batchflow.execution.workers.worker_process import TAIL_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from prefect_batchflow.execution.scrubbing import Scrubber

KILLED_WITHIN_SEC = 5.0
"""How long to wait until a killed process is gone."""
_READ_BYTES = 1 << 16
_SHOWN = 1200
"""Characters of its output that a message shows."""


class ServiceProcess:
    """A program in its own session. Create it on the event loop that watches it.

    Args:
        command: The program and its arguments.
        token: Put into its environment, so that every process it starts can be found.
        environment: The rest of its environment.
        scrubber: Takes secrets out of what it printed.

    Raises:
        OSError: The program does not exist or cannot be started.
    """

    def __init__(
        self, command: Sequence[str], *, token: str, cwd: Path, environment: Mapping[str, str], scrubber: Scrubber
    ) -> None:
        self.token = token
        self._scrubber = scrubber
        self.exited = asyncio.Event()
        self._tail = bytearray()
        self._process = subprocess.Popen(  # noqa: S603 - the flow's own program, run as its Python code would be
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd=cwd,
            env={**environment, TOKEN_VARIABLE: token},
            start_new_session=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._output, self._on_output)
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pidfd, self._reap)

    @property
    def returncode(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.returncode

    @property
    def how_it_ended(self) -> str:
        """How it ended, for messages: `exited with status 1`."""
        return how_it_ended(self.returncode)

    @property
    def tail(self) -> str:
        """The end of what it printed, without secrets."""
        text = bytes(self._tail).decode("utf-8", "replace")
        is_cut = len(self._tail) == TAIL_BYTES
        return (self._scrubber.end(text) if is_cut else self._scrubber.text(text)).strip()

    @property
    def said(self) -> str:
        """The end of what it printed, for messages."""
        return f"Its last output: {self.tail[-_SHOWN:]}" if self.tail else "It printed nothing."

    async def stop(self, grace_sec: float) -> None:
        """Send SIGTERM to its session; after `grace_sec`, kill it with everything it started."""
        try:
            if not self.exited.is_set():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGTERM)
                await self.exits_within(grace_sec)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Kill it with everything it started."""
        if not self.exited.is_set():
            end_session(self.pid)
            end_with_token(self.token)
            await self.exits_within(KILLED_WITHIN_SEC)

    async def exits_within(self, seconds: float) -> None:
        """Wait until it has exited, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.exited.wait()

    def _on_output(self) -> bool:
        """Keep the end of its output; whether there was any."""
        try:
            data = os.read(self._output, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:  # it has closed its output but can still run
            asyncio.get_running_loop().remove_reader(self._output)
            return False
        self._tail += data
        del self._tail[:-TAIL_BYTES]
        return True

    def _reap(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        # Processes that it started, inside its session or outside, could still hold the port and answer.
        end_session(self.pid)
        end_with_token(self.token)
        while self._on_output():
            pass
        loop.remove_reader(self._output)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.exited.set()
