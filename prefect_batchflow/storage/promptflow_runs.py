"""Reads promptflow's own run folders, so that a run can continue one of them.

Source: promptflow-devkit `_sdk/operations/_local_storage_operations.py`, `LocalStorageOperations`: a folder
`~/.promptflow/.runs/<name>` with one record per line in `flow_artifacts/000000000_000000000.jsonl` (first and last line), and
one per node and line in `node_artifacts/<node>/000000000.jsonl`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import ValidationError

from prefect_batchflow.exceptions import InvalidOptionError, StorageError
from prefect_batchflow.inputs.places import absolute
from prefect_batchflow.results.models import FlowRunInfo, RunInfo
from prefect_batchflow.storage.custom import AbstractBatchRunStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

Info = TypeVar("Info", FlowRunInfo, RunInfo)

LINES, NODES = "flow_artifacts", "node_artifacts"
_LINES_FILE = re.compile(r"([0-9]{9,})_([0-9]{9,})\.jsonl")


def is_promptflow_run(path: str | Path) -> bool:
    """Whether a folder is a run folder of promptflow."""
    return Path(path, LINES).is_dir()


class PromptflowRunStorage(AbstractBatchRunStorage):
    """A run folder of promptflow, for `resume_from_run_storage` of `BatchEngine.run`. Read-only.

    Args:
        path: The folder, such as `~/.promptflow/.runs/<name>`.

    Raises:
        InvalidOptionError: It is not a run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(absolute(str(path)))
        if not is_promptflow_run(self.path):
            found = "a folder without one" if self.path.is_dir() else "no folder"
            raise InvalidOptionError(
                f"{self.path} is not a run folder of promptflow: expected a folder {LINES} in it, found {found}. Give the "
                "run's folder, such as ~/.promptflow/.runs/<name>."
            )
        self.image_folder = str(self.path)
        self._files = sorted(
            (int(match[1]), int(match[2]), file)
            for file in (self.path / LINES).iterdir()
            if (match := _LINES_FILE.fullmatch(file.name))
        )
        self._single = {first: file for first, last, file in self._files if first == last}
        nodes = self.path / NODES
        self._nodes = sorted(folder for folder in nodes.iterdir() if folder.is_dir()) if nodes.is_dir() else []

    def load_flow_run_info(self, line_number: int) -> FlowRunInfo | None:
        """The run of a line; `None` if promptflow never finished it.

        Raises:
            StorageError: The record is damaged.
        """
        single = self._single.get(line_number)
        files = [single] if single else [file for first, last, file in self._files if first <= line_number <= last]
        found = None
        for file in files:
            for run_info in _records(file, line_number):
                found = _parsed(FlowRunInfo, run_info, file)
        return found

    def load_node_run_info_for_line(self, line_number: int) -> list[RunInfo]:
        """The node runs of a line. Those of the aggregation belong to no line.

        Raises:
            StorageError: A record is damaged.
        """
        infos: dict[str, RunInfo] = {}
        for folder in self._nodes:
            file = folder / f"{line_number:09d}.jsonl"
            if file.is_file():
                for run_info in _records(file, line_number):
                    info = _parsed(RunInfo, run_info, file)
                    infos[info.node] = info
        return list(infos.values())

    def persist_flow_run(self, run_info: FlowRunInfo) -> NoReturn:
        """Always raises a `StorageError`: the folder is only read."""
        self._refuse()

    def persist_node_run(self, run_info: RunInfo) -> NoReturn:
        """Always raises a `StorageError`: the folder is only read."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StorageError(
            f"{self.path} is a run folder of promptflow, which is only read. Give it as resume_from_run_storage, not as "
            "storage."
        )


def _records(file: Path, line_number: int) -> Iterator[dict[str, Any]]:
    """The run infos of a line in a file."""
    try:
        with file.open(encoding="utf-8") as text:
            for row in text:
                record = json.loads(row)
                if record["line_number"] == line_number:
                    yield record["run_info"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as exc:
        raise _damaged(file, exc) from exc


def _parsed(kind: type[Info], run_info: dict[str, Any], file: Path) -> Info:
    try:
        return kind.deserialize(run_info)
    except (ValidationError, TypeError, AttributeError) as exc:
        raise _damaged(file, exc) from exc


def _damaged(file: Path, exc: Exception) -> StorageError:
    return StorageError(
        f"The record {file} of promptflow is damaged: ({type(exc).__name__}) {exc}. Move it away; its lines then run again."
    )
