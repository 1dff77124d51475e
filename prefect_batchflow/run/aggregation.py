"""Gives completed lines, read back from the records, to aggregation nodes or `__aggregate__`.

promptflow pairs flow inputs and node outputs by their positions in two lists. These differ after a resume, or if line numbers
are out of order. Here the inputs, output and node outputs of a line come from one record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_batchflow.results.models import AggregationResult, aggregation_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping

    from prefect_batchflow.execution.executor import Executor
    from prefect_batchflow.results.records import CompletedLine, ImageFolders, LineRecord


async def aggregate(
    executor: Executor,
    records: AsyncIterable[LineRecord],
    *,
    run_id: str,
    timeout_sec: float,
    image_folders: Mapping[str, ImageFolders] | None = None,
) -> AggregationResult:
    """Run the flow's aggregation over the completed lines, within the time limit of a line, as in promptflow.

    `records` has the newest record of each line of the data, by line_number; `image_folders` has, by source, the folder of the
    relative image paths in its inputs. The ids of node runs contain `run_id`.
    """
    folders = image_folders or {}
    completed = [_kept(record, folders) async for record in records if record["status"] == "Completed"]
    run = await executor.aggregate(completed, timeout_sec=timeout_sec)
    return aggregation_result(run, run_id)


def _kept(record: LineRecord, folders: Mapping[str, ImageFolders]) -> CompletedLine:
    line: CompletedLine = {
        "line_number": record["line_number"],
        "inputs": record["inputs"],
        "output": record["output"],
        "aggregation_inputs": record["aggregation_inputs"],
    }
    if (images := record.get("images")) is not None:
        line["images"] = {name: (source, folders.get(source)) for name, source in images["inputs"].items()}
    return line
