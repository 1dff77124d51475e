"""A run's workers: what a line does to its process costs that line, and nothing outlives the pool."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from pools import code_of, flow_of, is_alive, message_of, run, running_pool, token_of
from waiting import eventually

from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import (
    FlowEntryInitializationError,
    InvalidOptionError,
    PythonLoadError,
    WorkerStartError,
)
from prefect_batchflow.execution.scrubbing import MASK
from prefect_batchflow.execution.workers import pool as pool_module
from prefect_batchflow.execution.workers import worker_process
from prefect_batchflow.execution.workers.killing import TOKEN_VARIABLE, with_token
from prefect_batchflow.execution.workers.pool import WorkerPool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

GRANDCHILD = """
    import subprocess, sys
    def leave_a_grandchild():
        child = subprocess.Popen(
            [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"],
            start_new_session=True,
        )
        with open("grandchild", "w") as file:
            file.write(str(child.pid))
"""


def pids(folder: Path, name: str) -> list[int]:
    """The process ids that lines have appended to a file."""
    path = folder / name
    return [int(text) for text in path.read_text().split()] if path.exists() else []


class TestStart:
    async def test_it_says_what_the_flow_is(self, tmp_path: Path) -> None:
        flow = flow_of(tmp_path, "def main(question, depth: int = 3):\n    return question\n")
        pool = WorkerPool(flow, worker_count=2)
        try:
            description = await pool.start()
        finally:
            await pool.close()

        assert list(description.inputs) == ["question", "depth"]
        assert description.inputs["question"].required
        assert (description.inputs["depth"].type, description.inputs["depth"].default) == ("int", 3)
        assert description.inputs["depth"].nullable
        assert (description.is_async, description.has_aggregation) == (False, False)

    @pytest.mark.parametrize(
        ("code", "error", "said"),
        [
            ("import no_such_module", PythonLoadError, r"No module named 'no_such_module'.*Install"),
            ("1 / 0", PythonLoadError, r"\(ZeroDivisionError\)"),
            (
                "class main:\n    def __init__(self): raise OSError('no such key')\n    def __call__(self, n): pass",
                FlowEntryInitializationError,
                r"\(OSError\) no such key",
            ),
            ("import os\nos.write(2, b'out of here')\nos._exit(3)", WorkerStartError, r"status 3.*out of here"),
            ("import os\nos.kill(os.getpid(), 9)", WorkerStartError, r"SIGKILL.*Last output: none"),
        ],
        ids=["missing module", "import raises", "constructor raises", "exit on import", "killed on import"],
    )
    async def test_a_flow_that_does_not_load_says_why(
        self, tmp_path: Path, code: str, error: type[Exception], said: str
    ) -> None:
        with pytest.raises(error, match=said):
            async with running_pool(flow_of(tmp_path, code)):
                pass

    async def test_an_import_that_never_ends_is_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool_module, "START_TIMEOUT_SEC", 0.5)
        flow = flow_of(tmp_path, "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nwhile True: pass")

        with pytest.raises(WorkerStartError, match=r"not loaded within 0\.5 seconds.*on import"):
            async with running_pool(flow):
                pass

        assert not any(map(is_alive, pids(tmp_path, "pid")))

    async def test_arguments_that_cannot_travel_are_refused_by_name(self, tmp_path: Path) -> None:
        flow = flow_of(tmp_path, "class main:\n    def __init__(self, client): pass\n    def __call__(self, n): pass")

        with pytest.raises(InvalidOptionError, match=r"init_kwargs.*\(client\).*constructor"):
            async with running_pool(flow, init_kwargs={"client": (row for row in [1])}):
                pass

    async def test_a_closure_travels(self) -> None:
        factor = 3

        def times(n: int) -> int:
            return n * factor

        async with running_pool(load_flow(times)) as pool:
            assert (await run(pool, n=5)).parsed()["output"] == {"output": 15}

        async with running_pool(load_flow(lambda n: n + factor)) as pool:
            assert (await run(pool, n=5)).parsed()["output"] == {"output": 8}

    async def test_a_function_of_the_callers_script_travels_without_its_script(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent(
                """
                import asyncio
                from prefect_batchflow.definition.load import load_flow
                from prefect_batchflow.execution.workers.pool import WorkerPool
                from prefect_batchflow.lines import Line

                print("the script runs")

                def double(n):
                    return 2 * n

                async def main():
                    pool = WorkerPool(load_flow(double))
                    await pool.start()
                    outcome = await pool.run_line(Line(0, {"n": 4}), attempt=1, timeout_sec=60)
                    print(outcome.parsed()["output"])
                    await pool.close()

                asyncio.run(main())
                """
            )
        )

        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
        )

        assert (done.stdout, done.stderr) == ("the script runs\n{'output': 8}\n", "")

    async def test_a_further_worker_that_does_not_load_is_told_to_who_waits(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = """
            import os, pathlib
            if pathlib.Path("loaded").exists():
                raise RuntimeError("only once")
            pathlib.Path("loaded").touch()
            def main():
                os._exit(1)
            """
        monkeypatch.setattr(pool_module, "START_AGAIN_SEC", (0.0,))
        async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
            assert code_of(await run(pool)) == "ProcessCrashError"
            with pytest.raises(WorkerStartError, match=r"further worker did not start.*only once"):
                await run(pool)


@pytest.mark.programs
class TestReplacement:
    """A further worker that does not start costs the run time or a place, not its lines."""

    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool_module, "START_AGAIN_SEC", (0.0, 0.0, 0.0))

    LOADS = """
        import os, pathlib, signal, time
        loads = pathlib.Path("loads")
        with loads.open("a") as file:
            file.write("x")
        if loads.stat().st_size in BAD:
            HOW
        def main(n):
            if n < 0:
                os._exit(1)
            return n
        """

    @pytest.mark.parametrize(
        "how",
        ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "raise OSError('no seat left')"],
        ids=["killed", "gone", "refused"],
    )
    async def test_one_that_is_killed_while_it_loads_is_started_again(self, tmp_path: Path, how: str) -> None:
        code = self.LOADS.replace("BAD", "(2, 3, 4)").replace("HOW", how)
        async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
            assert code_of(await run(pool, n=-1)) == "ProcessCrashError"
            assert (await run(pool, n=7)).parsed()["output"] == {"output": 7}

    async def test_it_is_given_up_after_some_tries(self, tmp_path: Path) -> None:
        code = self.LOADS.replace("BAD", "range(2, 99)").replace("HOW", "os._exit(3)")
        async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
            assert code_of(await run(pool, n=-1)) == "ProcessCrashError"
            with pytest.raises(WorkerStartError, match=r"further worker did not start.*status 3"):
                await run(pool, n=7)
        assert len((tmp_path / "loads").read_text()) == 1 + 4

    @pytest.mark.parametrize(
        "number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM], ids=errno.errorcode.get
    )
    @pytest.mark.parametrize("fails", [2, 99], ids=["for a moment", "for good"])
    @pytest.mark.parametrize("step", ["Popen", "connect"])
    async def test_a_system_without_room_leaves_the_workers_there_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: int, step: str
    ) -> None:
        code = "import time\ndef main(n):\n    time.sleep(0.01)\n    return n\n"
        async with running_pool(flow_of(tmp_path, code), worker_count=3) as pool:
            notes: list[str] = []
            slots: list[int] = []
            pool.on_note = notes.append
            pool.on_slots = lambda: slots.append(pool.slots)
            left = fails

            def full() -> None:
                nonlocal left
                left -= 1
                if left >= 0:
                    raise OSError(number, os.strerror(number))

            if step == "Popen":
                really = subprocess.Popen

                def start(*arguments: Any, **options: Any) -> Any:
                    full()
                    return really(*arguments, **options)

                monkeypatch.setattr(subprocess, "Popen", start)
            else:
                really_connect = worker_process.WorkerProcess._connect

                async def connect(self: Any) -> None:
                    full()
                    await really_connect(self)

                monkeypatch.setattr(worker_process.WorkerProcess, "_connect", connect)
            outcomes = await asyncio.gather(*(run(pool, n, n=n) for n in range(20)))
            assert [outcome.parsed()["output"] for outcome in outcomes] == [{"output": n} for n in range(20)]
            monkeypatch.undo()
            if fails == 2:
                assert notes == []
            else:
                await eventually(lambda: notes, description="it says so")
                assert os.strerror(number) in notes[-1]
                assert "continues with 1 of" in notes[-1]
                assert slots[-1] == 1

    async def test_workers_leave_descriptors_for_the_records(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        notes: list[str] = []
        async with running_pool(flow_of(tmp_path, "def main(n):\n    return n\n"), worker_count=40) as pool:
            pool.on_note = notes.append
            monkeypatch.setattr(pool_module, "_free_descriptors", lambda: pool_module.DESCRIPTORS_KEPT - 1)
            outcomes = await asyncio.gather(*(run(pool, n, n=n) for n in range(100)))
            assert len(outcomes) == 100
            await eventually(lambda: notes, description="it says so")
        assert "Too many open files" in notes[0]
        assert "ulimit -n" in notes[0]

    async def test_a_line_that_must_run_alone_gets_its_process_after_some_tries(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with running_pool(flow_of(tmp_path, "def main(n):\n    return n\n"), worker_count=1) as pool:
            really, left = worker_process.WorkerProcess._connect, 2

            async def connect(self: Any) -> None:
                nonlocal left
                left -= 1
                if left >= 0:
                    raise OSError(errno.EMFILE, "full")
                await really(self)

            monkeypatch.setattr(worker_process.WorkerProcess, "_connect", connect)
            job = pool._job("Line 0", {"op": "line", "line_number": 0, "attempt": 1, "input_hash": ""}, b'{"n": 5}', 60)
            head, _ = await pool._run_alone(job)
        assert head["error"] is None

    async def test_the_first_worker_is_started_again_when_the_system_has_no_room(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        really, left = subprocess.Popen, 2

        def start(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if "prefect_batchflow.execution.workers.worker" in arguments[0] and (left := left - 1) >= 0:
                raise BlockingIOError(errno.EAGAIN, "no process left")
            return really(*arguments, **options)

        monkeypatch.setattr(subprocess, "Popen", start)
        async with running_pool(flow_of(tmp_path, "def main(n):\n    return n\n"), worker_count=1) as pool:
            assert (await run(pool, n=3)).parsed()["output"] == {"output": 3}


class TestSyncLines:
    async def test_many_lines_share_the_workers_asked_for(self, tmp_path: Path) -> None:
        flow = flow_of(tmp_path, "import os\ndef main(n):\n    return {'n': n, 'pid': os.getpid()}\n")

        async with running_pool(flow, worker_count=2) as pool:
            outcomes = await asyncio.gather(*(run(pool, number, n=number) for number in range(30)))

        outputs = [outcome.parsed()["output"] for outcome in outcomes]
        assert [output["n"] for output in outputs] == list(range(30))
        assert 1 <= len({output["pid"] for output in outputs}) <= 2

    async def test_lines_overlap_one_a_process(self, tmp_path: Path) -> None:
        code = """
            import os, pathlib, time
            def main(n):
                pathlib.Path(f"here-{n}").touch()
                while not pathlib.Path(f"here-{1 - n}").exists():
                    time.sleep(0.001)
                return os.getpid()
            """
        async with running_pool(flow_of(tmp_path, code), worker_count=2) as pool:
            one, two = await asyncio.gather(run(pool, 0, n=0), run(pool, 1, n=1))

        assert one.parsed()["output"] != two.parsed()["output"]

    async def test_prints_are_in_the_record_and_not_on_our_output(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        code = """
            import subprocess, sys
            print("on import")
            def main(word):
                print(word)
                subprocess.run(["echo", "from a child"])
                return sys.stdin.read()
            """
        async with running_pool(flow_of(tmp_path, code)) as pool:
            outcome = await run(pool, word="hello")

        assert outcome.parsed()["logs"] == "hello\n"
        assert outcome.parsed()["output"] == {"output": ""}
        assert capfd.readouterr() == ("", "")

    async def test_the_clock_of_a_line_starts_when_a_worker_has_it(self, tmp_path: Path) -> None:
        code = """
            def main(n):
                while n < 2:
                    pass
                return n
            """
        async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
            outcomes = await asyncio.gather(
                run(pool, 0, n=0, timeout_sec=1.0),
                run(pool, 1, n=1, timeout_sec=1.0),
                run(pool, 2, n=2, timeout_sec=0.9),
            )

        assert [outcome.receipt.status for outcome in outcomes] == ["Failed", "Failed", "Completed"], (
            "the third waited for two seconds, which are not its own"
        )
        assert [round(outcome.receipt.duration_sec) for outcome in outcomes] == [1, 1, 0]

    @pytest.mark.parametrize(
        "hang",
        [
            "while True: pass",
            "import ctypes, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); ctypes.CDLL(None).pause()",
            "import threading; threading.Event().wait()",
            "import signal; os.kill(os.getpid(), signal.SIGSTOP)",
        ],
        ids=["a loop", "in C, deaf to SIGTERM", "a lock", "stopped"],
    )
    async def test_a_line_that_hangs_is_gone_with_all_it_started(self, tmp_path: Path, hang: str) -> None:
        code = f"""{GRANDCHILD}
    import os
    def main(n):
        if n:
            return n
        leave_a_grandchild()
        open("pid", "w").write(str(os.getpid()))
        print("here", flush=True)
        {hang}
"""
        async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
            outcome = await run(pool, n=0, timeout_sec=1.0)
            await eventually(
                lambda: not any(map(is_alive, pids(tmp_path, "pid") + pids(tmp_path, "grandchild"))),
                description="line and grandchild are gone",
                timeout_sec=2,
            )

            assert code_of(outcome) == "LineExecutionTimeoutError"
            assert message_of(outcome) == "Line 0 execution timeout for exceeding 1 seconds"
            assert outcome.parsed()["logs"] == "here\n"
            assert len(pids(tmp_path, "grandchild")) == 1
            assert (await run(pool, n=1)).receipt.status == "Completed"

    @pytest.mark.parametrize(
        ("crash", "code", "said"),
        [
            ("import ctypes; ctypes.string_at(0)", "ProcessCrashError", "killed by SIGSEGV.*Segmentation fault"),
            ("import os; os.abort()", "ProcessCrashError", "killed by SIGABRT"),
            ("import os; os._exit(0)", "ProcessCrashError", "exited with status 0"),
            ("import os; os.kill(os.getpid(), 9)", "ProcessCrashError", "SIGKILL.*out-of-memory killer"),
            (
                "import os, sys; print('last words', file=sys.stderr); os._exit(7)",
                "ProcessCrashError",
                "status 7.*last words",
            ),
            ("raise KeyboardInterrupt", "ProcessCrashError", "SIGINT"),
            (
                "import os; os.write(2, b'terminate called after throwing an instance of std::bad_alloc\\n'); os.abort()",
                "LineOutOfMemoryError",
                "Raise line_memory_mb",
            ),
            (
                "import os; print('My laptop is out of memory, it says MemoryError'); os._exit(1)",
                "ProcessCrashError",
                "status 1",
            ),
            ("import sys; sys.exit(3)", "ScriptExecutionError", r"\(SystemExit\) 3"),
            ("f = lambda: f(); f()", "ScriptExecutionError", r"\(RecursionError\)"),
            ("return object()", "FlowOutputUnserializable", "Return text, numbers"),
        ],
        ids=[
            "segmentation fault",
            "abort",
            "_exit(0)",
            "SIGKILL",
            "_exit(7)",
            "interrupt",
            "bad_alloc",
            "talk of memory",
            "sys.exit",
            "recursion",
            "output is not JSON",
        ],
    )
    async def test_what_a_line_does_to_itself_costs_that_line(
        self, tmp_path: Path, crash: str, code: str, said: str
    ) -> None:
        flow = flow_of(tmp_path, f"def main(n):\n    if n:\n        return n\n    {crash}\n")

        async with running_pool(flow, worker_count=1) as pool:
            outcome = await run(pool, n=0)
            after = await run(pool, 1, n=1)

        assert code_of(outcome) == code
        with pytest.raises(AssertionError, match=f"(?s){said}"):
            raise AssertionError(message_of(outcome))
        assert outcome.parsed()["status"] == "Failed"
        assert outcome.parsed()["error"]["code"] == "UserError"
        assert after.parsed()["output"] == {"output": 1}

    async def test_a_crash_leaves_other_lines_alone_and_tells_its_output(self, tmp_path: Path) -> None:
        code = """
            import os, pathlib, time
            def main(n):
                pathlib.Path(f"here-{n}").touch()
                if n == 0:
                    while not pathlib.Path("here-1").exists():
                        time.sleep(0.001)
                    print("about to end")
                    os._exit(5)
                while not pathlib.Path("go").exists():
                    time.sleep(0.001)
                return n
            """
        async with running_pool(flow_of(tmp_path, code), worker_count=2) as pool:
            innocent = asyncio.create_task(run(pool, 1, n=1))
            guilty = await run(pool, 0, n=0)
            (tmp_path / "go").touch()

            assert (await innocent).receipt.status == "Completed"

        assert guilty.parsed()["logs"] == "about to end\n"
        [details] = guilty.parsed()["error"]["additionalInfo"]
        assert details == {"type": "ProcessCrashDetails", "info": {"exit_code": 5, "output": "about to end\n"}}

    async def test_a_line_that_eats_memory_fails_and_the_next_has_room_again(self, tmp_path: Path) -> None:
        code = """
            import os
            kept = []
            def main(megabytes):
                kept.append(bytearray(megabytes << 20))
                return os.getpid()
            """
        async with running_pool(flow_of(tmp_path, code), worker_count=1, line_memory_mb=64) as pool:
            before = await run(pool, 0, megabytes=1)
            hungry = await run(pool, 1, megabytes=200)
            after = await run(pool, 2, megabytes=40)

        assert code_of(hungry) == "LineOutOfMemoryError"
        assert (before.receipt.status, after.receipt.status) == ("Completed", "Completed")
        assert before.parsed()["output"] != after.parsed()["output"], "what the first process kept is gone with it"

    async def test_the_end_of_one_worker_is_not_that_of_the_tenth(self, tmp_path: Path) -> None:
        code = """
            import os, pathlib, time
            def main(do):
                if do == "crash":
                    os._exit(1)
                pathlib.Path(do).touch()
                while not pathlib.Path("go").exists():
                    time.sleep(0.001)
            """
        async with running_pool(flow_of(tmp_path, code), worker_count=2) as pool:
            first = asyncio.create_task(run(pool, 0, do="first"))
            await eventually((tmp_path / "first").exists, description="the first worker has a line")
            for _ in range(8):
                assert code_of(await run(pool, 1, do="crash")) == "ProcessCrashError"
            tenth = asyncio.create_task(run(pool, 2, do="tenth"))
            await eventually((tmp_path / "tenth").exists, description="the tenth worker has a line")

            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            (tmp_path / "go").touch()

            assert (await tenth).receipt.status == "Completed"

    async def test_cancelling_a_line_ends_its_process(self, tmp_path: Path) -> None:
        code = """
            import os
            def main(n):
                open("pid", "a").write(f"{os.getpid()} ")
                while n == 0:
                    pass
            """
        async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
            task = asyncio.create_task(run(pool, n=0))
            await eventually(lambda: pids(tmp_path, "pid"), description="the line runs")
            assert pool.running() == {0}
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            assert pool.running() == set()
            assert (await run(pool, n=1)).receipt.status == "Completed"
            first, second = pids(tmp_path, "pid")
            assert not is_alive(first)
            assert first != second

    async def test_cancelling_a_line_that_waits_takes_nothing_from_the_others(self, tmp_path: Path) -> None:
        async with running_pool(flow_of(tmp_path, "def main(n):\n    return n\n"), worker_count=1) as pool:
            tasks = [asyncio.create_task(run(pool, number, n=number)) for number in range(6)]
            await asyncio.sleep(0)
            for task in tasks[1:5]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)

            assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [0, 1, 1, 1, 1, 0]
            assert (await run(pool, 6, n=6)).receipt.status == "Completed"

    async def test_a_worker_that_dies_between_lines_is_nobodys_fault(self, tmp_path: Path) -> None:
        code = """
            import os, pathlib, threading, time
            def end():
                while not pathlib.Path("go").exists():
                    time.sleep(0.001)
                os._exit(1)
            def main(n):
                if n == 0:
                    threading.Thread(target=end).start()
                return n
            """
        async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
            assert (await run(pool, 0, n=0)).receipt.status == "Completed"
            (tmp_path / "go").touch()
            await eventually(lambda: not pool._workers, description="the pool has seen its worker die")

            assert (await run(pool, 1, n=1)).receipt.status == "Completed"

    async def test_values_travel_unchanged(self, tmp_path: Path) -> None:
        inputs: dict[str, Any] = {
            "text": "\ud800 \x00 \u2028 ü",
            "big": "x" * 3_000_000,
            "numbers": [1e308, -0.0, 2**70],
            "none": None,
        }
        flow = flow_of(tmp_path, "def main(**inputs):\n    return inputs\n")

        async with running_pool(flow, worker_count=1) as pool:
            outcome = await run(pool, **inputs)

        assert outcome.parsed()["output"] == inputs
        assert outcome.parsed()["inputs"] == inputs


class TestAsyncLines:
    async def test_lines_overlap_in_one_process(self, tmp_path: Path) -> None:
        code = """
            import asyncio, os
            met = asyncio.Barrier(20)
            async def main(n):
                await met.wait()
                return os.getpid()
            """
        async with running_pool(flow_of(tmp_path, code), max_concurrency=20) as pool:
            assert pool.slots == 20
            outcomes = await asyncio.gather(*(run(pool, number, n=number) for number in range(20)))

        assert len({outcome.parsed()["output"]["output"] for outcome in outcomes}) == 1

    async def test_no_more_lines_run_at_once_than_allowed(self, tmp_path: Path) -> None:
        code = """
            import asyncio
            now = most = 0
            three = asyncio.Event()
            async def main(n):
                global now, most
                now += 1
                most = max(most, now)
                if now == 3:
                    three.set()
                await three.wait()
                for _ in range(20):
                    await asyncio.sleep(0)
                now -= 1
                return most
            """
        async with running_pool(flow_of(tmp_path, code), max_concurrency=3) as pool:
            outcomes = await asyncio.gather(*(run(pool, number, n=number) for number in range(30)))

        assert max(outcome.parsed()["output"]["output"] for outcome in outcomes) == 3

    async def test_one_line_at_a_time_is_one_also_for_quick_lines(self, tmp_path: Path) -> None:
        code = """
            import asyncio
            running = most = 0
            async def main(n):
                global running, most
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                running -= 1
                return most
            """
        async with running_pool(flow_of(tmp_path, code), max_concurrency=1) as pool:
            outcomes = await asyncio.gather(*(run(pool, number, n=number) for number in range(100)))

        assert {outcome.parsed()["output"]["output"] for outcome in outcomes} == {1}

    async def test_a_line_over_its_limit_is_cancelled_and_the_others_go_on(self, tmp_path: Path) -> None:
        code = """
            import asyncio, os, pathlib
            async def main(n):
                try:
                    while n == 0 or not pathlib.Path("cancelled").exists():
                        await asyncio.sleep(0.001)
                except asyncio.CancelledError:
                    pathlib.Path("cancelled").touch()
                    raise
                return os.getpid()
            """
        async with running_pool(flow_of(tmp_path, code), max_concurrency=4) as pool:
            late, *others = await asyncio.gather(
                run(pool, 0, n=0, timeout_sec=0.5), *(run(pool, number, n=number) for number in (1, 2, 3))
            )
            after = await run(pool, 4, n=4)

        assert code_of(late) == "LineExecutionTimeoutError"
        assert len({outcome.parsed()["output"]["output"] for outcome in (*others, after)}) == 1

    @pytest.mark.parametrize(
        ("act", "error_code"),
        [
            ("task = asyncio.create_task(asyncio.sleep(60)); task.cancel(); await task", "ScriptExecutionError"),
            ("raise asyncio.CancelledError('of its own')", "ScriptExecutionError"),
            ("asyncio.current_task().cancel(); await asyncio.sleep(60)", "UnexpectedError"),
        ],
        ids=["of a task it awaits", "raised", "of itself"],
    )
    async def test_a_cancellation_in_the_lines_own_code_is_its_error_at_once(
        self, tmp_path: Path, act: str, error_code: str
    ) -> None:
        code = f"import asyncio\nasync def main(n):\n    if n == 1:\n        {act}\n    return n\n"
        async with running_pool(flow_of(tmp_path, code)) as pool, asyncio.timeout(30):
            outcomes = await asyncio.gather(*(run(pool, number, n=number) for number in range(3)))

        assert [outcome.receipt.error is None for outcome in outcomes] == [True, False, True]
        assert code_of(outcomes[1]) == error_code
        assert "CancelledError" in message_of(outcomes[1])

    @pytest.mark.parametrize(
        ("block", "limit"),
        [("time.sleep(600)", 1.0), ("while True: pass", 60.0)],
        ids=["a sleep, all of one limit", "a loop, others with time left"],
    )
    async def test_a_line_that_blocks_the_loop_fails_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str, limit: float
    ) -> None:
        monkeypatch.setattr(worker_process, "CANCEL_GRACE_SEC", 0.3)
        code = f"""
            import asyncio, pathlib, time
            async def main(n):
                started = pathlib.Path(f"started-{{n}}")
                again = started.exists()
                started.touch()
                if n == 0:
                    while len(list(pathlib.Path().glob("started-*"))) < 4:
                        await asyncio.sleep(0)
                    {block}
                while not again:
                    await asyncio.sleep(0.01)
                return n
            """
        async with running_pool(flow_of(tmp_path, code), max_concurrency=4) as pool:
            guilty, *innocent = await asyncio.gather(
                run(pool, 0, n=0, timeout_sec=1.0),
                *(run(pool, number, n=number, timeout_sec=limit) for number in (1, 2, 3)),
            )

        assert code_of(guilty) == "LineExecutionTimeoutError"
        assert [outcome.parsed()["output"] for outcome in innocent] == [{"output": n} for n in (1, 2, 3)]
        assert {outcome.receipt.attempt for outcome in innocent} == {1}

    async def test_a_crash_with_several_lines_in_flight_fails_the_guilty_one(self, tmp_path: Path) -> None:
        code = """
            import asyncio, os, pathlib
            async def main(n):
                started = pathlib.Path(f"started-{n}")
                again = started.exists()
                started.touch()
                if n == 0:
                    while len(list(pathlib.Path().glob("started-*"))) < 4:
                        await asyncio.sleep(0)
                    os._exit(9)
                while not again:
                    await asyncio.sleep(0.01)
                return n
            """
        async with running_pool(flow_of(tmp_path, code), max_concurrency=4) as pool:
            guilty, *innocent = await asyncio.gather(*(run(pool, number, n=number) for number in range(4)))

        assert code_of(guilty) == "ProcessCrashError"
        assert "Line 0: its process exited with status 9" in message_of(guilty)
        assert [outcome.parsed()["output"] for outcome in innocent] == [{"output": n} for n in (1, 2, 3)]
        assert {outcome.receipt.attempt for outcome in innocent} == {1}

    @pytest.mark.parametrize(
        "go_on",
        ["await asyncio.to_thread(threading.Event().wait)", "while True: await ignore_cancellation()"],
        ids=["in a thread", "against its cancellation"],
    )
    async def test_a_line_that_goes_on_behind_its_limit_ends_with_its_process(self, tmp_path: Path, go_on: str) -> None:
        code = f"""
            import asyncio, os, pathlib, threading
            async def ignore_cancellation():
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass
            async def main(do):
                pid = os.getpid()
                if do == "go on":
                    pathlib.Path("pid").write_text(str(pid))
                    {go_on}
                while do == "wait" and not pathlib.Path("go").exists():
                    await asyncio.sleep(0.001)
                return pid
            """
        async with running_pool(flow_of(tmp_path, code), max_concurrency=4) as pool:
            innocent = asyncio.create_task(run(pool, 1, do="wait"))
            late = await run(pool, 0, do="go on", timeout_sec=0.5)
            [old] = pids(tmp_path, "pid")
            await eventually(
                lambda: any(worker.retiring for worker in pool._workers), description="its worker gets no more lines"
            )
            new = (await run(pool, 2, do="return")).parsed()["output"]["output"]
            assert is_alive(old), "its other line still runs"
            (tmp_path / "go").touch()

            assert (await innocent).parsed()["output"]["output"] == old
            assert new != old
            await eventually(lambda: not is_alive(old), description="the old process is gone")

        assert code_of(late) == "LineExecutionTimeoutError"

    async def test_a_cancelled_line_frees_its_place_and_ends(self, tmp_path: Path) -> None:
        code = """
            import asyncio, pathlib
            async def main(n):
                if n < 2:
                    pathlib.Path(f"started-{n}").touch()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        pathlib.Path(f"ended-{n}").touch()
                return n
            """
        async with running_pool(flow_of(tmp_path, code), max_concurrency=2) as pool:
            tasks = [asyncio.create_task(run(pool, n, n=n)) for n in (0, 1)]
            await eventually(lambda: len(list(tmp_path.glob("started-*"))) == 2, description="both lines run")
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]

            assert (await run(pool, 2, n=2)).receipt.status == "Completed"
            await eventually((tmp_path / "ended-0").exists, description="its own clean-up has run")
            assert not (tmp_path / "ended-1").exists()
            tasks[1].cancel()


class TestAggregation:
    CODE = """
        import os
        class main:
            def __call__(self, n):
                return {"n": n}
            def __aggregate__(self, results):
                numbers = [result["n"] for result in results]
                if numbers == [0]:
                    while True:
                        pass
                if numbers == [1]:
                    os._exit(1)
                if numbers == [2]:
                    raise ValueError("two")
                return {"total": sum(numbers)}
        """

    @staticmethod
    def lines(*numbers: int) -> Any:
        return [{"line_number": n, "inputs": {"n": n}, "output": {"n": n}, "aggregation_inputs": {}} for n in numbers]

    async def test_it_runs_over_the_completed_lines(self, tmp_path: Path) -> None:
        async with running_pool(flow_of(tmp_path, self.CODE)) as pool:
            run = await pool.aggregate(self.lines(3, 4), timeout_sec=60)

        assert run["metrics"] == {"total": 7}
        assert run["error"] is None

    @pytest.mark.parametrize(
        ("number", "limit", "said"),
        [
            (0, 0.5, "The aggregation did not end within 0.5 seconds"),
            (1, 60, "The aggregation: its process exited with status 1"),
            (2, 60, "(ValueError) two"),
        ],
        ids=["hangs", "crashes", "raises"],
    )
    async def test_what_goes_wrong_is_its_error_and_the_pool_heals(
        self, tmp_path: Path, number: int, limit: float, said: str
    ) -> None:
        async with running_pool(flow_of(tmp_path, self.CODE)) as pool:
            failed: Any = await pool.aggregate(self.lines(number), timeout_sec=limit)
            again = await pool.aggregate(self.lines(3, 4), timeout_sec=60)

        assert said in failed["error"]["message"]
        assert (failed["output"], failed["metrics"], failed["nodes"]) == ({}, {}, [])
        assert again["metrics"] == {"total": 7}


async def test_a_killed_line_tells_no_secret_of_the_machine_that_it_ran_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os\ndef main(n):\n    print(os.environ['OPENAI_API_KEY'], flush=True)\n    os._exit(3)\n"
    given = WorkerPool(flow := flow_of(tmp_path, code)).given()
    monkeypatch.setenv("OPENAI_API_KEY", "canary-0123456789")  # as on a machine of a cluster, which the run's is not
    async with running_pool(flow, worker_count=1, given=given) as pool:
        outcome = await run(pool, n=1)

    assert code_of(outcome) == "ProcessCrashError"
    assert outcome.parsed()["logs"] == f"{MASK}\n"
    assert b"canary" not in outcome.record


class TestClose:
    async def test_nothing_is_left_and_running_lines_are_cancelled(self, tmp_path: Path) -> None:
        code = f"""{GRANDCHILD}
    import os, signal
    def main(n):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        leave_a_grandchild()
        open("pid", "a").write(f"{{os.getpid()}} ")
        while True:
            pass
"""
        pool = WorkerPool(flow_of(tmp_path, code), worker_count=2)
        await pool.start()
        tasks = [asyncio.create_task(run(pool, number, n=number)) for number in range(5)]
        await eventually(lambda: len(pids(tmp_path, "pid")) == 2, description="two lines run, three wait")
        # A process that has just been forked has no environment to be seen until it runs its program.
        await eventually(lambda: len(with_token(token_of(pool))) == 4, description="two workers and two grandchildren")

        async with asyncio.timeout(10):
            await pool.close()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)

        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 5
        assert not any(map(is_alive, pids(tmp_path, "pid") + pids(tmp_path, "grandchild")))
        assert with_token(token_of(pool)) == []
        assert pool._supervisor.process.returncode == 0

    async def test_a_close_that_is_cancelled_waits_for_its_processes_all_the_same(self, tmp_path: Path) -> None:
        pool = WorkerPool(flow_of(tmp_path, "def main(n):\n    return n\n"))
        await pool.start()
        [worker] = pool._workers
        closing = asyncio.create_task(pool.close())
        await eventually(lambda: pool._closed, description="it closes")
        closing.cancel()

        async with asyncio.timeout(20):
            await asyncio.wait({closing})
            await worker.exited.wait()
        supervisor = pool._supervisor.process
        # In a thread, which goes on when the close is cancelled as late as that.
        await eventually(lambda: supervisor.returncode is not None, description="somebody has waited for it")

        assert (supervisor.returncode, with_token(token_of(pool))) == (0, [])

    async def test_a_suspect_that_runs_alone_is_cancelled_too(self, tmp_path: Path) -> None:
        code = """
            import asyncio, os, pathlib
            async def main(n):
                if pathlib.Path("crashed").exists():
                    pathlib.Path("alone").touch()
                    await asyncio.Event().wait()
                pathlib.Path(f"began-{n}").touch()
                while len(list(pathlib.Path().glob("began-*"))) < 2:
                    await asyncio.sleep(0)
                pathlib.Path("crashed").touch()
                os._exit(1)
            """
        pool = WorkerPool(flow_of(tmp_path, code), max_concurrency=2)
        await pool.start()
        tasks = [asyncio.create_task(run(pool, number, n=number)) for number in range(2)]
        await eventually((tmp_path / "alone").exists, description="a suspect runs alone")

        async with asyncio.timeout(20):
            await pool.close()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)

        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
        assert with_token(token_of(pool)) == []

    async def test_a_worker_that_still_loads_is_ended(self, tmp_path: Path) -> None:
        code = """
            import os, pathlib
            open("pid", "a").write(f"{os.getpid()} ")
            while pathlib.Path("hang").exists():
                pass
            def main(n):
                while True:
                    pass
            """
        pool = WorkerPool(flow_of(tmp_path, code), worker_count=2)
        await pool.start()
        (tmp_path / "hang").touch()
        tasks = [asyncio.create_task(run(pool, number, n=number)) for number in range(2)]
        await eventually(lambda: len(pids(tmp_path, "pid")) == 2, description="the second worker loads")

        async with asyncio.timeout(10):
            await pool.close()
            await asyncio.gather(*tasks, return_exceptions=True)

        assert not any(map(is_alive, pids(tmp_path, "pid")))

    async def test_nothing_starts_after_it(self, tmp_path: Path) -> None:
        pool = WorkerPool(flow_of(tmp_path, "def main(n):\n    return n\n"), worker_count=4)
        await pool.start()
        begun = [asyncio.create_task(run(pool, number, n=number)) for number in range(8)]
        await pool.close()

        outcomes = await asyncio.gather(*begun, run(pool, 9, n=9), return_exceptions=True)

        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert with_token(token_of(pool)) == []
        assert not pool._workers

    async def test_a_run_inside_a_line_keeps_its_supervisor_when_that_line_is_ended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outer = uuid.uuid4().hex
        monkeypatch.setenv(TOKEN_VARIABLE, f"{outer}-1.")

        async with running_pool(flow_of(tmp_path, "def main(n):\n    return n\n")):
            assert with_token(outer) == [], "the supervisor sees its parent die, and ends the workers"

    async def test_it_may_come_twice_or_before_the_start(self, tmp_path: Path) -> None:
        flow = flow_of(tmp_path, "def main(n):\n    return n\n")
        pool = WorkerPool(flow)
        await pool.start()
        await pool.close()
        await pool.close()
        await WorkerPool(flow).close()

    async def test_a_supervisor_that_does_not_go_is_not_waited_for_long(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("prefect_batchflow.execution.workers.supervision._ENDS_WITHIN_SEC", 0.2)
        pool = WorkerPool(flow_of(tmp_path, "def main(n):\n    return n\n"))
        await pool.start()
        os.kill(pool._supervisor.process.pid, signal.SIGSTOP)

        async with asyncio.timeout(10):
            await pool.close()

        assert pool._supervisor.process.returncode == -signal.SIGKILL
