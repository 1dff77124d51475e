"""The supervisor of a run's processes, as the run holds it: started first, let go of last."""

from __future__ import annotations

import os
import subprocess
import sys

from prefect_batchflow.execution.workers.processes import TOKEN_VARIABLE

_ENDS_WITHIN_SEC = 5.0


class Supervisor:
    """The process that ends everything with a token once this process is gone.

    Args:
        token: What the tokens of all that is supervised begin with.
    """

    def __init__(self, token: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-m", "prefect_batchflow.execution.workers.supervisor", token],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A run inside another run's line: what ends that line must leave this one's supervisor to do its work.
            env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, once it was let go."""
        return self._process.returncode

    def let_go(self) -> None:
        """Let it end what is left, and go; waited for, so that no zombie is left. Blocks, some milliseconds usually."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_ENDS_WITHIN_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
