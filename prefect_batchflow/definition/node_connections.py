"""Other connections, deployments and models for nodes of a DAG flow, as promptflow's run files name them for one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prefect_batchflow.definition.document import Problems

CONNECTION = "connection"
MODEL_INPUTS = ("deployment_name", "model")
"""What is chosen beside a connection; inputs of any node that asks a model."""


def check_node_connections(given: Any, place: str) -> dict[str, dict[str, str]]:
    """Give what was chosen for nodes, if it has the form `{node: {input: name}}`.

    Args:
        given: As a person wrote it.
        place: Where, for messages.

    Raises:
        InvalidOptionError: It has another form.
    """
    expected = "expected {node: {connection: name}}, with `deployment_name` or `model` beside it"
    if not isinstance(given, dict):
        raise InvalidOptionError(f"{place}: {expected}, found {given!r}.")
    for node, chosen in given.items():
        if not isinstance(node, str) or not isinstance(chosen, dict):
            raise InvalidOptionError(f"{place}, node {node!r}: {expected}, found {chosen!r}.")
        for name, value in chosen.items():
            if not isinstance(name, str) or not isinstance(value, str) or not value:
                raise InvalidOptionError(
                    f"{place}, node '{node}', {name!r}: expected a name, as text, found {value!r}. Write one, in quotes if it "
                    "looks like a number, or leave the key out."
                )
    return given


def with_node_connections(
    document: dict[str, Any], node_connections: Mapping[str, Mapping[str, str]], problems: Problems
) -> dict[str, Any]:
    """Give the document with what was chosen for nodes written into them.

    An `llm` node gets `connection` itself, and `deployment_name` and `model` as inputs. Any other node that calls a tool
    gets inputs; whether those are connections is known by the tool's parameters only, and checked when it is imported.

    Args:
        document: A parsed flow.dag.yaml, variants written out.
        node_connections: Node to `connection`, `deployment_name`, `model`, or an input that is a connection, to name.
        problems: Of the yaml; names its file.

    Raises:
        InvalidOptionError: There is no such node, or it takes no such thing; the message lists what there is.
    Source: promptflow-devkit `_sdk/_orchestrator/utils.py`, `overwrite_connections`.
    """
    entries = document.get("nodes")
    if not node_connections or not isinstance(entries, list):
        return document
    names = [str(entry.get("name")) for entry in entries if isinstance(entry, dict)]
    for node in node_connections:
        if node not in names:
            raise InvalidOptionError(
                f"{problems.file}: a connection was chosen for the node '{node}', and there is none of that name. Nodes: "
                f"{_listed(names)}."
            )
    nodes = []
    for entry in entries:
        chosen = node_connections.get(str(entry.get("name"))) if isinstance(entry, dict) else None
        nodes.append(_with_chosen(entry, chosen, problems) if chosen else entry)
    return {**document, "nodes": nodes}


def _with_chosen(entry: dict[str, Any], chosen: Mapping[str, str], problems: Problems) -> dict[str, Any]:
    kind, place = entry.get("type"), f"{problems.file}, node '{entry['name']}'"
    if kind == "prompt":
        raise InvalidOptionError(
            f"{place}: {_listed(chosen)} was chosen for it, but it is a prompt node, which asks no model and takes no "
            "connection. Choose for the node that asks the model."
        )
    inputs = dict(chosen)
    written = dict(entry)
    if kind == "llm":
        if unknown := [name for name in chosen if name not in (CONNECTION, *MODEL_INPUTS)]:
            raise InvalidOptionError(
                f"{place}: {_listed(unknown)} was chosen for it, but of an llm node {_listed((CONNECTION, *MODEL_INPUTS))} "
                "can be chosen. Leave the others out, or write them into the flow."
            )
        if CONNECTION in inputs:
            written[CONNECTION] = inputs.pop(CONNECTION)
    own = entry.get("inputs")
    if isinstance(own, dict) or own is None:  # any other is told as the fault of the yaml that it is
        written["inputs"] = {**(own or {}), **inputs}
    return written


def refuse_other_inputs(node: str, chosen: Iterable[str], connections: Iterable[str]) -> None:
    """Refuse a choice of a tool's input that is no connection.

    Args:
        node: The node's name.
        chosen: What was chosen for it.
        connections: The tool's parameters that take a connection.

    Raises:
        InvalidOptionError: The message lists those that do.
    """
    known = list(connections)
    if others := [name for name in chosen if name not in (*known, *MODEL_INPUTS)]:
        raise InvalidOptionError(
            f"Node '{node}': {_listed(others)} was chosen as a connection for this run, but its tool takes a connection as "
            f"{_listed(known) or 'none of its parameters'}. Choose one of these, or {_listed(MODEL_INPUTS)}; any other input "
            "is the flow's."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
