"""How a process is killed, by a timeout or at the end: its session, and processes that left it, found by a token.

The token is in their environment. `worker_process` and `services.keeper` decide when, and which process.

A process that started its own session *and* cleared its environment is not found. This is best effort.
"""

from __future__ import annotations

import contextlib
import os
import signal

TOKEN_VARIABLE = "BATCHFLOW_WORKER_TOKEN"  # noqa: S105 - a name, and the token is not secret
"""Set in each worker's environment to `<run token>-<worker>.`; processes that it starts inherit it."""


def numbered_token(run_token: str, number: int) -> str:
    """The token of one process of a run."""
    # The dot ends the token: processes are found by how their token begins, and 10 begins with 1.
    return f"{run_token}-{number}."


def end_session(pid: int) -> None:
    """Kill the session that the process leads, if it still exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def with_token(token: str) -> list[int]:
    """All other processes whose environment has a token that starts with `token`."""
    needle = f"\0{TOKEN_VARIABLE}={token}".encode()
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - a worker's supervisor imports no pathlib
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{name}/environ", "rb", buffering=0) as environ,  # noqa: PTH123 - see above
        ):
            if needle in b"\0" + environ.read():
                found.append(int(name))
    return found


def end_with_token(token: str) -> int:
    """Kill every process that `with_token` finds; how many there were."""
    pids = with_token(token)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)
