"""The program that outlives a run: when the run's process is gone, it kills the workers and whatever they started.

`python -m prefect_batchflow.execution.workers.supervisor TOKEN [PARENT]`. PARENT is the run's process id. Standard input is a
pipe from the run that carries no data. A worker that is stuck in C code does not notice that its parent died; this program
does. If it is killed itself, the run starts another one.
"""

from __future__ import annotations

import os
import select
import sys
import time

from prefect_batchflow.execution.workers.killing import end_with_token

_LOOK_EVERY_SEC = 1.0
_END_WITHIN_SEC = 4.0


def main(token: str, parent: int) -> None:
    """Wait until standard input closes or the parent is another one, then kill all processes with the token."""
    # A forked child of the run can keep the pipe open. Then only the changed parent shows that the run is gone.
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], _LOOK_EVERY_SEC)
        if readable and not os.read(0, 1024):
            break
    deadline = time.monotonic() + _END_WITHIN_SEC
    # Repeat until none is left: a process can fork while the list is read.
    while end_with_token(token) and time.monotonic() < deadline:
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid())
