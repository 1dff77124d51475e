"""Unfinished files that a killed process leaves in a run's folder."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import stored_run

from prefect_batchflow.flows import run_batch
from prefect_batchflow.results.models import BatchResult
from prefect_batchflow.results.tally import Tally
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.outputs import write_outputs
from prefect_batchflow.storage.private_files import remove_unfinished

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from prefect_batchflow.blocks import RunStorageBlock


pytestmark = pytest.mark.programs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a manifest that was written at second 1000."""
    folder = tmp_path / "r"
    (folder / "records").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    os.utime(folder / "manifest.json", (1000, 1000))
    return folder


def left(folder: Path, name: str, second: int) -> Path:
    path = folder / name
    path.write_text("half")
    os.utime(path, (second, second))
    return path


def test_those_older_than_this_start_go_wherever_they_are(run: Path) -> None:
    old = [left(run / place, ".writing-0123abcd", 999) for place in (".", "records")]

    assert remove_unfinished(run, run / "manifest.json") == 2
    assert not any(path.exists() for path in old)


def test_newer_ones_other_files_and_links_stay(run: Path, tmp_path: Path) -> None:
    outside = left(tmp_path, ".writing-outside", 1)
    (run / "records" / ".writing-link").symlink_to(outside)
    (run / "linked").symlink_to(tmp_path, target_is_directory=True)
    kept = [left(run, ".writing-new", 1001), left(run, ".other", 1), left(run / "records", "000.json", 1)]

    assert remove_unfinished(run, run / "manifest.json") == 0
    assert all(path.exists() for path in [*kept, outside])


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    assert remove_unfinished(tmp_path / "none", tmp_path / "none" / "manifest.json") == 0


@pytest.mark.anyio
async def test_an_output_folder_loses_only_those_that_nobody_can_be_writing(
    tmp_path: Path, local: RunStorageBlock
) -> None:
    """Another run can have the same output folder."""
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "mine").mkdir()
    old = [left(out / place, ".writing-0123abcd", 1000) for place in (".", "images")]
    kept = [left(out, ".writing-new", int(time.time()) - 60), left(out / "mine", ".writing-0123abcd", 1000)]

    async def no_records() -> AsyncIterator[Any]:
        for record in list[Any]():
            yield record

    result = BatchResult.of(Tally(), 0, stored_run.STARTED, stored_run.STARTED)
    await write_outputs(local, RunKeys("r"), no_records(), result, out)

    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in kept)


@pytest.mark.usefixtures("prefect_server")
def test_the_next_start_removes_them(tmp_path: Path, storage: Path, write_rows: Callable[..., Path]) -> None:
    (tmp_path / "flow.py").write_text("def main(n: int) -> int:\n    return n\n")
    parameters: dict[str, Any] = {
        "flow": f"{tmp_path / 'flow.py'}:main",
        "data": str(write_rows([{"n": 1}])),
        "storage": str(storage),
        "run_id": "r",
    }
    for place in ("", "records", "leases", "manifests"):
        (storage / "r" / place).mkdir(parents=True, exist_ok=True)
        left(storage / "r" / place, ".writing-0123abcd", 1000)

    run_batch(parameters, LiveRun())

    assert not list(storage.rglob(".writing-*"))
