"""Connections as saved blocks: loading several in one request, saving, listing and deleting them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import BlockDocument
from pydantic import SecretStr, TypeAdapter

from prefect_batchflow.blocks import (
    AzureOpenAIConnectionBlock,
    ConnectionBlock,
    CustomConnectionBlock,
    OpenAIConnectionBlock,
)
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.prefect_runtime.own_database import block_name
from prefect_batchflow.prefect_runtime.own_server import start_own_server
from prefect_batchflow.prefect_runtime.reached_server import check_server

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_KINDS: dict[str, type[ConnectionBlock]] = {
    str(kind.get_block_type_slug()): kind
    for kind in (AzureOpenAIConnectionBlock, CustomConnectionBlock, OpenAIConnectionBlock)
}

_PAGE = 200
"""Blocks in one answer, which is what Prefect's server gives at most."""


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
                    else "Create it with `batchflow connection create`, or give a file: "
                    f"--connection {name}=FILE.yml. `batchflow connection list` shows the blocks."
                )
            )
        specs[name] = fitting[0].spec()
    return specs


async def find_connections(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Load the connections that have a block of their name; leave out the others."""
    blocks = {name: block_name(name) for name in names}
    found = await _blocks({block for block in blocks.values() if block})
    return {name: found[block][0].spec() for name, block in blocks.items() if len(found.get(block, ())) == 1}


async def _blocks(names: set[str] | None) -> dict[str, list[ConnectionBlock]]:
    """The connection blocks with these names, by name, in one request; without names, all of them."""
    found: dict[str, list[ConnectionBlock]] = {}
    documents: list[BlockDocument] = []
    if names is not None and not names:
        return found
    # Prefect would start one by itself, but would wait less long for it.
    await asyncio.to_thread(start_own_server)
    await check_server()
    async with get_client() as client:
        while True:
            by_name = {} if names is None else {"block_documents": {"name": {"any_": sorted(names)}}}
            page = {"include_secrets": True, "limit": _PAGE, "offset": len(documents)}
            answer = await client.request("POST", "/block_documents/filter", json={**by_name, **page})
            documents += (more := TypeAdapter(list[BlockDocument]).validate_python(answer.json()))
            if len(more) < _PAGE:
                break
    for document in documents:
        slug = document.block_type.slug if document.block_type is not None else ""
        kind = _KINDS.get(str(slug))
        if kind is not None:
            found.setdefault(str(document.name), []).append(kind._from_block_document(document))
    return found


@dataclass(frozen=True, slots=True, repr=False)
class SavedConnection:
    """A connection in a block. Its `repr` shows no value."""

    block: str
    """Type and name, as `openai-connection/my-ai`."""
    spec: dict[str, Any]
    """promptflow's dictionary, with secrets in clear text."""

    @property
    def name(self) -> str:
        """The block's name."""
        return self.block.rpartition("/")[2]


async def save_connection(name: str, spec: Mapping[str, Any]) -> tuple[str, bool]:
    """Save a connection as the block of its name, in place of another one of that name, also of another type.

    Args:
        name: The connection's name in flows.
        spec: promptflow's dictionary, `{type, value, secret_keys}`.

    Returns:
        The block, as `openai-connection/my-ai`, and whether it replaced another.
    """
    block = block_name(name)
    if not block:
        raise InvalidOptionError(
            f"The name {name!r} has no letter or digit a-z, 0-9. Give the connection another --name."
        )
    before = (await _blocks({block})).get(block, [])
    made = _block_of(spec)
    await made.asave(block, overwrite=True)
    slug = made.get_block_type_slug()
    for other in before:
        if other.get_block_type_slug() != slug:
            # Two blocks of one name would hide each other from the flows that ask by name.
            await type(other).adelete(block)
    return f"{slug}/{block}", bool(before)


async def saved_connections(names: Iterable[str] | None = None) -> list[SavedConnection]:
    """The saved connections, by name; with `names`, only those blocks. A name can be a connection's or a block's."""
    found = await _blocks(None if names is None else {block_name(name.rpartition("/")[2]) for name in names})
    connections = [
        SavedConnection(f"{block.get_block_type_slug()}/{name}", block.spec())
        for name, blocks in found.items()
        for block in blocks
    ]
    return sorted(connections, key=lambda connection: (connection.name, connection.block))


async def delete_connection(connection: SavedConnection) -> None:
    """Delete the block of a connection."""
    await _KINDS[connection.block.partition("/")[0]].adelete(connection.name)


def _block_of(spec: Mapping[str, Any]) -> ConnectionBlock:
    value, kind = dict(spec["value"]), str(spec["type"])
    strong = next((block for block in _KINDS.values() if block.__name__ == f"{kind}Block"), None)
    if strong is not None and strong is not CustomConnectionBlock:
        return strong(**value)
    secret = set(spec.get("secret_keys") or ())
    return CustomConnectionBlock(
        connection_type=kind,
        configs={key: text for key, text in value.items() if key not in secret},
        secrets={key: SecretStr(text) for key, text in value.items() if key in secret},
    )
