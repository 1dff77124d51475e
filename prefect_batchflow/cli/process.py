"""The process of a command: Prefect kept quiet, signals heard, an end in time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

EXIT_GRACE_SEC: Final = 60.0
"""How long what Prefect has left to send to a slow server may hold the process when all is done."""


def quiet_prefect(*, debug: bool) -> None:
    """Keep Prefect's log lines off the terminal, unless somebody asked for them; its server gets them all the same.

    To be called before Prefect is imported. What it says of its telemetry, once, is not for us to hide.
    """
    if not debug and "PREFECT_LOGGING_LEVEL" not in os.environ:
        for handler in ("CONSOLE", "DEBUG"):
            os.environ.setdefault(f"PREFECT_LOGGING_HANDLERS_{handler}_LEVEL", "CRITICAL")


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does, so that what was started is ended; `batch_run` has its own way.

    One that is ignored, as SIGHUP under nohup, stays so.
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


def is_signal(cause: BaseException | None) -> bool:
    """Whether Prefect made this of a signal that came where `batch_run` does not take them."""
    from prefect.exceptions import TerminationSignal

    return isinstance(cause, TerminationSignal)


def end_soon(status: int, *, debug: bool) -> None:
    """All is said: end within `EXIT_GRACE_SEC` and in silence, whatever Prefect's threads still try to send."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if not debug:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    timer = threading.Timer(EXIT_GRACE_SEC, os._exit, [status])
    timer.daemon = True
    timer.start()
