"""What every executor promises, proven for each: sync and async code in worker processes, a proxy, and a service over HTTP."""

from __future__ import annotations

import asyncio
import pickle
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pools import CLOSE_WITHIN_SEC, code_of, flow_of, message_of, run, running_pool
from services import running_service, served_flow
from waiting import eventually

from prefect_batchflow.exceptions import InputTypeError, error_dict
from prefect_batchflow.execution.executor import Given
from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy, ProxyExecutor
from prefect_batchflow.lines import Line, input_hash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from prefect_batchflow.execution.executor import Executor

    Opened = Callable[[], AbstractAsyncContextManager[Executor]]

SLOTS = 2

SYNC_FLOW = """
    import pathlib, time

    class Flow:
        def __call__(self, do, value=None):
            pathlib.Path(f"began-{value}").touch()
            if do == "raise":
                raise ValueError("as told")
            if do == "hang":
                while True:
                    time.sleep(0.001)
            while do == "wait" and not pathlib.Path("go").exists():
                time.sleep(0.001)
            return {"value": object() if do == "unserialisable" else value}

        def __aggregate__(self, results):
            values = [result["value"] for result in results]
            if values == ["raise"]:
                raise ValueError("as told")
            while values == ["hang"]:
                time.sleep(0.001)
            return {"values": values}
    """

ASYNC_FLOW = """
    import asyncio, pathlib

    class Flow:
        async def __call__(self, do, value=None):
            pathlib.Path(f"began-{value}").touch()
            if do == "raise":
                raise ValueError("as told")
            if do == "hang":
                await asyncio.Event().wait()
            while do == "wait" and not pathlib.Path("go").exists():
                await asyncio.sleep(0.001)
            return {"value": object() if do == "unserialisable" else value}

        async def __aggregate__(self, results):
            values = [result["value"] for result in results]
            if values == ["raise"]:
                raise ValueError("as told")
            if values == ["hang"]:
                await asyncio.Event().wait()
            return {"values": values}
    """


class Proxy(AbstractExecutorProxy):
    """The same flow, as an executor of another language would run it."""

    def __init__(self, working_dir: Path) -> None:
        self.folder = working_dir

    @classmethod
    async def create(cls, flow_file: Path, working_dir: Path | None = None, **kwargs: Any) -> Proxy:
        assert working_dir is not None
        return cls(working_dir)

    @property
    def has_aggregation(self) -> bool:
        return True

    def get_inputs_definition(self) -> Mapping[str, Any]:
        return {"do": {}, "value": {"default": None}}

    async def exec_line_async(
        self, inputs: Mapping[str, Any], index: int | None = None, run_id: str | None = None
    ) -> Any:
        do, value = inputs["do"], inputs.get("value")
        (self.folder / f"began-{value}").touch()
        if do == "raise":
            raise ValueError("as told")
        if do == "hang":
            await asyncio.Event().wait()
        if do == "wait":
            await eventually((self.folder / "go").exists, description="the test lets the lines end")
        return {"output": {"value": object() if do == "unserialisable" else value}}

    async def exec_aggregation_async(
        self, batch_inputs: Mapping[str, Any], aggregation_inputs: Mapping[str, Any], run_id: str | None = None
    ) -> Any:
        values = batch_inputs["value"]
        if values == ["raise"]:
            raise ValueError("as told")
        if values == ["hang"]:
            await asyncio.Event().wait()
        return {"metrics": {"values": values}}


@asynccontextmanager
async def sync_pool(folder: Path) -> AsyncIterator[Executor]:
    async with running_pool(flow_of(folder, SYNC_FLOW, "Flow"), worker_count=SLOTS) as pool:
        yield pool


@asynccontextmanager
async def async_pool(folder: Path) -> AsyncIterator[Executor]:
    async with running_pool(flow_of(folder, ASYNC_FLOW, "Flow"), max_concurrency=SLOTS) as pool:
        yield pool


@asynccontextmanager
async def proxy(folder: Path) -> AsyncIterator[Executor]:
    executor = ProxyExecutor(flow_of(folder, SYNC_FLOW, "Flow"), Proxy, run_id="run", slots=SLOTS)
    await executor.start()
    yield executor
    async with asyncio.timeout(CLOSE_WITHIN_SEC):
        await executor.close()


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[Executor]:
    async with running_service(served_flow(folder), slots=SLOTS) as executor:
        yield executor


@pytest.mark.anyio
class TestExecutorContract:
    @pytest.fixture(params=[sync_pool, async_pool, proxy, service], ids=["sync pool", "async pool", "proxy", "service"])
    def opened(self, request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
        """Open one implementation, started; it is closed with the block."""
        return lambda: request.param(tmp_path)

    @staticmethod
    def completed(number: int, value: Any) -> Any:
        inputs = {"do": "return", "value": value}
        return {"line_number": number, "inputs": inputs, "output": {"value": value}, "aggregation_inputs": {}}

    async def test_record_and_receipt_tell_the_same(self, opened: Opened) -> None:
        inputs = {"do": "return", "value": {"text": "\ud800 ü", "deep": [[None, 1.5, True]]}}
        async with opened() as executor:
            assert executor.slots == SLOTS
            outcome = await executor.run_line(Line(41, inputs), attempt=3, timeout_sec=60)

        record, receipt = outcome.parsed(), outcome.receipt
        assert outcome.record.isascii()
        assert (record["line_number"], record["attempt"], record["status"]) == (41, 3, "Completed")
        assert (receipt.line_number, receipt.attempt, receipt.status) == (41, 3, "Completed")
        assert (record["inputs"], record["output"], record["error"]) == (inputs, {"value": inputs["value"]}, None)
        assert outcome.input_hash == record["input_hash"] == input_hash(inputs)
        assert record["duration_sec"] == receipt.duration_sec > 0
        assert record.keys() >= {"aggregation_inputs", "start_time", "end_time", "metrics", "tokens", "logs", "nodes"}
        assert pickle.loads(pickle.dumps(outcome)) == outcome  # noqa: S301 - our own

    @pytest.mark.parametrize(
        ("do", "code", "said"),
        [
            ("raise", None, "(ValueError) as told"),
            ("unserialisable", "FlowOutputUnserializable", "'value'"),
            ("hang", "LineExecutionTimeoutError", "Line 1 execution timeout for exceeding 0.5 seconds"),
        ],
    )
    async def test_what_a_line_does_wrong_is_in_its_outcome(
        self, opened: Opened, do: str, code: str | None, said: str
    ) -> None:
        async with opened() as executor:
            limit = 0.5 if do == "hang" else 60
            outcome = await run(executor, 1, do=do, timeout_sec=limit)
            after = await run(executor, 2, do="return", value="fine")

        assert outcome.receipt.status == "Failed"
        assert outcome.parsed()["error"] == outcome.receipt.error
        assert outcome.parsed()["output"] is None
        assert code is None or code_of(outcome) == code
        assert said in message_of(outcome)
        assert after.parsed()["output"] == {"value": "fine"}

    async def test_a_line_that_cannot_be_run_is_not_run(self, opened: Opened, tmp_path: Path) -> None:
        error = error_dict(InputTypeError("input 'value' is of type int, found 'x'"))
        async with opened() as executor:
            line = Line(1, {"do": "return", "value": "broken"}, error)
            outcome = await executor.run_line(line, attempt=1, timeout_sec=60)

        assert outcome.receipt.error == outcome.parsed()["error"] == error
        assert outcome.receipt.duration_sec == 0
        assert not (tmp_path / "began-broken").exists()

    async def test_no_more_lines_run_than_there_are_slots(self, opened: Opened, tmp_path: Path) -> None:
        async with opened() as executor:
            tasks = [asyncio.create_task(run(executor, n, do="wait", value=n)) for n in range(SLOTS + 2)]
            await eventually(lambda: len(list(tmp_path.glob("began-*"))) == SLOTS, description="all slots are taken")
            assert executor.running() == set(range(SLOTS))
            (tmp_path / "go").touch()
            outcomes = await asyncio.gather(*tasks)

            assert executor.running() == set()

        assert [outcome.parsed()["output"]["value"] for outcome in outcomes] == list(range(SLOTS + 2))

    async def test_waiting_for_a_slot_does_not_count(self, opened: Opened) -> None:
        async with opened() as executor:
            *hanging, last = await asyncio.gather(
                *(run(executor, n, do="hang", value=n, timeout_sec=1.0) for n in range(SLOTS)),
                run(executor, 9, do="return", value="fine", timeout_sec=0.9),
            )

        assert [code_of(outcome) for outcome in hanging] == ["LineExecutionTimeoutError"] * SLOTS
        assert last.receipt.status == "Completed"

    async def test_a_cancelled_line_gives_its_slot_back(self, opened: Opened, tmp_path: Path) -> None:
        async with opened() as executor:
            tasks = [asyncio.create_task(run(executor, n, do="wait", value=n)) for n in range(SLOTS)]
            await eventually(lambda: len(list(tmp_path.glob("began-*"))) == SLOTS, description="all slots are taken")
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(ended, asyncio.CancelledError)
                for ended in await asyncio.gather(*tasks, return_exceptions=True)
            )

            assert executor.running() == set()
            after = await asyncio.gather(*(run(executor, n, do="return", value=n) for n in range(SLOTS)))

        assert [outcome.receipt.status for outcome in after] == ["Completed"] * SLOTS

    async def test_another_process_can_have_what_a_pool_was_given_and_a_proxy_stays_here(self, opened: Opened) -> None:
        async with opened() as executor:
            given = pickle.loads(pickle.dumps(executor.given()))  # noqa: S301 - our own

        assert (given is None) == isinstance(executor, ProxyExecutor)
        assert given is None or isinstance(given, Given)

    async def test_the_aggregation_gets_the_completed_lines_in_order(self, opened: Opened) -> None:
        async with opened() as executor:
            lines = [self.completed(3, "three"), self.completed(10, None)]
            aggregated = await executor.aggregate(lines, timeout_sec=60)

        assert aggregated["metrics"] == {"values": ["three", None]}
        assert aggregated["error"] is None
        assert aggregated["nodes"] == []

    @pytest.mark.parametrize(
        ("does", "limit", "said"),
        [("raise", 60, "(ValueError) as told"), ("hang", 0.5, "did not end within 0.5 seconds")],
    )
    async def test_what_the_aggregation_does_wrong_is_its_error(
        self,
        opened: Opened,
        does: str,
        limit: float,
        said: str,
    ) -> None:
        async with opened() as executor:
            failed: Any = await executor.aggregate([self.completed(0, does)], timeout_sec=limit)
            after = await run(executor, 2, do="return", value="fine")

        assert said in failed["error"]["message"]
        assert after.receipt.status == "Completed"
