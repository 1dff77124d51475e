"""A run of a deployment is held to the roots before its flow is loaded, and its data while it is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import flows
from prefect_batchflow.exceptions import BatchflowException
from prefect_batchflow.flows import run_batch
from prefect_batchflow.prefect_runtime.flow_runs import current_flow_run
from prefect_batchflow.run.handle import LiveRun

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a flow that says that it was loaded, as this worker's only root; each run is one of a deployment."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.jsonl").write_text('{"q": 1}\n')
    (root / "flow.py").write_text(
        f"import os, random\nopen({str(tmp_path / 'loaded')!r}, 'a').close()\ndef run(q): return q\n"
    )
    (root / "rows.jsonl").write_text('{"q": 1}\n')
    (root / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    monkeypatch.setenv("BATCHFLOW_ROOTS", str(root))
    monkeypatch.setattr(
        flows, "current_flow_run", lambda: SimpleNamespace(id=current_flow_run().id, deployment_id="a-deployment")
    )
    return root


@pytest.mark.parametrize(
    "given",
    [
        {"flow": "{root}/flow.py:random._os.system"},
        {"flow": "{root}/flow.py:os.system"},
        {"environment_variables": {"PYTHONPATH": "{root}"}},
        {"environment_variables": {"NODE_OPTIONS": "--require {root}/x.js"}},
        {"output_dir": "file://{root}/y?/../../outside"},
        {"output_dir": "file://host/{root}"},
        {"storage": "file://{root}/y?/../../outside"},
        {"data": "file://{root}/y?/../../outside.jsonl"},
        {"data": "{root}/link.jsonl"},
        {"more_data": {"more": "{root}/../outside.jsonl"}},
        {"init_kwargs": {"key": "${{env:HOME}}"}},
    ],
    ids=str,
)
def test_a_run_that_leaves_the_roots_is_refused_and_loads_nothing(
    root: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    def filled(value: Any) -> Any:
        return {k: filled(v) for k, v in value.items()} if isinstance(value, dict) else value.format(root=root)

    named = {"flow": str(root / "flow.py:run"), "data": str(root / "rows.jsonl"), "storage": str(root / "runs")}

    with pytest.raises(BatchflowException, match=r"not below|does not define|this worker"):
        run_batch({**named, **filled(given)}, LiveRun())

    assert not (tmp_path / "loaded").exists()
    assert not (tmp_path / "outside").exists()
    assert not (root / "runs").exists()


def test_a_run_below_the_roots_runs(root: Path) -> None:
    result = run_batch(
        {
            "flow": f"{root}/flow.py:run",
            "data": f"{root}/*s.jsonl",
            "storage": f"{root}/runs",
            "output_dir": f"{root}/out",
        },
        LiveRun(),
    )

    assert result.completed_lines == 1
    assert (root / "out" / "output.jsonl").exists()
