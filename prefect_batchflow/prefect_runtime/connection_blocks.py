"""Loading connections from saved blocks, several in one request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import BlockDocument
from pydantic import TypeAdapter

from prefect_batchflow.blocks import (
    AzureOpenAIConnectionBlock,
    ConnectionBlock,
    CustomConnectionBlock,
    OpenAIConnectionBlock,
)
from prefect_batchflow.exceptions import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_KINDS: dict[str, type[ConnectionBlock]] = {
    str(kind.get_block_type_slug()): kind
    for kind in (AzureOpenAIConnectionBlock, CustomConnectionBlock, OpenAIConnectionBlock)
}


def block_name(connection: str) -> str:
    """The block name for a connection: lower case, with a dash for other characters than letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", connection.lower()).strip("-")


async def load_connections(named: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Load connections from the blocks that the user named.

    Args:
        named: Connection name to block: `openai-connection/my-block`, or `my-block` alone.

    Raises:
        InvalidOptionError: A block does not exist, or several types have a block of that name.
    """
    found = await _blocks({block.rpartition("/")[2] for block in named.values()})
    specs = {}
    for name, wanted in named.items():
        slug, _, block = wanted.rpartition("/")
        fitting = [b for b in found.get(block, []) if slug in ("", b.get_block_type_slug())]
        if len(fitting) != 1:
            there = " and ".join(b.get_block_type_slug() + "/" + block for b in fitting)
            raise InvalidOptionError(
                f"Cannot load connection {name!r} from block {wanted!r}: expected one block of type "
                f"{' or '.join(sorted(_KINDS))}, found {there or 'none'}. "
                + (
                    "Write the type in front of the name."
                    if there
                    else "Create it in the Prefect UI or from Python; see docs/connections.md."
                )
            )
        specs[name] = fitting[0].spec()
    return specs


async def find_connections(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Load the connections that have a block of their name; leave out the others."""
    blocks = {name: block_name(name) for name in names}
    found = await _blocks({block for block in blocks.values() if block})
    return {name: found[block][0].spec() for name, block in blocks.items() if len(found.get(block, ())) == 1}


async def _blocks(names: set[str]) -> dict[str, list[ConnectionBlock]]:
    """The connection blocks with these names, by name, in one request."""
    found: dict[str, list[ConnectionBlock]] = {}
    if not names:
        return found
    async with get_client() as client:
        answer = await client.request(
            "POST",
            "/block_documents/filter",
            json={"block_documents": {"name": {"any_": sorted(names)}}, "include_secrets": True},
        )
    for document in TypeAdapter(list[BlockDocument]).validate_python(answer.json()):
        slug = document.block_type.slug if document.block_type is not None else ""
        kind = _KINDS.get(str(slug))
        if kind is not None:
            found.setdefault(str(document.name), []).append(kind._from_block_document(document))
    return found
