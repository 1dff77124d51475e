"""Errors that read the same but for their data become one group, with its first lines and what to do."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_batchflow import exceptions
from prefect_batchflow.errors.groups import (
    FIRST_LINES,
    MAX_GROUPS,
    MAX_SAMPLE_CHARS,
    MAX_TEMPLATE_CHARS,
    ErrorGroups,
    advice_for,
    message_template,
)
from prefect_batchflow.exceptions import LineExecutionTimeoutError, ToolExecutionError, error_dict


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("row 12 failed after 3.5s", "row 7 failed after 120s", id="numbers"),
        pytest.param("lr 1e-5, n 1,024", "lr -3, n 2", id="number forms"),
        pytest.param("bad value 'yes'", "bad value 'it is so'", id="single quotes"),
        pytest.param('bad value "a 1"', 'bad value ""', id="double quotes"),
        pytest.param(
            "request 3f2b0c1e-7a55-4d8e-9d5a-0a1b2c3d4e5f", "request 00000000-0000-0000-0000-000000000000", id="uuid"
        ),
        pytest.param("<Node object at 0x7f12ab>", "<Node object at 0xdeadbeef>", id="addresses in memory"),
        pytest.param("commit 9fceb02d0ae5 is gone", "commit 83a1b2c4 is gone", id="hexadecimal ids"),
        pytest.param("no file /tmp/a/b.txt", "no file /home/me/data/c d".removesuffix(" d"), id="paths"),
        pytest.param(r"no file C:\Users\me\x.txt", r"no file D:\y\z.csv", id="windows paths"),
        pytest.param("GET https://a.example/v1?x=1 refused", "GET http://b.example refused", id="urls"),
        pytest.param("at line 3, column 9", "at line 300, column 1", id="line numbers"),
        pytest.param("two\n  lines", "two lines", id="blanks"),
    ],
)
def test_what_differs_by_data_reads_the_same(one: str, other: str) -> None:
    assert message_template(one) == message_template(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(
            "Execution failure in 'judge': (KeyError) x", "Execution failure in 'fetch': (KeyError) x", id="node"
        ),
        pytest.param("No module named 'openai'", "No module named 'numpy'", id="module"),
        pytest.param("The value of input 'a' is no int", "The value of input 'b' is no int", id="input"),
        pytest.param("object has no attribute 'a'", "object has no attribute 'b'", id="attribute"),
        pytest.param("(KeyError) x", "(ValueError) x", id="exception"),
    ],
)
def test_what_failed_keeps_groups_apart(one: str, other: str) -> None:
    assert message_template(one) != message_template(other)


@given(st.integers(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_no_number_splits_a_group(first: int, second: int, third: float) -> None:
    templates = {message_template(f"step {n} of the flow failed") for n in (first, second, third)}
    assert templates == {"step <n> of the flow failed"}


@given(st.text(max_size=400).map(lambda text: text * 20))
def test_a_template_is_short_and_one_line_whatever_the_message(message: str) -> None:
    template = message_template(message)
    assert len(template) <= MAX_TEMPLATE_CHARS
    assert not re.search(r"[\n\r\t]", template)


def test_a_megabyte_of_hostile_text_takes_no_time() -> None:
    """The patterns read a bounded part only, and none of them backtracks far."""
    for piece in ("'", '"', "/a", "://", "a" * 7 + "-", "0", "\\", "www.", " '"):
        assert len(message_template(piece * 1_000_000)) <= MAX_TEMPLATE_CHARS


def _error(message: str) -> dict[str, object]:
    return error_dict(ToolExecutionError(message))


def test_a_group_has_count_first_lines_and_the_first_lines_message_in_any_order() -> None:
    groups = ErrorGroups()
    for line_number in (8, 3, 90, 41, 2, 77, 5):
        groups.add(line_number, _error(f"cannot read row {line_number}"))

    (group,) = groups
    assert group.code == "ToolExecutionError"
    assert group.template == "cannot read row <n>"
    assert group.count == 7
    assert group.line_numbers == [2, 3, 5, 8, 41]
    assert len(group.line_numbers) == FIRST_LINES
    assert group.sample == "cannot read row 2"


def test_the_largest_group_comes_first_then_the_one_with_the_earliest_line() -> None:
    groups = ErrorGroups()
    for line_number, message in [(5, "late"), (1, "early"), (2, "often"), (3, "often")]:
        groups.add(line_number, _error(message))

    assert [group.sample for group in groups] == ["often", "early", "late"]


def test_one_message_under_two_codes_is_two_groups() -> None:
    groups = ErrorGroups()
    groups.add(0, error_dict(ToolExecutionError("stopped")))
    groups.add(1, error_dict(LineExecutionTimeoutError("stopped")))

    assert len(groups) == 2


def test_kinds_beyond_the_limit_are_counted_together() -> None:
    groups = ErrorGroups()
    for number in range(MAX_GROUPS + 3):
        groups.add(number, _error(f"kind {chr(0x4E00 + number)}"))
    groups.add(5_000, _error(f"kind {chr(0x4E00)}"))

    assert len(groups) == MAX_GROUPS
    assert groups.other is not None
    assert groups.other.count == 3
    assert groups.other.line_numbers == [1000, 1001, 1002]
    assert next(iter(groups)).count == 2


def test_samples_are_short() -> None:
    groups = ErrorGroups()
    groups.add(0, _error("x" * 1_000_000))

    assert len(next(iter(groups)).sample) == MAX_SAMPLE_CHARS


def test_an_error_without_message_or_code_has_a_group_too() -> None:
    groups = ErrorGroups()
    groups.add(0, {})

    (group,) = groups
    assert (group.code, group.template, group.advice) == ("", "", group.advice)
    assert "records" in group.advice


@pytest.mark.parametrize(
    ("code", "message", "advice"),
    [
        ("LineExecutionTimeoutError", "", "line_timeout_sec"),
        ("LineOutOfMemoryError", "", "line_memory_mb"),
        ("ProcessCrashError", "", "worker process died"),
        ("InputTypeError", "", "input's type"),
        ("InvalidUserData", "", "Correct these rows"),
        ("BatchRunTimeoutError", "", "Resume"),
        ("BatchFailureLimitError", "", "resume"),
        ("ToolExecutionError", "(ModuleNotFoundError) No module named 'openai.types'", "`openai.types` is missing"),
        ("ToolExecutionError", "(RateLimitError) Error code: 429 - slow down", "max_concurrency"),
        ("ScriptExecutionError", "(AuthenticationError) Incorrect API key", "credentials"),
        ("ToolExecutionError", "(APIConnectionError) Connection error.", "did not answer"),
        ("ToolExecutionError", "(FileNotFoundError) No such file: 'a.txt'", "flow's folder"),
        ("ToolExecutionError", "(MemoryError)", "line_memory_mb"),
        ("ReadTimeout", "", "did not answer"),
        ("ToolExecutionError", "(KeyError) 'x'", "traceback"),
        ("SomethingForeign", "", "traceback"),
    ],
)
def test_advice_follows_the_code_then_the_cause(code: str, message: str, advice: str) -> None:
    assert advice in advice_for(code, message)


OPENAI_SPENT = (
    "You exceeded your current quota, please check your plan and billing details. For more information, read the docs."
)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("RateLimitError", f"Error code: 429. {OPENAI_SPENT}"),
        ("ToolExecutionError", f"(RateLimitError) Error code: 429 - {{'error': {{'message': '{OPENAI_SPENT}'}}}}"),
        ("ScriptExecutionError", "(RateLimitError) Error code: 429 - {'error': {'code': 'insufficient_quota'}}"),
        ("RateLimitError", "Error code: 429. Billing hard limit has been reached"),
        ("BadRequestError", "Error code: 400. billing_hard_limit_reached"),
        ("RateLimitError", "Error code: 429. Your account is not active: billing_not_active"),
        ("PermissionDeniedError", "Error code: 403. Out of call volume quota. Quota will be replenished in 02:05:06."),
        ("OpenAIError", "Error code: 402. Insufficient Balance"),
        ("ToolExecutionError", "(HTTPStatusError) Client error '402 Payment Required' for url 'https://x'"),
        ("BadRequestError", "Error code: 400. Your credit balance is too low to access the API."),
        ("RateLimitError", f"Error code: 429. {OPENAI_SPENT} RESOURCE_EXHAUSTED"),
    ],
)
def test_a_spent_quota_advises_billing_and_no_lower_concurrency(code: str, message: str) -> None:
    advice = advice_for(code, message)

    assert "billing" in advice
    assert "max_concurrency" not in advice
    assert "worker_count" not in advice


@pytest.mark.parametrize(
    ("code", "message", "advice"),
    [
        (
            "RateLimitError",
            "Error code: 429. Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-02-01 have "
            "exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 20 seconds. Please go here: "
            "https://aka.ms/oai/quotaincrease if you would like to further increase the default rate limit.",
            "max_concurrency",
        ),
        (
            "RateLimitError",
            "Error code: 429. Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000",
            "max_con",
        ),
        ("InputTypeError", "The input 'x' is 'insufficient_quota'", "input's type"),
    ],
    ids=["azure", "openai", "data"],
)
def test_a_rate_limit_is_no_spent_quota(code: str, message: str, advice: str) -> None:
    assert advice in advice_for(code, message)


def test_advice_names_existing_error_classes_only() -> None:
    from prefect_batchflow.errors.groups import _ADVICE

    assert [code for code in _ADVICE if not hasattr(exceptions, code)] == []
