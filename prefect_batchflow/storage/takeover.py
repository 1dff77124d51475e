"""Copies completed lines of another run, or of a storage that the caller brings, into the records of this run."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect_batchflow.errors.chosen import runs_again
from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.execution.executor import outcome_of
from prefect_batchflow.images.forms import BASIC
from prefect_batchflow.results.records import Status, Tokens, line_run, node_record
from prefect_batchflow.storage.matching import copy_matches, known_lines
from prefect_batchflow.storage.taken_images import ImageLostError, TakenImages

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from prefect_batchflow.execution.executor import LineOutcome
    from prefect_batchflow.lines import Line
    from prefect_batchflow.results.models import FlowRunInfo, RunInfo
    from prefect_batchflow.results.records import LineRun, NodeRecord, Receipt, Span
    from prefect_batchflow.storage.custom import AbstractBatchRunStorage
    from prefect_batchflow.storage.matching import History
    from prefect_batchflow.storage.records import RunRecords

_LINES_A_SEGMENT = 500


async def take_over_run(
    other: RunRecords,
    history: History,
    lines: Iterable[Line],
    into: RunRecords,
    rerun: Collection[str] = (),
    *,
    total_before: int = 0,
    own_numbers: bool = False,
) -> int:
    """Copy the completed lines of another run that have the inputs of a line of this one, and return how many.

    If `rerun` names errors, failed lines with other errors are copied too. The other arguments are those of `match`.
    """

    def stays(receipt: Receipt) -> bool:
        stays_failed = receipt.status is Status.Failed and not runs_again(rerun, receipt.error or {})
        return receipt.status is Status.Completed or stays_failed

    known = await known_lines(other, history)
    matches = await asyncio.to_thread(known.match, lines, total_before, own_numbers=own_numbers)
    return await copy_matches(
        other, history, matches.numbers, into.append, wanted=stays, lines_a_segment=_LINES_A_SEGMENT
    )


async def take_over_storage(
    storage: AbstractBatchRunStorage,
    lines: Iterable[Line],
    into: RunRecords,
    on_other_inputs: Callable[[int], object] = lambda _: None,
    *,
    images: TakenImages | None = None,
    aggregated: Collection[str] | None = None,
    is_entry: bool = False,
    on_lost_image: Callable[[int], object] = lambda _: None,
) -> int:
    """Copy the completed lines that a storage has, looked up by line_number, and return how many.

    A completed line is not copied if the storage has other inputs for it; `on_other_inputs` gets its number. Inputs that only
    one side has are not compared. Nor is it copied if the output of a node in `aggregated` has an image that the storage does
    not have; `on_lost_image` gets its number.

    Args:
        storage: The caller's.
        lines: The lines of this run.
        into: The records of this run.
        on_other_inputs: See above.
        images: How images are taken over.
        aggregated: The nodes whose outputs the aggregation needs; `None` is all that the storage has.
        is_entry: Whether the flow is a function or class.
        on_lost_image: See above.

    Raises:
        StorageError: The storage raised; promptflow's `ResumeCopyError`.
    """
    copier = _Copier(into)
    images = images or TakenImages(BASIC)
    for line in lines:
        try:
            run_info = storage.load_flow_run_info(line.line_number)
            if run_info is None or run_info.status != Status.Completed:
                continue
            if _are_others(run_info.inputs, line, images):
                on_other_inputs(line.line_number)
                continue
            nodes = storage.load_node_run_info_for_line(line.line_number) or []
            run = _run(line, run_info, nodes, images, aggregated)
            if is_entry and run["output"] is not None and run["output"].keys() == {"output"}:
                # As the record of a returned value that is no dict, which `__aggregate__` gets as it is.
                run["aggregation_inputs"] = dict(run["output"])
        except ImageLostError:
            on_lost_image(line.line_number)
            continue
        except Exception as exc:
            raise StorageError(
                f"{type(storage).__name__} could not give line {line.line_number}: ({type(exc).__name__}) {exc}. Nothing was "
                "run. Fix the storage, or start without resume_from_run_storage."
            ) from exc
        await copier.add(outcome_of(line, 1, run))
    return await copier.end()


class _Copier:
    """Appends records in segments of a bounded size."""

    def __init__(self, into: RunRecords) -> None:
        self._into = into
        self._waiting: list[LineOutcome] = []
        self._count = 0

    async def add(self, outcome: LineOutcome) -> None:
        self._waiting.append(outcome)
        if len(self._waiting) == _LINES_A_SEGMENT:
            await self.end()

    async def end(self) -> int:
        if self._waiting:
            await self._into.append(self._waiting)
            self._count += len(self._waiting)
            self._waiting = []
        return self._count


def _are_others(known: Any, line: Line, images: TakenImages) -> bool:
    if not isinstance(known, dict):
        return False
    return any(
        known[name] != value and not images.same_input(known[name], line, name)
        for name, value in line.inputs.items()
        if name in known
    )


def _run(
    line: Line, run_info: FlowRunInfo, nodes: Sequence[RunInfo], images: TakenImages, aggregated: Collection[str] | None
) -> LineRun:
    plain = run_info.model_dump(mode="json")
    records = [_node(info) for info in nodes]
    metrics = plain.get("system_metrics") or {}
    output = images.whole(plain["output"])
    places = plain["images"] if plain["images"] is not None else [list(place) for place, _ in images.found(output)]
    needed = {node["node"]: node["output"] for node in records if aggregated is None or node["node"] in aggregated}
    if aggregated:
        known = images.known(output, line)
        needed = {name: images.restored(images.whole(value), known) for name, value in needed.items()}
    run = line_run(
        line.inputs,
        _span(plain, float(metrics.get("duration") or 0.0)),
        output=output,
        aggregation_inputs={f"${{{name}.output}}": value for name, value in needed.items()},
        tokens=Tokens.of(metrics).metrics(),
        nodes=records,
    )
    if places or line.images:
        run["images"] = {
            "inputs": {name: source for name, (source, _) in (line.images or {}).items()},
            "output": places,
        }
    return run


def _node(info: RunInfo) -> NodeRecord:
    plain = info.model_dump(mode="json")
    kept = {name: plain[name] for name in ("node", "status", "inputs", "output", "error", "metrics")}
    return node_record(span=_span(plain, 0.0), **kept)


def _span(plain: dict[str, Any], duration_sec: float) -> Span:
    """Start, end and duration. If the storage has no times, the time of the copy stands in."""
    ended = plain["end_time"] or datetime.now(UTC).isoformat()
    return plain["start_time"] or ended, ended, duration_sec
