"""The program that outlives a run: when the run's process is gone, whatever its workers still do is ended.

`python -m prefect_batchflow.execution.workers.supervisor TOKEN`. Standard input is a pipe from the run, on which nothing is
ever sent. A worker stuck in C code does not notice that its parent died; this does.
"""

from __future__ import annotations

import os
import select
import sys
import time

from prefect_batchflow.execution.workers.processes import end_with_token

_LOOK_EVERY_SEC = 1.0
_END_WITHIN_SEC = 4.0


def main(token: str) -> None:
    """Wait until standard input closes or the parent changes, then kill what carries the token."""
    parent = os.getppid()
    # A copy of the pipe's writing end in a forked child of the run keeps it open: the parent's id tells then.
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], _LOOK_EVERY_SEC)
        if readable and not os.read(0, 1024):
            break
    deadline = time.monotonic() + _END_WITHIN_SEC
    # Again until none is left: a process may have forked while the list was read.
    while end_with_token(token) and time.monotonic() < deadline:
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1])
