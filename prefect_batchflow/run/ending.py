"""The last stage: aggregate the completed lines, write output files and Prefect artifacts, make the result."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.images.forms import form_of
from prefect_batchflow.images.places import folders_of
from prefect_batchflow.inputs.places import without_credentials
from prefect_batchflow.prefect_runtime.gone_server import (
    GONE_AFTER_SEC,
    SILENT_AFTER_SEC,
    let_go_of_server,
    server_answers,
)
from prefect_batchflow.prefect_runtime.own_server import has_own_server, wait_until_recorded
from prefect_batchflow.report.artifacts import write_failed_lines, write_summary
from prefect_batchflow.report.summary import failed_table, summary_markdown
from prefect_batchflow.results.models import summary_line
from prefect_batchflow.results.records import Status
from prefect_batchflow.run.aggregation import aggregate
from prefect_batchflow.settings import default_storage_url
from prefect_batchflow.storage.custom import persist_nodes
from prefect_batchflow.storage.images import ImageInputs
from prefect_batchflow.storage.manifest import keep_manifest
from prefect_batchflow.storage.outputs import write_outputs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from prefect_batchflow.results.models import BatchResult
    from prefect_batchflow.results.records import ImageFolders, LineRecord
    from prefect_batchflow.run.handle import LiveRun
    from prefect_batchflow.run.preparation import Prepared
    from prefect_batchflow.run.resuming import Resumed
    from prefect_batchflow.run.state import RunState
    from prefect_batchflow.settings import BatchRequest
    from prefect_batchflow.storage.index import Stored

COPY_IMAGES_SEC = 20.0
"""How long copying remote images beside the failed lines that name them may take, all images together."""
STOPPED_HAND_IN_SEC = 3.0
"""How long a stopped run waits for Prefect's own server. Some task runs never report, and the caller is waiting."""


class Ending:
    """Turns the records of a run into its outputs, artifacts and result.

    `counts` tells whether the newest record of a line belongs to this run's data and is final.
    """

    def __init__(self, state: RunState, prepared: Prepared, opened: Resumed, counts: Callable[[Stored], bool]) -> None:
        self._state = state
        self._prepared = prepared
        self._opened = opened
        self._counts = counts

    async def aggregate(self) -> None:
        """Run the aggregation, unless the run is stopped first."""
        state = self._state
        work = aggregate(
            self._prepared.executor,
            self._newest_records(),
            run_id=state.request.run_id,
            image_folders=self._image_folders(),
            timeout_sec=state.options.policy.timeout_sec,
        )
        aggregation = await state.stop.unless_stopped(work)
        if aggregation is None:
            state.note("The aggregation was stopped before it ended. There are no metrics.")
            return
        state.tally.add_aggregation(aggregation.counts())
        if state.live.run_storage is not None:
            persist_nodes(state.live.run_storage, aggregation.node_run_infos.values())

    async def report(self) -> BatchResult:
        """Make the result, write the output files, and show both in Prefect."""
        state, prepared = self._state, self._prepared
        state.stop.raise_failure()
        result = state.batch_result(prepared.inventory.total_lines)
        written = await write_outputs(
            prepared.files,
            state.keys,
            self._newest_records(),
            result,
            prepared.output_dir,
            form_of(prepared.flow.message_format),
            self._image_inputs(),
            prepared.files.check_writer,
        )
        if await keep_manifest(prepared.files, state.keys, self._opened.manifest):
            state.note("The run's manifest.json was gone or changed at the end of the run. It is written again.")
        for note in written.notes:
            state.note(note)
        if written.images_left:
            state.note(
                f"{written.images_left} images of failed lines were not copied beside failed.jsonl, because reading them from "
                "another machine takes too long. The lines still name the original images."
            )
        state.stop.raise_failure()
        await prepared.files.check_writer()
        are_shown = await self._write_artifacts(result)
        state.logger.info("Run %s: %s", state.request.run_id, summary_line(result))
        state.live.result = result
        await _hand_in(state, GONE_AFTER_SEC if are_shown else SILENT_AFTER_SEC)
        return result

    def _image_folders(self) -> dict[str, ImageFolders]:
        """By source, the folders where its images can be; `""` is the flow."""
        prepared = self._prepared
        folders = {"": str(prepared.flow.working_dir), **{source.name: source.folder for source in prepared.sources}}
        return {name: folders_of(folder, prepared.image_roots) for name, folder in folders.items()}

    def _image_inputs(self) -> ImageInputs | None:
        """How lines name images; `None` if a service runs them: it finds its images in its own way."""
        flow = self._prepared.flow
        if flow.service is not None:
            return None
        # The person who stopped the run waits for its end.
        remote_sec = 0.0 if self._state.stop.is_stopped else COPY_IMAGES_SEC
        return ImageInputs(self._image_folders(), flow.program.loads_images, remote_sec)

    async def _newest_records(self) -> AsyncIterator[LineRecord]:
        """The records that count.

        Raises:
            StorageError: At its end, if these are not the lines that the run counted.
        """
        merged: Counter[str] = Counter()
        async for stored, record in self._opened.records.newest():
            if self._counts(stored):
                merged[record["status"]] += 1
                yield record
        tally = self._state.tally
        completed, failed = merged[Status.Completed], merged[Status.Failed]
        if self._state.stop.is_stopped:
            # Data that was not read, or a write that ended late, can have more records than were counted.
            is_right = (
                completed >= tally.completed_lines and completed + failed >= tally.completed_lines + tally.failed_lines
            )
        else:
            is_right = (completed, failed) == (tally.completed_lines, tally.failed_lines)
        if not is_right:
            place = self._prepared.files.location(self._state.keys.records)
            raise StorageError(
                f"{tally.completed_lines} lines completed and {tally.failed_lines} failed, but the records at {place} have "
                f"{completed} and {failed}. No outputs were written. Find out whether something else changes the run's "
                "folder, then resume the run: lines without a record run again."
            )

    async def _write_artifacts(self, result: BatchResult) -> bool:
        """Show the result in Prefect; whether the server took all of it."""
        state, files, run_id = self._state, self._prepared.files, self._state.request.run_id
        summary = summary_markdown(
            result,
            state.tally,
            run_id=run_id,
            flow_name=self._prepared.flow.name,
            storage_url=files.location(run_id),
            outputs_url=files.location(state.keys.outputs),
            next_command=self._next_command(),
            reused_lines=state.reused_lines,
            workers=state.live.workers,
        )
        writes = [write_summary(run_id, summary)]
        # A resumed run may have to clear the table of its earlier start.
        if result.failed_lines or self._opened.session > 1:
            writes.append(write_failed_lines(run_id, failed_table(state.tally.failures), result.failed_lines))
        return all(await asyncio.gather(*writes))

    def _next_command(self) -> str:
        if self._prepared.flow.source is None:
            return ""
        return batchflow_command("resume", self._state.request)


def batchflow_command(name: str, request: BatchRequest) -> str:
    """A command about a run, as the user can type it."""
    elsewhere = request.storage != default_storage_url()
    return f"batchflow {name} {request.run_id}" + (
        f" --storage {without_credentials(request.storage)}" if elsewhere else ""
    )


async def ended_before_lines(state: RunState, total_lines: int, note: str) -> BatchResult:
    """The result of a run that was stopped before a line began. The storage stays as it is.

    Raises:
        BatchflowException: It was not stopped by a person or a limit: there is no result.
    """
    state.stop.raise_failure()
    state.note(note)
    state.live.result = result = state.batch_result(total_lines)
    await _hand_in(state)
    return result


async def server_is_gone(live: LiveRun, within_sec: float = GONE_AFTER_SEC) -> bool:
    """Check whether the Prefect server has stopped answering; if so, drop everything that would wait for it."""
    if await server_answers(within_sec):
        return False
    live.server_gone.set()
    let_go_of_server()
    return True


async def _hand_in(state: RunState, within_sec: float = GONE_AFTER_SEC) -> None:
    """If the server ends with this process, wait, for a bounded time, until it has all task runs."""
    if await server_is_gone(state.live, within_sec) or not has_own_server():
        return  # once its last state was tried, a note says what the server does not know
    most_sec = STOPPED_HAND_IN_SEC if state.stop.is_stopped else None
    missing = await wait_until_recorded(state.flow_run.id, state.task_runs, most_sec)
    if missing and not state.stop.is_stopped:
        state.note(
            f"{missing} of {state.task_runs} task runs had not reached the run's own Prefect server when the run ended. "
            "The records are complete. To see all task runs, use a server that keeps running: prefect server start."
        )
