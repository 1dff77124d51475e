"""A flow whose lines go wrong as their rows say, until the file `mended` is there. Imports little: workers import it."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

OUTLIVING = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def main(n: int, fault: str, folder: str) -> dict[str, int]:
    if begin(n, fault, folder):
        print(f"line {n} does: {fault}", flush=True)  # noqa: T201 - its record has it
        FAULTS[fault](Path(folder))
    return {"square": n * n}


async def main_async(n: int, fault: str, folder: str) -> dict[str, int]:
    if begin(n, fault, folder):
        print(f"line {n} does: {fault}", flush=True)  # noqa: T201 - its record has it
        if fault == "waits for ever":
            await asyncio.Event().wait()
        FAULTS[fault](Path(folder))
    await asyncio.sleep(0)
    return {"square": n * n}


def begin(n: int, fault: str, folder: str) -> bool:
    """Be the outside witness, one write a line in the order of execution; whether the line is to go wrong."""
    witness = os.open(f"{folder}/begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(witness, f"{n}\n".encode())
    os.close(witness)
    return bool(fault) and not Path(folder, "mended").exists()


def hang_in_c(folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held(folder, os.getpid())
    ctypes.PyDLL(None).pause()  # with the interpreter's lock, as code in C may hold it


def hang_with_a_grandchild(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", OUTLIVING], start_new_session=True)
    held(folder, os.getpid(), child.pid)
    while True:
        time.sleep(1)


def stop_itself(folder: Path) -> None:
    held(folder, os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)


def held(folder: Path, *pids: int) -> None:
    with (folder / "held").open("a") as file:
        file.write("".join(f"{pid} {time.monotonic()}\n" for pid in pids))


def overflow_the_stack(_folder: Path) -> None:
    threading.stack_size(32 * 1024)
    thread = threading.Thread(target=json.loads, args=["[" * 900])
    thread.start()
    thread.join()


def eat_memory(_folder: Path) -> None:
    eaten = []
    while True:
        eaten.append(bytearray(1 << 20))


def fill_memory(_folder: Path) -> None:
    # Written to, not only asked for. Where nothing limits the group of this process, not all of the machine is eaten.
    filled: list[bytes] = []
    while len(filled) < 2_000:
        filled.append(b"x" * (1 << 20))


def wait_to_go(folder: Path) -> None:
    held(folder, os.getpid())
    while not (folder / "go").exists():
        time.sleep(0.005)


def fail(_folder: Path) -> None:
    raise KeyError("no such thing")


FAULTS = {
    "segfault": lambda _: ctypes.string_at(0),
    "exit": lambda _: os._exit(0),
    "stack": overflow_the_stack,
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "memory": eat_memory,
    "system memory": fill_memory,
    "hang in C": hang_in_c,
    "hang with a grandchild": hang_with_a_grandchild,
    "stop": stop_itself,
    "raise": fail,
    "wait": wait_to_go,
}
