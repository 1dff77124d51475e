"""The run's side of its supervisor process, which is started first and stopped last."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid

from prefect_batchflow.execution.workers.killing import TOKEN_VARIABLE, end_with_token

_ENDS_WITHIN_SEC = 5.0


class Supervisor:
    """Gives each process of a run a token, and has a process of its own that kills them once this process is gone."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        """The beginning of every token."""
        self.tokens = 0
        """How many it gave."""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start its process; do this before any other."""
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-m", "prefect_batchflow.execution.workers.supervisor", self.token],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # If this run is inside a line of another run, the end of that line must not kill this supervisor.
            env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
            start_new_session=True,
        )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Its process, once started."""
        assert self._process is not None, "start() comes first"
        return self._process

    def new_token(self) -> str:
        """A token for one more process."""
        self.tokens += 1
        # The dot ends the token: processes are found by how their token begins, and 10 begins with 1.
        return f"{self.token}-{self.tokens}."

    async def close(self) -> None:
        """Kill every process with a token, then end the supervisor's own process, if it was started."""
        end_with_token(self.token)
        if self._process is not None:
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        """Wait until it has killed what is left, usually some milliseconds, so that it leaves no zombie."""
        try:
            self.process.communicate(timeout=_ENDS_WITHIN_SEC)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
