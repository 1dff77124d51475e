"""Lines that wait for a service: the progress of the run counts them, wherever they wait."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from model_server import Reply, error_reply, rate_limited

from prefect_batchflow import BatchEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_server import ModelServer

    from prefect_batchflow.run.handle import ProgressReport

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("prefect_server")]

WAIT_SEC = 1.5
LLM = (
    "inputs: {{q: {{type: string}}}}\noutputs: {{out: {{type: string, reference: '${{{node}.output}}'}}}}\nnodes:\n"
    "- {{name: ask, type: llm, source: {{type: code, path: ask.jinja2}}, inputs: {{model: m, q: '${{inputs.q}}'}}, "
    "connection: ai, api: chat}}\n{more}"
)
SYNC_NODE = "- {name: tidy, type: python, source: {type: code, path: tidy.py}, inputs: {text: '${ask.output}'}}\n"


@pytest.fixture
def reports() -> list[ProgressReport]:
    return []


@pytest.mark.parametrize("is_sync", [False, True], ids=["async", "with a sync node"])
@pytest.mark.parametrize(
    ("refusal", "status"),
    [(rate_limited(str(WAIT_SEC)), 429), (error_reply(503, "overloaded", retry_after=str(WAIT_SEC)), 503)],
    ids=["429", "503"],
)
def test_calls_that_wait_are_counted(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    model_server: ModelServer,
    reports: list[ProgressReport],
    is_sync: bool,
    refusal: Reply,
    status: int,
) -> None:
    folder = tmp_path / "flow"
    folder.mkdir()
    text = LLM.format(node="tidy" if is_sync else "ask", more=SYNC_NODE if is_sync else "")
    (folder / "flow.dag.yaml").write_text(text)
    (folder / "ask.jinja2").write_text("# user:\n{{q}}\n")
    (folder / "tidy.py").write_text(
        "from promptflow.core import tool\n\n@tool\ndef f(text: str) -> str:\n    return text\n"
    )
    ai = {"type": "OpenAIConnection", "value": {"api_key": "k", "base_url": model_server.base_url}}
    model_server.script.extend([refusal] * 3)
    engine = BatchEngine(
        folder, connections={"ai": ai}, worker_count=3, listener=reports.append, run_storage_url=str(tmp_path / "runs")
    )

    result = engine.run({"data": write_rows([{"q": str(n)} for n in range(3)])})

    assert result.completed_lines == 3
    _are_told(reports, status)


def test_lines_that_wait_for_their_next_attempt_are_counted(
    tmp_path: Path, write_rows: Callable[..., Path], reports: list[ProgressReport]
) -> None:
    (tmp_path / "f.py").write_text(
        dedent(
            f"""
            from pathlib import Path

            class RateLimitError(Exception):
                status_code = 429
                retry_after_sec = {WAIT_SEC}

            def f(q: str) -> str:
                seen = Path(__file__).with_name(q)
                if not seen.exists():
                    seen.touch()
                    raise RateLimitError("slow down")
                return q
            """
        )
    )
    engine = BatchEngine(
        f"{tmp_path / 'f.py'}:f", retries=1, listener=reports.append, run_storage_url=str(tmp_path / "runs")
    )

    result = engine.run({"data": write_rows([{"q": f"seen{n}"} for n in range(3)])})

    assert result.completed_lines == 3
    _are_told(reports, 429)


def _are_told(reports: list[ProgressReport], status: int) -> None:
    waiting = [report for report in reports if report.waiting_lines]
    assert max((report.waiting_lines for report in waiting), default=0) == 3
    assert {report.wait_status for report in waiting} == {status}
    # A call waits up to a tenth longer than the service asks.
    assert all(0 <= report.next_wait_sec <= WAIT_SEC * 1.2 for report in waiting)
    assert any(report.next_wait_sec > 0 for report in waiting)
