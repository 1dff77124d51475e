"""Run a parity case with this package: its stages without Prefect, or the `BatchEngine` that users call.

`run_stages` goes the way of `prefect_batchflow.run` with the same functions, real worker processes included, and leaves out
what costs a second a run and has tests of its own: Prefect's flow and task runs, and the run storage.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from comparable import connections_of, described, described_refusal, entry_of, memory_storage, run_whole

from prefect_batchflow import AbstractBatchRunStorage, BatchEngine, BatchResult, load_flow
from prefect_batchflow.exceptions import BatchflowException, error_dict
from prefect_batchflow.execution.workers.pool import WorkerPool
from prefect_batchflow.inputs.readers import open_source
from prefect_batchflow.lines import check, read_lines
from prefect_batchflow.results.models import line_result
from prefect_batchflow.results.strict_json import StrictRows
from prefect_batchflow.run.aggregation import aggregate
from prefect_batchflow.storage.outputs import output_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from declared import Case

RUN_ID = "parity"
LINE_TIMEOUT_SEC = 60.0


def run_engine(case: Case, folder: Path, sources: Mapping[str, str], model_url: str, storage: Path) -> dict[str, Any]:
    """Run a case as users do, inside Prefect."""
    return run_whole(
        case,
        folder,
        sources,
        model_url=model_url,
        engine=BatchEngine,
        storage=lambda: memory_storage(AbstractBatchRunStorage),
        error_of=error_dict,
        more={"run_storage_url": str(storage)},
    )


def run_stages(case: Case, folder: Path, sources: Mapping[str, str], model_url: str) -> dict[str, Any]:
    """Run a case's stages: definition, inputs, lines, execution, results, aggregation."""
    try:
        return asyncio.run(_stages(case, folder, sources, model_url))
    except BatchflowException as exc:
        return described_refusal(error_dict(exc))


async def _stages(case: Case, folder: Path, sources: Mapping[str, str], model_url: str) -> dict[str, Any]:
    began = datetime.now(UTC)
    flow = load_flow(entry_of(case, folder), folder)
    connections = {"connections": connections_of(case, model_url)} if case.connections else {}
    workers = case.engine.get("worker_count", 1)
    pool = WorkerPool(flow, init_kwargs=case.init, worker_count=workers, **connections)
    timeout_sec = case.engine.get("line_timeout_sec", LINE_TIMEOUT_SEC)
    try:
        flow = flow.described(description := await pool.start())
        opened = [open_source(url, name=name, base_dir=str(folder)) for name, url in sources.items()]
        inventory = check(opened, flow.inputs, case.mapping, case.run.get("max_lines_count"), takes_any=flow.takes_any)
        lines = list(read_lines(opened, flow.inputs, case.mapping, inventory, takes_any=flow.takes_any))
        outcomes = await asyncio.gather(*(pool.run_line(line, attempt=1, timeout_sec=timeout_sec) for line in lines))
        records = sorted((outcome.parsed() for outcome in outcomes), key=lambda record: record["line_number"])
        aggregated = None
        if description.has_aggregation:
            aggregated = await aggregate(pool, _each(records), run_id=RUN_ID, timeout_sec=timeout_sec)
    finally:
        await pool.close()
    results = [line_result(record, RUN_ID) for record in records]
    result = BatchResult.create(began, datetime.now(UTC), results, aggregated)
    written = StrictRows("output.jsonl")
    rows = [written.line(output_row(record)) for record in records if record["status"] == "Completed"]
    return described(result, list(map(json.loads, rows)), folder)


async def _each(records: Sequence[Any]) -> AsyncIterator[Any]:
    for record in records:
        yield record
