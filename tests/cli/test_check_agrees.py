"""`batchflow check` says what a run does: each flow is checked, checked with `--import`, and started as by a run.

The table has one row per kind of flow that a check once judged wrongly, or could. A verdict is `can run` exactly when the run's
preparation succeeds. `cannot tell` is right for both; the row says where that is all that can be known without an import.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.cli.flow_check import check_flow
from prefect_batchflow.exceptions import BatchflowException
from prefect_batchflow.run.starting import FlowRequest, starting

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_batchflow.definition.flow import FlowDescription

pytestmark = pytest.mark.programs

TOOL = "from promptflow.core import tool\n@tool\ndef run(text: str) -> str:\n    return text\n"
CONNECTION_TOOL = (
    "from promptflow.core import tool\nfrom promptflow.connections import CustomConnection\n"
    "@tool\ndef run(text: str, connection: CustomConnection) -> str:\n    return text\n"
)
OWN_TOOL = (
    "from promptflow.core import tool\nfrom promptflow.connections import CustomStrongTypeConnection\n"
    "from promptflow.contracts.types import Secret\nclass Mine(CustomStrongTypeConnection):\n    token: Secret\n"
    "    place: str = 'here'\n@tool\ndef run(text: str, connection: Mine) -> str:\n    return text\n"
)
FLEX = {"flow.flex.yaml": "entry: main:main\n"}
CLASS = {"flow.flex.yaml": "entry: main:Main\n"}
AZURE = "model: {configuration: {type: azure_openai, azure_deployment: d"


def dag(source: str = TOOL, *, inputs: str = "", more: str = "", **files: str) -> dict[str, str]:
    """A DAG flow of one node, `node.py`."""
    yaml = (
        "inputs: {text: {type: string}}\noutputs: {out: {reference: '${node.output}'}}\nnodes:\n"
        f"- {{name: node, type: python, source: {{type: code, path: node.py}}, inputs: {{text: '${{inputs.text}}'{inputs}}}}}\n"
    )
    return {
        "flow/flow.dag.yaml": yaml + more,
        "flow/node.py": source,
        **{f"flow/{n}": text for n, text in files.items()},
    }


def flex(source: str, yaml: str = "", entry: str = "main", **files: str) -> dict[str, str]:
    """A flex flow of one file, `main.py`."""
    source = textwrap.dedent(source)
    return {"flow/flow.flex.yaml": f"entry: main:{entry}\n{yaml}", "flow/main.py": source, **files}


def prompty(model: str) -> dict[str, str]:
    return {"flow/ask.prompty": f"---\n{model}\ninputs: {{q: {{type: string}}}}\n---\nuser:\n{{{{q}}}}\n"}


def llm(inputs: str = "model: m", connection: str = "ai", template: str = "user:\n{{ text }}\n") -> dict[str, str]:
    """A DAG flow of one llm node."""
    yaml = (
        "inputs: {text: {type: string}}\noutputs: {out: {reference: '${node.output}'}}\nnodes:\n"
        "- {name: node, type: llm, source: {type: code, path: node.jinja2}, api: chat, "
        f"connection: '{connection}', inputs: {{text: '${{inputs.text}}', {inputs}}}}}\n"
    )
    return {"flow/flow.dag.yaml": yaml, "flow/node.jinja2": template}


@dataclass(frozen=True)
class Row:
    """A flow, and the verdict of a check that imports nothing."""

    id: str
    verdict: str
    files: dict[str, str]
    said: str = ""
    """A part of a finding's text."""
    entry: str = "flow"
    given: dict[str, Any] = field(default_factory=dict)


AI = {"ai": {"type": "OpenAIConnection", "value": {"api_key": "k", "base_url": "http://127.0.0.1:9"}}}
MINE = {"mine": {"type": "CustomConnection", "value": {"key": "v"}}}
PACKAGE = {
    "pkg/__init__.py": "import os, sys\nsys.path.append(os.path.dirname(__file__))\nimport inner\n",
    "pkg/inner.py": "import deeper\n",
    "pkg/deeper.py": "",
}

ROWS = [
    # additional_includes
    Row("an included file", "can run", dag("import shared\n" + TOOL, more="additional_includes: [../shared.py]\n")
        | {"shared.py": "import json\n"}),
    Row("an included folder", "can run", dag("from lib.shared import x\n" + TOOL, more="additional_includes: [../lib]\n")
        | {"lib/shared.py": "x = 1\n", "lib/__init__.py": ""}),
    Row("an included tool", "can run", {k: v for k, v in dag(more="additional_includes: [../node.py]\n").items()
        if k != "flow/node.py"} | {"node.py": TOOL}),
    Row("an included entry", "can run", {"flow/flow.flex.yaml": "entry: main:main\nadditional_includes: [../main.py]\n",
        "main.py": "def main(q): return q\n"}),
    Row("an included file with a missing package", "cannot run", dag("import shared\n" + TOOL,
        more="additional_includes: [../shared.py]\n") | {"shared.py": "import nowhere_at_all\n"}, "nowhere_at_all"),
    # packages that extend the search path
    Row("a package that adds itself to sys.path", "can run", dag("import pkg\n" + TOOL, **PACKAGE)),
    Row("a folder added by the tool", "can run", dag("import sys, pathlib\n"
        "sys.path.insert(0, str(pathlib.Path(__file__).parent / 'lib'))\nimport inner\n" + TOOL, **{"lib/inner.py": ""})),
    Row("a folder beside the flow", "can run", dag("import sys, os\n"
        "sys.path.append(os.path.join(os.path.dirname(__file__), '..', 'lib'))\nimport inner\n" + TOOL)
        | {"lib/inner.py": ""}),
    Row("a search path that does not help", "cannot tell", dag("import sys\nsys.path.append('/nowhere')\n"
        "import nowhere_at_all\n" + TOOL), "check with --import"),
    Row("a search path, and a missing part of a package", "cannot tell", dag("import sys\nsys.path.append('lib')\n"
        "try:\n    import pkg.gone\nexcept ImportError as e:\n    if e.name == 'pkg':\n        raise\n"
        "import pkg.gone\n" + TOOL, **{"pkg/__init__.py": ""}), "check with --import"),
    # missing packages
    Row("a missing package", "cannot run", dag("import nowhere_at_all\n" + TOOL), "pip install nowhere-at-all"),
    Row("a missing part of a shared name", "cannot run", dag("from azure.nowhere.aio import X\n" + TOOL),
        "pip install azure-nowhere"),
    Row("a missing package in a function", "cannot tell", flex("def main(q):\n    import nowhere_at_all\n    return q\n")),
    Row("an optional package", "can run", dag("try:\n    import nowhere_at_all\nexcept ImportError:\n    pass\n" + TOOL)),
    Row("a suppressed import", "can run", dag("from contextlib import suppress\nwith suppress(ImportError):\n"
        "    import nowhere_at_all\n" + TOOL)),
    Row("an import for scripts", "can run", dag(TOOL + "if __name__ == '__main__':\n    import nowhere_at_all\n")),
    Row("an import for old Pythons", "can run", dag("import sys\nif sys.version_info < (3, 9):\n"
        "    import nowhere_at_all\nelse:\n    import tomllib\n" + TOOL)),
    Row("a helper without the name", "cannot run", dag("from helper import gone\n" + TOOL, **{"helper.py": "x = 1\n"}),
        "cannot import 'gone'"),
    Row("a helper with a star", "can run", dag("from helper import join\n" + TOOL,
        **{"helper.py": "from os.path import *\n"})),
    Row("a relative import without a package", "cannot run", dag("from .helper import x\n" + TOOL,
        **{"helper.py": "x = 1\n"}), "needs a package"),
    Row("relative imports in a package", "can run", dag("import pkg\n" + TOOL, **{"pkg/__init__.py": "from .a import x\n",
        "pkg/a.py": "from . import b\nfrom .b import x\n", "pkg/b.py": "x = 1\n"})),
    Row("an entry in a package", "can run", {"flow/flow.flex.yaml": "entry: pkg.main:main\n", "flow/pkg/__init__.py": "",
        "flow/pkg/main.py": "from .helper import x\ndef main(q): return x\n", "flow/pkg/helper.py": "x = 1\n"}),
    Row("a module of another platform", "cannot run", dag("import winreg\n" + TOOL), "winreg"),
    Row("a package in an except that gives up", "cannot run", dag("try:\n    import nowhere_at_all\nexcept ImportError as e:\n"
        "    raise RuntimeError('install it') from e\n" + TOOL), "pip install nowhere-at-all"),
    Row("a package in an except that exits", "cannot run", dag("import sys\ntry:\n    import nowhere_at_all\n"
        "except Exception:\n    sys.exit('install it')\n" + TOOL), "pip install nowhere-at-all"),
    Row("a package in an except for something else", "cannot run", dag("try:\n    import nowhere_at_all\n"
        "except (ValueError, KeyError):\n    pass\n" + TOOL), "pip install nowhere-at-all"),
    Row("an optional package by its own error", "can run", dag("try:\n    import nowhere_at_all\n"
        "except (ValueError, ModuleNotFoundError):\n    pass\n" + TOOL)),
    Row("a name that Python lacks", "cannot run", dag("from json import nothing\n" + TOOL), "cannot import 'nothing'"),
    Row("a name that a built-in module lacks", "cannot run", dag("from sys import nothing\n" + TOOL), "'nothing'"),
    Row("a module of Python", "can run", dag("from os import path, getcwd\nfrom concurrent import futures\n" + TOOL)),
    Row("a name of a match", "can run", dag("from helper import found, rest\n" + TOOL,
        **{"helper.py": "match [1, 2]:\n    case [found, *rest]:\n        pass\n"})),
    Row("a name that is only annotated", "cannot run", dag("from helper import gone\n" + TOOL,
        **{"helper.py": "gone: int\n"}), "cannot import 'gone'"),
    Row("a package that adds a folder to itself", "cannot tell", dag("import pkg.inner\n" + TOOL, **{"pkg/__init__.py":
        "import os\n__path__.append(os.path.join(os.path.dirname(__file__), '..', 'lib'))\n", "lib/inner.py": ""})),
    Row("a return outside a function", "cannot run", dag("return 1\n" + TOOL), "outside function"),
    Row("an await outside a function", "cannot run", dag("await x\n" + TOOL), "outside function"),
    Row("a parameter twice", "cannot run", dag("def f(a, a): ...\n" + TOOL), "duplicate argument"),
    # constructors
    Row("a class of a helper", "needs", flex("from helper import Main\n", entry="Main") | {"flow/helper.py":
        "class Main:\n    def __init__(self, n): ...\n    def __call__(self, q): return q\n"}, "--init n=…"),
    Row("a class of a package's part under another name", "needs", flex("from pkg import Main\n", entry="Main")
        | {"flow/pkg/__init__.py": "from .part import Own as Main\n", "flow/pkg/part.py":
        "class Own:\n    def __init__(self, n): ...\n    def __call__(self, q): return q\n"}, "--init n=…"),
    Row("a pydantic model", "cannot tell", flex("from pydantic import BaseModel\nclass Main(BaseModel):\n    n: int\n"
        "    def __call__(self, q): return q\n", entry="Main"), "check with --import"),
    Row("a class with __new__", "cannot tell", flex("class Main:\n    def __new__(cls, n): return object.__new__(cls)\n"
        "    def __call__(self, q): return q\n", entry="Main"), "check with --import"),
    Row("an abstract class", "cannot tell", flex("from abc import ABC, abstractmethod\nclass Main(ABC):\n    @abstractmethod\n"
        "    def f(self): ...\n    def __call__(self, q): return q\n", entry="Main"), "check with --import"),
    Row("a constructor whose argument no yaml names", "needs", flex("class Main:\n    def __init__(self, n): ...\n"
        "    def __call__(self, q): return q\n", entry="Main"), "--init n=…"),
    Row("a constructor that gets its argument", "can run", flex("class Main:\n    def __init__(self, n): ...\n"
        "    def __call__(self, q): return q\n", entry="Main"), given={"init_kwargs": {"n": 1}}),
    Row("a constructor with a sample", "can run", flex("class Main:\n    def __init__(self, n): ...\n"
        "    def __call__(self, q): return q\n", "sample: {init: {n: 1}}\n", "Main")),
    Row("a keyword-only argument", "needs", flex("class Main:\n    def __init__(self, *, n, m=1): ...\n"
        "    def __call__(self, q): return q\n", entry="Main"), "--init n=…"),
    Row("an inherited constructor", "needs", flex("class Base:\n    def __init__(self, n): ...\n"
        "class Main(Base):\n    def __call__(self, q): return q\n", entry="Main"), "--init n=…"),
    Row("a dataclass", "needs", flex("from dataclasses import dataclass, field\n@dataclass\nclass Main:\n    n: int\n"
        "    m: list = field(default_factory=list)\n    def __call__(self, q): return q\n", entry="Main"), "--init n=…"),
    Row("an argument that the constructor lacks", "cannot run", flex("class Main:\n    def __init__(self, n=1): ...\n"
        "    def __call__(self, q): return q\n", "init: {m: {type: int, default: 2}}\n", "Main"), "unexpected keyword"),
    Row("a class that takes any argument", "can run", flex("class Main:\n    def __init__(self, **more): ...\n"
        "    def __call__(self, q): return q\n", "init: {m: {type: int, default: 2}}\n", "Main")),
    Row("a constructor's argument of a wrong type", "cannot run", flex("class Main:\n    def __init__(self, n): ...\n"
        "    def __call__(self, q): return q\n", "init: {n: {type: int}}\n", "Main"), "init 'n'",
        given={"init_kwargs": {"n": "many"}}),
    Row("a class without __call__", "cannot run", flex("class Main:\n    def run(self, q): return q\n", entry="Main"),
        "has no __call__"),
    Row("an aggregation of two parameters", "cannot run", flex("class Main:\n    def __call__(self, q): return q\n"
        "    def __aggregate__(self, a, b): ...\n", entry="Main"), "should take one parameter"),
    Row("arguments for a function", "cannot run", flex("def main(q): return q\n"), "no constructor",
        given={"init_kwargs": {"n": 1}}),
    Row("arguments for a DAG flow", "cannot run", dag(), "no constructor", given={"init_kwargs": {"n": 1}}),
    Row("a constructor's connection", "needs", flex("from promptflow.connections import CustomConnection\nclass Main:\n"
        "    def __init__(self, c: CustomConnection): ...\n    def __call__(self, q): return q\n",
        "sample: {init: {c: mine}}\n", "Main"), "the connection 'mine'"),
    Row("a constructor's connection, given", "can run", flex("from promptflow.connections import CustomConnection\n"
        "class Main:\n    def __init__(self, c: CustomConnection): ...\n    def __call__(self, q): return q\n",
        "sample: {init: {c: mine}}\n", "Main"), given={"connections": MINE}),
    # entries
    Row("an entry that is not there", "cannot run", flex("def other(q): return q\n"), "has no 'main'"),
    Row("an entry from a helper", "can run", flex("from helper import main\n") | {"flow/helper.py": "def main(q): ...\n"}),
    Row("an entry that is assigned", "can run", flex("import functools\ndef f(a, q): ...\nmain = functools.partial(f, 1)\n")),
    Row("a module:attr", "cannot run", {"flow/m.py": ""}, "has no 'f'", entry="flow/m.py:f"),
    Row("a file:attr", "can run", {"flow/m.py": "def f(q): return q\n"}, entry="flow/m.py:f"),
    # connections
    Row("an empty connection", "needs", dag(CONNECTION_TOOL, inputs=", connection: ''"), "--node-connections node.connection="),
    Row("a null connection", "needs", dag(CONNECTION_TOOL, inputs=", connection: null"), "--node-connections node.connection="),
    Row("no connection", "needs", dag(CONNECTION_TOOL), "--node-connections node.connection="),
    Row("an empty connection, chosen", "can run", dag(CONNECTION_TOOL, inputs=", connection: ''"),
        given={"node_connections": {"node": {"connection": "mine"}}, "connections": MINE}),
    Row("an empty connection with a default", "can run", dag(CONNECTION_TOOL.replace("CustomConnection)",
        "CustomConnection = None)"), inputs=", connection: ''")),
    Row("a connection", "needs", dag(CONNECTION_TOOL, inputs=", connection: mine"), "the connection 'mine'"),
    Row("a connection, given", "can run", dag(CONNECTION_TOOL, inputs=", connection: mine"), given={"connections": MINE}),
    Row("a connection under another name", "needs", dag(CONNECTION_TOOL.replace("import CustomConnection",
        "import CustomConnection as C").replace(": CustomConnection", ": C"), inputs=", connection: mine"), "'mine'"),
    Row("a union of connections by name", "needs", dag(
        "from typing import Union\nfrom promptflow.core import tool\nfrom promptflow.connections import CustomConnection, "
        "OpenAIConnection\nAny = Union[CustomConnection, OpenAIConnection]\n@tool\ndef run(text: str, connection: Any): ...\n",
        inputs=", connection: mine"), "'mine'"),
    Row("an empty connection beside a class of a package", "needs", dag("from pydantic import BaseModel\n"
        "class Row(BaseModel):\n    n: int\n" + CONNECTION_TOOL, inputs=", connection: ''"),
        "--node-connections node.connection="),
    Row("an empty connection beside a decorated function", "needs", dag("import functools\n@functools.wraps(print)\n"
        "def f(): ...\nfrom os.path import *\n" + CONNECTION_TOOL, inputs=", connection: ''"),
        "--node-connections node.connection="),
    Row("a connection of the flow's own class", "needs", dag(OWN_TOOL, inputs=", connection: mine"), "the connection 'mine'"),
    Row("no connection of the flow's own class", "needs", dag(OWN_TOOL), "--node-connections node.connection="),
    Row("a connection of the flow's own class, given", "can run", dag(OWN_TOOL.replace("token", "key"),
        inputs=", connection: mine"), given={"connections": MINE}),
    Row("a connection that lacks a field of the flow's own class", "cannot run", dag(OWN_TOOL, inputs=", connection: mine"),
        "has no token", given={"connections": MINE}),
    Row("a connection of another type", "cannot run", dag(CONNECTION_TOOL, inputs=", connection: ai"), "takes CustomConnection",
        given={"connections": AI}),
    Row("an llm node without connection", "cannot run", llm(connection=""), "expected 'connection' with the name"),
    Row("an llm node", "can run", llm(), given={"connections": AI}),
    Row("an llm node without model", "cannot run", llm("temperature: 1"), "the name of the model", given={"connections": AI}),
    Row("an llm node without model and connection", "cannot run", llm("temperature: 1"), "the name of the model"),
    Row("an llm node with a broken template", "cannot run", llm(template="user:\n{{ text\n"), "node.jinja2",
        given={"connections": AI}),
    # tools
    Row("a missing parameter", "cannot run", dag(TOOL.replace("text: str", "text: str, n: int")), "needs 'n'"),
    Row("an unknown input", "cannot run", dag(inputs=", other: 1"), "has no parameter 'other'"),
    Row("a constant of a wrong type", "cannot run", dag(TOOL.replace("text: str", "text: str, n: int"), inputs=", n: many"),
        "input 'n'"),
    Row("a decorated tool", "can run", dag("import functools\nfrom promptflow.core import tool\ndef plain(f):\n"
        "    @functools.wraps(f)\n    def g(*a, **k): return f(*a, **k)\n    return g\n@tool\n@plain\ndef run(text): ...\n")),
    Row("another decorator called tool", "can run", dag("from helper import tool\n@tool\ndef run(text): ...\n",
        **{"helper.py": "from promptflow.core import tool\n"})),
    Row("a marked function", "can run", dag("from promptflow.core import tool\ndef run(text): ...\nrun = tool(run)\n")),
    Row("a tool by its module", "can run", dag("import promptflow.core as pf\n@pf.tool(name='x')\ndef run(text): ...\n")),
    Row("a tool class", "can run", dag("from promptflow.core import ToolProvider, tool\nclass T(ToolProvider):\n"
        "    def __init__(self, n: int): ...\n    @tool\n    def run(self, text): ...\n", inputs=", n: 3")),
    Row("a tool class without its argument", "cannot run", dag("from promptflow.core import ToolProvider, tool\n"
        "class T(ToolProvider):\n    def __init__(self, n: int): ...\n    @tool\n    def run(self, text): ...\n"), "needs 'n'"),
    Row("two tools", "cannot run", dag(TOOL + "@tool\ndef more(text): ...\n"), "2 functions with @tool"),
    Row("no tool", "cannot run", dag("def run(text): ...\n"), "no function with @tool"),
    # prompty
    Row("a prompty", "can run", prompty("model: {configuration: {type: openai, model: m, api_key: k}}"),
        entry="flow/ask.prompty"),
    Row("a prompty without model", "cannot run", prompty("model: {configuration: {type: openai, api_key: k}}"),
        "does not name a model", entry="flow/ask.prompty"),
    Row("a prompty without model and connection", "cannot run", prompty("model: {configuration: {connection: ai}}"),
        "does not name a model", entry="flow/ask.prompty"),
    Row("a prompty with a connection", "needs", prompty("model: {configuration: {connection: ai, model: m}}"), "'ai'",
        entry="flow/ask.prompty"),
    Row("a prompty with a variable", "needs", prompty("model: {configuration: {type: openai, model: m, "
        "api_key: '${env:NOT_SET_ANYWHERE}'}}"), "NOT_SET_ANYWHERE", entry="flow/ask.prompty"),
    Row("a prompty with a variable of the run", "can run", prompty("model: {configuration: {type: openai, model: m, "
        "api_key: '${env:NOT_SET_ANYWHERE}'}}"), entry="flow/ask.prompty",
        given={"environment_variables": {"NOT_SET_ANYWHERE": "k"}}),
    # promptflow's names
    Row("a client that is imported", "can run", flex("from promptflow.client import PFClient\ndef main(q): return q\n")),
    Row("a client that is made on import", "cannot run", flex("from promptflow.client import PFClient\nc = PFClient()\n"
        "def main(q): return q\n"), "batchflow run"),
    Row("a client that is made in a line", "cannot tell", flex("import promptflow.client as p\n"
        "def main(q): return p.PFClient()\n"), "batchflow run"),
    Row("a client that is made in a script", "can run", flex("from promptflow.client import PFClient\n"
        "def main(q): return q\nif __name__ == '__main__':\n    PFClient()\n")),
    Row("a flow that is called", "can run", flex("from promptflow.core import Prompty\n"
        "def main(q): return Prompty.load('ask.prompty')(q=q)\n")
        | prompty("model: {configuration: {type: openai, model: m, api_key: k}}")),
    Row("a flow that is called with another model", "can run", flex("from promptflow.core import Prompty\n"
        "def main(q): return Prompty.load('ask.prompty', model={'configuration': {'model': 'm'}})(q=q)\n")
        | prompty("model: {configuration: {type: openai, api_key: k}}")),
    Row("a called flow of a folder", "can run", flex("from promptflow.client import load_flow\n"
        "def main(q): return load_flow('sub')(q=q)\n") | {"flow/sub/flow.flex.yaml": "entry: own:f\n",
        "flow/sub/own.py": "def f(q): return q\n"}),
    Row("a model configuration's connection by variables", "needs", flex("from promptflow.core import "
        "AzureOpenAIModelConfiguration\nclass Main:\n    def __init__(self, m: AzureOpenAIModelConfiguration): ...\n"
        "    def __call__(self, q): return q\n", "sample: {init: {m: {connection: az, azure_deployment: d}}}\n", "Main"),
        "AZ_API_BASE", given={"environment_variables": {"AZ_API_KEY": "k"}}),
    Row("a prompty's connection by variables", "needs", prompty(AZURE + ", connection: az}}"), "AZ_API_BASE",
        entry="flow/ask.prompty", given={"environment_variables": {"AZ_API_KEY": "k"}}),
    Row("a called flow that is not there", "cannot tell", flex("from promptflow.core import Prompty\n"
        "def main(q): return Prompty.load('gone.prompty')(q=q)\n"), "gone.prompty"),
    Row("a called flow that names no model", "cannot tell", flex("from promptflow.client import load_flow\n"
        "def main(q): return load_flow(source='ask.prompty')(q=q)\n")
        | prompty("model: {configuration: {type: openai, api_key: k}}"), "does not name a model"),
    Row("a name that promptflow does not have here", "cannot run", flex("from promptflow.core import nothing\n"
        "def main(q): return q\n"), "promptflow.core.nothing"),
    # environment
    Row("a variable from a connection", "needs", dag(more="environment_variables: {KEY: '${mine.key}'}\n"), "'mine'"),
    Row("a variable from a connection, given", "can run", dag(more="environment_variables: {KEY: '${mine.key}'}\n"),
        given={"connections": MINE}),
    Row("a variable without such a key", "cannot run", dag(more="environment_variables: {KEY: '${mine.gone}'}\n"),
        "no such key", given={"connections": MINE}),
    Row("a program that is not there", "cannot run", {"flow/flow.flex.yaml": "entry: x\nlanguage: cobol\n"
        "service: {command: [nowhere-at-all, '{port}']}\n"}, "nowhere-at-all"),
]  # fmt: skip

ONLY_IMPORTED = [
    Row("a module that raises", "can run", dag("raise RuntimeError('no')\n" + TOOL), "no"),
    Row("a constructor that raises", "can run", flex("class Main:\n    def __init__(self): raise ValueError('no')\n"
        "    def __call__(self, q): return q\n", entry="Main"), "no"),
    Row("a search path to nowhere", "cannot tell", dag("import sys\nsys.path.append('/nowhere')\nimport nowhere_at_all\n"
        + TOOL), "nowhere_at_all"),
]  # fmt: skip
"""Flows that only an import shows to be wrong."""


def write(row: Row, folder: Path) -> tuple[str, FlowRequest]:
    for name, text in row.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    source = str(folder / row.entry)
    return source, FlowRequest(flow=source, **row.given)


def started(request: FlowRequest) -> str:
    """Why a run would be refused before its data; empty if it would not."""

    async def start() -> FlowDescription:
        async with starting(request) as start:
            return await start.start()

    try:
        asyncio.run(start())
    except BatchflowException as exc:
        return exc.message
    return ""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
@pytest.mark.usefixtures("prefect_server")
def test_a_check_says_what_a_run_does(row: Row, tmp_path: Path) -> None:
    source, request = write(row, tmp_path)

    refusal = started(request)
    read = check_flow(source, **row.given)
    imported = check_flow(source, imports=True, **row.given)

    assert (read.verdict, row.said in " ".join(f.text for f in read.findings)) == (row.verdict, True), read.findings
    if read.verdict != "cannot tell":
        assert (read.verdict == "can run") == (not refusal), refusal
    assert (imported.verdict == "can run") == (not refusal), (imported.findings, refusal)
    assert imported.verdict != "cannot tell"


@pytest.mark.parametrize("row", ONLY_IMPORTED, ids=lambda row: row.id)
@pytest.mark.usefixtures("prefect_server")
def test_an_import_shows_the_rest(row: Row, tmp_path: Path) -> None:
    source, request = write(row, tmp_path)

    assert row.said in started(request)
    assert check_flow(source).verdict == row.verdict
    (finding,) = check_flow(source, imports=True).of("stops")
    assert row.said in finding.text


def test_a_check_leaves_the_environment_and_promptflows_names_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import sys

    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    before, hooks = dict(os.environ), list(sys.meta_path)
    source, _ = write(
        Row("", "", prompty("model: {configuration: {model: m, api_key: '${env:NOT_SET_ANYWHERE}'}}")), tmp_path
    )

    check_flow(source + "/ask.prompty", environment_variables={"OTHER_VARIABLE": "x"})

    assert dict(os.environ) == before
    assert [hook for hook in sys.meta_path if "promptflow_shim" in repr(hook)] == [
        hook for hook in hooks if "promptflow_shim" in repr(hook)
    ]
    assert json.dumps(before)
    shutil.rmtree(tmp_path)
