"""The flow of these tests: its lines leave a trace outside, and fail or wait as the test says, by files."""

from __future__ import annotations

import os
import time
from pathlib import Path


def steered(number: int, folder: str) -> dict[str, int]:
    """Append the number to `witness`; fail while `fails` holds it, wait while `waits_from` holds it or a smaller one."""
    witness = os.open(f"{folder}/witness", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(witness, f"{number}\n".encode())
    os.close(witness)
    if _number_in(folder, "fails") == number:
        raise ValueError(f"line {number} was told to fail")
    while (first := _number_in(folder, "waits_from")) is not None and first <= number:
        time.sleep(0.02)
    return {"number": number}


def _number_in(folder: str, name: str) -> int | None:
    try:
        return int(Path(folder, name).read_text())
    except FileNotFoundError:
        return None
