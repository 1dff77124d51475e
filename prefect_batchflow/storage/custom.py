"""promptflow's storage contract, for storages that users bring: called for every line and node, besides our own records."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefect_batchflow.results.models import FlowRunInfo, LineResult, RunInfo


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


def persist_lines(storage: AbstractRunStorage, results: Iterable[LineResult]) -> None:
    """Hand lines to a storage: of each its node runs, then its own.

    Raises:
        StorageError: It raised; the message names the line.
    """
    for result in results:
        with _told_by(storage, f"line {result.run_info.index}"):
            for node_run_info in result.node_run_infos.values():
                storage.persist_node_run(node_run_info)
            storage.persist_flow_run(result.run_info)


def persist_nodes(storage: AbstractRunStorage, node_run_infos: Iterable[RunInfo]) -> None:
    """Hand node runs of the aggregation to a storage.

    Raises:
        StorageError: It raised; the message names the node.
    """
    for info in node_run_infos:
        with _told_by(storage, f"node {info.node!r}"):
            storage.persist_node_run(info)


@contextlib.contextmanager
def _told_by(storage: AbstractRunStorage, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        raise StorageError(
            f"{type(storage).__name__} did not take {what}: ({type(exc).__name__}) {exc}. The run stops; its own records "
            "are kept."
        ) from exc
