"""The parts of code that is sent by value: what changes them, what does not, and that every process sees the same."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_batchflow.definition.code_parts import digest_of, parts_of

ALL_KINDS = """
import argparse, collections, contextvars, datetime, decimal, enum, functools, logging, pathlib, random, re, string, threading
import json as J
from dataclasses import dataclass, field
from typing import Optional
PROMPT = 'hi'; TAGS = {'a', 'b', 'c', 'dd'}; CFG = {'x': [1, 2], 's': {'q', 'r'}}; lock = threading.Lock()
class Color(enum.Enum):
    RED = 1
    BLUE = 'b'
@dataclass
class Conf:
    a: int = 1
    b: list = field(default_factory=list)
    c: Optional[Color] = None
CONF = Conf(3, [1], Color.RED); PAT = re.compile('a+'); NUMBER = decimal.Decimal('1.5'); P = pathlib.Path('/x')
AT = datetime.datetime(2020, 1, 1); ARGS = argparse.Namespace(a=1, b='x'); TEMPLATE = string.Template('$x')
LOG = logging.getLogger('a'); COUNT = collections.Counter('aab'); V = contextvars.ContextVar('c'); RNG = random.Random()
@functools.lru_cache(maxsize=3)
def helper(x): return x + len(PROMPT)
def rec(n): return n and even(n - 1)
def even(n): return not n or rec(n - 1)
class M:
    k = {'a', 'b'}
    def __init__(self, a=1): self.a = a
    def __call__(self, q):
        import csv
        return f(q)
    @staticmethod
    def s(): return TAGS
    @property
    def p(self): return super().__init__
def f(q, z=PROMPT, *, kw={'a': 1}):
    x = [i for i in (1, 2) if i in {'a', 'b', 'cc'}]
    return (helper(q), TAGS, CFG, lock, CONF, PAT, NUMBER, P, AT, ARGS, TEMPLATE, LOG, COUNT, V, RNG, rec(2), J.dumps(q), M)
target = functools.partial(M(4), 1)
"""


def parts(source: str, target: str = "f") -> dict[str, str]:
    """The parts of a callable in a main module of this text."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, f"<cell {hash(source)}>", "exec", dont_inherit=True), namespace)  # noqa: S102
    return parts_of(namespace[target], "__main__").digests


F = "def f(q): return g(q)\n"


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("def f(q): return q", "def f(q): return q + '!'", {"function f"}),
        ("def f(q): return 'a'", "def f(q): return 'b'", {"function f"}),
        ("def f(q): return 1", "def f(q): return True", {"function f"}),
        ("def f(q): return q.upper()", "def f(q): return q.lower()", {"function f"}),
        ("def f(q, n=1): return n", "def f(q, n=2): return n", {"function f"}),
        ("def f(q, *, n=1): return n", "def f(q, *, n=2): return n", {"function f"}),
        ("def f(q: int): return q", "def f(q: str): return q", {"function f"}),
        ("async def f(q): return q", "def f(q): return q", {"function f"}),
        ("def f(q):\n 'Say hi.'\n return f.__doc__", "def f(q):\n 'Say ho.'\n return f.__doc__", {"function f"}),
        (F + "def g(q): return 1", F + "def g(q): return 2", {"function g"}),
        (
            "def f(q): return [g(x) for x in q]\ndef g(q): return h\nh = 1",
            "def f(q): return [g(x) for x in q]\ndef g(q): return h\nh = 2",
            {"global h"},
        ),
        ("P = 'a'\ndef f(q): return P", "P = 'b'\ndef f(q): return P", {"global P"}),
        ("P = ['a']\ndef f(q): return P[0]", "P = ['a']\nP[0] = 'b'\ndef f(q): return P[0]", {"global P"}),
        ("P = {'a': {1, 2}}\ndef f(q): return P", "P = {'a': {1, 3}}\ndef f(q): return P", {"global P"}),
        ("def f(q): return P", "P = 1\ndef f(q): return P", {"global P"}),
        ("g = lambda q: 1\n" + F, "g = lambda q: 2\n" + F, {"function <lambda>"}),
        (
            "def make(n):\n def inner(q): return n\n return inner\nf = make(1)",
            "def make(n):\n def inner(q): return n\n return inner\nf = make(2)",
            {"function make.<locals>.inner"},
        ),
        (
            "import functools\ndef g(q, n): return n\nf = functools.partial(g, n=1)",
            "import functools\ndef g(q, n): return n\nf = functools.partial(g, n=2)",
            {"the callable"},
        ),
        (
            "import functools\n@functools.lru_cache\ndef g(q): return 1\n" + F,
            "import functools\n@functools.lru_cache\ndef g(q): return 2\n" + F,
            {"function g"},
        ),
        (
            "def deco(x):\n def wrap(g):\n  def inner(q): return x + g(q)\n  return inner\n return wrap\n"
            "@deco(1)\ndef f(q): return q",
            "def deco(x):\n def wrap(g):\n  def inner(q): return x + g(q)\n  return inner\n return wrap\n"
            "@deco(2)\ndef f(q): return q",
            {"function deco.<locals>.wrap.<locals>.inner"},
        ),
        (
            "import functools\ndef deco(g):\n @functools.wraps(g)\n def inner(q): return g(q)\n return inner\n"
            "@deco\ndef f(q): return 1",
            "import functools\ndef deco(g):\n @functools.wraps(g)\n def inner(q): return g(q)\n return inner\n"
            "@deco\ndef f(q): return 2",
            {"function f (2)"},
        ),
        (
            "class f:\n def __call__(self, q): return 1",
            "class f:\n def __call__(self, q): return 2",
            {"function f.__call__"},
        ),
        (
            "class f:\n n = 1\n def __call__(self, q): return self.n",
            "class f:\n n = 2\n def __call__(self, q): return self.n",
            {"class f"},
        ),
        (
            "class B:\n def h(self): return 1\nclass f(B):\n def __call__(self, q): return self.h()",
            "class B:\n def h(self): return 2\nclass f(B):\n def __call__(self, q): return self.h()",
            {"function B.h"},
        ),
        (
            "class C:\n def __init__(self, n): self.n = n\n def __call__(self, q): return self.n\nf = C(1)",
            "class C:\n def __init__(self, n): self.n = n\n def __call__(self, q): return self.n\nf = C(2)",
            {"the callable"},
        ),
        (
            "class C:\n def __init__(self, n): self.n = n\n def run(self, q): return self.n\nf = C(1).run",
            "class C:\n def __init__(self, n): self.n = n\n def run(self, q): return self.n\nf = C(2).run",
            {"the callable"},
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass C:\n n: int = 1\ndef f(q): return C().n",
            "from dataclasses import dataclass\n@dataclass\nclass C:\n n: int = 2\ndef f(q): return C().n",
            {"class C", "function C.__init__"},
        ),
        (
            "from pydantic import BaseModel\nclass C(BaseModel):\n n: int = 1\ndef f(q): return C().n",
            "from pydantic import BaseModel\nclass C(BaseModel):\n n: int = 2\ndef f(q): return C().n",
            {"class C"},
        ),
        (
            "import re\nP = re.compile('a')\ndef f(q): return P",
            "import re\nP = re.compile('b')\ndef f(q): return P",
            {"global P"},
        ),
        (
            "import argparse\nA = argparse.Namespace(x=1)\ndef f(q): return A.x",
            "import argparse\nA = argparse.Namespace(x=2)\ndef f(q): return A.x",
            {"global A"},
        ),
        (
            "from string import Template\nT = Template('a')\ndef f(q): return T",
            "from string import Template\nT = Template('b')\ndef f(q): return T",
            {"global T"},
        ),
        (
            "import jinja2\nT = jinja2.Template('a {{q}}')\ndef f(q): return T",
            "import jinja2\nT = jinja2.Template('b {{q}}')\ndef f(q): return T",
            {"global T"},
        ),
        (
            "import jinja2\nT = jinja2.Template('{% block x %}a{% endblock %}')\ndef f(q): return T",
            "import jinja2\nT = jinja2.Template('{% block x %}b{% endblock %}')\ndef f(q): return T",
            {"global T"},
        ),
        (
            "import jinja2\nE = jinja2.Environment(loader=jinja2.DictLoader({'t': 'a'}))\ndef f(q): return E",
            "import jinja2\nE = jinja2.Environment(loader=jinja2.DictLoader({'t': 'b'}))\ndef f(q): return E",
            {"global E"},
        ),
        ("P = 1\ndef f(q): return globals()['P']", "P = 2\ndef f(q): return globals()['P']", {"global P"}),
        ("P = 1\ndef f(q): return eval('P')", "P = 2\ndef f(q): return eval('P')", {"global P"}),
    ],
    ids=[
        *[
            "code",
            "a constant",
            "1 is not True",
            "a name",
            "a default",
            "a keyword's default",
            "an annotation",
            "async",
        ],
        *[
            "a docstring",
            "a helper",
            "a helper's global",
            "a global",
            "a changed list",
            "a set in a dict",
            "a new global",
        ],
        *["a lambda", "a closure", "a partial", "a cached helper", "a decorator's argument", "a wrapped function"],
        *["a class's call", "a class's attribute", "a base's method", "an object's state", "a bound method's object"],
        *["a dataclass", "a pydantic model", "a pattern", "parsed arguments", "a template"],
        *["a jinja2 template", "a block", "a jinja2 environment", "a global by its name", "a global in eval"],
    ],
)
def test_a_change_is_in_the_part_that_has_it(before: str, after: str, changed: set[str]) -> None:
    one, two = parts(before), parts(after)

    # What refers to a changed function or value has not changed itself.
    assert {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)} == changed


def test_the_modules_that_code_uses_are_found() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    source = "import json as j\nfrom csv import reader\ndef f(q):\n import yaml.nodes\n return j.dumps(q), reader"
    exec(source, namespace)  # noqa: S102

    assert {"json", "_csv", "yaml.nodes"} <= parts_of(namespace["f"], "__main__").modules


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def f(q): return q", "\n\n# a comment\ndef f(q):  # here, too\n    return q"),
        ("def f(q): return P\nP = {'a', 'b', 'c'}", "def f(q): return P\nP = {'c', 'b', 'a'}"),
        ("def f(q): return P\nP = {'a': 1, 'b': 2}", "def f(q): return P\nP = {'b': 2, 'a': 1}"),
        ("def f(q): return q", "def f(q): return q\ndef other(): pass\nX = 3"),
        ("def f(q): return q", "import time\nf = None\ndef f(q): return q"),
        ("import threading\nL = threading.Lock()\ndef f(q): return L",) * 2,
        (
            "import random\nR = random.Random(1)\ndef f(q): return R",
            "import random\nR = random.Random(1)\nR.random()\ndef f(q): return R",
        ),
        ("__file__ = 'one'\ndef f(q): return __file__", "__file__ = 'two'\ndef f(q): return __file__"),
        ("api_key = 'one'\ndef f(q): return api_key", "api_key = 'two'\ndef f(q): return api_key"),
        ("C = {'api_key': 'one'}\ndef f(q): return C", "C = {'api_key': 'two'}\ndef f(q): return C"),
        ("_cache = {}\ndef f(q): return _cache", "_cache = {'seen': 1}\ndef f(q): return _cache"),
        (
            "c = None\ndef f(q):\n global c\n c = c or object()\n return q",
            "c = object()\ndef f(q):\n global c\n c = c or object()\n return q",
        ),
        (
            "import functools\n@functools.lru_cache\ndef g(q): return 1\ndef f(q): return g(q)",
            "import functools\n@functools.lru_cache\ndef g(q): return 1\ng(3)\ndef f(q): return g(q)",
        ),
    ],
    ids=[
        *["comments and lines", "order of a set", "order of a dict", "other code", "redefined as it was", "a lock"],
        *[
            "random numbers drawn",
            "the place of the file",
            "a secret",
            "a secret in a dict",
            "a cache",
            "a client made on first use",
            "lru_cache used",
        ],
    ],
)
def test_what_is_no_change(before: str, after: str) -> None:
    assert parts(before) == parts(after)


def test_what_only_counts_by_its_type_is_named() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("import threading\nlock = threading.Lock()\ndef f(q): return lock", namespace)  # noqa: S102

    assert parts_of(namespace["f"], "__main__").opaque == {"lock (_thread.lock)"}


def test_a_template_is_no_data_that_a_worker_gets() -> None:
    """A worker that runs a script again makes its own: templates cannot be pickled."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("import jinja2\nT = jinja2.Template('a')\nP = 1\ndef f(q): return T, P", namespace)  # noqa: S102

    assert parts_of(namespace["f"], "__main__").data == {"P"}


def test_all_processes_see_the_same_parts() -> None:
    """Hash seeds differ, and with them the order of sets and all addresses."""
    show = "import json\nfrom prefect_batchflow.definition.code_parts import parts_of\n"
    show += "found = parts_of(target, '__main__')\nprint(json.dumps([found.digests, sorted(found.modules)]))"
    printed = set()
    for seed in ("0", "1", "2"):
        run = [sys.executable, "-c", ALL_KINDS + show]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        printed.add(subprocess.run(run, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout)

    assert len(printed) == 1
    digests, modules = json.loads(printed.pop())
    assert {
        "global CONF",
        "function rec",
        "function even",
        "class Conf",
        "class M",
        "function helper",
    } <= digests.keys()
    assert {"csv", "json"} <= set(modules)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=15,
)


@given(PLAIN)
def test_a_value_counts_by_what_is_in_it(value: Any) -> None:
    assert digest_of(value) == digest_of(copy.deepcopy(value))
    assert digest_of(value) != digest_of([value])
    assert digest_of([value, 1]) != digest_of([value, 2])


@given(st.sets(st.text() | st.integers()), st.dictionaries(st.text(), st.integers()))
def test_the_order_of_sets_and_dicts_does_not_count(members: set[Any], pairs: dict[str, int]) -> None:
    assert digest_of(members) == digest_of(set(members))
    assert digest_of(pairs) == digest_of(dict(reversed(pairs.items())))


def test_a_value_that_contains_itself_ends() -> None:
    ring: list[Any] = [1]
    ring.append(ring)

    assert digest_of(ring) == digest_of(copy.deepcopy(ring))
