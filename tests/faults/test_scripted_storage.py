"""Whole runs with Prefect and workers on a storage that fails. The lines say what was executed.

`test_any_call` has each fault at each call, without Prefect.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from invariants import Watch
from scripted_storage import Script, ScriptedFileSystem, content_of, scripted

from prefect_batchflow import BatchEngine
from prefect_batchflow.storage import lease, retries

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(900)]

LINES = 3
WORKERS = 1
FLOW = """
import os

def main(n: int, witness: str) -> dict:
    fd = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{n}\\n".encode())
    os.close(fd)
    return {"square": n * n}
"""


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "DELAYS_SEC", (0.0,) * 7)
    # The next start is another process, which sees that the holder of a lease that stayed behind is gone.
    monkeypatch.setattr(lease, "is_dead", lambda _: True)


class Run:
    """A run on a storage of its own, with an outside witness."""

    def __init__(self, folder: Path, lines: int = LINES) -> None:
        self.lines = lines
        self.root = f"{uuid.uuid4().hex}/runs"
        self._witness = folder / f"begun-{uuid.uuid4().hex}"
        self._flow = folder / "squares.py"
        self._flow.write_text(FLOW)
        self._data = folder / "rows.jsonl"
        rows = {n: {"n": n, "witness": str(self._witness)} for n in range(lines)}
        self._data.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
        here = folder / "seen" / "r1"
        self.watch = Watch(here, rows, self._witness, in_flight=lines, fetch=lambda: self._fetch(here))

    def start(self) -> Any:
        engine = BatchEngine(
            f"{self._flow}:main", run_storage_url=f"scripted://{self.root}", worker_count=WORKERS, granularity="chunk"
        )
        mapping = {"n": "${data.n}", "witness": "${data.witness}"}
        self.watch.begin()
        return engine.run({"data": str(self._data)}, mapping, run_id="r1")

    def begun(self) -> Counter[int]:
        return Counter(map(int, self._witness.read_text().split())) if self._witness.exists() else Counter()

    def acknowledged(self) -> set[int]:
        """The lines that have a record, read past the package."""
        folder = f"/{self.root}/r1/records/"
        texts = [content_of(path) for path in ScriptedFileSystem.store if path.startswith(folder)]
        return {json.loads(row)["line_number"] for text in texts for row in text.splitlines()[1:]}

    def _fetch(self, folder: Path) -> None:
        """Copy its files to a folder of the disk, past the package and the script."""
        shutil.rmtree(folder, ignore_errors=True)
        root = f"/{self.root}/r1/"
        for path in [path for path in ScriptedFileSystem.store if path.startswith(root)]:
            target = folder / path.removeprefix(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content_of(path))

    def check_whole(self) -> None:
        """The last start has come to its end: all invariants, and each line has a record."""
        self.watch.check(0)
        assert self.acknowledged() == set(range(self.lines))


@pytest.mark.parametrize("fault", ["503", "reset", "lost answer", "short read", "empty listing"])
def test_a_storage_that_fails_again_and_again_costs_nothing(tmp_path: Path, fault: str) -> None:
    run = Run(tmp_path)
    with scripted(Script(fault, 1, every=5)) as script:
        for _ in range(2):
            assert run.start().completed_lines == LINES
    assert script.fired
    assert run.begun() == Counter(range(LINES))
    run.check_whole()


def test_the_requests_of_a_run_grow_with_its_segments_and_not_with_its_lines(tmp_path: Path) -> None:
    requests: dict[int, Counter[str]] = {}
    resumed: dict[int, Counter[str]] = {}
    for lines in (50, 500):
        run = Run(tmp_path, lines)
        with scripted(Script("none", 0)) as script:
            run.start()
        requests[lines] = Counter(kind for kind, _ in script.calls)
        with scripted(Script("none", 0)) as script:
            run.start()
        resumed[lines] = Counter(kind for kind, _ in script.calls)
        assert run.begun() == Counter(range(lines))
    few, many = requests[50].total(), requests[500].total()
    # Measured: 37 to 43 and 49 to 70 for the runs, 44 and 47 to 62 for their resumes; more segments, if lines end more slowly.
    assert many <= min(2 * few, 80), requests
    assert resumed[500].total() <= 70, resumed
    assert resumed[500]["write"] <= 12, "a resume without lines to run writes no records"
