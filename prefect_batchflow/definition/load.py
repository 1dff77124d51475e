"""`load_flow`: the flow of a folder, a file, a reference or a callable."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from prefect_batchflow.definition import dag, flex, prompty
from prefect_batchflow.definition.document import read_document
from prefect_batchflow.definition.flow import SOURCE_SUFFIXES, Entry, Flow, Service
from prefect_batchflow.definition.includes import merge
from prefect_batchflow.definition.node_connections import check_node_connections
from prefect_batchflow.definition.run_folder import run_folder
from prefect_batchflow.exceptions import FlowDefinitionError, FlowNotFoundError, InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


NAMED_CALLABLE: Final = re.compile(r"((?P<file>.+\.py)|(?P<module>\w+(\.\w+)*)):(?P<attribute>\w+(\.\w+)*)")
"""`path/to/file.py:attribute` or `module:attribute`. If the text is an existing path, the path wins."""


def load_flow(
    source: str | Path | Callable[..., Any],
    working_dir: str | Path | None = None,
    *,
    variant: str = "",
    node_connections: Mapping[str, Mapping[str, str]] | None = None,
) -> Flow:
    """Load a flow from a folder, a file, `module:attr`, `path/to/file.py:attr` or a callable.

    Args:
        source: A folder with `flow.dag.yaml` or `flow.flex.yaml`; a yaml file (with `entry` it is flex, otherwise a DAG);
            a `.prompty` file; a reference to a function or class; or any callable object, such as a function or a class
            with `__call__`.
        working_dir: First on the worker's `sys.path`; relative sources are looked up here first. `None`: the flow file's
            folder; for a callable, the folder that its module is imported from; otherwise the current directory.
        variant: `${node.variant}` for a DAG flow; empty: the default of each node.
        node_connections: For a DAG flow: node to its choices in this run. These are names of connections (key
            `connection` or the tool's parameter), and `deployment_name` and `model`.

    Raises:
        FlowNotFoundError: Nothing is at the path; the message lists what is there instead.
        InvalidFlowRequest: The definition is wrong or not supported; the message lists every problem.
        InvalidOptionError: `working_dir` is not a folder, or the flow has no such variant or node; the message lists the
            existing ones.
    """
    chosen = check_node_connections(node_connections or {}, "node_connections")
    try:
        folder = None if working_dir is None else Path(working_dir).resolve()
    except (OSError, ValueError, RuntimeError) as exc:  # a NUL, or a circle of links
        raise InvalidOptionError(f"working_dir: {str(working_dir)!r} cannot be a folder: {exc}.") from exc
    if isinstance(source, str | os.PathLike):
        flow = _flow_of_text(os.fspath(source), folder, variant, chosen)
    else:
        flow = flex.flow_of_object(source, folder)
    if folder is not None and not folder.is_dir():
        looked = f" (looked for {folder})" if str(folder) != str(working_dir) else ""
        raise InvalidOptionError(
            f"working_dir: {str(working_dir)!r} is not a folder{looked}. Create it, or check the path."
        )
    if variant and flow.variant != variant:
        raise InvalidOptionError(
            f"The variant {variant!r} was chosen, but '{flow.name}' is not a flow.dag.yaml and has no variants. Leave it out."
        )
    if node_connections and flow.node_connections != node_connections:
        raise InvalidOptionError(
            f"Connections were chosen for the nodes {', '.join(map(repr, node_connections))}, but '{flow.name}' is not a "
            "flow.dag.yaml of Python nodes. Leave them out; the flow's own code names its connections."
        )
    return flow


def named_place(text: str, working_dir: Path | None) -> tuple[Path | None, str]:
    """Give the path that a flow's text names, and the attribute in that file, empty for a path alone.

    The path is `None` for `module:attribute`. Nothing has to exist.

    Raises:
        FlowNotFoundError: The text cannot be a path.
    """
    named = NAMED_CALLABLE.fullmatch(text)
    if named is None or _locate(text, working_dir).exists():
        return _locate(text, working_dir), ""
    return _locate(named["file"], working_dir) if named["file"] else None, named["attribute"]


def _flow_of_text(
    text: str, working_dir: Path | None, variant: str, node_connections: Mapping[str, Mapping[str, str]]
) -> Flow:
    place, attribute = named_place(text, working_dir)
    if place is None:
        return flex.flow_of_module(text.partition(":")[0], attribute, working_dir)
    path = _existing(place)
    if attribute:
        return flex.flow_of_file(path, attribute, working_dir)
    file = _definition_in(path) if path.is_dir() else path
    folder = working_dir or file.parent
    match file.suffix:
        case ".yaml" | ".yml":
            document = read_document(file)
            if "entry" in document:
                flow = flex.flow_of_document(document, file, folder)
            else:
                flow = dag.flow_of_document(document, file, folder, variant, node_connections)
        case ".prompty":
            flow = prompty.flow_of_prompty(file, folder)
        case ".dll":
            entry = Entry(module=str(file), attribute="")
            flow = Flow(file.stem, folder, entry, language="csharp", definition_file=file, service=Service())
        case ".py":
            raise FlowDefinitionError(
                f"{file}: a Python file alone is not a flow. Name the function or class in it, such as {file}:my_flow."
            )
        case suffix:
            raise FlowDefinitionError(
                f"{file}: expected a flow folder, a .yaml or .prompty file or 'file.py:callable', found a "
                f"{suffix or 'plain'} file."
            )
    return replace(flow, source=str(path))


@contextmanager
def merged(flow: Flow) -> Iterator[tuple[Flow, list[str]]]:
    """Merge a flow and its `additional_includes` in a temporary folder; raises and gives what `merged_copy` does."""
    with run_folder() as folder:
        yield merged_copy(flow, folder)


def merged_copy(flow: Flow, folder: Path) -> tuple[Flow, list[str]]:
    """Merge a flow and its `additional_includes` in an empty folder; give the merged flow and notes on replaced files.

    Raises:
        InvalidFlowRequest: The files cannot be merged, or the merged flow is wrong.
        InvalidOptionError: The flow's working directory is not its own folder.
    """
    assert flow.definition_file is not None, "only a yaml can have includes"
    own = flow.definition_file.parent
    if not flow.working_dir.samefile(own):
        raise InvalidOptionError(
            f"{flow.definition_file}: its additional_includes are merged into a copy of {own}, so the flow cannot run "
            f"in {flow.working_dir}. Leave the working_dir out."
        )
    folder = folder.resolve()
    notes = merge(own, flow.additional_includes, folder)
    document = read_document(flow.definition_file)
    del document["additional_includes"]
    file = folder / flow.definition_file.name
    file.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False), encoding="utf-8")
    merged = load_flow(file, folder, variant=flow.variant, node_connections=flow.node_connections)
    return replace(merged, name=flow.name, source=flow.source), notes


def _locate(text: str, folder: Path | None) -> Path:
    """The absolute path: below `folder` if it exists there, otherwise below the current directory."""
    try:
        path = Path(text).expanduser()
        below = (folder or Path.cwd()) / path
        return (below if below.exists() else path).resolve()
    except (OSError, ValueError, RuntimeError) as exc:
        raise FlowNotFoundError(f"No flow at {text!r}: {exc}.") from exc


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    nearest = next(parent for parent in path.parents if parent.is_dir())
    raise FlowNotFoundError(
        f"No flow at {path}. Expected a flow folder, a .yaml or .prompty file, 'module:callable' or 'file.py:callable'. "
        f"{nearest} contains {_candidates(nearest)}."
    )


def _definition_in(folder: Path) -> Path:
    names = ("flow.dag.yaml", "flow.flex.yaml", "flow.dag.yml", "flow.flex.yml")
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise FlowDefinitionError(
            f"{folder} contains {' and '.join(file.name for file in found)}. Give the path of the one to run."
        )
    if not found:
        raise FlowNotFoundError(
            f"No flow in {folder}. Expected flow.dag.yaml or flow.flex.yaml; the folder contains {_candidates(folder)}."
        )
    return found[0]


def _candidates(folder: Path) -> str:
    """What in a folder could be a flow instead, for a message."""
    names = sorted(
        entry.name + "/" * entry.is_dir()
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and (entry.is_dir() or entry.suffix in SOURCE_SUFFIXES)
    )
    shown = ", ".join(names[:10]) or "no yaml or Python file"
    return shown + f" and {len(names) - 10} more" * (len(names) > 10)
