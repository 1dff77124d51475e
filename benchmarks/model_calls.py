"""One model call per line, against a server that limits the rate and fails: is every line and token accounted for?

    python benchmarks/model_calls.py --data gsm8k_test.jsonl --at-once 64 --rate-limited 5 --failing 2

Runs `flows/math_qa` over rows with `question` and `answer`. The server answers every tenth question wrongly and the others
as the data does, so the accuracy is known beforehand. Exit status 1 if a line, a token or the accuracy is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FLOW = ROOT / "flows" / "math_qa"
WRONG_EVERY = 10

sys.path.insert(0, str(ROOT / "tests" / "support"))

from model_server import ModelServer, Reply  # noqa: E402 - beside the tests, which use it too


def answers(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Question to the answer of the model."""
    return {
        row["question"]: "That is hard.\n#### none" if number % WRONG_EVERY == 0 else row["answer"]
        for number, row in enumerate(rows)
    }


def asked(body: dict[str, Any]) -> str:
    """The question of a call."""
    return str(body["messages"][-1]["content"]).strip()


def main() -> int:
    """Run, compare and print; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=FLOW / "problems.jsonl")
    parser.add_argument("--at-once", type=int, default=64, help="calls at once")
    parser.add_argument("--rate-limited", type=float, default=5.0, help="percent of calls answered by 429")
    parser.add_argument("--failing", type=float, default=2.0, help="percent of calls answered by 500")
    parser.add_argument("--delay-sec", type=float, default=0.2, help="seconds that the model takes")
    given = parser.parse_args()
    from prefect_batchflow import BatchEngine  # imports Prefect, which `--help` need not wait for

    rows = [json.loads(line) for line in given.data.read_text().splitlines()]
    said = answers(rows)
    questions = {question.strip(): question for question in said}
    right = sum(said[row["question"]] == row["answer"] for row in rows)
    with (
        ModelServer(rate_limited_percent=given.rate_limited, failing_percent=given.failing) as server,
        tempfile.TemporaryDirectory(prefix="batchflow-benchmark-") as scratch,
    ):
        server.answer = lambda body: Reply(
            message={"role": "assistant", "content": said[questions[asked(body)]]}, delay_sec=given.delay_sec
        )
        connection = {"type": "OpenAIConnection", "value": {"api_key": "none", "base_url": server.base_url}}
        engine = BatchEngine(
            FLOW,
            connections={"open_ai_connection": connection},
            max_concurrency=given.at_once,
            run_storage_url=scratch,
        )
        begun = time.perf_counter()
        result = engine.run({"data": given.data.resolve()})
        took = time.perf_counter() - begun
    metrics, tokens = result.metrics, result.system_metrics
    checks = {
        "lines": (result.completed_lines + result.failed_lines, len(rows)),
        "completed lines": (result.completed_lines, len(rows)),
        "accuracy": (metrics.get("accuracy"), round(right / len(rows), 4)),
        "prompt tokens": (tokens.prompt_tokens, server.prompt_tokens),
        "completion tokens": (tokens.completion_tokens, server.completion_tokens),
    }
    print(f"{len(rows)} lines, {given.at_once} calls at once: {took:.1f} s, {len(rows) / took:.1f} lines per second")
    print(f"{server.call_count} calls, {server.answered} answered, {server.most_at_once} at once at most")
    for name, (ours, expected) in checks.items():
        print(f"{name:<18} {ours} (expected {expected}){'' if ours == expected else '  WRONG'}")
    return int(any(ours != expected for ours, expected in checks.values()))


if __name__ == "__main__":
    sys.exit(main())
