"""The tour: what the package promises, one promise a test, by its public names and real flows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from line_functions import Greeter, fail_on_odd, shout, wait_a_little

from prefect_batchflow import BatchEngine, BatchResult, LineFailureError, Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def run(storage: Path, write_rows: Callable[..., Path]) -> Callable[..., BatchResult]:
    """Run a flow over rows in a storage of the test's own."""

    def run(
        flow: Any, rows: list[dict[str, Any]], *, mapping: dict[str, Any] | None = None, **options: Any
    ) -> BatchResult:
        run_options = {k: options.pop(k) for k in ("output_dir", "run_id", "raise_on_line_failure") if k in options}
        engine = BatchEngine(flow, worker_count=2, run_storage_url=str(storage), **options)
        return engine.run({"data": write_rows(rows)}, mapping, **run_options)

    return run


def outputs(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "output.jsonl").read_text().splitlines()]


def test_a_function_runs_over_every_line(run: Callable[..., BatchResult], tmp_path: Path) -> None:
    result = run(shout, [{"text": "a"}, {"text": "b"}], output_dir=tmp_path / "out")
    assert (result.status, result.total_lines, result.completed_lines) == (Status.Completed, 2, 2)
    assert outputs(tmp_path / "out") == [{"line_number": 0, "loud": "A"}, {"line_number": 1, "loud": "B"}]


def test_a_mapping_takes_columns_and_literals(run: Callable[..., BatchResult], tmp_path: Path) -> None:
    run(shout, [{"q": "a"}], mapping={"text": "${data.q}", "times": 3}, output_dir=tmp_path / "out")
    assert outputs(tmp_path / "out") == [{"line_number": 0, "loud": "AAA"}]


def test_a_failed_line_is_data_and_the_others_go_on(run: Callable[..., BatchResult]) -> None:
    result = run(fail_on_odd, [{"n": n} for n in range(5)])
    assert (result.status, result.completed_lines, result.failed_lines) == (Status.Completed, 3, 2)
    assert [e.line_number for e in result.error_summary.error_list] == [1, 3]
    error = result.error_summary.error_list[0].error
    assert error["message"] == "Execution failure in 'fail_on_odd': (ValueError) 1 is odd"
    assert (error["code"], error["innerError"]["code"]) == ("UserError", "ScriptExecutionError")


def test_raise_on_line_failure_raises_after_everything_was_written(
    run: Callable[..., BatchResult], tmp_path: Path
) -> None:
    with pytest.raises(LineFailureError, match="2 of 5 lines failed; line 1") as caught:
        run(fail_on_odd, [{"n": n} for n in range(5)], raise_on_line_failure=True, output_dir=tmp_path / "out")
    assert caught.value.batch_result.completed_lines == 3
    assert [row["line_number"] for row in outputs(tmp_path / "out")] == [0, 2, 4]


def test_failed_lines_are_data_of_a_new_run(run: Callable[..., BatchResult], storage: Path, tmp_path: Path) -> None:
    run(fail_on_odd, [{"n": n} for n in range(5)], run_id="first")
    again = BatchEngine(shout, run_storage_url=str(storage)).run(
        {"data": storage / "first" / "failed.jsonl"}, {"text": "${data.n}"}, tmp_path / "out"
    )
    assert again.completed_lines == 2
    assert outputs(tmp_path / "out") == [{"line_number": 1, "loud": "1"}, {"line_number": 3, "loud": "3"}]


def test_async_functions_run_many_lines_at_once(run: Callable[..., BatchResult], tmp_path: Path) -> None:
    result = run(wait_a_little, [{"n": n} for n in range(20)], output_dir=tmp_path / "out")
    assert result.completed_lines == 20
    assert outputs(tmp_path / "out")[19] == {"line_number": 19, "output": 20}


def test_a_class_is_built_with_init_kwargs_and_aggregates(run: Callable[..., BatchResult]) -> None:
    result = run(Greeter, [{"name": "Ada"}, {"name": "Alan"}], init_kwargs={"greeting": "Hi"})
    assert (result.completed_lines, result.metrics) == (2, {"greetings": 2})


def test_a_lambda_travels_to_the_workers(run: Callable[..., BatchResult], tmp_path: Path) -> None:
    run(lambda n: n * 2, [{"n": 4}], output_dir=tmp_path / "out")
    assert outputs(tmp_path / "out") == [{"line_number": 0, "output": 8}]


def test_the_same_run_id_resumes_and_runs_only_what_is_not_done(
    run: Callable[..., BatchResult], tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    flow_file = tmp_path / "flow.py"
    flow_file.write_text(
        "import os\n"
        "def main(n: int, witness: str):\n"
        "    with open(witness, 'a') as f: f.write(f'{n}\\n')\n"
        "    if n == 1 and not os.path.exists(witness + '.ready'): raise RuntimeError('not yet')\n"
        "    return n\n"
    )
    rows = [{"n": n, "witness": str(witness)} for n in range(3)]
    assert run(f"{flow_file}:main", rows, run_id="nightly").failed_lines == 1
    (tmp_path / "witness.ready").touch()
    second = run(f"{flow_file}:main", rows, run_id="nightly")
    assert (second.completed_lines, second.total_lines) == (3, 3)
    assert sorted(witness.read_text().split()) == ["0", "1", "1", "2"]


def test_line_and_chunk_granularity_give_equal_results(run: Callable[..., BatchResult], tmp_path: Path) -> None:
    def summary(granularity: str) -> dict[str, Any]:
        result = run(
            fail_on_odd, [{"n": n} for n in range(60)], granularity=granularity, output_dir=tmp_path / granularity
        )
        plain = result.model_dump(mode="json", exclude={"start_time", "end_time", "system_metrics"})
        assert result.failed_lines == 30
        for entry in plain["error_summary"]["error_list"]:
            entry["error"].pop("additionalInfo")
        return plain

    assert summary("line") == summary("chunk")
    assert outputs(tmp_path / "line") == outputs(tmp_path / "chunk")


def test_cancel_from_another_thread_gives_a_partial_result(storage: Path, write_rows: Callable[..., Path]) -> None:
    def listener(report: Any) -> None:
        if report.running_lines:
            engine.cancel()

    def forever(n: int) -> int:
        while True:
            pass

    engine = BatchEngine(forever, worker_count=1, run_storage_url=str(storage), listener=listener)
    result = engine.run({"data": write_rows([{"n": n} for n in range(3)])})
    assert (result.status, result.completed_lines) == (Status.Canceled, 0)
    assert result.canceled_lines == 1
    assert result.not_started_lines == 2
