"""The run's side of its supervisor process, which is started first and stopped last."""

from __future__ import annotations

import os
import subprocess
import sys

from prefect_batchflow.execution.workers.processes import TOKEN_VARIABLE

_ENDS_WITHIN_SEC = 5.0


class Supervisor:
    """The process that kills everything with a token once this process is gone.

    Args:
        token: The beginning of the tokens of all supervised processes.
    """

    def __init__(self, token: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-m", "prefect_batchflow.execution.workers.supervisor", token],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # If this run is inside a line of another run, the end of that line must not kill this supervisor.
            env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, once `let_go` has returned."""
        return self._process.returncode

    def let_go(self) -> None:
        """Let it kill what is left and exit. This blocks until it has, usually for some milliseconds, to leave no zombie."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_ENDS_WITHIN_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
