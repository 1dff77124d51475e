"""The code of a flow: its helpers, its own classes, and the processes that it starts."""

from __future__ import annotations

from declared import FLEX, cases_of, dag, flex, node

case = cases_of("code")

ROWS = [{"text": "one"}, {"text": "two"}]
TEXT = {"text": "string"}
OUT = {"out": "${f.output}"}
INPUTS = {"x": "${inputs.text}"}

MAPPED = """
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import multiprocessing
from helper import twice

def f(x: str):
    {body}
"""
HELPER = {"helper.py": "def twice(x):\n    return x * 2\n"}


def maps(body: str) -> dict[str, str | bytes]:
    """A node whose processes run a function of a file beside it."""
    return {**dag(TEXT, OUT, f=node(MAPPED.format(body=body), INPUTS)), **HELPER}


case("a_helper_beside_the_node", maps("return twice(x)"), ROWS)
case("a_helper_in_a_folder", {
    **dag(TEXT, OUT, f=node("from parts.helper import twice\ndef f(x: str): return twice(x)", INPUTS)),
    "parts/helper.py": HELPER["helper.py"],
}, ROWS)  # fmt: skip
case(
    "a_helper_that_is_imported_late",
    {**dag(TEXT, OUT, f=node("def f(x: str):\n    from helper import twice\n    return twice(x)", INPUTS)), **HELPER},
    ROWS,
)
case("a_thread_pool_in_a_node", maps("return list(ThreadPoolExecutor(2).map(twice, [x, x]))"), ROWS)
case(
    "a_process_pool_in_a_node",
    maps("""with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return list(pool.map(twice, [x, x]))"""),
    ROWS,
)
case(
    "a_text_beside_the_node",
    {
        **dag(
            TEXT,
            OUT,
            f=node(
                "from pathlib import Path\ndef f(x: str): return (Path(__file__).parent / 'a.txt').read_text() + x",
                INPUTS,
            ),
        ),
        "a.txt": "read ",
    },
    ROWS,
)
case(
    "a_text_by_a_relative_path",
    {**dag(TEXT, OUT, f=node("def f(x: str): return open('a.txt').read() + x", INPUTS)), "a.txt": "read "},
    ROWS,
)
PICKLES = """
import pickle
from dataclasses import dataclass

@dataclass
class Item:
    text: str

def main(text: str):
    return pickle.loads(pickle.dumps(Item(text))).text
"""
case("a_callable_that_pickles_its_own_class", flex(PICKLES), ROWS, **FLEX)
case(
    "a_callable_with_a_cached_helper_and_a_lock",
    flex(
        "import functools, threading\nLOCK = threading.Lock()\n@functools.lru_cache\ndef known(text): return text + '!'\n"
        "def main(text: str):\n    with LOCK:\n        return known(text)\n"
    ),
    ROWS,
    **FLEX,
)
case(
    "a_callable_with_a_database",
    flex(
        "import sqlite3\nbase = sqlite3.connect(':memory:', check_same_thread=False)\n"
        "def main(text: str): return base.execute('select upper(?)', [text]).fetchone()[0]\n"
    ),
    ROWS,
    **FLEX,
)
PICKLES_IN_A_NODE = (
    "import pickle\nfrom dataclasses import dataclass\n@dataclass\nclass Item:\n    text: str\n"
    "def f(x: str): return pickle.loads(pickle.dumps(Item(x))).text\n"
)
case("a_node_that_pickles_its_own_class", dag(TEXT, OUT, f=node(PICKLES_IN_A_NODE, INPUTS)), ROWS)
