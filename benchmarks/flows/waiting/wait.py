"""A node that waits, as for a model's answer, in code that is not async."""

from __future__ import annotations

import os
import time

from promptflow.core import tool

WAIT_SEC = float(os.environ["BENCH_WAIT_SEC"])


@tool
def wait(text: str) -> str:
    """Give the text after `WAIT_SEC`."""
    time.sleep(WAIT_SEC)
    return text
