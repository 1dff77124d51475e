"""promptflow's storage contract, for storages that users bring: called for every line and node, besides our own records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_batchflow.results import FlowRunInfo, LineResult, RunInfo


class AbstractRunStorage(ABC):
    """Takes the run infos of a batch run as its lines end. Calls come one at a time, from one thread.

    Source: promptflow `storage/_run_storage.py`, `AbstractRunStorage`.
    """

    @abstractmethod
    def persist_node_run(self, run_info: RunInfo) -> None:
        """Take one node's run of one line, or of the aggregation (`index` is `None`)."""

    @abstractmethod
    def persist_flow_run(self, run_info: FlowRunInfo) -> None:
        """Take one line's run."""


class AbstractBatchRunStorage(AbstractRunStorage):
    """A storage that a later run can take completed lines from.

    Source: promptflow `storage/_run_storage.py`, `AbstractBatchRunStorage`.
    """

    @abstractmethod
    def load_node_run_info_for_line(self, line_number: int) -> Sequence[RunInfo]:
        """The node runs of a line; empty when there are none."""

    @abstractmethod
    def load_flow_run_info(self, line_number: int) -> FlowRunInfo | None:
        """The run of a line; `None` when there is none."""


def persist_line(storage: AbstractRunStorage, result: LineResult) -> None:
    """Hand a line's node runs, then the line's own, to a storage."""
    for node_run_info in result.node_run_infos.values():
        storage.persist_node_run(node_run_info)
    storage.persist_flow_run(result.run_info)
