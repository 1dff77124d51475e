"""The job of a contender and its timing; only the standard library, for any interpreter."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Job:
    """One measurement."""

    flow: str
    """A folder with a `flow.dag.yaml` of one node."""
    data: str
    """A jsonl file with a column `text`."""
    output_dir: str
    completed_lines: int
    """The lines that must complete; the data can have others, which fail."""
    at_once: int
    """Worker processes, threads, or lines on an event loop."""
    granularity: str = ""
    """Only for our own engine, like the next option."""
    run_id: str = ""
    """Resumes the run with this name if there is one."""

    @property
    def on_event_loop(self) -> int:
        """Lines at once on an event loop: at least 16, so that a peer is not limited to the number of workers."""
        return max(self.at_once, 16)

    def texts(self) -> list[str]:
        """The column `text`, for contenders that read no files themselves."""
        with Path(self.data).open(encoding="utf-8") as rows:
            return [json.loads(row)["text"] for row in rows]

    def line_function(self) -> Callable[[str], Any]:
        """The function of the flow's node, undecorated, for contenders that know no flows: all run the same code."""
        undecorated = ModuleType("promptflow.core")
        undecorated.tool = lambda function: function  # type: ignore[attr-defined]  # a stand-in
        sys.modules |= {"promptflow": ModuleType("promptflow"), "promptflow.core": undecorated}
        (source,) = Path(self.flow).glob("*.py")
        spec = importlib.util.spec_from_file_location(source.stem, source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[source.stem] = module
        spec.loader.exec_module(module)
        return getattr(module, source.stem)  # type: ignore[no-any-return]  # named as its file


def measure(prepare: Callable[[Job], Callable[[], int]]) -> None:
    """Run a contender over the job on the command line; print a JSON object as the last line.

    It has `seconds`, `begun` and `ended` on the monotonic clock, and in kB the process's memory `resident_before` the
    run, with all imports done, and its `peak`.

    Args:
        prepare: Makes all ready, untimed, and gives the call to be timed, which returns the lines completed.
    """
    job = Job(**json.loads(sys.argv[1]))
    run = prepare(job)
    resident_before = memory_kb("VmRSS")
    begun = time.monotonic()
    completed = run()
    ended = time.monotonic()
    if completed != job.completed_lines:
        sys.exit(
            f"{sys.argv[0]}: {completed} of {job.completed_lines} lines completed; a partial run is no measurement"
        )
    figures = {"seconds": ended - begun, "begun": begun, "ended": ended}
    print(json.dumps(figures | {"resident_before": resident_before, "peak": memory_kb("VmHWM")}), flush=True)


def memory_kb(field: str, pid: int | str = "self") -> int:
    """A field of the process's `/proc/PID/status`; 0 if the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(row.split()[1]) for row in status.splitlines() if row.startswith(f"{field}:")), 0)
