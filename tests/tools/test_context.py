"""What is logged while a line runs belongs to that line, in threads and tasks too."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from prefect_batchflow.tools.context import RunContext, current_context, log_metric, running, say_not_counted


def test_a_metric_belongs_to_what_runs() -> None:
    with running(3) as context:
        log_metric("accuracy", 0.5)
        log_metric("accuracy", 0.75, variant_id="variant_0")

    assert context.metrics == {"accuracy": 0.75}
    assert context.line_number == 3


def test_outside_of_a_run_a_metric_is_lost_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        log_metric("accuracy", 1.0)

    assert "'accuracy' was logged outside a run" in caplog.text
    assert current_context() is None


def test_an_inner_run_ends_and_the_outer_goes_on() -> None:
    with running(1) as outer:
        with running(2) as inner:
            assert current_context() is inner
        assert current_context() is outer


def test_a_run_that_raises_is_over() -> None:
    with pytest.raises(ValueError, match="stop"), running(1):
        raise ValueError("stop")

    assert current_context() is None


def test_tasks_of_one_loop_do_not_mix() -> None:
    async def line(number: int, started: asyncio.Barrier) -> RunContext:
        with running(number) as context:
            await started.wait()
            await asyncio.to_thread(log_metric, "number", number)
        return context

    async def lines() -> list[RunContext]:
        started = asyncio.Barrier(5)
        return await asyncio.gather(*(line(number, started) for number in range(5)))

    assert [context.metrics for context in asyncio.run(lines())] == [{"number": number} for number in range(5)]


def test_a_thread_of_user_code_logs_for_the_only_line_that_runs() -> None:
    with running(1) as context:
        thread = threading.Thread(target=log_metric, args=("n", 1))
        thread.start()
        thread.join()

    assert context.metrics == {"n": 1}


def test_a_thread_of_user_code_cannot_tell_between_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    with running(1) as one, running(2) as two:
        thread = threading.Thread(target=log_metric, args=("n", 1))
        thread.start()
        thread.join()

    assert (one.metrics, two.metrics) == ({}, {})
    assert "is lost" in caplog.text


def test_tokens_add_up() -> None:
    with running(1) as context:
        context.add_tokens(10, 5)
        context.add_tokens(1, 2)

    assert context.tokens == {"total_tokens": 18, "prompt_tokens": 11, "completion_tokens": 7}


def test_a_node_counts_for_its_line_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    say_not_counted.cache_clear()
    with running(1) as context:
        context.of_node().of_node().add_tokens(1, 2)

    assert context.tokens["total_tokens"] == 3
    assert not caplog.records


def test_tokens_after_the_end_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    say_not_counted.cache_clear()
    with running(1) as context:
        node = context.of_node()

    node.add_tokens(1, 2)
    context.add_tokens(1, 2)

    assert [record.message[:42] for record in caplog.records] == ["A thread or task has called a model outsid"]
