"""What all stages of a run share: the request, the counts, and what can stop it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from prefect_batchflow.prefect_runtime.flow_runs import current_flow_run
from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.records import Status
from prefect_batchflow.results.tally import Tally
from prefect_batchflow.run.stopping import Stop
from prefect_batchflow.storage.keys import RunKeys

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from prefect_batchflow.run.handle import LiveRun
    from prefect_batchflow.settings import BatchRequest


class RunState:
    """One run, as its stages know it; `live` is the run as its caller holds it."""

    def __init__(self, request: BatchRequest, live: LiveRun) -> None:
        self.request = request
        self.options = request.options
        self.live = live
        self.logger = get_run_logger()
        self.flow_run = current_flow_run()
        self.keys = RunKeys(request.run_id)
        self.tally = live.tally = Tally()
        self.reused_lines = 0
        """Lines that an earlier start of the run had completed; part of the completed lines."""
        self.task_runs = 0
        self.start_time = datetime.now(UTC)
        self.clock = time.monotonic()
        """When the run started, on the monotonic clock."""
        self.stop = Stop(live, request.options.batch_timeout_sec or None, self.clock)

    @property
    def init_kwargs(self) -> Mapping[str, Any]:
        """Arguments of a class flow's constructor."""
        given = self.live.init_kwargs
        return self.request.init_kwargs if given is None else given

    @property
    def environment_variables(self) -> Mapping[str, str]:
        """The variables of this run; the flow's own are in its files."""
        given = self.live.environment_variables
        return self.request.environment_variables if given is None else given

    def note(self, text: str) -> None:
        """Tell the caller and the log something that is not an error, but perhaps not what was meant."""
        self.live.notes.append(text)
        if self.live.on_note is not None:
            self.live.on_note(text)
        self.logger.warning("%s", text)

    def batch_result(self, total_lines: int) -> BatchResult:
        """The result of the run so far."""
        return BatchResult.of(
            self.tally,
            total_lines,
            self.start_time,
            self.start_time + timedelta(seconds=time.monotonic() - self.clock),  # the wall clock can jump
            status=Status.Canceled if self.stop.is_canceled else Status.Completed,
            batch_error=self.stop.error_dict,
        )
