"""promptflow's storage interface, for storages that users bring. They get every line and node, besides our own records."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefect_batchflow.results.models import FlowRunInfo, LineResult, RunInfo


class AbstractRunStorage(ABC):
    """Receives the run infos of a batch run as its lines end. Calls come one at a time, from one thread.

    Source: promptflow `storage/_run_storage.py`, `AbstractRunStorage`.
    """

    @abstractmethod
    def persist_node_run(self, run_info: RunInfo) -> None:
        """Keep one node's run of one line, or of the aggregation (`index` is `None`)."""

    @abstractmethod
    def persist_flow_run(self, run_info: FlowRunInfo) -> None:
        """Keep one line's run."""


class AbstractBatchRunStorage(AbstractRunStorage):
    """A storage from which a later run can take completed lines.

    Attributes:
        image_folder: Where the images are that its records name by path; `None` if it has none. This package hands images
            over whole, so only a storage that writes files of its own needs it.

    Source: promptflow `storage/_run_storage.py`, `AbstractBatchRunStorage`.
    """

    image_folder: str | None = None

    @abstractmethod
    def load_node_run_info_for_line(self, line_number: int) -> Sequence[RunInfo]:
        """The node runs of a line, if any."""

    @abstractmethod
    def load_flow_run_info(self, line_number: int) -> FlowRunInfo | None:
        """The run of a line; `None` if there is none."""


def persist_lines(storage: AbstractRunStorage, results: Iterable[LineResult]) -> None:
    """Hand lines to a storage: for each line its node runs, then its own.

    Raises:
        StorageError: The storage raised; the message names the line.
    """
    for result in results:
        with _naming(storage, f"line {result.run_info.index}"):
            for node_run_info in result.node_run_infos.values():
                storage.persist_node_run(node_run_info)
            storage.persist_flow_run(result.run_info)


def persist_nodes(storage: AbstractRunStorage, node_run_infos: Iterable[RunInfo]) -> None:
    """Hand node runs of the aggregation to a storage.

    Raises:
        StorageError: The storage raised; the message names the node.
    """
    for info in node_run_infos:
        with _naming(storage, f"node {info.node!r}"):
            storage.persist_node_run(info)


@contextlib.contextmanager
def _naming(storage: AbstractRunStorage, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        raise StorageError(
            f"{type(storage).__name__} did not keep {what}: ({type(exc).__name__}) {exc}. The run stops. Its own records "
            "are kept."
        ) from exc
