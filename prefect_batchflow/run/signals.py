"""Signals that end a run, each one more firmly."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALS_UNTIL_GIVEN_UP = 3


@contextlib.contextmanager
def signals_cancel(cancel: Callable[[str, bool], None], abandon: Callable[[], object]) -> Iterator[None]:
    """Let signals end the run, each one more firmly.

    The first Ctrl-C drains: lines that run may end, for some seconds. A second signal, or SIGTERM and SIGHUP at once, ends
    the lines too, still with a partial result. The third gives the run up, and the fourth finds the caller's own handlers.
    Only in the main thread, since elsewhere signals reach nothing; signals that are ignored, as under `nohup`, stay so.

    Args:
        cancel: Ends the run with a partial result; given why, and whether it drains.
        abandon: Ends it without.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) is not signal.SIG_IGN}
    heard = 0

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if handler is not None:
                signal.signal(number, handler)

    def on_signal(number: signal.Signals) -> None:
        nonlocal heard
        heard += 1
        if heard == SIGNALS_UNTIL_GIVEN_UP:
            restore()
            abandon()
        cancel(f"Canceled by {number.name}.", heard == 1 and number == signal.SIGINT)

    for number in before:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        restore()
