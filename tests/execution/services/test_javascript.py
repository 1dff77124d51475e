"""The sample flow in JavaScript, run by the real Node.js."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow import BatchEngine, BatchResult, Status
from prefect_batchflow.execution.services.http import JavaScriptExecutorProxy

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE = Path(__file__).parents[3] / "flows" / "word_count_js"

pytestmark = [pytest.mark.node, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def run(storage: Path, write_rows: Callable[..., Path], tmp_path: Path) -> Callable[..., BatchResult]:
    """Run a flow over texts, with outputs in `out`."""

    def run(texts: list[str], flow: Path = SAMPLE, **options: Any) -> BatchResult:
        engine = BatchEngine(flow, **{"worker_count": 2, "run_storage_url": str(storage), **options})
        return engine.run({"data": write_rows([{"text": text} for text in texts])}, output_dir=tmp_path / "out")

    return run


@pytest.fixture
def odd_flow(tmp_path: Path) -> Path:
    """The sample, but the text `exit` ends its process and `loop` never ends."""
    folder = tmp_path / "odd"
    shutil.copytree(SAMPLE, folder)
    code = (folder / "word_count.js").read_text()
    begins = "function line({ text }) {\n"
    odd = '  if (text === "exit") process.exit(5);\n  while (text === "loop");\n'
    assert begins in code
    (folder / "word_count.js").write_text(code.replace(begins, begins + odd))
    return folder


def outputs(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "output.jsonl").read_text().splitlines()]


def test_the_sample_gives_what_its_readme_says(storage: Path) -> None:
    result = BatchEngine(SAMPLE, run_storage_url=str(storage)).run({"data": SAMPLE / "texts.jsonl"}, run_id="r")

    assert (result.status, result.completed_lines, result.failed_lines) == (Status.Completed, 8, 0)
    assert result.metrics == {"words": 88, "distinct_words": 68, "mean_words": 11}
    readme = (SAMPLE / "README.md").read_text()
    assert all(f"| {name} | {value} |" in readme for name, value in result.metrics.items())


def test_text_of_any_kind_and_size_comes_through(run: Callable[..., BatchResult], tmp_path: Path) -> None:
    assert run(["Ähre 漢字 naïve\u2028ende", "wort " * 400_000]).completed_lines == 2

    first, second = outputs(tmp_path)
    assert first["counts"] == {"ähre": 1, "漢字": 1, "naïve": 1, "ende": 1}
    assert (second["words"], second["counts"]) == (400_000, {"wort": 400_000})


def test_what_a_line_throws_is_its_error(run: Callable[..., BatchResult]) -> None:
    result = run(["one", "…", "two"])

    assert (result.completed_lines, result.failed_lines, result.metrics["words"]) == (2, 1, 2)
    [failed] = result.error_summary.error_list
    assert failed.line_number == 1
    assert failed.error["message"] == "Execution failure in 'word_count': (RangeError) no word in \"…\""
    assert (failed.error["code"], failed.error["innerError"]["code"]) == ("UserError", "ScriptExecutionError")


def test_a_line_that_ends_the_process_costs_lines_in_flight_only(
    run: Callable[..., BatchResult], odd_flow: Path
) -> None:
    result = run([*["a"] * 10, "exit", *["b"] * 10], odd_flow)

    codes = {line.line_number: line.error["innerError"]["code"] for line in result.error_summary.error_list}
    assert codes[10] == "ProcessCrashError"
    assert set(codes.values()) == {"ProcessCrashError"}
    assert result.failed_lines <= 2
    assert result.completed_lines + result.failed_lines == 21


def test_a_line_that_blocks_node_is_ended_at_its_limit(run: Callable[..., BatchResult], odd_flow: Path) -> None:
    result = run(["a", "loop", "b", "c"], odd_flow, line_timeout_sec=1, worker_count=1)

    [failed] = result.error_summary.error_list
    assert (failed.line_number, failed.error["innerError"]["code"]) == (1, "LineExecutionTimeoutError")
    assert result.completed_lines == 3


def check_process(pid: int) -> None:
    """The token is in the environment, which only the same user can read, and not in the command line."""
    process = Path(f"/proc/{pid}")
    token = re.search(rb"BATCHFLOW_SERVICE_TOKEN=([^\0]{32})\0", (process / "environ").read_bytes())
    assert token is not None
    assert token[1] not in (process / "cmdline").read_bytes()


def test_the_service_answers_its_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    from prefect_batchflow.execution.services import keeper

    seen: list[tuple[str, int]] = []
    launch = keeper.ServiceKeeper._launch

    def launched(self: keeper.ServiceKeeper) -> keeper.Served:
        served = launch(self)
        seen.append((str(served.client.base_url), served.process.pid))
        return served

    async def calls() -> None:
        proxy = await JavaScriptExecutorProxy.create(SAMPLE / "flow.flex.yaml", SAMPLE)
        try:
            [(url, pid)] = seen
            body = {"inputs": {"text": "a b"}}
            async with httpx.AsyncClient(base_url=url, trust_env=False) as other:
                for headers in (
                    {},
                    {"Authorization": ""},
                    {"Authorization": "Bearer undefined"},
                    {"Authorization": "x"},
                ):
                    answer = await other.post("/execution", json=body, headers=headers)
                    assert answer.status_code == 401
                    assert "output" not in answer.json()
                assert (await other.get("/health")).status_code == 401
            assert (await proxy.exec_line_async({"text": "a b"}))["output"]["words"] == 2
            check_process(pid)
        finally:
            await proxy.destroy()

    monkeypatch.setattr(keeper.ServiceKeeper, "_launch", launched)
    asyncio.run(calls())
