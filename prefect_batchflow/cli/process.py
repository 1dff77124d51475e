"""The process of a command: quiet Prefect, handle signals, end in time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

from prefect_batchflow.prefect_runtime.network import prepare_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

EXIT_GRACE_SEC: Final = 60.0
"""How long Prefect can hold the process at its end, to send what is left to a slow server."""


def quiet_prefect(*, debug: bool) -> None:
    """Keep Prefect's log lines off the terminal, unless the user asked for them. Its server gets them anyway.

    Call it before Prefect is imported. Prefect's notice about telemetry stays, because users should see it.

    Raises:
        InvalidOptionError: Prefect cannot be imported with the network settings of this process.
    """
    prepare_network()
    if not debug and "PREFECT_LOGGING_LEVEL" not in os.environ:
        for handler in ("CONSOLE", "DEBUG"):
            os.environ.setdefault(f"PREFECT_LOGGING_HANDLERS_{handler}_LEVEL", "CRITICAL")


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does, so that started processes are ended. `batch_run` handles signals itself.

    An ignored signal, such as SIGHUP under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_soon(status: int, *, debug: bool) -> None:
    """End within `EXIT_GRACE_SEC` and without output, even if Prefect's threads still have something to send."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if not debug:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    timer = threading.Timer(EXIT_GRACE_SEC, os._exit, [status])
    timer.daemon = True
    timer.start()
