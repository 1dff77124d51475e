"""Async code behind decorators, work in threads, redirected prints, and groups of errors."""

from __future__ import annotations

from typing import Any

from declared import FLEX, MODEL_URL, cases_of, dag, flex, node

case = cases_of("async_code")

ROWS = [{"text": "one"}, {"text": "two"}, {"text": "three four"}]
TEXT = {"text": "string"}
OUT = {"out": "${f.output}"}
GIVEN = {"x": "${inputs.text}"}

WORK = """
import asyncio, functools

async def work(text):
    await asyncio.sleep(0.01)
    return text.upper()

def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

def runs(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return asyncio.run(function(*args, **kwargs))
    return wrapper
"""

case("async_behind_a_decorator_that_runs_it", flex(f"{WORK}\nmain = runs(work)"), ROWS, **FLEX)
case("async_behind_a_plain_decorator", flex(f"{WORK}\nmain = decorated(work)"), ROWS, **FLEX)
case("async_behind_a_partial", flex(f"{WORK}\nmain = functools.partial(work)"), ROWS, **FLEX)
case("async_of_a_class", flex(f"{WORK}\nclass Main:\n    async def __call__(self, text): return await work(text)", "Main"),
     ROWS, **FLEX)  # fmt: skip
case("async_returned_by_a_function", flex(f"{WORK}\ndef main(text): return work(text)"), ROWS, **FLEX)
case("async_returned_by_a_tool", dag(TEXT, OUT, f=node(f"{WORK}\n@tool\ndef f(x): return work(x)", GIVEN)), ROWS)
case("async_tool_behind_a_decorator", dag(TEXT, OUT, f=node(f"{WORK}\n@tool\n@decorated\nasync def f(x): return x", GIVEN)),
     ROWS)  # fmt: skip
case(
    "a_lock_of_the_module",
    flex(
        f"{WORK}\nlock = asyncio.Lock()\nasync def main(text):\n    async with lock:\n        return await work(text)"
    ),
    ROWS,
    **FLEX,
)

IN_THREADS = """
import asyncio, threading
from concurrent.futures import ThreadPoolExecutor

def shout(text, found):
    found.append(text.upper())

async def main(text):
    found = []
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, shout, text, found)
    await asyncio.to_thread(shout, text, found)
    with ThreadPoolExecutor(1) as pool:
        await loop.run_in_executor(pool, shout, text, found)
    thread = threading.Thread(target=shout, args=(text, found))
    thread.start()
    await asyncio.to_thread(thread.join)
    return found
"""
case("async_work_in_threads", flex(IN_THREADS), ROWS, **FLEX)
case("sync_work_in_threads", flex("""
    from concurrent.futures import ThreadPoolExecutor

    def main(text):
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(str.upper, text))
    """), ROWS, **FLEX)  # fmt: skip

REDIRECTED = """
import contextlib, io, sys
{prefix}def main(text):
    with contextlib.redirect_stdout(io.StringIO()) as mine:
        print(text)
    print("after")
    return mine.getvalue()
"""
case("redirected_prints", flex(REDIRECTED.format(prefix="")), ROWS, **FLEX)
case("redirected_prints_of_async_code", flex(REDIRECTED.format(prefix="async ")), ROWS, **FLEX)

GROUP = """
{prefix}def main(text):
    if text == "two":
        raise ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])
    return text
"""
case("a_group_of_errors", flex(GROUP.format(prefix="")), ROWS, **FLEX)
case(
    "a_group_of_errors_in_a_tool",
    dag(TEXT, OUT, f=node("def f(x): raise ExceptionGroup('several', [ValueError(x)])", GIVEN)),
    ROWS[:1],
)
case(
    "an_error_in_a_group_of_tasks",
    flex("""
        import asyncio

        async def fails(text): raise ValueError(text)

        async def main(text):
            async with asyncio.TaskGroup() as group:
                group.create_task(fails(text))
        """),
    ROWS,
    **FLEX,
)

WITH_MODEL: dict[str, Any] = {**FLEX, "env": {"PF_DISABLE_TRACING": "false", "PARITY_MODEL": MODEL_URL}}
ASK = """
import os
from openai import OpenAI

client = OpenAI(api_key="key", base_url=os.environ["PARITY_MODEL"])

def ask(text):
    return client.chat.completions.create(model="gpt", messages=[{{"role": "user", "content": text}}], max_tokens=8)

{main}
"""
case(
    "tokens_of_a_call",
    flex(ASK.format(main="def main(text): return ask(text).choices[0].message.content")),
    ROWS,
    **WITH_MODEL,
)
case(
    "tokens_of_a_call_in_a_pool",
    flex(ASK.format(main="""
from concurrent.futures import ThreadPoolExecutor
def main(text):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ask, text).result().choices[0].message.content
""")),
    ROWS,
    **WITH_MODEL,
)  # fmt: skip
