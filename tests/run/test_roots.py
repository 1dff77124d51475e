"""What a deployment's run may name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.run.roots import check_roots, check_roots_of
from prefect_batchflow.settings import BatchRequest, RunOptions, default_storage_url

if TYPE_CHECKING:
    from pathlib import Path

URL_ROOT = "s3://bucket/data"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a link out of it, as the working directory."""
    root = tmp_path / "root"
    (root / "flows").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    monkeypatch.chdir(root)
    monkeypatch.setenv("ROOT_OF_TEST", str(root))
    monkeypatch.setenv("HOME_OF_TEST", str(tmp_path))
    return root


def _request(**more: Any) -> BatchRequest:
    return BatchRequest(**{"flow": "flows/a", "run_id": "r", "storage": default_storage_url(), **more})


@pytest.mark.parametrize(
    "named",
    [
        {"flow": "flows/a/flow.dag.yaml"},
        {"flow": "flows/a.py:Class.method"},
        {"flow": "a.py:run", "working_dir": "flows"},
        {"data": "rows.jsonl", "more_data": {"more": f"{URL_ROOT}/rows.jsonl"}},
        {"data": URL_ROOT},
        {"data": "rows-*.jsonl", "more_data": {"more": f"{URL_ROOT}/rows-*.jsonl"}},
        {"data": "$ROOT_OF_TEST/rows.jsonl"},
        {"output_dir": "flows/../outputs"},
        {"storage": "batchflow-run-storage/nightly"},
        {"storage": f"{URL_ROOT}/runs"},
        {"options": RunOptions(task_runner="dask", task_runner_address="tcp://10.0.0.5:8786")},
        {"options": RunOptions(task_runner="ray", task_runner_address="auto")},
    ],
    ids=str,
)
def test_what_lies_below_a_root_may_be_named(root: Path, named: dict[str, Any]) -> None:
    check_roots(_request(**named), f"{root}, {URL_ROOT}/, tcp://10.0.0.5:8786")


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"flow": "subprocess:getoutput"}, "flow 'subprocess:getoutput'"),
        ({"flow": "../a.py:run"}, "flow '../a.py'"),
        ({"flow": "out/a"}, "flow 'out/a'"),
        ({"flow": "a.py:run", "working_dir": "out"}, "working_dir 'out'"),
        ({"data": "/etc/hosts"}, "data '/etc/hosts'"),
        ({"data": "file:///etc/hosts"}, "data 'file:///etc/hosts'"),
        ({"data": "$HOME_OF_TEST/rows.jsonl"}, "data '$HOME_OF_TEST/rows.jsonl'"),
        ({"data": "${HOME_OF_TEST}/*.jsonl"}, "data '${HOME_OF_TEST}/*.jsonl'"),
        ({"data": "out/*.jsonl"}, "data 'out/*.jsonl'"),
        ({"data": "*/../../rows.jsonl"}, "data '*/../../rows.jsonl'"),
        ({"more_data": {"more": f"{URL_ROOT}-of-others/rows.jsonl"}}, f"more '{URL_ROOT}-of-others/rows.jsonl'"),
        ({"data": f"{URL_ROOT}/%2e%2e/rows.jsonl"}, "%2e%2e"),
        ({"data": f"simplecache::{URL_ROOT}/rows.jsonl"}, "simplecache::"),
        ({"output_dir": "~"}, "output_dir '~'"),
        ({"storage": "memory://runs"}, "storage 'memory://runs'"),
        (
            {"options": RunOptions(task_runner="dask", task_runner_address="tcp://10.0.0.5:87865")},
            "task_runner_address 'tcp://10.0.0.5:87865'",
        ),
        (
            {"options": RunOptions(task_runner="ray", task_runner_address="10.0.0.6:6379")},
            "task_runner_address '10.0.0.6",
        ),
        (
            {"options": RunOptions(task_runner="dask", task_runner_address="their-host.example:8786")},
            "task_runner_address 'their-host",
        ),
    ],
    ids=str,
)
def test_what_leads_out_of_the_roots_is_refused_by_name(root: Path, named: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        check_roots(_request(**named), f"{root},{URL_ROOT},tcp://10.0.0.5:8786")

    assert told in str(caught.value)


def test_without_roots_there_is_no_limit() -> None:
    check_roots(_request(flow="subprocess:getoutput", data="/etc/hosts"), "")


def test_one_more_place_is_held_to_the_roots_as_well(root: Path) -> None:
    check_roots_of("run.inputs", str(root / "rows.jsonl"), str(root))
    with pytest.raises(InvalidOptionError, match=r"run\.inputs '/etc/passwd': not below"):
        check_roots_of("run.inputs", "/etc/passwd", str(root))
