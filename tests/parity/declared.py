"""How a parity case is written down: a tiny flow, its data and its options, in one call.

Both sides import this: our tests, and promptflow's own environment when its results are recorded. So only the standard
library is used here and in `cases/`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import pkgutil
import textwrap
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL_URL = "@MODEL_URL@"
"""Stands in files and connections for the address of the fake model server."""

_HEADER = "from promptflow.core import log_metric, tool\n\n"


@dataclass(frozen=True)
class Case:
    """One flow over its data, run by promptflow and by us."""

    name: str
    area: str
    """What it is about; the recordings of an area are one file."""
    files: dict[str, str | bytes]
    """Path in the case's folder to what is in it."""
    data: dict[str, Any]
    """Source name to rows, written as jsonl, or to the name of a file or folder in `files`."""
    mapping: dict[str, Any]
    entry: str = "flow.dag.yaml"
    """The flow's file, or `module:name` for a callable that the engine is given itself."""
    init: dict[str, Any] | None = None
    connections: dict[str, Any] | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    """More arguments of `BatchEngine`."""
    run: dict[str, Any] = field(default_factory=dict)
    """More arguments of `BatchEngine.run`."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the run."""
    resumes: bool = False
    """Run it twice, with `PARITY_TRY` 1 and 2 in the environment; the second run resumes from the first one's storage."""

    def digest(self) -> str:
        """Of everything declared: a recording of another declaration says nothing of this one."""
        declared = {f.name: getattr(self, f.name) for f in fields(self)}
        text = json.dumps(declared, sort_keys=True, default=bytes.hex)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write(self, folder: Path, model_url: str) -> dict[str, str]:
        """Write the flow and its data; the path of each source."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.replace(MODEL_URL, model_url).encode())
        sources = {}
        for name, rows in self.data.items():
            if isinstance(rows, str):
                sources[name] = str(folder / rows)
                continue
            path = folder / "data" / f"{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            sources[name] = str(path)
        return sources


CASES: dict[str, Case] = {}


def cases_of(area: str) -> Callable[..., None]:
    """Give the `case` that declares cases of one area; their recordings are in `recordings/<area>.json`."""
    return functools.partial(_case, area)


def _case(
    area: str,
    name: str,
    files: dict[str, str | bytes],
    rows: list[dict[str, Any]] | None = None,
    mapping: dict[str, Any] | None = None,
    *,
    data: dict[str, Any] | None = None,
    **more: Any,
) -> None:
    """Declare a case.

    Args:
        area: Given by `cases_of`.
        name: Says what it shows; unique.
        files: The flow, by `dag`, `flex` or as a dictionary.
        rows: The data, where `data` is its one source.
        mapping: The inputs mapping; promptflow completes it.
        data: Several sources, or one that is a file of `files`.
        **more: Other fields of `Case`.
    """
    if name in CASES:
        raise ValueError(f"two parity cases are called {name!r}; give each a name of its own")
    CASES[name] = Case(name, area, files, data or {"data": rows or []}, mapping or {}, **more)


def all_cases() -> dict[str, Case]:
    """Every case by name, area by area."""
    package = importlib.import_module("cases")
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"cases.{module}")
    return CASES


# --- flows in a few words -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A Python node: its code, and what flow.dag.yaml says of it besides."""

    code: str
    keys: dict[str, Any]


def node(code: str, inputs: dict[str, Any] | None = None, /, **keys: Any) -> Node:
    """A Python node. `tool` and `log_metric` are imported for it; a lone function is made the tool."""
    code = textwrap.dedent(code).strip("\n") + "\n"
    if "@tool" not in code and "ToolProvider" not in code:
        lines = code.splitlines(keepends=True)
        last = max(at for at, line in enumerate(lines) if line.startswith(("def ", "async def ")))
        code = "".join([*lines[:last], "@tool\n", *lines[last:]])
    return Node(_HEADER + code, {"inputs": inputs or {}, **keys})


def dag(
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    /,
    *,
    flow: dict[str, Any] | None = None,
    **nodes: Node | dict[str, Any],
) -> dict[str, str | bytes]:
    """The files of a DAG flow; its yaml is written as JSON, which is yaml.

    Args:
        inputs: Name to type, or to the whole declaration.
        outputs: Name to reference.
        flow: Other keys of the yaml.
        **nodes: Name to Python node, or to the whole declaration of another kind.
    """
    files: dict[str, str | bytes] = {}
    written: list[dict[str, Any]] = []
    for name, declared in nodes.items():
        if isinstance(declared, Node):
            files[f"{name}.py"] = declared.code
            source = {"type": "code", "path": f"{name}.py"}
            written.append({"name": name, "type": "python", "source": source, **declared.keys})
        else:
            written.append({"name": name, **declared})
    document = {
        "inputs": {name: {"type": said} if isinstance(said, str) else said for name, said in inputs.items()},
        "outputs": {name: {"type": "object", "reference": said} for name, said in outputs.items()},
        "nodes": written,
        **(flow or {}),
    }
    return {"flow.dag.yaml": json.dumps(document, indent=1, ensure_ascii=False), **files}


def flex(code: str, entry: str = "main", /, **keys: Any) -> dict[str, str | bytes]:
    """The files of a flex flow: `entry` in `code`; `keys` are others of flow.flex.yaml. Run it with `**FLEX`."""
    document = {"entry": f"flex_code:{entry}", **keys}
    return {"flow.flex.yaml": json.dumps(document, indent=1), "flex_code.py": textwrap.dedent(code).strip("\n") + "\n"}


FLEX = {"entry": "flow.flex.yaml"}


def sample(name: str, rows: int, *, data: str, more: dict[str, str | bytes] | None = None) -> dict[str, str | bytes]:
    """The files of a sample under `flows/`, with the first rows of its data."""
    folder = Path(__file__).parents[2] / "flows" / name
    files: dict[str, str | bytes] = {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("*"))
        if path.suffix in {".py", ".yaml"}
    }
    lines = (folder / data).read_text(encoding="utf-8").splitlines(keepends=True)
    return {**files, **(more or {}), "rows.jsonl": "".join(lines[:rows])}
