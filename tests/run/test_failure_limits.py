"""When a run gives up, line by line as they end."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_batchflow.exceptions import (
    BatchFailureLimitError,
    LineExecutionTimeoutError,
    ToolExecutionError,
    error_dict,
)
from prefect_batchflow.results.records import Receipt, Status
from prefect_batchflow.run.failure_limits import FailureLimits
from prefect_batchflow.settings import RunOptions


def ends_at(outcomes: str, *, total: int = 1_000, **limits: Any) -> tuple[int, str] | None:
    """Which line ends the run, and what is said: `.` a line that completed, `f` and `g` two errors, `t` a time limit."""
    errors = {
        "f": ToolExecutionError("Execution failure in 'a': (ValueError) row {n} is wrong"),
        "g": ToolExecutionError("Execution failure in 'a': (KeyError) 'label'"),
        "t": LineExecutionTimeoutError("Line {n} exceeded its limit of 5 seconds."),
    }
    judge = FailureLimits(RunOptions(**limits), total)
    for number, outcome in enumerate(outcomes):
        error = error_dict(errors[outcome]) if outcome != "." else None
        if error is not None:
            error["message"] = error["message"].format(n=number)
        status = Status.Completed if error is None else Status.Failed
        if (exceeded := judge.add(Receipt(line_number=number, status=status, error=error))) is not None:
            assert isinstance(exceeded, BatchFailureLimitError)
            return number, str(exceeded)
    return None


@pytest.mark.parametrize(
    ("outcomes", "limits", "line"),
    [
        ("." * 30 + "f" * 70, {}, None),
        ("....", {"max_failures": "1"}, None),
        ("..f", {"max_failures": "1"}, 2),
        ("f.f.f", {"max_failures": "3"}, 4),
        ("f.f...", {"max_failures": "3"}, None),
        ("." * 19 + "ff", {"max_failures": "5%"}, 20),
        ("f" * 10 + "." * 9, {"max_failures": "5%"}, None),
        ("f" * 10 + "." * 10, {"max_failures": "5%"}, 19),
        ("f" * 10 + "." * 10, {"max_failures": "50%"}, None),
        ("fff", {"max_same_errors": 3}, 2),
        ("ff.ff", {"max_same_errors": 3}, None),
        ("ffgfftf", {"max_same_errors": 3}, None),
        ("gfftttt", {"max_same_errors": 3}, 5),
        ("." * 3, {"max_same_errors": 1}, None),
        ("..t", {"max_same_errors": 1, "max_failures": "11"}, 2),
    ],
)
def test_a_limit_ends_the_run_with_the_line_that_exceeds_it(
    outcomes: str, limits: dict[str, Any], line: int | None
) -> None:
    ended = ends_at(outcomes, **limits)

    assert (None if ended is None else ended[0]) == line


def test_a_share_counts_for_a_few_lines_when_all_have_ended() -> None:
    assert ends_at("f..", total=4, max_failures="5%") is None
    assert ends_at("f...", total=4, max_failures="5%") == (
        3,
        "The run gave up: 1 of 4 lines failed (25.0 %), more than max_failures=5% allows. Fix the cause and resume the run, "
        "or raise max_failures.",
    )


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_failures": "1"}, "a line failed, max_failures=1 was reached; line 0: ToolExecutionError"),
        ({"max_failures": "2"}, "2 lines failed, max_failures=2 was reached; line 1: ToolExecutionError"),
        (
            {"max_same_errors": 3},
            "3 lines in a row failed with the same error, max_same_errors=3 was reached; line 2: ToolExecutionError",
        ),
    ],
)
def test_what_is_said_names_the_limit_the_line_and_its_error(limits: dict[str, Any], said: str) -> None:
    ended = ends_at("ffff", **limits)

    assert ended is not None
    assert ended[1].startswith(f"The run gave up: {said}, Execution failure in 'a': (ValueError) row ")
    assert ended[1].endswith(" is wrong. Fix this and resume the run.")


def test_lines_that_were_done_before_count_for_the_share() -> None:
    judge = FailureLimits(RunOptions(max_failures="10%"), 40)
    for _ in range(30):
        judge.add_earlier(Receipt(line_number=0, status=Status.Completed))
    failed = Receipt(line_number=30, status=Status.Failed, error=error_dict(ToolExecutionError("no")))

    assert [judge.add(failed) is not None for _ in range(4)] == [False, False, False, True]


def test_lines_that_failed_before_count_and_end_no_run_by_themselves() -> None:
    judge = FailureLimits(RunOptions(max_failures="4"), 40)
    failed = Receipt(line_number=30, status=Status.Failed, error=error_dict(ToolExecutionError("no")))
    for _ in range(5):
        judge.add_earlier(failed)

    ended = judge.add(failed)

    assert ended is not None
    assert "6 lines failed, max_failures=4 was reached; line 30" in str(ended)
