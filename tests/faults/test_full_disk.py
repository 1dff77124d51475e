"""A real disk that fills and then has space again: a 4 MB file system in memory, and the same command each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from invariants import Watch
from prefect.settings import PREFECT_API_URL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system"),
]

LINES = 120
FLOW = """
import os

def main(n: int, witness: str) -> dict:
    fd = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{n}\\n".encode())
    os.close(fd)
    return {"text": "x" * 60_000}
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True)


@pytest.mark.parametrize("granularity", ["line", "chunk", "auto"])
def test_no_line_is_paid_for_twice_while_the_disk_is_full(tmp_path: Path, small_disk: Path, granularity: str) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    witness = tmp_path / "begun"
    data = tmp_path / "rows.jsonl"
    rows = {n: {"n": n, "witness": str(witness)} for n in range(LINES)}
    data.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    watch = Watch(small_disk / "runs" / "r1", rows, witness, in_flight=8, answer=lambda _: {"text": "x" * 60_000})

    def start() -> subprocess.CompletedProcess[str]:
        words = ["run", f"{tmp_path / 'flow.py'}:main", "--data", str(data), "--run-id", "r1", "--workers", "2"]
        words += ["--storage", str(small_disk / "runs"), "--granularity", granularity]
        env = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), "COLUMNS": "200"}
        watch.begin()
        ended = subprocess.run(
            [sys.executable, "-m", "prefect_batchflow.cli", *words],
            env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        watch.check(None if ended.returncode == 1 else ended.returncode)  # 1: the disk is full
        return ended

    def begun() -> Counter[int]:
        return Counter(map(int, witness.read_text().split()))

    first = start()
    begun_once = begun()
    tries = [start(), start()]

    for ended in (first, *tries):
        assert ended.returncode == 1, ended.stderr
        assert "Traceback" not in ended.stderr
        assert "ree some space" in ended.stderr, ended.stderr
    assert len(begun_once) < LINES, "the disk was not full"
    assert begun() == begun_once, "a try on a full disk runs nothing"

    subprocess.run(["/bin/mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    last = start()

    assert last.returncode == 0, last.stderr
    outputs = (small_disk / "runs" / "r1" / "outputs.jsonl").read_text().splitlines()
    assert [json.loads(row)["line_number"] for row in outputs] == list(range(LINES))
    assert begun().keys() == set(range(LINES))
    twice = [n for n, times in begun().items() if times > 1]
    # Only lines that were in flight when the run stopped can run again: two workers, and what they had just answered.
    assert len(twice) <= 8, twice
