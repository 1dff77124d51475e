"""A worker process that has started, with its pipes and its permits, and one that starts before its flow is known.

Python needs as long to start a worker as a Prefect server needs to register a run. `ready_worker` lets both happen at once.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_batchflow.execution.workers.killing import TOKEN_VARIABLE, numbered_token
from prefect_batchflow.execution.workers.permits import Permits

if TYPE_CHECKING:
    from collections.abc import Iterator


class StartedProcess:
    """The process of a worker. Nobody has told it yet which flow to load. Needs a token from `Supervisor`."""

    def __init__(self, token: str, cwd: str | None = None) -> None:
        self.token = token
        self.permits = Permits()
        with self.permits.for_worker() as permits:
            self.popen = subprocess.Popen(  # noqa: S603 - our own program
                # -P: the current directory is the flow's; its files must not hide the standard library.
                [sys.executable, "-P", "-m", "prefect_batchflow.execution.workers.worker", str(permits)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=cwd,
                env={**os.environ, TOKEN_VARIABLE: token},
                start_new_session=True,
                pass_fds=(permits,),
            )

    def end(self) -> None:
        """End a process that has loaded no flow."""
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()
        self.permits.close()


class ReadyWorker:
    """The process of the first worker of a run. It ends by itself if this process dies, because its standard input ends."""

    def __init__(self) -> None:
        self.run_token = uuid.uuid4().hex
        """The run that takes it gets this token."""
        self.process = StartedProcess(numbered_token(self.run_token, 1))
        self._starter, self._environ = os.getpid(), dict(os.environ)

    @property
    def fits(self) -> bool:
        """Whether it is what this process would start now."""
        is_same = self._starter == os.getpid() and self._environ == dict(os.environ)
        return is_same and self.process.popen.poll() is None


_lock = threading.Lock()
_ready: list[ReadyWorker] = []


@contextlib.contextmanager
def ready_worker() -> Iterator[None]:
    """Start the first worker of the next run in the block now. On leaving, end it if no run has taken it."""
    # Python reads relative entries from the folder in which it starts, and a worker starts in its flow's folder.
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    with contextlib.ExitStack() as stack:
        if entries == [""] or all(Path(entry).is_absolute() for entry in entries):
            with contextlib.suppress(OSError):  # a run that starts its own worker tells why it cannot
                ready = ReadyWorker()
                stack.callback(_end_unless_taken, ready)
                with _lock:
                    _ready.append(ready)
        yield


def take_ready_worker() -> ReadyWorker | None:
    """The worker that has started already, if it is what would start now."""
    with _lock:
        ready = _ready.pop() if _ready else None
    if ready is not None and not ready.fits:
        ready.process.end()
        return None
    return ready


def _end_unless_taken(ready: ReadyWorker) -> None:
    with _lock:
        if ready not in _ready:
            return
        _ready.remove(ready)
    ready.process.end()
