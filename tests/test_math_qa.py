"""The sample `flows/math_qa`: a model call a line, with tokens and metrics that are the server's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from model_server import Reply, rate_limited
from prefect.settings import PREFECT_API_URL

from prefect_batchflow import BatchEngine, Status

if TYPE_CHECKING:
    from model_server import ModelServer

pytestmark = pytest.mark.programs

SAMPLE = Path(__file__).parents[1] / "flows" / "math_qa"
ROWS = [json.loads(line) for line in (SAMPLE / "problems.jsonl").read_text().splitlines()]
UNSURE = ROWS[3]["question"]
WRONG = ROWS[5]["question"]


def solve(body: dict[str, Any]) -> Reply:
    """The worked answer of the data, but for two questions."""
    question = body["messages"][-1]["content"]
    answers = {row["question"]: row["answer"] for row in ROWS} | {UNSURE: "I do not know.", WRONG: "#### 1,000"}
    return Reply(message={"role": "assistant", "content": answers[question]})


@pytest.mark.usefixtures("prefect_server")
def test_each_line_asks_the_model_once_and_the_metrics_are_right(model_server: ModelServer, storage: Path) -> None:
    model_server.answer = solve
    model_server.script.append(rate_limited("0.05"))
    connection = {"type": "OpenAIConnection", "value": {"api_key": "k", "base_url": model_server.base_url}}
    engine = BatchEngine(SAMPLE, connections={"open_ai_connection": connection}, run_storage_url=str(storage))

    result = engine.run({"data": SAMPLE / "problems.jsonl"})

    lines = len(ROWS)
    assert (result.status, result.completed_lines, result.failed_lines) == (Status.Completed, lines, 0)
    assert result.metrics == {"accuracy": round((lines - 2) / lines, 4), "without_number": round(1 / lines, 4)}
    assert (model_server.answered, model_server.call_count) == (lines, lines + 1)
    tokens = result.system_metrics
    assert {name: getattr(tokens, name) for name in model_server.tokens} == model_server.tokens
    assert result.node_status["solve.completed"] == lines


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("page", ["README.md", "flows/math_qa/README.md"])
def test_the_command_of_a_page_runs_as_typed(page: str, tmp_path: Path, storage: Path) -> None:
    root = SAMPLE.parents[1]
    (command,) = re.findall(
        r"^python flows/math_qa/model_server.py batchflow .*$", (root / page).read_text(), flags=re.M
    )
    for name, words in {"python": "", "batchflow": " -m prefect_batchflow.cli"}.items():
        (tmp_path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    env |= {"BATCHFLOW_STORAGE": str(storage)}

    done = subprocess.run(command, shell=True, cwd=root, env=env, capture_output=True, text=True, timeout=90)  # noqa: S602

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ROWS)} of {len(ROWS)} lines completed" in done.stdout
    assert re.search(r"^ *accuracy +0\.875$", done.stdout, flags=re.M), done.stdout
    assert "Tokens" in done.stdout
