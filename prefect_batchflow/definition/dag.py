"""flow.dag.yaml: nodes, the references between them, and the order in which they run."""

from __future__ import annotations

import heapq
import re
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.document import (
    DISPLAY_KEYS,
    Problems,
    mapping_at,
    read_environment,
    read_inputs,
    read_language,
    read_message_format,
    refuse_other_keys,
    says_nothing,
)
from prefect_batchflow.definition.flow import Activate, Constant, Dag, Flow, FlowOutput, Node, Reference
from prefect_batchflow.definition.includes import is_there, read_includes
from prefect_batchflow.definition.node_connections import with_node_connections
from prefect_batchflow.definition.service import with_service
from prefect_batchflow.definition.variants import with_variants
from prefect_batchflow.exceptions import (
    DuplicateNodeName,
    EmptyOutputReference,
    InputNotFound,
    InputReferenceNotFound,
    InvalidNodeReference,
    InvalidSource,
    NodeCircularDependency,
    NodeReferenceNotFound,
    OutputReferenceNotFound,
    UnsupportedFeatureError,
    listed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from prefect_batchflow.definition.flow import FlowInput

FLOW_KEYS = DISPLAY_KEYS | {
    "inputs", "outputs", "nodes", "language", "message_format", "environment_variables", "additional_includes",
    "node_variants",
    "tools",  # an old list of the nodes' tools; their sources say the same
}  # fmt: skip
NODE_KEYS = frozenset(
    {"name", "type", "source", "inputs", "activate", "aggregation", "reduce", "comment", "module", "api", "connection"}
)
NODE_TYPES = ("python", "prompt", "llm", "custom_llm")
# promptflow ignores them too: it never cached, and the connection tells the provider.
IGNORED_NODE_KEYS = frozenset({"enable_cache", "provider", "skip", "tool", "use_variants"})
SOURCE_KEYS = frozenset({"type", "path", "tool"})
# All but the reference is for promptflow's editors; its engine ignores it.
OUTPUT_KEYS = frozenset({"type", "reference", "description", "evaluation_only", "is_chat_output"})

_PROPERTY = re.compile(r"\.(?P<name>\w+)|\['(?P<single>.*?)'\]|\[\"(?P<double>.*?)\"\]|\[(?P<index>\d+)\]")


def flow_of_document(
    document: dict[str, Any],
    file: Path,
    working_dir: Path,
    variant: str,
    node_connections: Mapping[str, Mapping[str, str]],
) -> Flow:
    """Give the flow of a parsed flow.dag.yaml.

    For a flow in another language, only inputs, outputs, `service` and the nodes' `aggregation` are read. Its executor
    knows the rest. `variant` and `node_connections` are as for `load_flow`.

    Raises:
        InvalidOptionError: The node or variant does not exist, or the node takes no such connection.
        InvalidFlowRequest: The message lists every problem; the class is theirs if they share one.
    """
    problems = Problems(file)
    language, message_format = read_language(document, problems), read_message_format(document, problems)
    inputs = read_inputs(document, "inputs", problems)
    if says_nothing(document.get("inputs")):
        problems.add("top level", "no 'inputs'. Declare the inputs that each line has.", InputNotFound)
    outputs = _read_outputs(document, problems)
    flow = Flow(
        file.parent.name,
        working_dir,
        Dag((), outputs),
        inputs,
        language=language,
        definition_file=file,
        environment_variables=read_environment(document, problems),
        additional_includes=read_includes(document, file.parent, problems),
        message_format=message_format,
    )
    if not flow.is_python:
        return with_service(flow, document, problems)
    refuse_other_keys(document, FLOW_KEYS, "top level", problems)
    document = with_variants(document, variant, problems)
    document = with_node_connections(document, node_connections, problems)
    nodes = _read_nodes(document, working_dir, flow.additional_includes, problems)
    _check_references(nodes, inputs, problems)
    outputs = _check_outputs(outputs, nodes, inputs, problems)
    ordered = _in_order(nodes, problems)
    problems.raise_any()
    return replace(flow, program=Dag(ordered, outputs), variant=variant, node_connections=node_connections)


def parse_value(value: Any) -> Reference | Constant:
    """Parse the value of a node's input or a flow's output: a reference, or a constant.

    Raises:
        ValueError: A `${…}` is not a reference; the text says what is expected.
    Source: promptflow `contracts/flow.py`, `InputAssignment.deserialize`, and `executor/_input_assignment_parser.py`.
    """
    if not (isinstance(value, str) and value.startswith("${") and value.endswith("}")):
        return Constant(value)
    inner = value[2:-1]
    section, _, name = inner.partition(".")
    if section in {"inputs", "flow"} and name:
        return Reference(value, "inputs", name)
    match = re.fullmatch(r"(?P<node>[^.\[\]]+)(?:\.(?P<section>\w+)(?P<path>.*))?", inner)
    if match is None:
        raise ValueError(f"{value} is not a reference. Expected ${{inputs.name}} or ${{node.output}}.")
    if match["section"] is None:
        return Reference(f"${{{inner}.output}}", "node", match["node"])
    if match["section"] != "output":
        raise ValueError(
            f"{value} refers to '{match['section']}' of '{match['node']}'. A node has only ${{{match['node']}.output}}."
        )
    return Reference(value, "node", match["node"], tuple(_path(match["path"], value)))


def _path(text: str, reference: str) -> Iterator[str | int]:
    at = 0
    while at < len(text):
        match = _PROPERTY.match(text, at)
        if match is None:
            raise ValueError(f"{reference}: cannot read '{text[at:]}'. Expected .name, ['key'] or [0].")
        at = match.end()
        if match["index"] is not None:
            yield int(match["index"])
        else:
            yield next(part for part in match.group("name", "single", "double") if part is not None)


def _read_nodes(
    document: dict[str, Any], working_dir: Path, includes: Sequence[Path], problems: Problems
) -> list[Node]:
    entries = document.get("nodes") or []
    if not isinstance(entries, list):
        problems.add("top level", f"'nodes' should be a list, found {entries!r}.")
        return []
    if not entries:
        problems.add("top level", "no 'nodes'. A DAG flow lists them; a flex flow has an 'entry'.")
    nodes: dict[str, Node] = {}
    for number, entry in enumerate(entries, 1):
        node = _read_node(entry, number, working_dir, includes, problems)
        if node is None:
            continue
        if node.name in nodes:
            problems.add(f"node '{node.name}'", "two nodes have this name. Rename one of them.", DuplicateNodeName)
            continue
        nodes[node.name] = node
    return list(nodes.values())


def _read_node(entry: Any, number: int, working_dir: Path, includes: Sequence[Path], problems: Problems) -> Node | None:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        problems.add(f"node {number} of the list", f"expected a 'name', found {entry!r}.")
        return None
    place = f"node '{name}'"
    refuse_other_keys(entry, NODE_KEYS | IGNORED_NODE_KEYS, place, problems)
    kind = entry.get("type")
    if kind not in NODE_TYPES:
        found = f"the type '{kind}' is not supported" if kind else "no 'type'"
        problems.add(place, f"{found}. Expected one of {listed(NODE_TYPES)}.", UnsupportedFeatureError)
    if kind == "llm" and not (isinstance(entry.get("connection"), str) and entry["connection"]):
        problems.add(place, f"expected 'connection' with the name of one, found {entry.get('connection')!r}.")
    inputs = {}
    for parameter, value in mapping_at(entry, "inputs", place, problems).items():
        try:
            inputs[parameter] = parse_value(value)
        except ValueError as exc:
            problems.add(f"{place}, input '{parameter}'", str(exc))
    # A node without tool is kept, so that references to it do not become further problems.
    source, tool = _read_source(entry, place, working_dir, includes, problems) if kind in NODE_TYPES else ("", "")
    aggregation = bool(entry.get("aggregation") or entry.get("reduce"))
    activate = _read_activate(entry, place, problems)
    asks_model = kind in ("llm", "custom_llm")
    told = {
        key: str(entry.get(key) or "") for key in ("module", "type", *(("api", "connection") if asks_model else ()))
    }
    return Node(name, source, inputs, aggregation, activate, tool, **told)


def _read_activate(entry: dict[str, Any], place: str, problems: Problems) -> Activate | None:
    """Read `activate`: when the node runs.

    Source: promptflow `contracts/flow.py`, `ActivateCondition.deserialize`.
    """
    if entry.get("activate") is None:
        return None
    place = f"{place}, activate"
    condition = mapping_at(entry, "activate", place, problems)
    refuse_other_keys(condition, frozenset({"when", "is"}), place, problems)
    if not {"when", "is"} <= condition.keys():
        text = f"expected 'when', a reference, and 'is', the value to compare it with; found {condition!r}."
        problems.add(place, text)
        return None
    try:
        return Activate(parse_value(condition["when"]), condition["is"])
    except ValueError as exc:
        problems.add(place, str(exc))
        return None


def _read_source(
    entry: dict[str, Any], place: str, working_dir: Path, includes: Sequence[Path], problems: Problems
) -> tuple[str, str]:
    """The node's file and the id of its package tool; a part is empty if the node has none, or has a problem there."""
    source = mapping_at(entry, "source", place, problems)
    refuse_other_keys(source, SOURCE_KEYS, f"{place}, source", problems)
    kind = source.get("type") or "code"
    expected = {"python": ("code", "package"), "custom_llm": ("package_with_prompt",)}.get(entry["type"], ("code",))
    if kind not in expected:
        names = " or ".join(f"'{name}'" for name in expected)
        text = f"the source type '{kind}' is not supported. Expected {names} for a node of the type '{entry['type']}'."
        problems.add(place, text, UnsupportedFeatureError)
        return "", ""
    tool = source.get("tool") if kind != "code" else ""
    if kind != "code" and (not isinstance(tool, str) or not tool):
        text = f"expected 'source' with the 'tool' of a package, such as package.module.function, found {source!r}."
        problems.add(place, text)
        return "", ""
    if kind == "package":
        return "", str(tool)
    path = source.get("path")
    if not isinstance(path, str) or not path:
        problems.add(place, f"expected 'source' with the 'path' of a file, found {source!r}.", InvalidSource)
        return "", ""
    if not is_there(path, working_dir, includes):
        pattern = "*.py" if entry["type"] == "python" else "*.jinja2"
        there = ", ".join(sorted(file.name for file in working_dir.glob(pattern))[:10]) or f"no {pattern}"
        problems.add(place, f"no file '{path}' in {working_dir}, which contains {there}.", InvalidSource)
        return "", ""
    return path, str(tool)


def _read_outputs(document: dict[str, Any], problems: Problems) -> tuple[FlowOutput, ...]:
    outputs = []
    for name, spec in mapping_at(document, "outputs", "top level", problems).items():
        place = f"output '{name}'"
        if not isinstance(spec, dict):
            problems.add(place, f"expected 'reference: ${{node.output}}', found {spec!r}.")
            continue
        refuse_other_keys(spec, OUTPUT_KEYS, place, problems)
        if spec.get("reference") in (None, ""):
            problems.add(place, "no 'reference'. Name the node or input that gives it.", EmptyOutputReference)
            continue
        try:
            outputs.append(FlowOutput(name, parse_value(spec["reference"])))
        except ValueError as exc:
            problems.add(place, str(exc))
    return tuple(outputs)


def _check_references(nodes: list[Node], inputs: Mapping[str, FlowInput], problems: Problems) -> None:
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        for where, value in node.references.items():
            place = f"node '{node.name}', {where}"
            if value.section == "inputs":
                if value.name not in inputs:
                    problems.add(place, _unknown(value, "input", inputs), InputReferenceNotFound)
            elif value.name not in by_name:
                problems.add(place, _unknown(value, "node", by_name), NodeReferenceNotFound)
            elif by_name[value.name].aggregation and not node.aggregation:
                text = f"{value.text} is known only after all lines. Make '{node.name}' an aggregation node too."
                problems.add(place, text, InvalidNodeReference)
            elif node.aggregation and where == "activate" and not by_name[value.name].aggregation:
                text = f"{value.text} has one value per line. Refer to an aggregation node or a flow input instead."
                problems.add(place, text, InvalidNodeReference)


def _check_outputs(
    outputs: tuple[FlowOutput, ...], nodes: list[Node], inputs: Mapping[str, FlowInput], problems: Problems
) -> tuple[FlowOutput, ...]:
    """The outputs that a line has. One that refers to an aggregation node is dropped with a warning, as in promptflow."""
    by_name = {node.name: node for node in nodes}
    kept = []
    for output in outputs:
        value, place = output.value, f"output '{output.name}'"
        if isinstance(value, Constant):
            kept.append(output)
        elif value.section == "inputs":
            if value.name not in inputs:
                problems.add(place, _unknown(value, "input", inputs), OutputReferenceNotFound)
            kept.append(output)
        elif value.name not in by_name:
            problems.add(place, _unknown(value, "node", by_name), OutputReferenceNotFound)
        elif by_name[value.name].aggregation:
            warnings.warn(
                f"{problems.file}: {place} is left out, because {value.text} belongs to an aggregation node and no line "
                "has it. Log a metric in that node instead.",
                stacklevel=2,
            )
        else:
            kept.append(output)
    return tuple(kept)


def _unknown(value: Reference, what: str, known: Iterable[str]) -> str:
    there = listed(known) or "none"
    return f"{value.text} refers to the {what} '{value.name}', which does not exist. Existing: {there}."


def _in_order(nodes: list[Node], problems: Problems) -> tuple[Node, ...]:
    """The nodes in the order of the file, except that each comes after the nodes that it refers to."""
    place = {node.name: number for number, node in enumerate(nodes)}
    waits_for = [
        {place[v.name] for v in node.references.values() if v.section == "node" and v.name in place} for node in nodes
    ]
    needed_by: list[list[int]] = [[] for _ in nodes]
    for number, needed in enumerate(waits_for):
        for other in needed:
            needed_by[other].append(number)
    ready = [number for number, needed in enumerate(waits_for) if not needed]
    ordered = []
    while ready:
        number = heapq.heappop(ready)
        ordered.append(nodes[number])
        for other in needed_by[number]:
            waits_for[other].discard(number)
            if not waits_for[other]:
                heapq.heappush(ready, other)
    if len(ordered) < len(nodes):
        circle = _circle(waits_for)
        names = " → ".join(f"'{nodes[number].name}'" for number in [*circle, circle[0]])
        text = f"nodes wait for each other: {names}. Remove one of these references."
        problems.add("nodes", text, NodeCircularDependency)
    return tuple(ordered)


def _circle(waits_for: list[set[int]]) -> list[int]:
    """Nodes that wait for each other: each for the next, and the last for the first."""
    number = next(number for number, needed in enumerate(waits_for) if needed)
    walked: list[int] = []
    while number not in walked:
        walked.append(number)
        number = min(waits_for[number])
    return walked[walked.index(number) :]
