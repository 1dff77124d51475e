"""A resume after a connection's address, or a variable that the flow names, has changed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import BatchEngine, BatchResult
from prefect_batchflow.exceptions import RunChangedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

CANARY = "q7Zk-canary-4711"
FLOW = """
from promptflow.core import tool
from promptflow.connections import CustomConnection
@tool
def say(q: str, c: CustomConnection) -> str:
    return q + c.url
"""
DAG = """
inputs: {q: {type: string}}
outputs: {out: {type: string, reference: "${a.output}"}}
environment_variables: {PLACE: "${env:WHERE}"}
nodes: [{name: a, type: python, source: {type: code, path: say.py}, inputs: {q: "${inputs.q}", c: my}}]
"""


@pytest.fixture
def start(tmp_path: Path, write_rows: Callable[..., Path]) -> Callable[..., BatchResult]:
    folder = tmp_path / "flow"
    folder.mkdir()
    (folder / "say.py").write_text(FLOW)
    (folder / "flow.dag.yaml").write_text(DAG)
    data = write_rows([{"q": "a"}])

    def run(connection: Any = None, **options: Any) -> BatchResult:
        given = connection or {
            "type": "CustomConnection", "value": {"url": "https://a", "token": CANARY}, "secret_keys": ["token"],
        }  # fmt: skip
        engine = BatchEngine(
            folder, run_storage_url=str(tmp_path / "runs"), connections={"my": given}, worker_count=1, **options
        )
        return engine.run({"data": data}, run_id="r")

    return run


def test_the_address_of_a_connection_and_a_named_variable(
    start: Callable[..., BatchResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "here")
    assert start().completed_lines == 1
    other_key = {"type": "CustomConnection", "value": {"url": "https://a", "token": "new"}, "secret_keys": ["token"]}
    assert start(other_key).completed_lines == 1, "another key reaches the same service"
    other_url = {"type": "CustomConnection", "value": {"url": "https://b", "token": CANARY}, "secret_keys": ["token"]}
    with pytest.raises(RunChangedError, match=r"since it began: the connections changed \(my\.url changed\)\. Give"):
        start(other_url)
    monkeypatch.setenv("WHERE", "there")
    with pytest.raises(RunChangedError, match=r"the environment variables changed \(WHERE changed\)"):
        start()
    manifest = (tmp_path / "runs" / "r" / "manifest.json").read_text()
    assert CANARY not in manifest
    assert hashlib.sha256(CANARY.encode()).hexdigest()[:16] not in manifest
