"""A run over lines that go wrong, and the one check after every fault: no line lost, no process left, no lock to remove."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invariants import MARK, Watch
from prefect.settings import PREFECT_API_URL

from prefect_batchflow.exceptions import innermost_code
from prefect_batchflow.granularity import SMALLEST_CHUNK

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOW = f"{Path(__file__).with_name('faulty_lines.py')}:main"
ENDS_WITHIN_SEC = 100.0
BEGINS = 10
"""How often a line can begin in one start: a crash takes async lines of its worker with it, which begin anew."""


class FaultedRun:
    """One run of `faulty_lines`, started as often as a test likes.

    Args:
        folder: A folder of its own.
        faults: What each line does, in line order; `""` is nothing wrong.
        options: Further words of the command line.
        flow: What is run.
        control_group: Of the system's, one that its processes are in.
        storage: Where it is kept; in the folder, if nothing else is said.
        workers: Processes for its lines.
    """

    def __init__(
        self,
        folder: Path,
        faults: Sequence[str],
        *options: str,
        flow: str = FLOW,
        control_group: Path | None = None,
        storage: str = "",
        workers: int = 2,
    ) -> None:
        self.folder = folder
        self.faults = list(faults)
        self.run_id = f"r-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        """The folder's own: the server of the tests knows the task runs of others, too."""
        self.run = folder / "runs" / self.run_id
        data = folder / "data.jsonl"
        rows = {n: {"n": n, "fault": fault, "folder": str(folder)} for n, fault in enumerate(self.faults)}
        data.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
        self.watch = Watch(
            self.run,
            rows,
            folder / "begun",
            2 * SMALLEST_CHUNK,
            attempts=BEGINS,
            mark=str(self.run),
            fetch=lambda: self.fetch(),
        )
        self._command = [
            sys.executable, "-m", "prefect_batchflow.cli", "run", flow, "--data", str(data), "--run-id", self.run_id,
            "--workers", str(workers), "--storage", storage or str(folder / "runs"), *options,
        ]  # fmt: skip
        if control_group is not None:
            join = 'echo $$ > "$0" && exec "$@"'
            self._command = ["sh", "-c", join, str(control_group / "cgroup.procs"), *self._command]

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, or go on with it: always the same command."""
        self.watch.begin()
        env = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), MARK: str(self.run)}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(self._command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ended(self, process: subprocess.Popen[bytes], limit_sec: float = ENDS_WITHIN_SEC) -> int:
        """Its exit status; one that goes on for too long is killed."""
        try:
            return process.wait(limit_sec)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"not ended after {limit_sec:g} s: {(self.folder / 'log').read_text()}") from None

    def result(self) -> dict[str, Any]:
        """Its `BatchResult`."""
        return dict(json.loads(self.text("batch_result.json") or "{}"))

    def text(self, name: str) -> str | None:
        """One of its files; `None` when it is not there."""
        path = self.run / name
        return path.read_text() if path.exists() else None

    def segments(self) -> list[str]:
        """The names of the files that have its records."""
        return [f"records/{path.name}" for path in (self.run / "records").glob("[!.]*.jsonl")]

    def begun(self) -> list[int]:
        """The lines in the order in which they were executed, as the lines themselves have written."""
        path = self.folder / "begun"
        return [int(n) for n in path.read_text().split()] if path.exists() else []

    def held(self) -> int:
        """How many processes of lines have said that they do not end of themselves."""
        path = self.folder / "held"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def records(self) -> dict[int, dict[str, Any]]:
        """The newest record of each line, read the way `jq` would."""
        found: dict[int, tuple[tuple[str, int], dict[str, Any]]] = {}
        for name in self.segments():
            session = name.split("-")[2]
            for text in (self.text(name) or "").split("\n")[1:-1]:
                record = json.loads(text)
                age = (session, record["attempt"])
                if record["line_number"] not in found or found[record["line_number"]][0] < age:
                    found[record["line_number"]] = (age, record)
        return {number: record for number, (_, record) in found.items()}

    def codes(self) -> dict[int, str]:
        """The innermost code of each failed line."""
        return {n: innermost_code(r["error"]) for n, r in self.records().items() if r["status"] == "Failed"}

    def mend(self) -> None:
        """Let nothing go wrong any more."""
        (self.folder / "mended").touch()

    def fetch(self) -> None:
        """Bring its files to its folder here, if they are elsewhere."""

    def check_invariants(self) -> None:
        """What must hold after every fault, once the process of the run is gone; ends with the run completed."""
        self.watch.check(None)
        self.mend()

        status = self.ended(self.start())

        assert status == 0, (self.folder / "log").read_text()
        self.watch.check(status)
