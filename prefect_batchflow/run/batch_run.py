"""The stages of a batch run, in their order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prefect_batchflow.run.ending import Ending, ended_before_lines
from prefect_batchflow.run.feeding import Feeding
from prefect_batchflow.run.preparation import preparation
from prefect_batchflow.run.resuming import Resuming
from prefect_batchflow.run.state import RunState
from prefect_batchflow.storage.lease import Lease
from prefect_batchflow.storage.reserve import Reserve

if TYPE_CHECKING:
    from prefect_batchflow.results.models import BatchResult
    from prefect_batchflow.run.handle import LiveRun
    from prefect_batchflow.run.preparation import Preparation, Prepared
    from prefect_batchflow.settings import BatchRequest


async def run_stages(request: BatchRequest, live: LiveRun) -> BatchResult:
    """Run a batch: prepare, open the records, feed the lines, aggregate, report. `live` gets the result as soon as it exists.

    Raises:
        BatchflowException: There is no result.
    """
    state = RunState(request, live)
    async with preparation(state) as preparing:
        ready = await state.stop.unless_stopped(_prepare(state, preparing))
        if ready is None:
            note = "Stopped before the data was read. No line has begun, and nothing was written."
            return await ended_before_lines(state, 0, note)
        prepared, opening, places = ready
        async with Lease(prepared.files, state.keys, state.stop.fail) as lease:
            # From here on each write is refused once another process has taken the run over.
            prepared = replace(prepared, files=prepared.files.fenced(lease.check))
            async with Reserve(prepared.files, state.keys, places) as reserve:
                opened = await opening.open(prepared.files)
                if opened is None:
                    note = "Stopped before the run knew which lines are done. No line has begun, and earlier results are kept."
                    return await ended_before_lines(state, prepared.inventory.total_lines, note)
                opened.records.reserve = reserve
                feeding = Feeding(state, prepared, opened, places)
                await feeding.run()
            ending = Ending(state, prepared, opened, feeding.counts)
            if prepared.has_aggregation and not state.stop.is_stopped:
                await ending.aggregate()
            return await ending.report()


async def _prepare(state: RunState, preparing: Preparation) -> tuple[Prepared, Resuming, int]:
    """Do everything that can refuse the run, before anything is in the storage."""
    prepared = await preparing.prepare()
    opening = Resuming(state, prepared)
    await opening.check_before_writing()
    places = await prepared.cluster.connect() if prepared.cluster is not None else 0
    return prepared, opening, places
