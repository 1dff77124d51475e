"""The run's side of its supervisor process, which is started first and stopped last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import uuid
from pathlib import Path

from prefect_batchflow.execution.workers.killing import TOKEN_VARIABLE, end_with_token, numbered_token

_ENDS_WITHIN_SEC = 5.0
LOOK_EVERY_SEC = 1.0
"""How often to look whether the process was stopped, or to try again to start one."""

logger = logging.getLogger(__name__)


class Supervisor:
    """Gives each process of a run a token, and has a process of its own that kills them once this process is gone.

    If that process dies or is stopped, such as by the system's memory killer, another one takes its place at once.
    """

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        """The beginning of every token."""
        self.tokens = 0
        """How many it gave."""
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._timer: asyncio.TimerHandle | None = None

    def start(self, token: str | None = None) -> None:
        """Start its process, and keep one alive until `close`. Needs a running event loop.

        Only a process that has loaded no flow can be older. Its run's token is `token`.
        """
        self.token = token or self.token
        self._start()
        self._look_later()

    def _start(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            # Its parent's id: it must notice even that the parent died before it began.
            [
                *(sys.executable, "-P", "-m", "prefect_batchflow.execution.workers.supervisor"),
                *(self.token, str(os.getpid())),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # If this run is inside a line of another run, the end of that line must not kill this supervisor.
            env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
            start_new_session=True,
        )
        # Without it, the next look still notices the end.
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(self._process.pid)
            asyncio.get_running_loop().add_reader(self._pidfd, self._replace)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_SEC, self._look)

    def _look(self) -> None:
        self._look_later()
        if self.process.poll() is not None:
            self._replace()
        elif _is_stopped(self.process.pid):
            self.process.kill()  # its end is seen at once

    def _replace(self) -> None:
        """Start another process in place of the one that has ended."""
        self._unwatch()
        ended = self.process
        status = ended.wait()
        if ended.stdin is not None:
            ended.stdin.close()
        try:
            self._start()
        except OSError as exc:  # the next look tries again
            logger.warning("The supervisor of the workers ended, and no other one starts yet: %s", exc)
        else:
            logger.warning("The supervisor of the workers ended (status %d). Another one has taken its place.", status)

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Its process, once started."""
        assert self._process is not None, "start() comes first"
        return self._process

    def new_token(self) -> str:
        """A token for one more process."""
        self.tokens += 1
        return numbered_token(self.token, self.tokens)

    async def close(self) -> None:
        """Kill every process with a token, then end the supervisor's own process, if it was started."""
        if self._timer is not None:
            self._timer.cancel()
        self._unwatch()
        end_with_token(self.token)
        if self._process is not None:
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        """Wait until it has killed what is left, usually some milliseconds, so that it leaves no zombie."""
        try:
            self.process.communicate(timeout=_ENDS_WITHIN_SEC)
        except (subprocess.TimeoutExpired, ValueError):  # a closed pipe: it ended, and no other one could be started
            self.process.kill()
            self.process.wait()


def _is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False
