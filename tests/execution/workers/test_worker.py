"""The program of a worker process, spoken to as the engine speaks to it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pools import flow_of, is_alive
from waiting import wait_until

from prefect_batchflow.execution.workers import wire
from prefect_batchflow.execution.workers.streams import LOG_LIMIT
from prefect_batchflow.results.records import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_batchflow.definition.flow import Flow


class Worker:
    """A worker process at the other end of two pipes."""

    def __init__(self, process: subprocess.Popen[bytes], permits: int) -> None:
        self.process = process
        self._permits = permits
        self._unpacker = wire.Unpacker()
        self._received: list[wire.Frame] = []

    def send(self, head: dict[str, Any], body: Any = None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(wire.pack(head, b"" if body is None else json.dumps(body).encode()))
        self.process.stdin.flush()

    def receive(self) -> tuple[dict[str, Any], Any]:
        assert self.process.stdout is not None
        while not self._received:
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, "the worker closed its output"
            self._received += self._unpacker.feed(data)
        head, body = self._received.pop(0)
        return head, json.loads(body) if body else None

    def run_line(self, number: int = 0, /, **inputs: Any) -> dict[str, Any]:
        self.send_line(number, inputs)
        head, record = self.receive()
        assert head["op"] == "line"
        assert head["id"] == 100 + number
        return dict(record)

    def send_line(self, number: int, inputs: dict[str, Any]) -> None:
        head = {"op": "line", "id": 100 + number, "line_number": number, "attempt": 2, "input_hash": "h"}
        self.send_job(head, inputs)

    def send_job(self, head: dict[str, Any], body: Any) -> None:
        os.write(self._permits, wire.RUN)
        self.send(head, body)


@contextmanager
def worker_of(
    flow: Flow,
    *,
    init_kwargs: dict[str, Any] | None = None,
    connections: dict[str, Any] | None = None,
    line_memory_mb: int | None = None,
) -> Iterator[Worker]:
    """A worker that was told to load a flow; its answer to that is the first message."""
    permits, our_permits = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "prefect_batchflow.execution.workers.worker", str(permits)],
        pass_fds=(permits,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=flow.working_dir,
    ) as process:
        assert process.stdin is not None
        job = {
            "flow": flow,
            "cwd": str(flow.working_dir),
            "packed": pickle.dumps({"init_kwargs": pickle.dumps(init_kwargs or {}), "connections": connections or {}}),
            "environment_variables": {},
            "sys_path": [],
            "line_memory_mb": line_memory_mb,
            "lines_at_once": 8,
            "is_async": False,
        }
        process.stdin.write(wire.pack({"op": "init"}, pickle.dumps(job)))
        process.stdin.flush()
        try:
            yield Worker(process, our_permits)
        finally:
            process.kill()
            os.close(permits)
            os.close(our_permits)


def ended(worker: Worker) -> int:
    """Close the worker's input and give what it exits with."""
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    return worker.process.wait(20)


class TestLoading:
    def test_it_says_what_the_flow_is(self, tmp_path: Path) -> None:
        flow = flow_of(tmp_path, "async def main(question: str, depth: int = 3):\n    return question\n")

        with worker_of(flow) as worker:
            head, _ = worker.receive()

        known = {"description": "", "nullable": True, "allows_none": False, "has_code_default": False}
        assert head == {
            "op": "ready",
            "inputs": [
                {"name": "question", "type": "string", "takes_empty_text": True, **known},
                {"name": "depth", "type": "int", "default": 3, "takes_empty_text": False, **known},
            ],
            "is_async": True,
            "has_aggregation": False,
            "takes_any": False,
            "secrets": [],
        }

    @pytest.mark.parametrize(
        ("code", "error_code", "said"),
        [
            ("import no_such_module", "PythonLoadError", "No module named 'no_such_module'"),
            ("raise SystemExit(3)", "PythonLoadError", "SystemExit"),
            ("def other(n): pass", "PythonLoadError", "It defines other"),
            ("class main:\n    pass", "PythonLoadError", "no __call__"),
        ],
        ids=["missing module", "exit on import", "no such function", "a class that cannot be called"],
    )
    def test_it_says_why_a_flow_does_not_load(self, tmp_path: Path, code: str, error_code: str, said: str) -> None:
        with worker_of(flow_of(tmp_path, code)) as worker:
            head, _ = worker.receive()

        assert head["op"] == "refused"
        assert error_code in json.dumps(head["error"])
        assert said in head["error"]["message"]

    def test_a_memory_limit_above_that_of_the_system_is_no_error(self, tmp_path: Path) -> None:
        flow = flow_of(
            tmp_path,
            """
            import resource
            resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
            def main():
                return {"limit": resource.getrlimit(resource.RLIMIT_AS)[0]}
            """,
        )

        with worker_of(flow, line_memory_mb=1 << 20) as worker:
            assert worker.receive()[0]["op"] == "ready"
            assert worker.run_line()["output"] == {"limit": 1 << 32}

    def test_it_imports_neither_prefect_nor_pydantic(self, tmp_path: Path) -> None:
        flow = flow_of(tmp_path, "import sys\ndef main():\n    return {'modules': sorted(sys.modules)}\n")

        with worker_of(flow) as worker:
            worker.receive()
            modules = set(worker.run_line()["output"]["modules"])

        assert "prefect_batchflow.execution.program.loader" in modules
        assert not modules & {"prefect", "pydantic", "fsspec", "yaml", "cloudpickle", "httpx"}


class TestStandardStreams:
    def test_what_a_line_prints_is_in_its_record_and_nobody_elses(self, tmp_path: Path) -> None:
        flow = flow_of(
            tmp_path,
            """
            import sys
            def main(word):
                print("out", word)
                sys.stderr.write(f"err {word} \\ud800\\n")
            """,
        )

        with worker_of(flow) as worker:
            worker.receive()
            logs = [worker.run_line(number, word=word)["logs"] for number, word in enumerate(["one", "two"])]

        assert logs == ["out one\nerr one \ud800\n", "out two\nerr two \ud800\n"]

    def test_what_the_threads_of_a_line_print_is_in_its_record(self, tmp_path: Path) -> None:
        flow = flow_of(
            tmp_path,
            """
            from concurrent.futures import ThreadPoolExecutor
            def main(word):
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(print, "from a thread:", word).result()
            """,
        )

        with worker_of(flow) as worker:
            worker.receive()
            assert worker.run_line(word="one")["logs"] == "from a thread: one\n"

    def test_lines_that_overlap_keep_their_prints_apart(self, tmp_path: Path) -> None:
        flow = flow_of(
            tmp_path,
            """
            import asyncio
            met = asyncio.Barrier(2)
            async def main(word):
                print(word, "begins")
                await met.wait()
                await asyncio.to_thread(print, word, "in a thread")
                await met.wait()
                print(word, "ends")
            """,
        )

        with worker_of(flow) as worker:
            worker.receive()
            worker.send_line(0, {"word": "one"})
            worker.send_line(1, {"word": "two"})
            records = sorted((worker.receive()[1] for _ in range(2)), key=lambda record: int(record["line_number"]))

        assert [record["logs"] for record in records] == [
            f"{word} begins\n{word} in a thread\n{word} ends\n" for word in ("one", "two")
        ]

    def test_long_output_is_cut_and_does_not_pile_up(self, tmp_path: Path) -> None:
        flow = flow_of(
            tmp_path,
            """
            import resource
            def main(times, size):
                for _ in range(times):
                    print("x" * size)
                return {"peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
            """,
        )

        with worker_of(flow) as worker, _drained(worker):
            worker.receive()
            small = worker.run_line(0, times=0, size=0)["output"]["peak_kb"]
            record = worker.run_line(1, times=1000, size=65535)

        assert record["logs"][:LOG_LIMIT] == "x" * 65535 + "\n"
        assert record["logs"][LOG_LIMIT:] == f"\n… {999 * 65536} more characters"
        assert record["output"]["peak_kb"] - small < 32 * 1024, "64 MB were printed"

    def test_standard_input_is_empty_and_messages_cannot_be_printed_into(self, tmp_path: Path) -> None:
        flow = flow_of(
            tmp_path,
            """
            import os, subprocess, sys
            def main():
                os.write(1, b"raw")
                subprocess.run(["echo", "from a child"], check=True)
                child = subprocess.run(["cat"], capture_output=True, check=True)
                return {"read": sys.stdin.read(), "input": os.read(0, 10).decode(), "child": child.stdout.decode()}
            """,
        )

        with worker_of(flow) as worker:
            worker.receive()
            assert worker.run_line()["output"] == {"read": "", "input": "", "child": ""}
            ended(worker)
            assert worker.process.stderr is not None
            assert worker.process.stderr.read() == b"rawfrom a child\n" + wire.NEXT_LINE


class TestLines:
    def test_the_record_says_which_attempt_of_which_line_it_is(self, tmp_path: Path) -> None:
        with worker_of(flow_of(tmp_path, "def main(n):\n    return n + 1\n")) as worker:
            worker.receive()
            record = worker.run_line(7, n=1)

        assert (record["line_number"], record["attempt"], record["input_hash"]) == (7, 2, "h")
        assert (record["status"], record["inputs"], record["output"]) == ("Completed", {"n": 1}, {"output": 2})

    def test_the_reply_has_what_the_engine_counts(self, tmp_path: Path) -> None:
        with worker_of(flow_of(tmp_path, "def main(n):\n    return 1 / n\n")) as worker:
            worker.receive()
            worker.send_line(0, {"n": 0})
            head, record = worker.receive()

        told = Receipt.from_row(head["receipt"], head["error"])
        assert told.status == "Failed"
        assert head["error"] == record["error"]
        assert head["spent"] is False
        assert told.tokens == (0, 0, 0)
        assert told.nodes == ()

    def test_a_class_is_built_once_a_worker(self, tmp_path: Path) -> None:
        code = """
            class main:
                built = 0
                def __init__(self, start):
                    main.built += 1
                    self.count = start
                def __call__(self, n):
                    self.count += n
                    return {"built": self.built, "count": self.count}
                def __aggregate__(self, results):
                    return {"last": results[-1]["count"]}
            """
        with worker_of(flow_of(tmp_path, code), init_kwargs={"start": 10}) as worker:
            assert worker.receive()[0]["has_aggregation"] is True
            outputs = [worker.run_line(number, n=1)["output"] for number in range(3)]
            lines = [
                {"line_number": n, "inputs": {"n": 1}, "output": output, "aggregation_inputs": {}}
                for n, output in enumerate(outputs)
            ]
            worker.send_job({"op": "aggregate", "id": 5}, lines)
            head, run = worker.receive()

        assert outputs == [{"built": 1, "count": 10 + n} for n in (1, 2, 3)]
        assert head == {"op": "aggregate", "id": 5}
        assert run["metrics"] == {"last": 13}

    def test_a_cancelled_line_is_answered_for_at_once_and_others_go_on(self, tmp_path: Path) -> None:
        code = """
            import asyncio
            async def main(n):
                if n == 0:
                    open("started", "w").close()
                    await asyncio.Event().wait()
                return n
            """
        with worker_of(flow_of(tmp_path, code)) as worker:
            worker.receive()
            worker.send_line(0, {"n": 0})
            wait_until((tmp_path / "started").exists, description="the line runs")
            worker.send({"op": "cancel", "id": 100})
            assert worker.receive()[0] == {"op": "canceled", "id": 100}
            assert worker.run_line(1, n=1)["output"] == {"output": 1}

    @pytest.mark.parametrize(
        "code",
        [
            """
            import asyncio, pathlib
            async def main():
                pathlib.Path("started").touch()
                while True:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        pass
            """,
            """
            import asyncio, pathlib, threading
            def wait():
                pathlib.Path("started").touch()
                threading.Event().wait()
            async def main():
                await asyncio.to_thread(wait)
            """,
        ],
        ids=["that ignores it", "in a thread"],
    )
    def test_a_cancelled_line_that_goes_on_is_told_of(self, tmp_path: Path, code: str) -> None:
        with worker_of(flow_of(tmp_path, code)) as worker:
            worker.receive()
            worker.send_line(0, {})
            wait_until((tmp_path / "started").exists, description="the line runs")
            worker.send({"op": "cancel", "id": 100})

            assert worker.receive()[0] == {"op": "canceled", "id": 100}
            assert worker.receive()[0] == {"op": "stuck", "id": 100}

    def test_as_many_sync_functions_run_at_once_as_lines(self, tmp_path: Path) -> None:
        code = """
            import asyncio, threading
            met = threading.Barrier(8)
            async def main():
                return await asyncio.to_thread(met.wait, 60)
            """
        with worker_of(flow_of(tmp_path, code)) as worker:
            worker.receive()
            for number in range(8):
                worker.send_line(number, {})

            assert sorted(worker.receive()[1]["output"]["output"] for _ in range(8)) == list(range(8))


class TestTheEnd:
    @pytest.mark.parametrize(
        "code",
        [
            """
            import threading
            threading.Thread(target=threading.Event().wait).start()
            def main():
                return 1
            """,
            """
            import asyncio, threading
            async def main():
                asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
                return 1
            """,
        ],
        ids=["a thread of a sync flow", "a thread of an async flow"],
    )
    def test_what_a_line_left_behind_does_not_keep_it_alive(self, tmp_path: Path, code: str) -> None:
        with worker_of(flow_of(tmp_path, code)) as worker:
            worker.receive()
            worker.run_line()

            assert ended(worker) == 0

    def test_it_goes_when_nothing_was_ever_sent(self) -> None:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "prefect_batchflow.execution.workers.worker", "0"],
            input=b"",
            capture_output=True,
            timeout=60,
            check=False,
        )

        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def test_a_closed_pipe_ends_it_while_a_line_waits(self, tmp_path: Path) -> None:
        code = """
            import asyncio, pathlib
            async def main():
                pathlib.Path("started").touch()
                await asyncio.Event().wait()
            """
        with worker_of(flow_of(tmp_path, code)) as worker:
            worker.receive()
            worker.send_line(0, {})
            wait_until((tmp_path / "started").exists, description="the line runs")

            assert ended(worker) == 0
            assert not is_alive(worker.process.pid)


@contextmanager
def _drained(worker: Worker) -> Iterator[None]:
    """Read what the worker prints, as the engine does, so that it never waits to print."""
    import threading

    assert worker.process.stderr is not None
    thread = threading.Thread(target=worker.process.stderr.read)
    thread.start()
    try:
        yield
    finally:
        worker.process.kill()
        thread.join()
