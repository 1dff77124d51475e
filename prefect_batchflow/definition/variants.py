"""Variants: choosing one of several definitions of a DAG flow's node for a run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.document import mapping_at
from prefect_batchflow.exceptions import InvalidOptionError, listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_batchflow.definition.document import Problems

_CHOICE = re.compile(r"(?:\$\{)?(?P<node>[^.${}]+)\.(?P<variant>[^${}]+?)(?P<closed>\})?")


def parse_variant(text: str) -> tuple[str, str]:
    """Give the node and the variant of `${node.variant}` or `node.variant`.

    Raises:
        InvalidOptionError: It has another form.
    """
    match = _CHOICE.fullmatch(text.strip())
    if match is None or text.strip().startswith("${") != bool(match["closed"]):
        raise InvalidOptionError(
            f"The variant {text!r} should name a node and its variant, such as '${{node.variant_1}}' or 'node.variant_1'."
        )
    return match["node"], match["variant"]


def with_variants(document: dict[str, Any], variant: str, problems: Problems) -> dict[str, Any]:
    """Give a parsed flow.dag.yaml with each node that has `use_variants` replaced by its variant.

    An empty `variant` is the default of each node.

    Raises:
        InvalidOptionError: The chosen node or variant does not exist; the message lists the existing ones.
    Source: promptflow-devkit `_sdk/_orchestrator/utils.py`, `overwrite_variant`.
    """
    entries = document.get("nodes")
    if not isinstance(entries, list):
        return document
    all_variants = mapping_at(document, "node_variants", "top level", problems)
    varied = {str(entry.get("name")) for entry in entries if isinstance(entry, dict) and entry.get("use_variants")}
    chosen = _choice(variant, all_variants, varied, problems) if variant else {}
    nodes = []
    for entry in entries:
        if not (isinstance(entry, dict) and entry.get("use_variants")):
            nodes.append(entry)
        elif (written := _written_out(entry, all_variants, chosen, problems)) is not None:
            nodes.append(written)
    return {**document, "nodes": nodes}


def _choice(text: str, all_variants: Mapping[str, Any], varied: set[str], problems: Problems) -> dict[str, str]:
    node, variant = parse_variant(text)
    if node not in varied:
        there = listed(sorted(varied)) or "none"
        raise InvalidOptionError(
            f"{problems.file}: the variant {text!r} was chosen, but no node '{node}' has `use_variants: true`. Nodes that "
            f"have it: {there}."
        )
    known = _variants_of(all_variants.get(node))
    if variant not in known:
        raise InvalidOptionError(
            f"{problems.file}: the node '{node}' has no variant '{variant}'. It has {listed(known) or 'none'}."
        )
    return {node: variant}


def _written_out(
    entry: dict[str, Any], all_variants: Mapping[str, Any], chosen: Mapping[str, str], problems: Problems
) -> dict[str, Any] | None:
    """The node as its variant defines it; `None` if the yaml does not define it."""
    name = entry.get("name")
    if not isinstance(name, str):
        return {key: value for key, value in entry.items() if key != "use_variants"}
    place = f"node '{name}'"
    given = all_variants.get(name)
    known = _variants_of(given)
    if not isinstance(given, dict) or not known:
        there = listed(all_variants) or "none"
        problems.add(place, f"it has `use_variants`, but 'node_variants' has no variants for it, only for: {there}.")
        return None
    variant = chosen.get(name) or given.get("default_variant_id")
    if variant not in known:
        text = f"'default_variant_id' is {variant!r}, expected one of {listed(known)}. Or choose one for the run."
        problems.add(f"node_variants of '{name}'", text)
        return None
    node = known[variant].get("node") if isinstance(known[variant], dict) else None
    if not isinstance(node, dict):
        text = f"expected 'node' with the keys of a node, without its name. Found {known[variant]!r}."
        problems.add(f"node_variants of '{name}', '{variant}'", text)
        return None
    return {**node, "name": name}


def _variants_of(given: Any) -> dict[str, Any]:
    variants = given.get("variants") if isinstance(given, dict) else None
    return variants if isinstance(variants, dict) else {}
