"""promptflow's storage contract: what a storage that users bring is handed."""

from __future__ import annotations

from typing import Any

from prefect_batchflow.results.models import FlowRunInfo, LineResult, RunInfo
from prefect_batchflow.results.records import Status
from prefect_batchflow.storage.custom import AbstractRunStorage, persist_lines


class Noting(AbstractRunStorage):
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def persist_node_run(self, run_info: RunInfo) -> None:
        self.calls.append(("node", run_info.node))

    def persist_flow_run(self, run_info: FlowRunInfo) -> None:
        self.calls.append(("line", run_info.index))


def test_a_lines_nodes_come_first_then_the_line() -> None:
    storage = Noting()
    result = LineResult(
        run_info=FlowRunInfo(run_id="r_3", status=Status.Completed, index=3),
        node_run_infos={name: RunInfo(node=name, run_id=name, status=Status.Completed) for name in ("a", "b")},
    )

    persist_lines(storage, [result])

    assert storage.calls == [("node", "a"), ("node", "b"), ("line", 3)]
