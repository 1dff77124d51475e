"""A line owns the threads that it starts, whoever makes them: what they print and what their model calls cost is the line's."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from pools import flow_of, run, running_pool

from prefect_batchflow.execution.workers.streams import END_OUTSIDE, OUTSIDE

if TYPE_CHECKING:
    from pathlib import Path

    from model_server import ModelServer

pytestmark = [pytest.mark.programs, pytest.mark.anyio]

HEAD = """
import asyncio, concurrent.futures, functools, multiprocessing.pool, os, queue, threading, _thread
from concurrent.futures import ThreadPoolExecutor
import openai

client = openai.OpenAI(api_key="key", base_url=os.environ["MODEL_URL"], max_retries=0)
shared = ThreadPoolExecutor(3)

def ask(words):
    print("asks", words)
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "w " * words}])
"""

WAYS = {
    "the loop's executor": "await loop.run_in_executor(None, ask, words)",
    "to_thread": "await asyncio.to_thread(ask, words)",
    "an own pool of the loop": """
    with ThreadPoolExecutor(1) as pool:
        await loop.run_in_executor(pool, ask, words)""",
    "a pool of the module": "await loop.run_in_executor(shared, ask, words)",
    "submit to a pool of the module": "await asyncio.wrap_future(shared.submit(ask, words=words))",
    "map of a pool of the module": "await asyncio.to_thread(lambda: list(shared.map(ask, [words])))",
    "a thread": """
    thread = threading.Thread(target=ask, args=(words,))
    thread.start()
    await asyncio.to_thread(thread.join)""",
    "a subclass of Thread": """
    class Asking(threading.Thread):
        def run(self):
            ask(words)
    thread = Asking()
    thread.start()
    await asyncio.to_thread(thread.join)""",
    "a timer": """
    timer = threading.Timer(0, ask, [words])
    timer.start()
    await asyncio.to_thread(timer.join)""",
    "a thread without class": """
    done = threading.Event()
    _thread.start_new_thread(lambda n: (ask(n), done.set()), (words,))
    await asyncio.to_thread(done.wait)""",
    "a thread of a thread": """
    def outer():
        thread = threading.Thread(target=ask, args=(words,))
        thread.start()
        thread.join()
    await loop.run_in_executor(None, outer)""",
    "a pool in a pool": """
    def outer():
        with ThreadPoolExecutor(2) as pool:
            pool.submit(ask, words).result()
    await loop.run_in_executor(shared, outer)""",
    "an own queue and its thread": """
    given, taken = queue.Queue(), queue.Queue()
    threading.Thread(target=lambda: taken.put(ask(given.get())), daemon=True).start()
    given.put(words)
    await asyncio.to_thread(taken.get)""",
    "multiprocessing's pool of threads": """
    def work():
        with multiprocessing.pool.ThreadPool(2) as pool:
            pool.map(ask, [words])
    await asyncio.to_thread(work)""",
    "a callback of a future": """
    done = threading.Event()
    shared.submit(int).add_done_callback(fn=lambda future: (ask(words), done.set()))
    await asyncio.to_thread(done.wait)""",
    "a coroutine on another loop": """
    other = asyncio.new_event_loop()
    threading.Thread(target=other.run_forever, daemon=True).start()
    async def asking():
        ask(words)
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asking(), other))""",
    "anyio": """
    import anyio.to_thread
    await anyio.to_thread.run_sync(ask, words)""",
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_calls_and_prints_in_threads_of_async_lines_are_the_lines(
    tmp_path: Path, model_server: ModelServer, way: str
) -> None:
    body = way if way.startswith("\n") else f"\n    {way}"
    code = f"{HEAD}\nasync def main(words):\n    loop = asyncio.get_running_loop(){body}\n"

    records = await _lines(tmp_path, code, model_server)

    assert [record["tokens"]["prompt_tokens"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["logs"] for record in records] == [f"asks {words}\n" for words in range(1, 7)]


SYNC_WAYS = {
    "a thread": "thread = threading.Thread(target=ask, args=(words,)); thread.start(); thread.join()",
    "a pool of the module": "shared.submit(ask, words).result()",
    "multiprocessing's pool of threads": "multiprocessing.pool.ThreadPool(1).apply(ask, (words,))",
    "asyncio.run and its executor": "asyncio.run(asyncio.to_thread(ask, words))",
}


@pytest.mark.parametrize("way", SYNC_WAYS.values(), ids=SYNC_WAYS)
async def test_calls_and_prints_in_threads_of_sync_lines_are_the_lines(
    tmp_path: Path, model_server: ModelServer, way: str
) -> None:
    records = await _lines(tmp_path, f"{HEAD}\ndef main(words):\n    {way}\n", model_server)

    assert [record["tokens"]["prompt_tokens"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["logs"] for record in records] == [f"asks {words}\n" for words in range(1, 7)]


LEFT = """
left = threading.Event()
threads = []

def late():
    left.wait()
    ask(100)
"""


@pytest.mark.parametrize("prefix", ["async ", ""], ids=["async", "sync"])
async def test_a_thread_that_outlives_its_line_is_not_counted_to_another(
    tmp_path: Path, model_server: ModelServer, prefix: str
) -> None:
    code = f"""{HEAD}{LEFT}
{prefix}def main(words):
    if words == 1:
        threads.append(threading.Thread(target=late))
        threads[0].start()
    else:
        left.set()
        threads[0].join()
        ask(words)
"""
    async with running_pool(
        flow_of(tmp_path, code), worker_count=1, environment_variables=_model(model_server)
    ) as pool:
        records = [(await run(pool, n, words=n)).parsed() for n in (1, 2)]

    assert [record["status"] for record in records] == ["Completed", "Completed"]
    assert [record["tokens"]["prompt_tokens"] for record in records] == [0, 2]
    assert records[1]["logs"].startswith(OUTSIDE)
    assert "not counted" in records[1]["logs"].partition(END_OUTSIDE)[0], "and that is said"
    assert records[1]["logs"].endswith(f"{END_OUTSIDE}asks 2\n")


async def test_a_call_that_belongs_to_no_line_is_told(tmp_path: Path, model_server: ModelServer) -> None:
    code = f"""{HEAD}
given = queue.Queue()

def serve():
    while True:
        words, done = given.get()
        ask(words)
        done.set()

threading.Thread(target=serve, daemon=True).start()
both = asyncio.Barrier(2)

async def main(words):
    await both.wait()
    done = threading.Event()
    given.put((words, done))
    await asyncio.to_thread(done.wait)
    await both.wait()
"""
    async with running_pool(flow_of(tmp_path, code), environment_variables=_model(model_server)) as pool:
        records = [o.parsed() for o in await asyncio.gather(*(run(pool, n, words=n) for n in (1, 2)))]

    assert [record["tokens"]["total_tokens"] for record in records] == [0, 0]
    assert sum("not counted" in record["logs"] for record in records) == 1


async def test_threads_and_pools_behave_as_pythons(tmp_path: Path) -> None:
    code = """
    import contextvars, copy, functools, inspect, threading
    from concurrent.futures import ThreadPoolExecutor

    mine = contextvars.ContextVar("mine", default="nothing")

    class Named(threading.Thread):
        def start(self):
            self.began = True
            super().start()
        def run(self):
            self.seen = mine.get()

    class Counting(ThreadPoolExecutor):
        count = 0
        def submit(self, fn, /, *args, **kwargs):
            self.count += 1
            return super().submit(fn, *args, **kwargs)

    def fails(fn, *, self):
        raise KeyError(fn, self)

    def main():
        mine.set("the line's")
        thread = Named()
        thread.start(); thread.join()
        with Counting(1) as pool:
            error = pool.submit(fails, 1, self=2).exception()
            cancelled = pool.submit(int)
            found = list(pool.map(str, [1, 2]))
            in_pool = pool.submit(mine.get).result()
        try:
            thread.start()
        except RuntimeError as exc:
            again = str(exc)
        return {
            "own": [thread.began, thread.seen, in_pool], "error": repr(error), "count": pool.count, "found": found,
            "again": again, "left": [name for name in vars(thread) if "batchflow" in name],
            "signature": str(inspect.signature(ThreadPoolExecutor.submit)),
        }
    """
    async with running_pool(flow_of(tmp_path, code), worker_count=1) as pool:
        output = (await run(pool)).parsed()["output"]

    assert output == {
        "own": [True, "nothing", "nothing"],
        "error": "KeyError(1, 2)",
        "count": 5,
        "found": ["1", "2"],
        "again": "threads can only be started once",
        "left": [],
        "signature": "(self, fn, /, *args, **kwargs)",
    }


async def _lines(folder: Path, code: str, model_server: ModelServer) -> list[Any]:
    """The records of lines that ask for 1 to 6 words, as many at once as the flow's kind allows."""
    async with running_pool(flow_of(folder, code), worker_count=2, environment_variables=_model(model_server)) as pool:
        outcomes = await asyncio.gather(*(run(pool, n, words=n) for n in range(1, 7)))
    records = [outcome.parsed() for outcome in outcomes]
    assert [record["status"] for record in records] == ["Completed"] * 6, json.dumps(records[0]["error"], indent=1)
    assert [outcome.receipt.tokens[1] for outcome in outcomes] == [1, 2, 3, 4, 5, 6], "the run's sum"
    return records


def _model(model_server: ModelServer) -> dict[str, str]:
    return {"MODEL_URL": model_server.base_url}
