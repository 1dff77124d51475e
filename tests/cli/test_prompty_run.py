"""The sample prompty, run by `batchflow` against a model service of the tests' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from model_server import ModelServer, Reply

from prefect_batchflow.cli.commands import main

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.programs

SAMPLE = Path(__file__).parents[2] / "flows" / "qa_prompty"
ANSWER = {"answer": "Because.", "confidence": 0.5}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, storage: Path) -> Iterator[ModelServer]:
    """A service that answers in JSON, known by the environment."""
    with ModelServer() as started:
        content = json.dumps({**ANSWER, "more": 1})
        started.answer = lambda _: Reply(message={"role": "assistant", "content": content})
        monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
        monkeypatch.setenv("OPENAI_BASE_URL", started.base_url)
        monkeypatch.setenv("BATCHFLOW_STORAGE", str(storage))
        yield started


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    capsys.readouterr()
    status = main(["run", str(SAMPLE / "ask.prompty"), "--data", str(SAMPLE / "questions.jsonl"), "--json", *words])
    return status, json.loads(capsys.readouterr().out)["result"]


def test_the_sample_asks_each_question_and_counts_its_tokens(
    server: ModelServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, storage: Path
) -> None:
    outputs = tmp_path / "outputs"

    status, result = run(capsys, "--map", "audience=${data.audience}", "--output-dir", str(outputs))

    assert (status, result["completed_lines"]) == (0, 3)
    lines = [json.loads(line) for line in (outputs / "output.jsonl").read_text().splitlines()]
    assert lines == [{"line_number": number, **ANSWER} for number in range(3)]
    audiences = sorted(call.body["messages"][0]["content"].split(",")[0] for call in server.calls)
    assert audiences == ["Answer for a biologist", "Answer for a child", "Answer for a child"]
    assert result["system_metrics"]["total_tokens"] == server.tokens["total_tokens"]
    kept = b"".join(file.read_bytes() for file in storage.rglob("*") if file.is_file())
    assert b"canary-key" not in kept


def test_another_model_for_one_run(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = run(capsys, "--init", 'model={"configuration": {"model": "other"}}')

    assert status == 0
    assert {call.body["model"] for call in server.calls} == {"other"}
