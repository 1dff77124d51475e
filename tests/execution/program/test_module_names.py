"""The files of a flow have the names that `import` gives them, so that pickle and the processes of a node find them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from pools import running_pool

from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.lines import Line

if TYPE_CHECKING:
    from pathlib import Path

POOLS = """
import multiprocessing, pickle, sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from promptflow.core import tool

@dataclass
class Item:
    q: str

def work(item):
    return Item(item.q * 2)

def run_in(kind, q):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(kind)) as pool:
        return pool.submit(work, Item(q)).result(timeout=60)

@tool
def run(q: str):
    assert pickle.loads(pickle.dumps(Item(q))) == Item(q), "pickled here"
    with multiprocessing.Pool(1) as pool:
        assert pool.map(work, [Item(q)]) == [Item(q * 2)]
    found = [run_in(kind, q) for kind in ("fork", "spawn", "forkserver")]
    return [__name__, *(item.q for item in found if type(item) is Item)]
"""
NAMED = "import sys\nfrom promptflow.core import tool\n@tool\ndef run(q: str): return __name__\n"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def dag(*sources: str) -> str:
    """A DAG flow with a node for each file."""
    nodes = [
        {
            "name": f"n{number}",
            "type": "python",
            "source": {"type": "code", "path": path},
            "inputs": {"q": "${inputs.q}"},
        }
        for number, path in enumerate(sources)
    ]
    outputs = {node["name"]: {"type": "object", "reference": f"${{{node['name']}.output}}"} for node in nodes}
    return json.dumps({"inputs": {"q": {"type": "string"}}, "outputs": outputs, "nodes": nodes})


def output(flow: str) -> Any:
    """What a real worker process gives for one line."""

    async def run() -> Any:
        async with running_pool(load_flow(flow), worker_count=1) as pool:
            outcome = await pool.run_line(Line(0, {"q": "a"}), attempt=1, timeout_sec=100)
        record = outcome.parsed()
        assert record["error"] is None, record["error"]
        return record["output"]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a.py", "a"),
        ("nodes/a.py", "nodes.a"),
        ("nodes/deep/a.py", "nodes.deep.a"),
        ("my-node.py", "made_up.my_node_"),
        ("1_first.py", "made_up.1_first_"),
        ("class.py", "made_up.class_"),
        ("../outside.py", "made_up.outside_"),
        ("statistics.py", "made_up.statistics_"),
        ("yaml.py", "made_up.yaml_"),
    ],
)
def test_process_pools_and_pickle_work_in_a_node(tmp_path: Path, source: str, name: str) -> None:
    """Also where a file's name is no module's, or that of the standard library or an installed package."""
    write(tmp_path / "flow", {"flow.dag.yaml": dag(source), source: POOLS})

    found, *doubled = output(str(tmp_path / "flow"))["n0"]

    assert (found == name or name in found, doubled) == (True, ["aa", "aa", "aa"])


@pytest.mark.parametrize("flow", ["a.py:run", "sub/a.py:run", "my-flow.py:run"])
def test_process_pools_and_pickle_work_in_a_file_with_an_attribute(tmp_path: Path, flow: str) -> None:
    write(tmp_path, {flow.removesuffix(":run"): POOLS})

    assert output(f"{tmp_path}/{flow}")["output"][1:] == ["aa", "aa", "aa"]


def test_files_of_the_same_name_are_modules_of_their_own(tmp_path: Path) -> None:
    sources = ["a.py", "one/a.py", "two/a.py", "two/a-b.py"]
    write(tmp_path, {"flow.dag.yaml": dag(*sources), **dict.fromkeys(sources, NAMED)})

    names = list(output(str(tmp_path)).values())

    assert names[:3] == ["a", "one.a", "two.a"]
    assert names[3].rpartition("program.")[2].startswith("made_up.a_b_")


def test_a_nodes_module_is_the_one_that_other_files_import(tmp_path: Path) -> None:
    other = "import a\nfrom promptflow.core import tool\n@tool\ndef run(q: str): return a.COUNT\n"
    counts = (
        "COUNT = []\nfrom promptflow.core import tool\n@tool\ndef run(q: str):\n    COUNT.append(q)\n    return q\n"
    )
    second = {"name": "n1", "type": "python", "source": {"path": "b.py"}, "inputs": {"q": "${n0.output}"}}
    document = json.loads(dag("a.py", "b.py"))
    document["nodes"][1] = second
    write(tmp_path, {"flow.dag.yaml": json.dumps(document), "a.py": counts, "b.py": other})

    assert output(str(tmp_path))["n1"] == ["a"]


def test_a_package_above_a_node_is_not_run_for_it(tmp_path: Path) -> None:
    """promptflow does not, and it can have imports that the flow's environment lacks."""
    source = "nodes/a.py"
    write(tmp_path, {"flow.dag.yaml": dag(source), "nodes/__init__.py": "raise RuntimeError('run')", source: NAMED})

    assert output(str(tmp_path))["n0"].rpartition("program.")[2].startswith("made_up.a_")


def test_a_package_beside_a_nodes_file_does_not_take_its_name(tmp_path: Path) -> None:
    write(tmp_path, {"flow.dag.yaml": dag("a.py"), "a.py": NAMED, "a/__init__.py": "raise RuntimeError('run')"})

    assert output(str(tmp_path))["n0"].rpartition("program.")[2].startswith("made_up.a_")


def test_processes_of_a_script_that_a_worker_runs_again_find_its_classes(tmp_path: Path) -> None:
    code = textwrap.dedent(POOLS.replace("from promptflow.core import tool", "tool = lambda f: f"))
    (tmp_path / "script.py").write_text(
        f"import threading\nL = threading.Lock()\n{code}\nif __name__ == '__main__':\n"
        "    import pickle\n    from prefect_batchflow import load_flow\n    print(pickle.dumps(load_flow(run)).hex())\n"
    )
    script = [sys.executable, "script.py"]
    printed = subprocess.run(script, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path).stdout
    worker = (
        "import pickle, sys\nfrom prefect_batchflow.execution.program.loader import load_program\n"
        "run = load_program(pickle.loads(bytes.fromhex(sys.stdin.read()))).run_line(0, {'q': 'a'})\n"
        "print(run['output'] or run['error']['message'])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", worker],
        input=printed,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
    )

    assert answer.stdout.strip() == "{'output': ['__mp_main__', 'aa', 'aa', 'aa']}"


BY_PATH_ONLY = """
import json, pickle, subprocess, sys
from promptflow.core import tool

class Item:
    def __init__(self, q): self.q = q

@tool
def run(q: str):
    child = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import pickle; "
    child += "print(pickle.loads(bytes.fromhex(sys.argv[2])).q)"
    command = [sys.executable, "-c", child, json.dumps(sys.path), pickle.dumps(Item(q)).hex()]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
"""


@pytest.mark.parametrize("source", ["a.py", "my-node.py"])
def test_a_process_that_has_only_the_path_finds_them(tmp_path: Path, source: str) -> None:
    """As joblib's, which import no main module; promptflow's mirror must be there, too."""
    write(tmp_path, {"flow.dag.yaml": dag(source), source: BY_PATH_ONLY})

    assert output(str(tmp_path))["n0"] == "a"
