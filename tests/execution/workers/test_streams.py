"""The standard streams of a worker are text streams as Python's, and what is written to them is in the log of the line."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest
from pools import flow_of, run, running_pool

from prefect_batchflow.execution.scrubbing import Scrubber
from prefect_batchflow.execution.workers.streams import END_OUTSIDE, OUTSIDE, Printed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

KINDS = pytest.mark.parametrize("prefix", ["", "async "], ids=["sync", "async"])

LIKE_PYTHONS = {
    "reconfigure": "sys.stdout.reconfigure(encoding='utf-8', errors='replace', line_buffering=True); print('hé')",
    "another encoding": "sys.stdout.reconfigure(encoding='latin-1'); print('hé')",
    "bytes": "sys.stdout.buffer.write('hé\\n'.encode()); sys.stdout.buffer.flush()",
    "bytes, cut in a character": "[sys.stderr.buffer.write(bytes([b])) for b in 'hé\\n'.encode()]",
    "bytes and text in turn": "print('h', end=''); sys.stdout.buffer.write('é'.encode()); print()",
    "writelines": "sys.stdout.writelines(['h', 'é', '\\n'])",
    "wrapped anew": "io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8', write_through=True).write('hé\\n')",
    "wrapped anew, buffered": "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8'); print('hé')",
    "detached": "sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding='utf-8', line_buffering=True); print('hé')",
    "codecs": "codecs.getwriter('utf-8')(sys.stdout.buffer).write('hé\\n')",
    "print with flush": "print('hé', flush=True)",
    "print to a file": "print('hé', file=sys.stderr)",
    "Python's own names": "print('hé', file=sys.__stdout__)",
    "Python's own standard error": "sys.__stderr__.write('hé\\n')",
    "copied": "shutil.copyfileobj(io.BytesIO('hé\\n'.encode()), sys.stdout.buffer, 2)",
    "logging": "logging.getLogger('mine').warning('hé')",
    "a handler of standard output": """
    handler = logging.StreamHandler(sys.stdout)
    logging.getLogger('mine').addHandler(handler)
    logging.getLogger('mine').warning('hé')
    logging.getLogger('mine').removeHandler(handler)""",
    "closed": "sys.stdout.close(); print('hé')",
    "used as a context": """
    with sys.stdout as out:
        out.write('h')
    print('é')""",
    "the wrapper is collected": """
    io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')
    gc.collect()
    print('hé')""",
    "rich": "import rich.console; rich.console.Console().print('hé')",
    "a surrogate": "print('h\\ud800'.encode('utf-8', 'replace').decode().replace('?', 'é'))",
}


@KINDS
@pytest.mark.parametrize("code", LIKE_PYTHONS.values(), ids=LIKE_PYTHONS)
async def test_what_is_written_is_in_the_log_of_its_line(tmp_path: Path, prefix: str, code: str) -> None:
    body = code if code.startswith("\n") else f"\n    {code}"
    flow = flow_of(
        tmp_path,
        f"import codecs, gc, io, logging, shutil, sys\n{prefix}def main(n):{body}\n    return sys.stdout.errors\n",
    )

    async with running_pool(flow, worker_count=1) as pool:
        records = [(await run(pool, n, n=n)).parsed() for n in range(2)]

    assert [record["status"] for record in records] == ["Completed"] * 2, records[1]["error"]
    assert [record["logs"] for record in records] == ["hé\n"] * 2


ATTRIBUTES = """[
    [stream.encoding.lower(), stream.line_buffering in (True, False), stream.isatty(), stream.newlines, stream.name,
     stream.mode, stream.fileno(), stream.readable(), stream.writable(), stream.seekable(), stream.closed,
     isinstance(stream, io.TextIOWrapper), isinstance(stream.buffer, io.BufferedWriter), type(stream.buffer.raw).__name__]
    for stream in (sys.stdout, sys.stderr)
]"""


@KINDS
async def test_the_attributes_are_pythons(tmp_path: Path, prefix: str) -> None:
    flow = flow_of(tmp_path, f"import io, sys\n{prefix}def main():\n    return {ATTRIBUTES}\n")
    python = await asyncio.create_subprocess_exec(
        sys.executable, "-E", "-X", "utf8", "-c", f"import io, sys; print({ATTRIBUTES})",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    expected, _ = await python.communicate()

    async with running_pool(flow, worker_count=1) as pool:
        output = (await run(pool)).parsed()["output"]["output"]

    assert str(output) == expected.decode().strip()


@KINDS
async def test_errors_are_pythons(tmp_path: Path, prefix: str) -> None:
    flow = flow_of(
        tmp_path,
        f"""
import contextlib, io, sys
{prefix}def main():
    found = []
    for call in (lambda: sys.stdout.write(1), lambda: sys.stdout.write(b"a"), lambda: sys.stdout.read(),
                 lambda: sys.stdout.buffer.write("a"), lambda: sys.stdout.seek(0), lambda: input()):
        try:
            call()
        except Exception as exc:
            found.append(f"{{type(exc).__name__}}: {{exc}}")
    return found
""",
    )
    async with running_pool(flow, worker_count=1) as pool:
        found = (await run(pool)).parsed()["output"]["output"]

    assert found == [
        "TypeError: write() argument must be str, not int",
        "TypeError: write() argument must be str, not bytes",
        "UnsupportedOperation: not readable",
        "TypeError: a bytes-like object is required, not 'str'",
        "UnsupportedOperation: underlying stream is not seekable",
        "EOFError: EOF when reading a line",
    ]


@KINDS
async def test_processes_and_faulthandler_take_the_streams(tmp_path: Path, prefix: str) -> None:
    flow = flow_of(
        tmp_path,
        f"""
import faulthandler, os, subprocess, sys
{prefix}def main(n):
    faulthandler.enable()
    faulthandler.dump_traceback()
    os.write(sys.stdout.fileno(), b"raw")
    return subprocess.run(["echo", "from a child"], stdout=sys.stdout, stderr=sys.stderr, stdin=sys.stdin).returncode
""",
    )
    async with running_pool(flow, worker_count=1) as pool:
        assert [(await run(pool, n, n=n)).parsed()["output"] for n in range(2)] == [{"output": 0}] * 2


REPLACEMENTS = {
    "redirect_stdout": """
    with contextlib.redirect_stdout(io.StringIO()) as mine:
        await speak(n)""",
    "redirect_stderr": """
    with contextlib.redirect_stderr(io.StringIO()) as mine:
        await speak(n, sys.stderr)""",
    "both": """
    mine = io.StringIO()
    with contextlib.redirect_stdout(mine), contextlib.redirect_stderr(mine):
        await speak(n)""",
    "by assignment": """
    before, sys.stdout = sys.stdout, (mine := io.StringIO())
    try:
        await speak(n)
    finally:
        sys.stdout = before""",
    "patch": """
    with unittest.mock.patch("sys.stdout", io.StringIO()) as mine:
        await speak(n)""",
    "in another task": """
    with contextlib.redirect_stdout(io.StringIO()) as mine:
        await asyncio.create_task(speak(n))""",
    "in a thread": """
    with contextlib.redirect_stdout(io.StringIO()) as mine:
        await asyncio.to_thread(asyncio.run, speak(n, met=False))""",
    "one in the other": """
    with contextlib.redirect_stdout(io.StringIO()) as outer:
        with contextlib.redirect_stdout(io.StringIO()) as mine:
            await speak(n)
        assert outer.getvalue() == "" """,
}


@pytest.mark.parametrize("code", REPLACEMENTS.values(), ids=REPLACEMENTS)
async def test_lines_side_by_side_redirect_only_their_own_prints(tmp_path: Path, code: str) -> None:
    flow = flow_of(
        tmp_path,
        f"""
import asyncio, contextlib, io, sys, unittest.mock
barrier = asyncio.Barrier(4)

async def speak(n, stream=None, met=True):
    for word in ("one", "two"):
        print(word, n, file=stream)
        if met:
            await barrier.wait()
        await asyncio.sleep(0.002 * n)

async def main(n):
    if n == 0:  # redirects nothing
        await speak(n)
        return None
    await asyncio.sleep(0.002 * n)
    if {code.find("met=False") > 0}:
        for _ in range(2):
            await barrier.wait()
{code}
    print("after", n)
    return mine.getvalue()
""",
    )
    async with running_pool(flow, worker_count=1) as pool:
        records = [o.parsed() for o in await asyncio.gather(*(run(pool, n, n=n) for n in range(4)))]
        plain = (await run(pool, 9, n=0, timeout_sec=0.3)).parsed()

    assert [record["status"] for record in records] == ["Completed"] * 4, records[1]["error"]
    assert [record["output"]["output"] for record in records] == [None, *(f"one {n}\ntwo {n}\n" for n in (1, 2, 3))]
    assert [record["logs"] for record in records] == ["one 0\ntwo 0\n", *(f"after {n}\n" for n in (1, 2, 3))]
    assert plain["logs"] == "one 0\n", "nothing stays replaced"


async def test_a_tee_around_the_stream_writes_to_it(tmp_path: Path) -> None:
    flow = flow_of(
        tmp_path,
        """
import asyncio, sys
class Tee:
    def __init__(self, stream):
        self.stream, self.text = stream, ""
    def write(self, text):
        self.text += text
        self.stream.write(text)
    def flush(self):
        self.stream.flush()
async def main(n):
    sys.stdout = tee = Tee(sys.stdout)
    print("a", n)
    await asyncio.sleep(0.01)
    print("b", n)
    return tee.text
""",
    )
    async with running_pool(flow) as pool:
        records = [o.parsed() for o in await asyncio.gather(*(run(pool, n, n=n) for n in range(4)))]

    assert [record["logs"] for record in records] == [f"a {n}\nb {n}\n" for n in range(4)]
    assert [record["output"]["output"] for record in records] == [f"a {n}\nb {n}\n" for n in range(4)]


async def test_a_stream_that_the_module_replaces_serves_all_lines(tmp_path: Path) -> None:
    flow = flow_of(
        tmp_path,
        """
import asyncio, io, sys
sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
async def main(n):
    await asyncio.sleep(0)
    print("a", n)
""",
    )
    async with running_pool(flow) as pool:
        assert [(await run(pool, n, n=n)).parsed()["logs"] for n in range(3)] == [f"a {n}\n" for n in range(3)]


@KINDS
async def test_what_a_thread_prints_after_its_line_is_not_lost(tmp_path: Path, prefix: str) -> None:
    flow = flow_of(
        tmp_path,
        f"""
import threading
go, threads = threading.Event(), []
def late():
    go.wait()
    print("late")
{prefix}def main(n):
    if n == 0:
        threads.append(threading.Thread(target=late))
        threads[0].start()
    elif n == 1:
        go.set()
        threads[0].join()
    print("line", n)
""",
    )
    async with running_pool(flow, worker_count=1) as pool:
        logs = [(await run(pool, n, n=n)).parsed()["logs"] for n in range(3)]

    assert logs == ["line 0\n", f"{OUTSIDE}late\n{END_OUTSIDE}line 1\n", "line 2\n"]


def test_bytes_that_are_no_text_are_shown() -> None:
    printed = Printed()
    printed.add_bytes(b"a\xff\xe2\x82")
    printed.add("b")

    assert printed.text(Scrubber()) == "a\\xff\\xe2\\x82b"
