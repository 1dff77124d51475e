"""Choosing connections, deployments and models for nodes of a DAG flow in one run, as promptflow's run files do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_batchflow.exceptions import InvalidOptionError, listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.definition.document import Problems

CONNECTION = "connection"
MODEL_INPUTS = ("deployment_name", "model")
"""Inputs that can be chosen besides a connection, for any node that asks a model."""


def check_node_connections(given: Any, place: str) -> dict[str, dict[str, str]]:
    """Check that choices have the form `{node: {input: name}}`, and give them back.

    Args:
        given: As written by a person.
        place: Where they are written, for messages.

    Raises:
        InvalidOptionError: It has another form.
    """
    expected = "expected {node: {connection: name}}, where `deployment_name` and `model` can be keys too"
    if not isinstance(given, dict):
        raise InvalidOptionError(f"{place}: {expected}, found {given!r}.")
    for node, chosen in given.items():
        if not isinstance(node, str) or not isinstance(chosen, dict):
            raise InvalidOptionError(f"{place}, node {node!r}: {expected}, found {chosen!r}.")
        for name, value in chosen.items():
            if not isinstance(name, str) or not isinstance(value, str) or not value:
                raise InvalidOptionError(
                    f"{place}, node '{node}', {name!r}: expected a name as text, found {value!r}. Write a name, in quotes if "
                    "it looks like a number, or leave the key out."
                )
    return given


def with_node_connections(
    document: dict[str, Any], node_connections: Mapping[str, Mapping[str, str]], problems: Problems
) -> dict[str, Any]:
    """Give the document with the choices written into its nodes.

    For an `llm` node, `connection` becomes its own, `deployment_name` and `model` become inputs. For any other tool, all
    choices become inputs; whether they are connections is checked once the tool is imported. Variants are applied before.

    Raises:
        InvalidOptionError: The node does not exist or takes no such choice; the message lists the possible ones.
    Source: promptflow-devkit `_sdk/_orchestrator/utils.py`, `overwrite_connections`.
    """
    entries = document.get("nodes")
    if not node_connections or not isinstance(entries, list):
        return document
    names = [str(entry.get("name")) for entry in entries if isinstance(entry, dict)]
    for node in node_connections:
        if node not in names:
            raise InvalidOptionError(
                f"{problems.file}: a connection was chosen for the node '{node}', which does not exist. Nodes: "
                f"{listed(names)}."
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
            f"{place}: {listed(chosen)} was chosen, but a prompt node asks no model and takes no connection. Choose it for "
            "the node that asks the model."
        )
    inputs = dict(chosen)
    written = dict(entry)
    if kind == "llm":
        if unknown := [name for name in chosen if name not in (CONNECTION, *MODEL_INPUTS)]:
            raise InvalidOptionError(
                f"{place}: {listed(unknown)} was chosen, but for an llm node only {listed((CONNECTION, *MODEL_INPUTS))} can "
                "be chosen. Leave the others out, or write them into the flow."
            )
        if CONNECTION in inputs:
            written[CONNECTION] = inputs.pop(CONNECTION)
    own = entry.get("inputs")
    if isinstance(own, dict) or own is None:  # anything else is reported as a problem of the yaml
        written["inputs"] = {**(own or {}), **inputs}
    return written
