"""Signals end a run, each one more firmly than the one before."""

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
    """Let signals end the run, each one more firmly than the one before.

    The first Ctrl-C drains: running lines get some seconds to end. A second signal ends them, still with a partial result;
    SIGTERM and SIGHUP do so at once. The third abandons the run, and the fourth goes to the caller's own handlers.
    Works in the main thread only, which alone gets signals. Signals that are ignored, such as under `nohup`, stay ignored.

    `cancel` gets the reason, and whether to drain; the run has a partial result. After `abandon` it has none.
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
