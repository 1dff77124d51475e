"""Functions of scripts and notebooks, run as users run them: what reaches a worker and how, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.programs

START = "import pickle\nfrom prefect_batchflow import load_flow\n"
GUARD = "if __name__ == '__main__':\n"
SEND = "print('flow', pickle.dumps(load_flow(f)).hex())\n"
WORKER = """
import json, pickle, sys
from prefect_batchflow.execution.program.loader import load_program
program = load_program(pickle.loads(bytes.fromhex(sys.stdin.read())))
if program.description.is_async:
    import asyncio
    run = asyncio.run(program.run_line_async(0, {'q': 'a'}))
else:
    run = program.run_line(0, {'q': 'a'})
print(json.dumps(run['output'] or run['error']['message']))
"""


def python(*arguments: str, code: str | None = None, cwd: Path) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments], input=code, capture_output=True, text=True, timeout=120, cwd=cwd, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return ended.stdout if ended.returncode == 0 else ended.stderr


def sent(printed: str) -> str:
    found = re.search(r"^flow (\w+)$", printed, re.MULTILINE)
    assert found, printed
    return found[1]


def output_in_a_worker(printed: str, cwd: Path) -> object:
    """What the flow that a caller printed gives for one line, in a process of its own."""
    answer = python("-P", "-c", WORKER, code=sent(printed), cwd=cwd)
    try:
        output = json.loads(answer.splitlines()[-1])
    except (ValueError, IndexError):
        return answer
    return output["output"] if isinstance(output, dict) and output.keys() == {"output"} else output


TOP_LEVEL = {
    "lru_cache": "import functools\n@functools.lru_cache\ndef g(q): return q\ndef f(q): return g(q)\n",
    "a lock": "import threading\nL = threading.Lock()\ndef f(q):\n    with L: return q\n",
    "sqlite": "import sqlite3\nC = sqlite3.connect(':memory:')\ndef f(q): return C.execute('select ?', [q]).fetchone()[0]\n",
    "a client": "import ssl\nC = ssl.create_default_context()\ndef f(q): return q if C.check_hostname else ''\n",
    "a context variable": "from contextvars import ContextVar\nV = ContextVar('V', default='a')\ndef f(q): return V.get()\n",
    "a handler": (
        "import logging, sys\nH = logging.StreamHandler(sys.stderr)\nL = logging.getLogger('x')\nL.addHandler(H)\n"
        "def f(q):\n    L.warning(q)\n    return q if H in L.handlers else ''\n"
    ),
    "an open file": "F = open(__file__)\ndef f(q): return q if F.readline() else ''\n",
    "a generator": "G = (x for x in 'abc')\ndef f(q): return next(G)\n",
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor\nP = ThreadPoolExecutor(1)\n"
        "def f(q): return P.submit(str, q).result()\n"
    ),
    "a class": "class f:\n    def __call__(self, q): return q\n",
    "async": "import asyncio\nL = asyncio.Lock()\nasync def f(q):\n    async with L: return q\n",
    "a decorated function": (
        "import functools, threading\ndef deco(g):\n    L = threading.Lock()\n    @functools.wraps(g)\n    def inner(q):\n"
        "        with L: return g(q)\n    return inner\n@deco\ndef f(q): return q\n"
    ),
    "singledispatch": (
        "import functools\n@functools.singledispatch\ndef g(q): return 'no'\n@g.register\ndef _(q: str): return q\n"
        "def f(q): return g(q)\n"
    ),
    "pickling its own class": (
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    q: str\n"
        "def f(q): return pickle.loads(pickle.dumps(C(q))).q\n"
    ),
    "its file": "from pathlib import Path\ndef f(q): return q if Path(__file__).name == 'script.py' else __file__\n",
    "its source": "import inspect\ndef f(q): return q if 'inspect' in inspect.getsource(f) else ''\n",
}


@pytest.mark.parametrize("code", TOP_LEVEL.values(), ids=TOP_LEVEL)
def test_a_guarded_script_is_run_again_by_the_worker(tmp_path: Path, code: str) -> None:
    (tmp_path / "script.py").write_text(f"{START}{code}{GUARD}    {SEND}")

    assert output_in_a_worker(python("script.py", cwd=tmp_path), tmp_path) == "a"


BELOW = {
    "a global": ("P = ''\ndef f(q): return q + P\n", "P = 'b'\n"),
    "a new global": ("def f(q): return q + P\n", "P = 'b'\n"),
    "a changed dictionary": ("P = {'x': ''}\ndef f(q): return q + P['x']\n", "P['x'] = 'b'\n"),
    "an object of its class": (
        "class C:\n    def __init__(self, x): self.x = x\nP = C('')\ndef f(q): return q + P.x if isinstance(P, C) else ''\n",
        "P = C('b')\n",
    ),
    "a global of a helper": ("P = ''\ndef g(q): return q + P\ndef f(q): return g(q)\n", "P = 'b'\n"),
    "a global of a class": ("P = ''\nclass f:\n    def __call__(self, q): return q + P\n", "P = 'b'\n"),
    "a function": ("L = __import__('threading').Lock()\nP = 'b'\n", "def f(q): return q + P if L else ''\n"),
    "a helper": ("P = 'b'\ndef f(q): return g(q)\n", "def g(q): return q + P\n"),
    "a lambda": ("P = 'b'\n", "f = lambda q: q + P\n"),
    "a rebound function": ("def f(q): return q\n", "g = f\nf = lambda q: g(q) + 'b'\n"),
    "a partial": ("import functools\ndef g(q, x): return q + x\n", "f = functools.partial(g, x='b')\n"),
    "a closure": (
        "L = __import__('threading').Lock()\ndef make(x):\n    def inner(q):\n        with L: return q + x\n    return inner\n",
        "f = make('b')\n",
    ),
    "a callable object": (
        "class C:\n    def __init__(self, x): self.x = x\n    def __call__(self, q): return q + self.x\n",
        "f = C('b')\n",
    ),
    "a bound method": (
        "class C:\n    def __init__(self, x): self.x = x\n    def run(self, q): return q + self.x\n",
        "f = C('b').run\n",
    ),
    "an import": ("def f(q): return q + string.ascii_lowercase[1]\n", "import string\n"),
    "arguments": (
        "import argparse, sys\nA = argparse.ArgumentParser()\nA.add_argument('word')\nA = A.parse_args()\n"
        "def f(q): return q + A.word\n",
        "pass\n",
    ),
    "a lock that is made anew": ("def f(q):\n    with L: return q + 'b'\n", "import threading\nL = threading.Lock()\n"),
}


@pytest.mark.parametrize(
    "guard",
    ["if __name__ == '__main__':", 'if "__main__" == __name__:', "if __name__ == '__main__' and len(__name__):"],
    ids=["guard", "turned round", "with a condition"],
)
@pytest.mark.parametrize(("above", "below"), BELOW.values(), ids=BELOW)
def test_what_a_script_does_below_its_guard_reaches_the_worker(
    tmp_path: Path, guard: str, above: str, below: str
) -> None:
    lines = "".join(f"    {line}\n" for line in (below + SEND).splitlines())
    (tmp_path / "script.py").write_text(f"{START}{above}{guard}\n{lines}")

    assert output_in_a_worker(python("script.py", "b", cwd=tmp_path), tmp_path) == "ab"


@pytest.mark.parametrize("form", ["pkg.mod", "pkg"])
def test_a_module_that_runs_as_the_main_one(tmp_path: Path, form: str) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "other.py").write_text("X = 'a'\n")
    name = "__main__.py" if form == "pkg" else "mod.py"
    code = "from .other import X\nimport threading\nL = threading.Lock()\ndef f(q): return X if L else ''\n"
    (tmp_path / "pkg" / name).write_text(f"{START}{code}{GUARD}    {SEND}")

    assert output_in_a_worker(python("-m", form, cwd=tmp_path), tmp_path) == "a"


def test_a_script_reads_at_import_from_the_folder_it_was_started_in(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "word.txt").write_text("a")
    (tmp_path / "scripts" / "script.py").write_text(
        f"{START}import threading\nW, L = open('word.txt').read(), threading.Lock()\n"
        f"def f(q): return W if L else ''\n{GUARD}    {SEND}"
    )

    assert output_in_a_worker(python("scripts/script.py", cwd=tmp_path), tmp_path / "scripts") == "a"


def test_a_worker_needs_no_file_of_the_script(tmp_path: Path) -> None:
    """Of a cluster, for example; and no worker has another version than the one that runs."""
    script = tmp_path / "script.py"
    script.write_text(
        f"{START}import threading\nL = threading.Lock()\ndef f(q): return q if L else ''\n{GUARD}    {SEND}"
    )
    printed = python("script.py", cwd=tmp_path)
    script.unlink()

    assert output_in_a_worker(printed, tmp_path) == "a"


def test_a_script_that_was_changed_while_it_runs_goes_by_value(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        f"{START}def f(q): return q\n{GUARD}    open(__file__, 'w').write('def f(q): return 0')\n    {SEND}"
    )

    assert output_in_a_worker(python("script.py", cwd=tmp_path), tmp_path) == "a"


def test_a_run_in_another_thread_finds_the_guard_too(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        f"{START}import threading\nL = iter('a')\ndef f(q): return next(L)\n"
        f"def main(): {SEND}"
        f"{GUARD}    t = threading.Thread(target=main); t.start(); t.join()\n"
    )

    assert output_in_a_worker(python("script.py", cwd=tmp_path), tmp_path) == "a"


BY_VALUE = {
    "a function": "def f(q): return q\n",
    "a global": "P = ''\ndef f(q): return q + P\n",
    "lru_cache": TOP_LEVEL["lru_cache"],
    "a lock": TOP_LEVEL["a lock"],
    "a context variable": TOP_LEVEL["a context variable"],
    "a handler": TOP_LEVEL["a handler"].replace("if H in L.handlers", "if H"),
    "a class": TOP_LEVEL["a class"],
    "a dataclass": "from dataclasses import dataclass\n@dataclass\nclass C:\n    q: str\ndef f(q): return C(q).q\n",
    "a decorated function": TOP_LEVEL["a decorated function"],
}


@pytest.mark.parametrize("door", ["not guarded", "notebook"])
@pytest.mark.parametrize("code", BY_VALUE.values(), ids=BY_VALUE)
def test_code_without_a_file_or_a_guard_goes_by_value(tmp_path: Path, code: str, door: str) -> None:
    (tmp_path / "script.py").write_text(f"{START}{code}{SEND}")
    printed = (
        python("script.py", cwd=tmp_path) if door == "not guarded" else python(code=START + code + SEND, cwd=tmp_path)
    )

    assert output_in_a_worker(printed, tmp_path) == "a"


CONNECTION = "import sqlite3\nC = sqlite3.connect(':memory:')\ndef g(q): return C\ndef f(q): return g(q)\n"


@pytest.mark.parametrize(
    ("code", "is_file", "said"),
    [
        (CONNECTION + SEND, True, "g uses the global 'C' .*sqlite3.Connection.* Start the run below `if __name__ == "),
        (CONNECTION + SEND, False, "g uses the global 'C' .*sqlite3.Connection.* Save the code as a file .*'my_flow.py:f'"),
        (
            "import sqlite3\ndef make():\n    c = sqlite3.connect(':memory:')\n    return lambda q: c\n"
            f"f = make()\n{GUARD}    {SEND}",
            True,
            "it uses the variable 'c' .*sqlite3.Connection",
        ),
        (
            "class K:\n    def __init__(self): self.rows = (x for x in 'ab')\n    def __call__(self, q): return q\n"
            f"{GUARD}    f = K()\n    {SEND}",
            True,
            "the attribute 'rows' of the object .*generator",
        ),
        *[
            (f"import functools, sqlite3\nC = sqlite3.connect(':memory:')\n{code}\n{SEND}", True, said)
            for code, said in [
                ("def f(q, c=C): return q", "it uses the default of 'c' .*sqlite3"),
                ("def g(c, q): return q\nf = functools.partial(g, C)", "it uses argument 1 .*sqlite3"),
                ("def g(q, c): return q\nf = functools.partial(g, c=C)", "it uses the argument 'c' .*sqlite3"),
                ("class f:\n    c = C\n    def __call__(self, q): return q", "it uses the attribute 'c' .*sqlite3"),
                ("def g(q, c=C): return q\ndef f(q): return g(q)", "g uses the default of 'c' .*sqlite3"),
            ]
        ],
    ],
    ids=[
        *["not guarded", "notebook", "a closure", "an object"],
        *["a default", "a partial's argument", "a partial's keyword", "a class's attribute", "a helper"],
    ],
)  # fmt: skip
def test_what_cannot_travel_is_named_with_the_form_that_works(
    tmp_path: Path, code: str, is_file: bool, said: str
) -> None:
    (tmp_path / "script.py").write_text(START + code)
    printed = python("script.py", cwd=tmp_path) if is_file else python(code=START + code, cwd=tmp_path)

    assert re.search(f"cannot be sent to a worker process: {said}", printed), printed


def test_what_is_made_below_the_guard_and_cannot_travel_is_named_by_the_worker(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        f"{START}import sqlite3\ndef f(q): return C\n{GUARD}    C = sqlite3.connect(':memory:')\n    {SEND}"
    )
    answer = output_in_a_worker(python("script.py", cwd=tmp_path), tmp_path)

    assert re.search(
        "script.py makes 'C' below .*cannot pickle 'sqlite3.Connection' object. Make 'C' above", str(answer)
    )


def test_a_function_of_a_package_that_a_hook_imports_goes_by_name(tmp_path: Path) -> None:
    """A package in editable mode, for example; a hook that only the caller has is no way to import it."""
    site, source = tmp_path / "site", tmp_path / "source"
    site.mkdir()
    source.mkdir()
    (source / "hooked.py").write_text(
        "import sqlite3\nC = sqlite3.connect(':memory:')\ndef f(q): return q if C else ''\n"
    )
    (site / "my_hook.py").write_text(
        "import sys\nfrom importlib.util import spec_from_file_location\nclass Finder:\n"
        "    @staticmethod\n    def find_spec(name, path=None, target=None):\n"
        f"        return spec_from_file_location(name, {str(source / 'hooked.py')!r}) if name == 'hooked' else None\n"
        "sys.meta_path.append(Finder)\n"
    )
    (site / "sitecustomize.py").write_text("import my_hook\n")
    code = "import hooked\nfrom prefect_batchflow import load_flow\nprint(load_flow(hooked.f).source)\n"
    everywhere = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}

    ended = subprocess.run(
        [sys.executable, "-c", code], env=everywhere, capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.strip() == "hooked:f"
