"""Places as typed: storages, folders, runs of promptflow, and files of data. No Prefect before it is needed."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_batchflow.inputs.places import absolute, locate
from prefect_batchflow.inputs.readers import open_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.storage.custom import AbstractBatchRunStorage


def absolute_place(place: str) -> str:
    """Make a path absolute. A URL, a saved block and an empty text stay as they are."""
    return place if not place or place.startswith("batchflow-run-storage/") else absolute(place)


def promptflow_run(text: str) -> AbstractBatchRunStorage | None:
    """The run folder of promptflow that the text names; `None` if the text is a run id."""
    from prefect_batchflow.storage.promptflow_runs import PromptflowRunStorage, is_promptflow_run

    is_path = any(mark in text for mark in "/~")
    return PromptflowRunStorage(text) if text and (is_path or is_promptflow_run(absolute_place(text))) else None


def peek(urls: Mapping[str, str]) -> None:
    """Read the first row of each file on this machine, so that a wrong file fails at once. Skip pipes."""
    for name, url in urls.items():
        source = open_source(url, name=name)
        if "://" not in url and url != "-" and not _is_pipe(locate(url)):
            next(source.rows(), None)


def _is_pipe(path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
