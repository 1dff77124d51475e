"""Executor proxies: other languages behind promptflow's class, and the registry of them."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pools import code_of, flow_of, message_of, run
from waiting import eventually

from prefect_batchflow.errors.classes import class_of_error
from prefect_batchflow.errors.waits import not_before_sec
from prefect_batchflow.exceptions import ProcessCrashError, PythonLoadError, ToolExecutionError, WorkerStartError
from prefect_batchflow.execution import languages
from prefect_batchflow.execution.executor import failed_outcome, timed_out
from prefect_batchflow.execution.languages import register_executor, registered_executor, registered_languages
from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy, ProxyExecutor
from prefect_batchflow.lines import Line, input_hash
from prefect_batchflow.results.models import FlowRunInfo, LineResult, RunInfo
from prefect_batchflow.results.records import Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.results.records import CompletedLine

BEGAN = datetime(2026, 1, 2, tzinfo=UTC)


class Proxy(AbstractExecutorProxy):
    """Answers each line with what `answer` gives."""

    def __init__(self, answer: Callable[[int], Awaitable[Any]], **facts: Any) -> None:
        self.answer = answer
        self.facts = facts
        self.destroyed = False
        self.run_ids: set[str | None] = set()

    @classmethod
    async def create(cls, flow_file: Path, working_dir: Path | None = None, **kwargs: Any) -> Proxy:
        async def echo(number: int) -> dict[str, Any]:
            return {"output": {"n": number}}

        return cls(echo, flow_file=flow_file, working_dir=working_dir, **kwargs)

    async def destroy(self) -> None:
        self.destroyed = True

    def get_inputs_definition(self) -> Mapping[str, Any]:
        return {"n": {"type": "int", "default": 3, "is_chat_input": False}, "text": {}}

    async def exec_line_async(
        self, inputs: Mapping[str, Any], index: int | None = None, run_id: str | None = None
    ) -> Any:
        self.run_ids.add(run_id)
        assert index is not None
        return await self.answer(index)


class Aggregating(Proxy):
    """Gives back what its aggregation was called with."""

    @property
    def has_aggregation(self) -> bool:
        return True

    async def exec_aggregation_async(
        self, batch_inputs: Mapping[str, Any], aggregation_inputs: Mapping[str, Any], run_id: str | None = None
    ) -> Any:
        node = {"node": "sum", "status": "Completed", "output": 3, "start_time": BEGAN}
        return {
            "output": {"inputs": dict(batch_inputs), "references": dict(aggregation_inputs)},
            "metrics": {"run_id": run_id},
            "node_run_infos": {"sum": node},
        }


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return flow_of(tmp_path, "def main(n):\n    return n\n")


def executor_of(flow: Flow, proxy: Any, slots: int = 4) -> ProxyExecutor:
    return ProxyExecutor(flow, proxy, run_id="run-1", slots=slots, init_kwargs={"key": 1}, connections={"c": 2})


async def answered(flow: Flow, answer: Any) -> Any:
    """The outcome of a line whose proxy gives, or raises, this."""

    async def give(_: int) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    executor = executor_of(flow, Proxy(give))
    await executor.start()
    return await run(executor, 5, n=5)


class TestRegistry:
    @pytest.fixture(autouse=True)
    def _empty(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(languages, "_REGISTRY", dict(languages._REGISTRY))

    def test_a_language_is_known_however_it_is_written(self) -> None:
        register_executor("CSharp", Proxy)

        assert registered_executor("csharp") is Proxy
        assert registered_executor("CSHARP") is Proxy
        assert registered_executor("rust") is None
        assert registered_languages() == ["csharp", "javascript"]

    def test_the_last_registration_of_a_language_counts(self) -> None:
        register_executor("js", Proxy)
        register_executor("js", Aggregating)

        assert registered_executor("js") is Aggregating


@pytest.mark.anyio
class TestCreation:
    async def test_a_class_is_created_with_the_flow_and_destroyed_at_the_end(self, tmp_path: Path) -> None:
        (tmp_path / "a_helper.py").touch()
        (tmp_path / "flow_code.py").write_text("def main(n):\n    return n\n")
        (tmp_path / "flow.flex.yaml").write_text("entry: flow_code:main\n")
        from prefect_batchflow.definition.load import load_flow

        executor = executor_of(load_flow(tmp_path), Proxy, slots=7)
        description = await executor.start()
        proxy = executor._proxy
        assert isinstance(proxy, Proxy)
        outcome = await run(executor, 4, n=4)
        assert not proxy.destroyed
        await executor.close()

        assert proxy.destroyed
        assert proxy.facts == {
            "flow_file": tmp_path / "flow.flex.yaml",
            "working_dir": tmp_path,
            "worker_count": 7,
            "init_kwargs": {"key": 1},
            "connections": {"c": 2},
            "storage": None,
        }
        assert proxy.run_ids == {"run-1"}
        assert outcome.parsed()["output"] == {"n": 4}
        assert (description.inputs["n"].type, description.inputs["n"].default) == ("int", 3)
        assert description.inputs["text"].required
        assert (description.is_async, description.has_aggregation) == (True, False)

    async def test_a_flow_without_files_has_a_folder_at_least(self) -> None:
        from prefect_batchflow.definition.load import load_flow

        flow = load_flow(len)
        executor = executor_of(flow, Proxy)
        await executor.start()

        assert isinstance(executor._proxy, Proxy)
        assert executor._proxy.facts["flow_file"] == flow.working_dir

    async def test_an_object_is_the_callers_to_destroy(self, flow: Flow) -> None:
        proxy = await Proxy.create(flow.working_dir)
        executor = executor_of(flow, proxy)
        await executor.start()
        await executor.close()

        assert not proxy.destroyed

    @pytest.mark.parametrize(
        ("raised", "expected", "said"),
        [
            (
                OSError("dotnet is not there"),
                WorkerStartError,
                r"Broken\.create failed.*\(OSError\) dotnet is not there",
            ),
            (PythonLoadError("no such module"), PythonLoadError, "no such module"),
        ],
        ids=["foreign", "our own"],
    )
    async def test_a_proxy_that_cannot_be_created_is_told_before_any_line(
        self, flow: Flow, raised: Exception, expected: type[Exception], said: str
    ) -> None:
        class Broken(Proxy):
            @classmethod
            async def create(cls, flow_file: Path, working_dir: Path | None = None, **kwargs: Any) -> Proxy:
                raise raised

        executor = executor_of(flow, Broken)
        with pytest.raises(expected, match=said):
            await executor.start()
        await executor.close()


@pytest.mark.anyio
class TestAnswers:
    async def test_a_line_result_becomes_a_record(self, flow: Flow) -> None:
        result = LineResult(
            output={"answer": math.inf},
            aggregation_inputs={"${grade.output}": 1},
            run_info=FlowRunInfo(
                run_id="x", status=Status.Completed, system_metrics={"total_tokens": 7, "prompt_tokens": 4}
            ),
            node_run_infos={"grade": RunInfo(node="grade", run_id="y", status=Status.Completed, start_time=BEGAN)},
        )

        outcome = await answered(flow, result)

        record = outcome.parsed()
        assert record["output"] == {"answer": math.inf}
        assert record["aggregation_inputs"] == {"${grade.output}": 1}
        assert record["tokens"] == {"total_tokens": 7, "prompt_tokens": 4, "completion_tokens": 0}
        assert record["nodes"][0]["start_time"] == BEGAN.isoformat()
        assert outcome.receipt.nodes == (("grade", Status.Completed),)
        assert outcome.receipt.tokens.total == 7

    async def test_times_that_a_service_does_not_tell_are_filled_in(self, flow: Flow) -> None:
        answer = {"output": {}, "node_run_infos": {"a": {"node": "a", "status": "Completed"}}}

        [node] = (await answered(flow, answer)).parsed()["nodes"]

        assert datetime.fromisoformat(node["start_time"]) <= datetime.fromisoformat(node["end_time"])

    @pytest.mark.parametrize(
        ("answer", "code", "said"),
        [
            (ValueError("no"), "UnexpectedError", "(ValueError) no"),
            (TimeoutError("the service's own"), "UnexpectedError", "(TimeoutError) the service's own"),
            (ToolExecutionError("a node failed"), "ToolExecutionError", "a node failed"),
            (None, "UnexpectedError", "(TypeError)"),
            ({"run_info": {"status": "Odd"}}, "UnexpectedError", "Odd"),
            ({"node_run_infos": {"a": {}}}, "UnexpectedError", "None"),
            ({"run_info": {"system_metrics": {"total_tokens": "many"}}}, "UnexpectedError", "many"),
            ({"run_info": {"status": "Failed"}}, "UnexpectedError", "the line is Failed, but gave no error"),
            ({"output": {"it": object()}}, "FlowOutputUnserializable", "it"),
        ],
        ids=[
            "raises",
            "raises a time-out",
            "raises one of ours",
            "nothing",
            "unknown status",
            "node without status",
            "tokens are no number",
            "failed without an error",
            "no JSON",
        ],
    )
    async def test_what_cannot_be_taken_is_the_lines_failure(
        self, flow: Flow, answer: Any, code: str, said: str
    ) -> None:
        outcome = await answered(flow, answer)

        assert outcome.receipt.status == "Failed"
        assert outcome.parsed()["status"] == "Failed"
        assert code_of(outcome) == code
        assert said in message_of(outcome)

    @pytest.mark.parametrize(
        ("raised", "expected"),
        [
            (ValueError("no"), "user_code"),
            (httpx.ReadTimeout("no"), "timeout"),
            (ConnectionResetError("no"), "transient"),
            (ProcessCrashError("the service died"), "crash"),
        ],
        ids=lambda value: str(value)[:20],
    )
    async def test_what_it_raises_is_of_a_class_of_errors(self, flow: Flow, raised: Exception, expected: str) -> None:
        outcome = await answered(flow, raised)

        assert class_of_error(outcome.receipt.error or {}) == expected

    async def test_the_wait_that_it_asks_for_is_in_the_lines_error(self, flow: Flow) -> None:
        asking = ConnectionError("no")
        asking.retry_after_sec = 7  # type: ignore[attr-defined]

        outcome = await answered(flow, asking)

        assert not_before_sec(outcome.receipt.error or {}) == 7

    async def test_a_failed_line_keeps_the_services_error(self, flow: Flow) -> None:
        error = {
            "message": "bad request",
            "code": "UserError",
            "innerError": {"code": "BadRequest", "innerError": None},
        }

        outcome = await answered(flow, {"output": {}, "run_info": {"status": "Failed", "error": error}})

        assert outcome.receipt.error == error


@pytest.mark.anyio
class TestLimits:
    async def test_a_silent_proxy_costs_the_line_its_limit(self, flow: Flow) -> None:
        cancelled = asyncio.Event()

        async def hang(number: int) -> dict[str, Any]:
            if number == 0:
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()
            return {"output": {}}

        executor = executor_of(flow, Proxy(hang), slots=1)
        await executor.start()
        late, after = await asyncio.gather(run(executor, 0, timeout_sec=0.2), run(executor, 1))

        assert code_of(late) == "LineExecutionTimeoutError"
        assert cancelled.is_set()
        assert after.receipt.status == "Completed"

    async def test_cancelling_a_line_cancels_the_call(self, flow: Flow) -> None:
        began, ended = asyncio.Event(), asyncio.Event()

        async def hang(_: int) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        executor = executor_of(flow, Proxy(hang))
        await executor.start()
        task = asyncio.create_task(run(executor, 3))
        await eventually(began.is_set, description="the call is made")
        assert executor.running() == {3}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert ended.is_set()
        assert executor.running() == set()


@pytest.mark.anyio
class TestAggregation:
    LINES: tuple[CompletedLine, ...] = (
        {"line_number": 1, "inputs": {"n": 1}, "output": {}, "aggregation_inputs": {"${a.output}": "x"}},
        {"line_number": 4, "inputs": {"n": 4}, "output": {}, "aggregation_inputs": {}},
    )

    async def test_it_gets_lists_in_the_order_of_the_lines(self, flow: Flow) -> None:
        executor = executor_of(flow, Aggregating)
        assert (await executor.start()).has_aggregation

        result = await executor.aggregate(self.LINES, timeout_sec=60)

        assert result["output"] == {"inputs": {"n": [1, 4]}, "references": {"${a.output}": ["x", None]}}
        assert result["metrics"] == {"run_id": "run-1"}
        assert result["nodes"][0]["start_time"] == BEGAN.isoformat()
        assert result["error"] is None

    async def test_no_lines_are_empty_lists(self, flow: Flow) -> None:
        executor = executor_of(flow, Aggregating)
        await executor.start()

        assert (await executor.aggregate([], timeout_sec=60))["output"] == {"inputs": {}, "references": {}}

    @pytest.mark.parametrize(
        ("does", "said"),
        [("hang", "did not end within 0.2 seconds"), ("raise", "(ValueError) no"), ("nonsense", "(TypeError)")],
    )
    async def test_what_goes_wrong_is_its_error(self, flow: Flow, does: str, said: str) -> None:
        class Odd(Aggregating):
            async def exec_aggregation_async(self, *_: Any, **__: Any) -> Any:
                if does == "hang":
                    await asyncio.Event().wait()
                if does == "raise":
                    raise ValueError("no")

        executor = executor_of(flow, Odd)
        await executor.start()
        result: Any = await executor.aggregate(self.LINES, timeout_sec=0.2)

        assert said in result["error"]["message"]
        assert (result["output"], result["metrics"], result["nodes"]) == ({}, {}, [])


class TestOutcomesMadeHere:
    def test_a_line_that_never_ran_has_a_whole_record(self) -> None:
        line = Line(3, {"text": "\ud800", "n": math.nan})

        outcome = failed_outcome(line, attempt=2, error=timed_out(line, 1.5), duration_sec=1.5, logs="said")

        record = outcome.parsed()
        assert record["error"]["message"] == "Line 3 execution timeout for exceeding 1.5 seconds"
        assert (record["line_number"], record["attempt"], record["status"]) == (3, 2, "Failed")
        assert (record["logs"], record["duration_sec"], record["nodes"]) == ("said", 1.5, [])
        assert record["inputs"]["text"] == "\ud800"
        assert outcome.input_hash == record["input_hash"] == input_hash(line.inputs)
        begin, end = (datetime.fromisoformat(record[name]) for name in ("start_time", "end_time"))
        assert (end - begin).total_seconds() == pytest.approx(1.5)
        assert end.tzinfo == UTC
