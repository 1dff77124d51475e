"""Code that only a call shows to be async runs on the worker's one event loop, many lines at once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from pools import code_of, flow_of, run, running_pool

from prefect_batchflow.definition.load import load_flow

if TYPE_CHECKING:
    from pathlib import Path

    from model_server import ModelServer

pytestmark = pytest.mark.anyio

HEAD = """
import asyncio, functools, os, threading, types

arrived = 0
lock = asyncio.Lock()
at_once = asyncio.Semaphore(100)
everyone = asyncio.Event()

async def work(n):
    global arrived
    async with lock:
        arrived += 1
    if arrived == 12:
        everyone.set()
    async with at_once:
        await asyncio.wait_for(everyone.wait(), 60)
    return {"n": n, "pid": os.getpid(), "main": threading.current_thread() is threading.main_thread()}

def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

def undressed(function):
    def wrapper(n):
        return function(n)
    return wrapper
"""

ENTRIES = {
    "functools.wraps": "main = decorated(work)",
    "without wraps": "main = undressed(work)",
    "three decorators": "main = decorated(undressed(decorated(work)))",
    "partial of a decorated one": "main = functools.partial(decorated(work))",
    "lambda": "main = lambda n: work(n)",
    "a function that returns a coroutine": "def main(n):\n    return work(n)",
    "a task": "def main(n):\n    return asyncio.create_task(work(n))",
    "a task of the running loop": "def main(n):\n    return asyncio.get_running_loop().create_task(work(n))",
    "ensure_future": "def main(n):\n    return asyncio.ensure_future(work(n))",
    "a future": """
async def fill(future, n):
    future.set_result(await work(n))
tasks = set()
def main(n):
    future = asyncio.get_running_loop().create_future()
    tasks.add(asyncio.ensure_future(fill(future, n)))
    return future""",
    "an awaitable object": """
class Later:
    def __init__(self, n): self.n = n
    def __await__(self): return work(self.n).__await__()
def main(n):
    return Later(n)""",
    "a coroutine of types.coroutine": """
@types.coroutine
def main(n):
    return (yield from work(n).__await__())""",
    "a coroutine that returns one": """
async def outer(n):
    return work(n)
main = decorated(outer)""",
    "a class whose __call__ returns a coroutine": """
class main:
    def __call__(self, n):
        return self.run(n)
    async def run(self, n):
        return await work(n)""",
    "a class with a decorated __call__": """
class main:
    @decorated
    async def __call__(self, n):
        return await work(n)""",
    "an object": """
class Caller:
    __call__ = decorated(work)
    def __call__(self, n): return work(n)
main = Caller()""",
    "a method": """
class Holder:
    @undressed_method
    async def ask(self, n):
        return await work(n)
main = Holder().ask""".replace("    @undressed_method\n", ""),
    "static": """
class Holder:
    @staticmethod
    def ask(n):
        return work(n)
main = Holder.ask""",
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
async def test_lines_wait_at_once_on_one_loop(tmp_path: Path, entry: str) -> None:
    outputs = await _outputs(flow_of(tmp_path, f"{HEAD}\n{entry}\n"))

    assert [output["n"] for output in outputs] == list(range(12))
    assert all(output["main"] for output in outputs), "modules make locks, clients and connections in the main thread"


async def test_an_async_generator_of_a_wrapper_is_read(tmp_path: Path) -> None:
    code = f"{HEAD}\nasync def parts(n):\n    yield 'a'\n    await work(n)\n    yield str(n)\nmain = decorated(parts)\n"

    outputs = await _outputs(flow_of(tmp_path, code))

    assert [output["output"] for output in outputs] == [f"a{n}" for n in range(12)]


async def test_a_function_given_in_python_is_found_too() -> None:
    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    async with running_pool(load_flow(lambda n: later(n)), worker_count=2) as pool:
        assert [(await run(pool, n, n=n)).parsed()["output"] for n in range(3)] == [{"output": n + 1} for n in range(3)]
        assert pool.slots == 64


NODES = {
    "a chain": ('{a: "${inputs.n}"}', '{b: "${first.output}"}'),
    "side by side": ('{a: "${inputs.n}"}', '{b: "${inputs.n}"}'),
}


@pytest.mark.parametrize("found_in", ["first", "second", "both"])
@pytest.mark.parametrize(("first", "second"), NODES.values(), ids=NODES)
async def test_nodes_are_found_async(tmp_path: Path, first: str, second: str, found_in: str) -> None:
    tool = "from promptflow.core import tool\nimport asyncio, functools, threading\n"
    tool += "async def later(x):\n    await asyncio.sleep(0.01)\n    return x\n\n"
    deferred = "@tool\ndef {0}({1}):\n    return later({1})\n"
    plain = "@tool\ndef {0}({1}):\n    return {1}\n"
    (tmp_path / "first.py").write_text(tool + (plain if found_in == "second" else deferred).format("first", "a"))
    (tmp_path / "second.py").write_text(tool + (plain if found_in == "first" else deferred).format("second", "b"))
    (tmp_path / "flow.dag.yaml").write_text(f"""
inputs: {{n: {{type: int}}}}
outputs:
  first: {{reference: "${{first.output}}"}}
  second: {{reference: "${{second.output}}"}}
nodes:
- {{name: first, type: python, source: {{type: code, path: first.py}}, inputs: {first}}}
- {{name: second, type: python, source: {{type: code, path: second.py}}, inputs: {second}}}
""")
    async with running_pool(load_flow(tmp_path), worker_count=2) as pool:
        outcomes = await asyncio.gather(*(run(pool, n, n=n) for n in range(12)))

    records = [outcome.parsed() for outcome in outcomes]
    assert [record["output"] for record in records] == [{"first": n, "second": n} for n in range(12)], records[0][
        "error"
    ]
    assert [node["node"] for node in records[0]["nodes"]] == ["first", "second"]


async def test_a_failing_node_cancels_the_one_that_was_found_async(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(
        "from promptflow.core import tool\nimport time\n@tool\ndef fails(n):\n    time.sleep(0.05)\n    raise KeyError(n)\n"
    )
    (tmp_path / "waits.py").write_text(
        "from promptflow.core import tool\nimport asyncio\n@tool\ndef waits(n):\n    return asyncio.Event().wait() if False "
        "else forever()\nasync def forever():\n    await asyncio.Event().wait()\n"
    )
    (tmp_path / "flow.dag.yaml").write_text("""
inputs: {n: {type: int}}
outputs: {}
nodes:
- {name: waits, type: python, source: {type: code, path: waits.py}, inputs: {n: "${inputs.n}"}}
- {name: fails, type: python, source: {type: code, path: fails.py}, inputs: {n: "${inputs.n}"}}
""")
    async with running_pool(load_flow(tmp_path), worker_count=1) as pool:
        records = [(await run(pool, n, n=n)).parsed() for n in range(3)]

    for record in records:
        statuses = {node["node"]: node["status"] for node in record["nodes"]}
        assert statuses == {"waits": "Canceled", "fails": "Failed"}


CLIENT = """
import functools, os, openai
client = openai.AsyncOpenAI(api_key="key", base_url=os.environ["MODEL_URL"], max_retries=0)

def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        print("before")
        return function(*args, **kwargs)
    return wrapper

@decorated
async def main(n):
    answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "w " * n}])
    print("after")
    return answer.choices[0].message.content
"""


async def test_a_client_of_the_module_serves_all_lines_and_prints_stay_apart(
    tmp_path: Path, model_server: ModelServer
) -> None:
    environment = {"MODEL_URL": model_server.base_url}
    async with running_pool(flow_of(tmp_path, CLIENT), worker_count=2, environment_variables=environment) as pool:
        records = [(await run(pool, n, n=n)).parsed() for n in range(1, 9)]
        records += [outcome.parsed() for outcome in await asyncio.gather(*(run(pool, n, n=n) for n in range(9, 17)))]

    assert [record["status"] for record in records] == ["Completed"] * 16, records[1]["error"]
    assert [record["tokens"]["prompt_tokens"] for record in records] == list(range(1, 17))
    assert {record["logs"] for record in records} == {"before\nafter\n"}


async def test_the_aggregation_and_the_lines_of_a_class_share_a_loop(tmp_path: Path) -> None:
    code = f"""{HEAD}
class main:
    def __call__(self, n):
        return work(n)
    def __aggregate__(self, results):
        return self.count(results)
    async def count(self, results):
        async with lock:
            return {{"lines": len(results)}}
"""
    async with running_pool(flow_of(tmp_path, code), worker_count=2) as pool:
        outcomes = await asyncio.gather(*(run(pool, n, n=n) for n in range(12)))
        lines = [
            {"line_number": n, "inputs": {"n": n}, "output": outcome.parsed()["output"], "aggregation_inputs": {}}
            for n, outcome in enumerate(outcomes)
        ]
        run_of_aggregation = await pool.aggregate(lines, timeout_sec=60)  # type: ignore[arg-type]

    assert run_of_aggregation["metrics"] == {"lines": 12}


async def test_async_aggregations_of_sync_lines_share_a_loop(tmp_path: Path) -> None:
    code = """
    import asyncio
    queue = asyncio.Queue()
    class main:
        def __call__(self, n):
            return {"n": n}
        async def __aggregate__(self, results):
            waits = asyncio.ensure_future(queue.get())
            await asyncio.sleep(0)
            await queue.put(len(results))
            return {"lines": await waits}
    """
    lines: Any = [{"line_number": 0, "inputs": {"n": 0}, "output": {"n": 0}, "aggregation_inputs": {}}]
    async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
        assert (await run(pool, 0, n=0)).parsed()["output"] == {"n": 0}
        runs = [await pool.aggregate(lines, timeout_sec=60) for _ in range(2)]
        assert (await run(pool, 1, n=1)).parsed()["output"] == {"n": 1}

    assert [one["metrics"] for one in runs] == [{"lines": 1}] * 2, runs[1]["error"]


@pytest.mark.programs
class TestLimits:
    async def test_a_line_that_waits_for_ever_is_cancelled_at_its_limit(self, tmp_path: Path) -> None:
        code = """
        import asyncio, os
        async def later(n):
            if n % 2:
                await asyncio.Event().wait()
            return os.getpid()
        def main(n):
            return later(n)
        """
        async with running_pool(flow_of(tmp_path, code), worker_count=2) as pool:
            outcomes = await asyncio.gather(*(run(pool, n, n=n, timeout_sec=1 if n % 2 else 60) for n in range(6)))

        assert {code_of(outcome) for outcome in outcomes[1::2]} == {"LineExecutionTimeoutError"}
        assert [outcome.receipt.status for outcome in outcomes[::2]] == ["Completed"] * 3

    async def test_a_line_that_blocks_the_loop_is_ended_and_others_run_again(self, tmp_path: Path) -> None:
        code = """
        import asyncio, time
        async def later(n):
            await asyncio.sleep(0.1)
            if n == 3:
                while True:
                    time.sleep(0.1)
            return n
        def main(n):
            return later(n)
        """
        async with running_pool(flow_of(tmp_path, code), worker_count=2) as pool:
            outcomes = await asyncio.gather(*(run(pool, n, n=n, timeout_sec=2) for n in range(6)))

        assert code_of(outcomes[3]) == "LineExecutionTimeoutError"
        others = [outcome for n, outcome in enumerate(outcomes) if n != 3]
        assert [outcome.parsed()["output"] for outcome in others] == [{"output": n} for n in (0, 1, 2, 4, 5)]

    async def test_lines_sent_ahead_are_not_lost_when_a_late_line_is_async(self, tmp_path: Path) -> None:
        code = """
        import asyncio
        async def later(n):
            await asyncio.sleep(0.05)
            return n
        def main(n):
            return later(n) if n > 150 else n
        """
        async with running_pool(flow_of(tmp_path, code), worker_count=3) as pool:
            outcomes = await asyncio.gather(*(run(pool, n, n=n) for n in range(400)))

        assert [outcome.parsed()["output"] for outcome in outcomes] == [{"output": n} for n in range(400)]

    async def test_a_line_that_kills_the_worker_costs_no_other(self, tmp_path: Path) -> None:
        code = """
        import asyncio, os
        async def later(n):
            await asyncio.sleep(0.2)
            if n == 2:
                os._exit(3)
            return n
        def main(n):
            return later(n)
        """
        async with running_pool(flow_of(tmp_path, code), worker_count=2) as pool:
            outcomes = await asyncio.gather(*(run(pool, n, n=n) for n in range(6)))

        assert code_of(outcomes[2]) == "ProcessCrashError"
        assert [o.parsed()["output"] for n, o in enumerate(outcomes) if n != 2] == [
            {"output": n} for n in (0, 1, 3, 4, 5)
        ]


async def test_sync_code_that_runs_its_own_loop_stays_sync(tmp_path: Path) -> None:
    code = """
    import asyncio, functools, os
    def runs(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return asyncio.run(function(*args, **kwargs))
        return wrapper
    @runs
    async def main(n):
        await asyncio.sleep(0)
        return n
    """
    async with running_pool(flow_of(tmp_path, code), worker_count=2) as pool:
        assert [(await run(pool, n, n=n)).parsed()["output"]["output"] for n in range(4)] == [0, 1, 2, 3]
        assert pool.slots == 2


async def test_a_future_of_a_pool_of_threads_is_waited_for(tmp_path: Path) -> None:
    code = """
    from concurrent.futures import ThreadPoolExecutor
    pool = ThreadPoolExecutor(2)
    def main(n):
        return pool.submit(divmod, 7, n)
    """
    async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
        records = [(await run(pool, n, n=n)).parsed() for n in (2, 0)]

    assert records[0]["output"] == {"output": [3, 1]}
    assert "(ZeroDivisionError)" in records[1]["error"]["message"]


async def test_a_runtime_error_of_the_code_is_told_once_on_the_loop(tmp_path: Path) -> None:
    code = """
    import asyncio
    def main(n):
        asyncio.get_running_loop()
        raise RuntimeError("no running event loop") if n else KeyError("mine")
    """
    async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
        records = [(await run(pool, n, n=n)).parsed() for n in (0, 1)]

    assert "(KeyError) 'mine'" in records[0]["error"]["message"]
    assert "(RuntimeError) no running event loop" in records[1]["error"]["message"]


async def _outputs(flow: Any) -> list[dict[str, Any]]:
    """The outputs of twelve lines that wait for each other; four of them can be in other processes, where they wait alone."""
    began = time.monotonic()
    async with running_pool(flow, worker_count=1) as pool:
        outcomes = await asyncio.gather(*(run(pool, n, n=n) for n in range(12)))
        assert pool.slots == 64
    records = [outcome.parsed() for outcome in outcomes]
    assert [record["status"] for record in records] == ["Completed"] * 12, records[0]["error"]
    assert time.monotonic() - began < 60, "each waited for all"
    return [record["output"] for record in records]
