"""Results: promptflow's models, counts that always add up, and a tally that stays small."""

from __future__ import annotations

import ast
import inspect
import json
import math
import pickle
import statistics
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_batchflow.errors.classes import is_one_of
from prefect_batchflow.exceptions import (
    BatchRunTimeoutError,
    StorageError,
    ToolExecutionError,
    error_dict,
    innermost_code,
)
from prefect_batchflow.results import models as results
from prefect_batchflow.results import tally
from prefect_batchflow.results.models import (
    AggregationResult,
    BatchResult,
    FlowRunInfo,
    LineResult,
    RunInfo,
    aggregation_result,
    line_result,
    summary_line,
)
from prefect_batchflow.results.records import (
    MAX_RECEIPT_TEXT,
    AggregationRun,
    LineRecord,
    NodeRecord,
    Receipt,
    Status,
    Tokens,
)
from prefect_batchflow.results.tally import FULL_ERRORS, MAX_ERROR_LIST, Durations, Tally

START = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
END = START + timedelta(seconds=2.5)
USER_ERROR = error_dict(ToolExecutionError("Execution failure in 'judge': (KeyError) 'answer'"))
SYSTEM_ERROR = error_dict(StorageError("disk full"))


def node_record(node: str = "judge", status: str = "Completed", **changes: Any) -> NodeRecord:
    record: NodeRecord = {
        "node": node,
        "status": status,
        "inputs": {"text": "a"},
        "output": "b" if status == "Completed" else None,
        "error": USER_ERROR if status == "Failed" else None,
        "start_time": "2026-11-23T12:00:00.100000+00:00",
        "end_time": "2026-11-23T12:00:00.300000+00:00",
        "duration_sec": 0.2,
        "metrics": {},
    }
    return {**record, **changes}  # type: ignore[typeddict-item]


def line_record(line_number: int = 7, status: str = "Completed", **changes: Any) -> LineRecord:
    record: LineRecord = {
        "line_number": line_number,
        "attempt": 2,
        "status": status,
        "input_hash": "abc",
        "inputs": {"text": "a"},
        "output": {"answer": "b"} if status == "Completed" else None,
        "aggregation_inputs": {"${judge.output}": "b"},
        "error": None if status == "Completed" else USER_ERROR,
        "start_time": "2026-11-23T12:00:00+00:00",
        "end_time": "2026-11-23T12:00:00.500000+00:00",
        "duration_sec": 0.5,
        "metrics": {"seen": 1},
        "tokens": {"total_tokens": 30, "prompt_tokens": 20, "completion_tokens": 10},
        "logs": "hello\n",
        "nodes": [node_record(), node_record("skip", "Bypassed")],
    }
    return {**record, **changes}  # type: ignore[typeddict-item]


def result_of(status: Status = Status.Completed, index: int | None = 0, **changes: Any) -> LineResult:
    info = FlowRunInfo(run_id=f"run_{index}", status=status, index=index, **changes)
    return LineResult(run_info=info)


class TestLineResult:
    def test_it_carries_promptflows_ids(self) -> None:
        result = line_result(line_record(7), "run")

        assert result.run_info.run_id == "run_7"
        assert (result.run_info.root_run_id, result.run_info.parent_run_id, result.run_info.index) == ("run", "run", 7)
        node = result.node_run_infos["judge"]
        assert (node.run_id, node.flow_run_id, node.parent_run_id, node.index) == ("run_judge_7", "run", "run_7", 7)

    def test_it_carries_what_the_record_says(self) -> None:
        result = line_result(line_record(), "run")

        assert result.output == {"answer": "b"} == result.run_info.output
        assert result.aggregation_inputs == {"${judge.output}": "b"}
        assert result.run_info.inputs == {"text": "a"}
        assert result.run_info.metrics == {"seen": 1}
        assert result.run_info.start_time == START
        assert result.run_info.system_metrics == {
            "duration": 0.5,
            "total_tokens": 30,
            "prompt_tokens": 20,
            "completion_tokens": 10,
        }
        assert result.node_run_infos["judge"].output == "b"
        assert result.node_run_infos["judge"].system_metrics == {"duration": 0.2}
        assert result.node_run_infos["skip"].status is Status.Bypassed

    def test_a_failed_line_has_its_error_and_no_output(self) -> None:
        result = line_result(line_record(status="Failed", nodes=[node_record(status="Failed")]), "run")

        assert result.output == {}
        assert result.run_info.output is None
        assert result.run_info.error == USER_ERROR
        assert result.node_run_infos["judge"].error == USER_ERROR

    def test_it_is_read_from_another_languages_answer(self) -> None:
        """What promptflow's HTTP protocol answers, with keys we do not know and times without a zone."""
        answer = {
            "output": {"a": 1},
            "aggregation_inputs": {},
            "run_info": {
                "run_id": "run_3",
                "status": "Completed",
                "start_time": "2026-11-23T12:00:00",
                "end_time": "2026-11-23T12:00:01.5Z",
                "index": 3,
                "otel_trace_id": None,
                "brand_new": 1,
            },
            "node_run_infos": {"n": {"node": "n", "run_id": "run_n_3", "flow_run_id": "run", "status": "Failed"}},
        }

        result = LineResult.deserialize(answer)

        assert result.run_info.start_time == START
        assert result.run_info.end_time == START + timedelta(seconds=1.5)
        assert result.node_run_infos["n"].status is Status.Failed


class TestAggregationResult:
    RUN: ClassVar[AggregationRun] = {
        "output": {"mean": 0.5},
        "metrics": {"accuracy": 0.5},
        "nodes": [node_record("mean"), node_record("worst", "Failed")],
        "error": None,
    }

    def test_nodes_have_promptflows_ids_and_no_line(self) -> None:
        node = aggregation_result(self.RUN, "run").node_run_infos["mean"]

        assert (node.run_id, node.flow_run_id, node.parent_run_id, node.index) == (
            "run_mean_reduce",
            "run",
            "run",
            None,
        )

    def test_it_carries_output_and_metrics(self) -> None:
        result = aggregation_result(self.RUN, "run")

        assert result.output == {"mean": 0.5}
        assert result.metrics == {"accuracy": 0.5}


class TestReceipt:
    def test_it_is_what_the_parent_needs_of_a_record(self) -> None:
        assert Receipt.of(line_record(7, "Failed")) == Receipt(
            line_number=7,
            status=Status.Failed,
            attempt=2,
            duration_sec=0.5,
            tokens=Tokens(30, 20, 10),
            nodes=(("judge", Status.Completed), ("skip", Status.Bypassed)),
            error=USER_ERROR,
        )

    def test_it_survives_pickling(self) -> None:
        small = Receipt.of(line_record(7, "Failed"))
        assert pickle.loads(pickle.dumps(small)) == small  # noqa: S301 - what we just made

    def test_it_stays_small_whatever_the_error_says(self) -> None:
        error = {
            **USER_ERROR,
            "message": "m" * 1_000_000,
            "additionalInfo": [{"type": "Details", "info": {"traceback": "t" * 1_000_000 + "the end"}}],
            "debugInfo": {"stackTrace": "s" * 1_000_000},
        }

        small = Receipt.of(line_record(status="Failed", error=error)).error

        assert small is not None
        assert len(small["message"]) <= MAX_RECEIPT_TEXT
        assert small["additionalInfo"][0]["info"]["traceback"].endswith("the end")
        assert "debugInfo" not in small
        assert len(json.dumps(small)) < 3 * MAX_RECEIPT_TEXT

    def test_tokens_nobody_counted_are_zero(self) -> None:
        assert Receipt.of(line_record(tokens={})).tokens == Tokens(0, 0, 0)
        assert Tokens.of(None) == Tokens.of({"total_tokens": None})


class TestCreate:
    """`BatchResult.create` with promptflow's arguments."""

    def test_it_counts_lines_nodes_and_tokens(self) -> None:
        lines = [line_result(line_record(n), "run") for n in range(3)]
        lines.append(line_result(line_record(3, "Failed", nodes=[node_record(status="Failed")]), "run"))
        aggregation = aggregation_result(TestAggregationResult.RUN, "run")

        result = BatchResult.create(START, END, lines, aggregation)

        assert result.status is Status.Completed
        assert (result.total_lines, result.completed_lines, result.failed_lines) == (4, 3, 1)
        assert result.node_status == {
            "judge.completed": 3,
            "skip.bypassed": 3,
            "judge.failed": 1,
            "mean.completed": 1,
            "worst.failed": 1,
        }
        assert result.metrics == {"accuracy": 0.5}
        assert result.system_metrics.to_dict() == {
            "total_tokens": 120,
            "prompt_tokens": 80,
            "completion_tokens": 40,
            "duration": 2.5,
        }
        assert result.error_summary.aggr_error_dict == {"worst": USER_ERROR}
        assert result.error_summary.batch_error_dict is None

    def test_tokens_of_aggregation_nodes_count(self) -> None:
        node = RunInfo(node="n", run_id="run_n_reduce", status=Status.Completed, system_metrics={"total_tokens": 5})

        result = BatchResult.create(START, END, [], AggregationResult(node_run_infos={"n": node}))

        assert result.system_metrics.total_tokens == 5

    def test_errors_are_sorted_by_line_and_counted_by_root_code(self) -> None:
        lines = [
            result_of(Status.Failed, 9, error=USER_ERROR),
            result_of(Status.Failed, 2, error=SYSTEM_ERROR),
            result_of(Status.Canceled, 1, error=USER_ERROR),
            result_of(Status.Failed, 4, error=USER_ERROR),
        ]

        summary = BatchResult.create(START, END, lines, None).error_summary

        assert [(e.line_number, e.error["code"]) for e in summary.error_list] == [
            (2, "SystemError"),
            (4, "UserError"),
            (9, "UserError"),
        ]
        assert (summary.failed_user_error_lines, summary.failed_system_error_lines) == (2, 1)

    def test_an_exception_makes_the_run_failed(self) -> None:
        result = BatchResult.create(START, END, [], None, Status.Completed, BatchRunTimeoutError("over 10 s"))

        assert result.status is Status.Failed
        assert result.error_summary.batch_error_dict is not None
        assert result.error_summary.batch_error_dict["innerError"]["code"] == "BatchRunTimeoutError"

    def test_canceled_lines_are_counted_apart(self) -> None:
        result = BatchResult.create(START, END, [result_of(), result_of(Status.Canceled, 1)], None, Status.Canceled)

        assert result.status is Status.Canceled
        assert (result.completed_lines, result.failed_lines, result.canceled_lines) == (1, 0, 1)

    def test_a_result_without_line_number_is_refused_by_name(self) -> None:
        with pytest.raises(ValueError, match=r"'run_None' has no line number"):
            BatchResult.create(START, END, [result_of(index=None)], None)

    def test_a_failed_aggregate_method_is_told(self) -> None:
        """promptflow only logs it."""
        aggregation = AggregationResult(error=USER_ERROR)

        assert BatchResult.create(START, END, [], aggregation).error_summary.aggr_error_dict == {
            "__aggregate__": USER_ERROR
        }

    @given(st.lists(st.sampled_from(list(Status))), st.integers(0, 50))
    def test_counts_add_up_whatever_the_lines_came_to(self, statuses: list[Status], missing: int) -> None:
        tally = Tally()
        for line_number, status in enumerate(statuses):
            tally.add(Receipt(line_number, status, error=USER_ERROR))
        started = [s for s in statuses if s not in (Status.NotStarted, Status.Preparing)]

        result = BatchResult.of(tally, len(statuses) + missing, START, END)

        assert result.total_lines == len(statuses) + missing
        assert result.completed_lines == statuses.count(Status.Completed)
        assert result.canceled_lines == statuses.count(Status.Canceled) + statuses.count(Status.CancelRequested)
        assert result.not_started_lines == missing + len(statuses) - len(started)
        summary = result.error_summary
        assert result.failed_lines == summary.failed_user_error_lines + summary.failed_system_error_lines
        assert result.failed_lines == len(summary.error_list)


class TestBatchResult:
    COUNTS: ClassVar[dict[str, int]] = {
        "total_lines": 5,
        "completed_lines": 2,
        "failed_lines": 1,
        "canceled_lines": 1,
        "not_started_lines": 1,
    }

    def build(self, **changes: Any) -> BatchResult:
        values = {"status": "Completed", "start_time": START, "end_time": END, **self.COUNTS, **changes}
        return BatchResult.model_validate(values)

    @pytest.mark.parametrize("field", sorted(COUNTS))
    def test_counts_that_do_not_add_up_are_refused(self, field: str) -> None:
        with pytest.raises(ValidationError, match=r"2 \+ 1 \+ 1 \+ 1|every line is in exactly one"):
            self.build(**{field: self.COUNTS[field] + 1})

    def test_negative_counts_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="greater than or equal to 0"):
            self.build(failed_lines=-1, canceled_lines=3)

    def test_times_without_zone_are_utc_and_others_become_it(self) -> None:
        tokyo = START.astimezone(timezone(timedelta(hours=9)))

        result = self.build(start_time=START.replace(tzinfo=None), end_time=tokyo)

        assert (result.start_time, result.end_time) == (START, START)
        assert result.end_time.tzinfo is UTC

    def test_its_json_has_null_for_nan_and_infinity(self) -> None:
        metrics = {"mean": math.nan, "most": math.inf, "deep": [{"least": -math.inf}], "good": 0.5}

        result = self.build(metrics=metrics)

        again = json.loads(result.model_dump_json(), parse_constant=pytest.fail)["metrics"]
        assert again == {"mean": None, "most": None, "deep": [{"least": None}], "good": 0.5}
        assert math.isnan(result.metrics["mean"])

    def test_it_becomes_json_with_texts_no_encoding_knows(self) -> None:
        tally = Tally()
        tally.add(Receipt(0, Status.Failed, error={"code": "UserError", "message": "half \ud800 of a pair"}))
        tally.add_aggregation(AggregationResult(metrics={"\udfff": 1}).counts())

        result = json.loads(BatchResult.of(tally, 1, START, END).model_dump_json())

        assert result["error_summary"]["error_list"][0]["error"]["message"] == r"half \ud800 of a pair"
        assert result["metrics"] == {r"\udfff": 1}

    def test_it_survives_pickling_and_is_frozen(self) -> None:
        result = self.build()

        assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301 - what we just made
        with pytest.raises(ValidationError, match="frozen"):
            result.total_lines = 6

    def test_it_has_promptflows_fields_in_its_order_then_ours(self) -> None:
        assert list(BatchResult.model_fields) == [
            "status",
            "total_lines",
            "completed_lines",
            "failed_lines",
            "node_status",
            "start_time",
            "end_time",
            "metrics",
            "system_metrics",
            "error_summary",
            "canceled_lines",
            "not_started_lines",
        ]


def test_every_field_of_a_model_has_its_sentence() -> None:
    bare = [
        f"{model.name}.{ast.unparse(field.target)}"
        for model in ast.parse(inspect.getsource(results)).body
        if isinstance(model, ast.ClassDef) and ast.unparse(model.bases[0] if model.bases else model) == "ResultModel"
        for field, after in zip(model.body, [*model.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign)
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert bare == []


class TestTally:
    def test_lines_without_receipt_are_not_started(self) -> None:
        tally = Tally()
        tally.add(Receipt(3, Status.Completed))

        result = BatchResult.of(tally, 10, START, END, status=Status.Canceled)

        assert (result.completed_lines, result.not_started_lines) == (1, 9)

    def test_a_line_counted_twice_is_found(self) -> None:
        tally = Tally()
        for _ in range(2):
            tally.add(Receipt(0, Status.Completed))

        with pytest.raises(ValueError, match="2 lines have ended but total_lines is 1"):
            BatchResult.of(tally, 1, START, END)

    def test_it_counts_as_it_goes(self) -> None:
        tally = Tally()
        for line_number, status in enumerate([Status.Completed, Status.Failed, Status.Canceled, Status.Completed]):
            tally.add(Receipt(line_number, status, attempt=line_number + 1, tokens=Tokens(3, 2, 1)))

        assert (tally.completed_lines, tally.failed_lines, tally.canceled_lines, tally.ended_lines) == (2, 1, 1, 4)
        assert tally.retried_lines == 3
        assert tally.tokens == Tokens(12, 8, 4)

    def test_it_can_be_asked_again_and_again(self) -> None:
        tally = Tally()
        tally.add(Receipt(0, Status.Completed, nodes=(("n", Status.Completed),), tokens=Tokens(1, 1, 0)))
        tally.add_aggregation(aggregation_result(TestAggregationResult.RUN, "run").counts())

        assert BatchResult.of(tally, 1, START, END) == BatchResult.of(tally, 1, START, END)

    def test_the_second_aggregation_replaces_the_first(self) -> None:
        tally = Tally()
        tally.add_aggregation(AggregationResult(metrics={"a": 1}).counts())
        tally.add_aggregation(AggregationResult(metrics={"b": 2}).counts())

        assert BatchResult.of(tally, 0, START, END).metrics == {"b": 2}

    def test_a_batch_error_fails_the_run(self) -> None:
        result = BatchResult.of(Tally(), 4, START, END, batch_error=SYSTEM_ERROR)

        assert result.status is Status.Failed
        assert result.error_summary.batch_error_dict == SYSTEM_ERROR

    def test_errors_are_grouped_and_failures_keep_their_attempts(self) -> None:
        tally = Tally()
        tally.add(Receipt(5, Status.Failed, attempt=3, nodes=(("n", Status.Failed),), error=USER_ERROR))
        tally.add(Receipt(2, Status.Failed, error=USER_ERROR))

        assert [(group.count, group.line_numbers) for group in tally.error_groups] == [(2, [2, 5])]
        assert [(failure.line_number, failure.attempt, failure.nodes) for failure in tally.failures] == [
            (2, 1, ()),
            (5, 3, ()),
        ]

    def test_the_error_list_holds_the_first_lines_and_the_counts_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("prefect_batchflow.results.tally.MAX_ERROR_LIST", 3)
        tally = Tally()
        for line_number in (9, 1, 8, 2, 7, 3):
            tally.add(Receipt(line_number, Status.Failed, error=USER_ERROR))

        summary = BatchResult.of(tally, 10, START, END).error_summary

        assert [error.line_number for error in summary.error_list] == [1, 2, 3]
        assert summary.failed_user_error_lines == 6

    def test_the_error_list_is_long_by_default(self) -> None:
        assert MAX_ERROR_LIST == 10_000

    def test_very_many_long_errors_take_little_memory(self) -> None:
        counted = Tally()
        error = {
            "message": "Execution failure in 'f': (ValueError) " + "x" * 100_000,
            "messageFormat": "", "messageParameters": {"more": ["y" * 300] * 100}, "code": "UserError",
            "innerError": {"code": "ToolExecutionError", "innerError": None},
            "additionalInfo": [{"type": "Details", "info": {"type": "ValueError", "traceback": "z" * 9_000}}] * 3,
        }  # fmt: skip
        for number in range(FULL_ERRORS + 100):
            counted.add(Receipt(number, Status.Failed, error=error))

        assert counted.failures[0].error == error
        short = counted.failures[-1].error
        assert short is not None
        assert len(json.dumps(short)) < 4_000
        assert short["message"].startswith("Execution failure in 'f': (ValueError) xxx")
        assert "more characters in the line's record" in short["message"]
        assert is_one_of(["ValueError"], short)
        assert (innermost_code(short), short["code"]) == ("ToolExecutionError", "UserError")
        assert len(counted.error_groups) == 1

    def test_its_memory_does_not_grow_with_the_lines(self) -> None:
        counted = Tally()

        def add(lines: range) -> int:
            for n in lines:
                nodes = (("a", Status.Completed), ("b", Status.Bypassed))
                counted.add(Receipt(n, Status.Completed, duration_sec=(n % 997 + 1) / 100, nodes=nodes))
            # Threads of other tests allocate meanwhile, so only what the tally's own code has allocated counts.
            kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, tally.__file__)])
            return sum(trace.size for trace in kept.traces)

        tracemalloc.start()
        try:
            before = add(range(5_000))
            after = add(range(5_000, 20_000))
        finally:
            tracemalloc.stop()
        assert before > 0
        assert after - before < 20_000


class TestDurations:
    @given(st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=300), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
    def test_quantiles_are_within_one_percent(self, seconds: list[float], share: float) -> None:
        durations = Durations()
        for value in seconds:
            durations.add(value)

        exact = sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)]
        assert durations.quantile(share) == pytest.approx(exact, rel=0.0101)

    def test_the_middle_of_many_is_their_median(self) -> None:
        durations = Durations()
        values = [n / 1000 for n in range(1, 1002)]
        for value in values:
            durations.add(value)

        assert durations.quantile(0.5) == pytest.approx(statistics.median(values), rel=0.0101)

    def test_there_is_no_quantile_of_nothing(self) -> None:
        durations = Durations()
        for value in (0.0, -1.0, math.nan):
            durations.add(value)

        assert durations.count == 0
        assert durations.quantile(0.5) is None

    def test_absurd_values_are_bounded(self) -> None:
        durations = Durations()
        durations.add(1e-300)
        durations.add(math.inf)

        assert durations.quantile(0.5) == pytest.approx(1e-6, rel=0.02)
        assert durations.quantile(1.0) == pytest.approx(1e9, rel=0.02)

    def test_canceled_lines_and_lines_that_never_ran_do_not_count(self) -> None:
        tally = Tally()
        tally.add(Receipt(0, Status.Completed, duration_sec=2.0))
        tally.add(Receipt(1, Status.Canceled, duration_sec=0.1))
        tally.add(Receipt(2, Status.Failed, duration_sec=0.0))

        assert tally.durations.count == 1


@pytest.mark.parametrize(
    ("statuses", "total", "text"),
    [
        ([Status.Completed] * 3, 3, "3 of 3 lines completed"),
        ([Status.Completed], 1, "1 of 1 line completed"),
        ([], 0, "0 of 0 lines completed"),
        ([Status.Completed, Status.Failed], 2, "1 of 2 lines completed, 1 failed"),
        ([Status.Canceled, Status.Failed], 9, "0 of 9 lines completed, 1 failed, 1 canceled, 7 not started"),
    ],
)
def test_the_summary_line_says_how_the_lines_ended(statuses: list[Status], total: int, text: str) -> None:
    tally = Tally()
    for line_number, status in enumerate(statuses):
        tally.add(Receipt(line_number, status))

    assert summary_line(BatchResult.of(tally, total, START, END)) == text


def test_a_status_reads_as_its_name() -> None:
    assert f"{Status.Canceled}" == "Canceled" == Status.Canceled.value
    assert [status.name for status in Status] == [
        "Running",
        "Preparing",
        "Completed",
        "Failed",
        "Bypassed",
        "Canceled",
        "NotStarted",
        "CancelRequested",
    ]
