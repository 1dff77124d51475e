"""A run over lines that go wrong, and the one check after every fault: no line lost, no process left, no lock to remove."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.settings import PREFECT_API_URL
from waiting import wait_until

from prefect_batchflow.exceptions import innermost_code

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOW = f"{Path(__file__).with_name('faulty_lines.py')}:main"
MARK = "BATCHFLOW_TEST_RUN"
GONE_WITHIN_SEC = 5.0
ENDS_WITHIN_SEC = 100.0


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
        rows = [{"n": n, "fault": fault, "folder": str(folder)} for n, fault in enumerate(self.faults)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._command = [
            sys.executable, "-m", "prefect_batchflow.cli", "run", flow, "--data", str(data), "--run-id", self.run_id,
            "--workers", str(workers), "--storage", storage or str(folder / "runs"), *options,
        ]  # fmt: skip
        if control_group is not None:
            join = 'echo $$ > "$0" && exec "$@"'
            self._command = ["sh", "-c", join, str(control_group / "cgroup.procs"), *self._command]

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, or go on with it: always the same command."""
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

    def processes(self) -> list[int]:
        """All that are alive of it, by what they have in their environment."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"{MARK}={self.run}\0".encode() in environ.read_bytes():
                    found.append(int(environ.parent.name))
        return found

    def mend(self) -> None:
        """Let nothing go wrong any more."""
        (self.folder / "mended").touch()

    def check_invariants(self) -> None:
        """What must hold after every fault, once the process of the run is gone; ends with the run completed.

        I6: no process of it is alive after five seconds. I7: it goes on with the same command, with no manual unlock.
        I1: every line is in exactly one of completed, failed, canceled and not started, before and after; and, I3, what was
        completed is not executed again.
        """
        wait_until(lambda: not self.processes(), description="no process is alive", timeout_sec=GONE_WITHIN_SEC)
        before = self._check_every_line_counts_once()
        begun_before = len(self.begun())
        self.mend()

        status = self.ended(self.start())

        assert status == 0, (self.folder / "log").read_text()
        wait_until(lambda: not self.processes(), description="no process is alive", timeout_sec=GONE_WITHIN_SEC)
        again = self.begun()[begun_before:]
        assert before.isdisjoint(again), "a line whose record was kept ran again"
        assert self._check_every_line_counts_once() == set(range(len(self.faults)))
        outputs = [json.loads(line) for line in (self.text("outputs.jsonl") or "").splitlines()]
        assert outputs == [{"line_number": n, "square": n * n} for n in range(len(self.faults))]

    def _check_every_line_counts_once(self) -> set[int]:
        """The completed lines. A run that was killed has no result, and its records must do."""
        states = Counter(record["status"] for record in self.records().values())
        assert states.keys() <= {"Completed", "Failed"}
        assert self.records().keys() <= set(range(len(self.faults)))
        if result := self.result():
            counts = {name: result[f"{name}_lines"] for name in ("completed", "failed", "canceled", "not_started")}
            assert sum(counts.values()) == result["total_lines"] == len(self.faults), counts
            assert counts["completed"] == states["Completed"], (counts, states)
            assert counts["failed"] == states["Failed"], (counts, states)
        return {n for n, record in self.records().items() if record["status"] == "Completed"}
