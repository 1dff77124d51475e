"""What each contender is given and how it is timed; the standard library alone, for any interpreter."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Job:
    """One measurement."""

    flow: Path
    """The trivial flow's folder."""
    data: Path
    """A jsonl file with a column `text`."""
    output_dir: Path
    lines: int
    workers: int
    granularity: str = ""
    """For our own engine only."""

    def texts(self) -> list[str]:
        """The column `text`, for contenders that read no files themselves."""
        with self.data.open(encoding="utf-8") as rows:
            return [json.loads(row)["text"] for row in rows]


def measure(prepare: Callable[[Job], Callable[[], int]]) -> None:
    """Run a contender over the job on the command line and print `{"seconds": …}` as the last line.

    Args:
        prepare: Makes all ready, untimed, and gives the call to be timed, which returns the lines completed.
    """
    flow, data, output_dir, lines, workers, granularity = sys.argv[1:]
    job = Job(Path(flow), Path(data), Path(output_dir), int(lines), int(workers), granularity)
    run = prepare(job)
    start = time.perf_counter()
    completed = run()
    seconds = time.perf_counter() - start
    if completed != job.lines:
        sys.exit(f"{sys.argv[0]}: {completed} of {job.lines} lines completed; a partial run is no measurement")
    print(json.dumps({"seconds": seconds}), flush=True)
