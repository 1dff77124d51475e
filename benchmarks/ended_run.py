"""A run in a scratch folder and the contents of its files, for benchmarks that check every line."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import innermost_code

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from prefect_batchflow import BatchResult


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended."""

    result: BatchResult
    seconds: float
    """Seconds that the call of `run()` took."""
    outputs: list[dict[str, Any]]
    """The rows of `output.jsonl`."""
    failed: list[dict[str, Any]]
    """The rows of `failed.jsonl`."""

    @property
    def codes(self) -> dict[int, str]:
        """The innermost code of each failed line."""
        return {row["line_number"]: innermost_code(row["_error"]) for row in self.failed}


def run_in(folder: Path, flow: str, rows: Iterable[dict[str, Any]], **options: Any) -> EndedRun:
    """Run a flow over rows, with everything it writes in this folder.

    Args:
        folder: An existing folder, which the caller removes.
        flow: What `BatchEngine` takes.
        rows: The data.
        options: Those of `BatchEngine`.
    """
    from prefect_batchflow import BatchEngine  # imports Prefect, which a program's `--help` need not wait for

    data, out = folder / "data.jsonl", folder / "out"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = BatchEngine(flow, run_storage_url=str(folder / "runs"), **options)
    begun = time.perf_counter()
    result = engine.run({"data": data}, output_dir=out)
    seconds = time.perf_counter() - begun
    outputs, failed = (
        [json.loads(line) for line in (out / name).read_text().splitlines()]
        for name in ("output.jsonl", "failed.jsonl")
    )
    return EndedRun(result, seconds, outputs, failed)
