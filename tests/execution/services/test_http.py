"""The HTTP executor against a real service, which keeps to the protocol, or does not."""

from __future__ import annotations

import asyncio
import json
import math
import os
import select
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from pools import code_of, is_alive, message_of, run
from services import pid_of, proxy_of, running_service, served_flow
from waiting import eventually, wait_until

from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import FlowDefinitionError, InvalidOptionError, WorkerStartError
from prefect_batchflow.execution.languages import executor_for, registered_executor
from prefect_batchflow.execution.services.http import HttpExecutorProxy, JavaScriptExecutorProxy
from prefect_batchflow.execution.services.proxy import ProxyExecutor
from prefect_batchflow.execution.workers.killing import with_token

if TYPE_CHECKING:
    from pathlib import Path

GONE_WITHIN_SEC = 5.0
"""Invariant I6 of a run."""

pytestmark = pytest.mark.anyio


class Impatient(HttpExecutorProxy):
    """Looks at a service that gave no answer for a short while only."""

    answer_timeout_sec = 0.3


def completed(number: int, value: Any, **references: Any) -> Any:
    return {"line_number": number, "inputs": {"value": value}, "output": {}, "aggregation_inputs": references}


def begun(folder: Path) -> list[str]:
    """The numbers of the lines that a service began, in order."""
    return (folder / "begun").read_text().split()


@pytest.mark.programs
class TestStart:
    async def test_lines_wait_until_it_is_healthy(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path, "slow")) as executor:
            assert (tmp_path / "health").read_text() == "...."
            outcome = await run(executor, do="return", value=1)

        assert outcome.parsed()["output"] == {"value": 1}

    @pytest.mark.parametrize(
        ("start", "said"),
        [
            (
                "sick",
                "was not healthy within 3 seconds: GET /health was answered with status 503. It printed nothing",
            ),
            ("silent", "was not healthy within 3 seconds: GET /health was not answered within"),
            ("exit", "exited with status 1 before it was healthy. Its last output: no model here"),
        ],
    )
    async def test_one_that_does_not_become_healthy_says_why_and_is_gone(
        self, tmp_path: Path, start: str, said: str
    ) -> None:
        limit = 20 if start == "exit" else 3  # by then it listens, on a busy machine too
        executor = ProxyExecutor(
            served_flow(tmp_path, start, start_timeout_sec=limit), HttpExecutorProxy, run_id="run", slots=1
        )

        with pytest.raises(WorkerStartError) as caught:
            await executor.start()

        assert said in str(caught.value)
        assert f"The service of the flow '{tmp_path.name}'" in str(caught.value)

    async def test_one_that_never_listens_says_what_it_printed(self, tmp_path: Path) -> None:
        code = "import time; print('still loading', flush=True); time.sleep(600)"
        flow = served_flow(tmp_path, command=[sys.executable, "-c", code], start_timeout_sec=3)

        with pytest.raises(WorkerStartError, match=r"GET /health failed: \(ConnectError\).*output: still loading"):
            await ProxyExecutor(flow, HttpExecutorProxy, run_id="run", slots=1).start()

    async def test_a_program_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        flow = served_flow(tmp_path, command=["no-such-program", "{port}"])

        with pytest.raises(WorkerStartError, match=r"No such file or directory.*Install 'no-such-program'"):
            await ProxyExecutor(flow, HttpExecutorProxy, run_id="run", slots=1).start()

    async def test_another_port_is_taken_when_somebody_was_quicker(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path, "port taken")) as executor:
            assert (await run(executor, do="return", value=1)).receipt.status == "Completed"

    async def test_the_service_gets_port_init_kwargs_and_connections(self, tmp_path: Path) -> None:
        asked = ["PORT", "BATCHFLOW_INIT_KWARGS", "BATCHFLOW_CONNECTIONS"]
        options: dict[str, Any] = {"init_kwargs": {"model": "ü"}, "connections": {"a": {"key": "k"}}}
        async with running_service(served_flow(tmp_path, "{entry}", "{working_dir}"), **options) as executor:
            told = (await run(executor, do="tell", value=asked)).parsed()["output"]

        assert json.loads(told["BATCHFLOW_INIT_KWARGS"]) == {"model": "ü"}
        assert json.loads(told["BATCHFLOW_CONNECTIONS"]) == {"a": {"key": "k"}}
        assert told["argv"][1:] == [told["PORT"], "any", str(tmp_path)]

    async def test_init_kwargs_that_are_no_json_are_named_without_their_values(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidOptionError, match=r"init_kwargs \(client\) must be JSON") as caught:
            await HttpExecutorProxy.create(
                served_flow(tmp_path).working_dir, init_kwargs={"client": {"secret-4711": object()}}
            )

        assert "secret-4711" not in str(caught.value)

    async def test_a_proxy_of_the_environment_is_not_asked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        async with running_service(served_flow(tmp_path)) as executor:
            assert (await run(executor, do="return", value=1)).receipt.status == "Completed"


class TestCommands:
    def flow(self, folder: Path, text: str) -> Path:
        (folder / "flow.flex.yaml").write_text(text)
        return folder

    async def test_a_flow_without_a_command_says_what_to_write(self, tmp_path: Path) -> None:
        self.flow(tmp_path, "entry: main\nlanguage: go\n")

        with pytest.raises(FlowDefinitionError, match=r"service:\n  command:.*\n.*`command` for 'go'"):
            await HttpExecutorProxy.create(tmp_path)

    async def test_javascript_needs_its_entry(self, tmp_path: Path) -> None:
        (tmp_path / "flow.dag.yaml").write_text("language: javascript\ninputs: {text: {type: string}}\n")

        with pytest.raises(FlowDefinitionError, match="no 'entry'"):
            await JavaScriptExecutorProxy.create(tmp_path)

    def test_javascript_is_run_by_node_and_other_languages_by_the_yaml(self, tmp_path: Path) -> None:
        javascript = load_flow(self.flow(tmp_path, "entry: a.js\nlanguage: JavaScript\n"))
        assert executor_for(javascript) is registered_executor("javascript") is JavaScriptExecutorProxy
        assert executor_for(load_flow(self.flow(tmp_path, "entry: a\nlanguage: go\n"))) is None

        go = load_flow(self.flow(tmp_path, "entry: a\nlanguage: go\nservice: {command: [./a, '{port}']}\n"))
        assert executor_for(go) is HttpExecutorProxy
        assert executor_for(load_flow(len)) is None

    def test_executors_are_known_without_httpx(self) -> None:
        code = (
            "import sys\nfrom prefect_batchflow.execution.languages import registered_executor\n"
            "registered_executor('javascript')\nprint('httpx' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

        assert done.stdout == "False\n"


class TestAnswers:
    async def test_text_of_any_kind_and_size_comes_through(self, tmp_path: Path) -> None:
        value = {"text": "\ud800 ü 漢字 \u2028 \x00 🐕", "much": "ä" * 3_000_000, "__class__": "x"}
        async with running_service(served_flow(tmp_path)) as executor:
            outcome = await run(executor, do="return", value=value)

        assert outcome.parsed()["output"] == {"value": value}
        assert outcome.parsed()["aggregation_inputs"] == {"${x.output}": value}

    async def test_an_error_of_the_service_keeps_its_codes(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path)) as executor:
            outcome = await run(executor, do="raise")

        error = outcome.parsed()["error"]
        assert (error["code"], error["innerError"]) == ("UserError", {"code": "ScriptExecutionError"})
        assert (error["message"], error["extra"]) == ("(ValueError) as told", 1)
        assert outcome.receipt.status == "Failed"

    @pytest.mark.parametrize(
        ("answer", "code", "said"),
        [
            ((500, "<html>no</html>"), "UnexpectedError", "status 500 and '<html>no</html>'"),
            (
                (200, "no JSON ü"),
                "UnexpectedError",
                "Line 0: POST /execution was answered with status 200 and 'no JSON ü'",
            ),
            ((200, "[1, 2]"), "UnexpectedError", "and [1, 2]; expected a JSON object"),
            ((200, "[" * 100_000), "UnexpectedError", "expected a JSON object"),
            (
                (200, {"hello": 1}),
                "UnexpectedError",
                "the answer to POST /execution has the keys ['hello'], but no 'output'",
            ),
            ((302, {"output": {}}), "UnexpectedError", "status 302"),
            ((404, {"error": "no such call"}), "UnexpectedError", "no such call"),
            ((500, {"error": {"message": "no code"}}), "UnexpectedError", "no code"),
            ((500, {"error": {"code": "UserError"}}), "UserError", "gave no message"),
            ((200, {"error": {"code": "SystemError", "message": "in a 200"}}), "SystemError", "in a 200"),
            ((200, {"output": {}, "run_info": {"status": "Odd"}}), "UnexpectedError", "Odd"),
        ],
        ids=lambda value: None if isinstance(value, str) else str(value)[:40],
    )
    async def test_nonsense_is_the_lines_failure(
        self, tmp_path: Path, answer: tuple[int, Any], code: str, said: str
    ) -> None:
        async with running_service(served_flow(tmp_path)) as executor:
            before = pid_of(executor)
            outcome = await run(executor, do="answer", value=answer)
            after = await run(executor, do="return", value=1)

            assert pid_of(executor) == before
        assert code_of(outcome) == code
        assert said in message_of(outcome)
        assert after.receipt.status == "Completed"

    async def test_a_connection_that_closes_without_an_answer_is_the_lines_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("prefect_batchflow.execution.services.http._NOTICE_EXIT_SEC", 0.05)
        async with running_service(served_flow(tmp_path)) as executor:
            before = pid_of(executor)
            outcome = await run(executor, do="close")
            after = await run(executor, do="return", value=1)

            assert pid_of(executor) == before
        assert "runs, but gave no HTTP answer: (RemoteProtocolError)" in message_of(outcome)
        assert after.receipt.status == "Completed"

    async def test_what_json_has_not_is_not_sent(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path)) as executor:
            outcome = await run(executor, 3, do="return", value=math.nan)

        assert code_of(outcome) == "InputTypeError"
        assert "Line 3: an input is NaN or infinite" in message_of(outcome)
        assert not (tmp_path / "begun").exists()


class TestLimits:
    async def test_a_line_at_its_limit_leaves_a_service_that_answers_alone(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path)) as executor:
            before = pid_of(executor)
            late = await run(executor, 1, do="hang", timeout_sec=0.2)
            after = await run(executor, 2, do="return", value=1)

            assert pid_of(executor) == before
        assert code_of(late) == "LineExecutionTimeoutError"
        assert after.receipt.status == "Completed"

    async def test_a_service_that_hangs_is_replaced_and_the_next_lines_lose_no_time(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running_service(served_flow(tmp_path), Impatient, slots=2) as executor:
            before = pid_of(executor)
            waiting = asyncio.create_task(run(executor, 2, do="wait"))
            await eventually((tmp_path / "began-None").exists, description="the other line runs")
            late = await run(executor, 1, do="hang all", timeout_sec=0.2)
            after = await run(executor, 3, do="return", value=1, timeout_sec=0.25)
            beside = await waiting

            assert pid_of(executor) != before
            assert not is_alive(before)
        assert code_of(late) == "LineExecutionTimeoutError"
        assert after.receipt.status == "Completed"
        assert code_of(beside) == "ProcessCrashError"
        assert "was ended, because GET /health was not answered within 0.3 seconds" in message_of(beside)
        assert "is started again" in caplog.text

    async def test_an_aggregation_that_hangs_costs_its_limit(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path), Impatient) as executor:
            result: Any = await executor.aggregate([completed(0, "hang all")], timeout_sec=0.2)
            after = await executor.aggregate([completed(0, "a"), completed(1, "b")], timeout_sec=60)

        assert "did not end within 0.2 seconds" in result["error"]["message"]
        assert after["metrics"] == {"values": ["a", "b"]}


class TestCrashes:
    async def test_only_the_lines_in_flight_fail(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path)) as executor:
            waiting = asyncio.create_task(run(executor, 1, do="wait"))
            await eventually((tmp_path / "began-None").exists, description="the other line runs")
            died = await run(executor, 2, do="die", value=2)
            after = await asyncio.gather(*(run(executor, n, do="return", value=n) for n in range(3, 9)))
            beside = await waiting

        assert [code_of(died), code_of(beside)] == ["ProcessCrashError"] * 2
        assert "Line 2: the service of the flow" in message_of(died)
        assert "exited with status 7 while it had the line. Its last output: last words ü" in message_of(died)
        info = died.parsed()["error"]["additionalInfo"]
        assert info == [{"type": "ProcessCrashDetails", "info": {"exit_code": 7, "output": "last words ü"}}]
        assert [outcome.receipt.status for outcome in after] == ["Completed"] * 6
        assert sorted(begun(tmp_path)) == [str(n) for n in range(1, 9)]

    async def test_a_service_that_dies_between_lines_costs_none(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path)) as executor:
            await run(executor, 1, do="return", value=1)
            killed = os.pidfd_open(pid_of(executor))
            signal.pidfd_send_signal(killed, signal.SIGKILL)
            # Without the event loop: the executor finds out when it sends the next line.
            assert select.select([killed], [], [], 30)[0]
            os.close(killed)
            after = await run(executor, 2, do="return", value=2)

        assert after.receipt.status == "Completed"
        assert begun(tmp_path) == ["1", "2"]

    async def test_one_that_does_not_start_again_stops_the_run(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path, "once")) as executor:
            await run(executor, 1, do="die")
            with pytest.raises(WorkerStartError, match=r"exited with status 1 before it was healthy.*only once"):
                await run(executor, 2, do="return")

    async def test_a_crash_of_the_aggregation_is_its_error(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path)) as executor:
            result: Any = await executor.aggregate([completed(0, "die")], timeout_sec=60)

        assert "The aggregation: the service of the flow" in result["error"]["message"]


class TestAggregation:
    async def test_it_gets_inputs_and_references_as_lists(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path)) as executor:
            lines = [completed(1, "a", **{"${x.output}": 1}), completed(4, "b")]
            result: Any = await executor.aggregate(lines, timeout_sec=60)

        assert result["output"] == {"references": {"${x.output}": [1, None]}}
        assert (result["metrics"], result["error"]) == ({"values": ["a", "b"]}, None)

    async def test_an_error_of_the_service_keeps_its_codes(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path)) as executor:
            result: Any = await executor.aggregate([completed(0, "raise")], timeout_sec=60)

        assert result["error"]["innerError"] == {"code": "ScriptExecutionError"}
        assert result["error"]["message"] == "(ValueError) as told"

    @pytest.mark.parametrize("says", [True, False])
    async def test_the_yaml_says_whether_there_is_one(self, tmp_path: Path, says: bool) -> None:
        async with running_service(served_flow(tmp_path, aggregation=says)) as executor:
            assert proxy_of(executor).has_aggregation is says


class TestEnd:
    async def test_it_is_asked_to_end(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path)):
            pass

        assert (tmp_path / "ended").exists()

    async def test_one_that_does_not_end_is_killed_with_what_it_started(self, tmp_path: Path) -> None:
        class Hasty(HttpExecutorProxy):
            stop_timeout_sec = 0.1

        for start in ("stubborn", "child"):
            async with running_service(served_flow(tmp_path, start), Hasty) as executor:
                pid = pid_of(executor)
            assert not is_alive(pid)
        assert not is_alive(int((tmp_path / "child").read_text()))

    async def test_lines_in_flight_do_not_hold_it_up(self, tmp_path: Path) -> None:
        async with running_service(served_flow(tmp_path)) as executor:
            task = asyncio.create_task(run(executor, 1, do="hang all"))
            await eventually((tmp_path / "began-None").exists, description="the line runs")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def test_nothing_of_a_killed_run_is_left(self, tmp_path: Path) -> None:
        served_flow(tmp_path, "child")
        script = tmp_path / "parent.py"
        script.write_text(
            textwrap.dedent(
                """
                import asyncio, pathlib, sys
                from prefect_batchflow.execution.services.http import HttpExecutorProxy

                async def main():
                    proxy = await HttpExecutorProxy.create(pathlib.Path(sys.argv[1]))
                    print(proxy._keeper.supervisor.token, flush=True)
                    await asyncio.Event().wait()

                asyncio.run(main())
                """
            )
        )
        with subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
            try:
                assert parent.stdout is not None
                token = parent.stdout.readline().strip()
                assert len(with_token(token)) == 2
            finally:
                parent.kill()

        wait_until(lambda: not with_token(token), description="nothing is left", timeout_sec=GONE_WITHIN_SEC)
