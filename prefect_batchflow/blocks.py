"""The Prefect blocks of the package: connections, and a run storage on any fsspec file system, written whole or not at all.

Local writes are temp file, fsync and rename; remote ones a single PUT, or a large file's parts that are completed as one:
object stores show either at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem as LocalFiles
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import BlockDocument
from prefect.filesystems import WritableFileSystem
from pydantic import Field, HttpUrl, PrivateAttr, SecretStr, TypeAdapter, field_validator

from prefect_batchflow.errors.packages import pip_install
from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.inputs.places import OBJECT_STORES, absolute, fresh_listings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "AzureOpenAIConnectionBlock",
    "CustomConnectionBlock",
    "OpenAIConnectionBlock",
    "RunStorageBlock",
    "open_storage",
]


class RunStorageBlock(WritableFileSystem):
    """Where batch runs are kept: a folder a run, readable with `ls`, `jq` and `cat`.

    Example:
        ```python
        from prefect_batchflow.blocks import RunStorageBlock

        RunStorageBlock(url="s3://bucket/runs").save("BLOCK_NAME")
        block = RunStorageBlock.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str | None] = "Batchflow Run Storage"
    _block_type_slug: ClassVar[str | None] = "batchflow-run-storage"
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl("https://docs.prefect.io/v3/advanced/results")

    url: str = Field(
        description="Folder of the runs, as fsspec writes it: a path, file://, s3://, gs://, az://, memory://."
    )
    storage_options: dict[str, SecretStr] = Field(
        default_factory=dict, description="What fsspec needs to open it: keys, endpoints. Kept secret."
    )

    _fs: Any = PrivateAttr(default=None)
    _root: str = PrivateAttr(default="")
    _read_options: dict[str, Any] = PrivateAttr(default_factory=dict)

    @field_validator("url")
    @classmethod
    def _one_file_system(cls, url: str) -> str:
        if not url or "::" in url:
            raise InvalidOptionError(
                f"The storage URL {url!r} is no single folder. Give a path or one URL, such as s3://bucket/runs; "
                "chained URLs (`::`) are refused."
            )
        if "://" not in url:
            return absolute(url)
        protocol, _, path = url.partition("://")
        return f"{protocol}://{path.rstrip('/') or path[:1]}"

    def model_post_init(self, context: Any, /) -> None:
        """Open the file system: its package is missed here, before anything runs."""
        super().model_post_init(context)
        options = fresh_listings(self.url)
        options.update((name, value.get_secret_value()) for name, value in self.storage_options.items())
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url, **options)
        except ImportError as exc:
            module = OBJECT_STORES.get(self.url.split(":")[0])
            install = pip_install(module) if module else f"pip install the package it names: {exc}"
            raise InvalidOptionError(
                f"The storage {self.url} needs a package that is not installed. {install}"
            ) from exc
        except ValueError as exc:
            raise InvalidOptionError(f"The storage URL {self.url!r} cannot be opened: {exc}") from exc
        self._root = root.rstrip("/")
        if self.url.startswith(("s3://", "s3a://")):
            # Else s3fs asks for a key's size first, a second request, to read large ones in parts at once.
            self._read_options = {"max_concurrency": 1}

    @property
    def is_local(self) -> bool:
        """Whether runs lie in a folder of this machine."""
        return isinstance(self._fs, LocalFiles)

    def location(self, key: str = "") -> str:
        """Where a key lies, for people: a path on this machine, else a URL."""
        if self.is_local:
            return f"{self._root}/{key}".rstrip("/")
        return f"{self.url}/{key}".rstrip("/")

    def _resolve_path(self, path: str) -> str | None:
        # Prefect asks unsaved blocks where a key lies and keeps the answer as the record's key; keys are relative here.
        return None

    def _path(self, key: str) -> str:
        if key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"The storage key {key!r} leads out of the storage.")
        return f"{self._root}/{key}"

    async def read_path(self, path: str) -> bytes:
        """Give a key's bytes.

        Raises:
            FileNotFoundError: There is no such key. Any other error means that it cannot be told.
        """
        target = self._path(path)
        if self.is_local:
            return await asyncio.to_thread(Path(target).read_bytes)
        return bytes(await asyncio.to_thread(self._fs.cat_file, target, **self._read_options))

    async def write_path(self, path: str, content: bytes) -> None:
        """Write a key whole; a reader sees all of it or what was there before."""
        target = self._path(path)
        if self.is_local:
            await asyncio.to_thread(_replace, Path(target), content)
        else:
            await asyncio.to_thread(self._fs.pipe_file, target, content)

    async def create_path(self, path: str, content: bytes) -> None:
        """Write a key whole that is not there yet: of several who do so at once one succeeds, on stores that can compare.

        Raises:
            FileExistsError: It is there.
        """
        target = self._path(path)
        if self.is_local:
            await asyncio.to_thread(_create, Path(target), content)
        else:
            await asyncio.to_thread(self._fs.pipe_file, target, content, mode="create")

    async def put_file(self, path: str, source: Path) -> None:
        """Copy a local file to a key, whole like `write_path`."""
        target = self._path(path)
        if self.is_local:
            await asyncio.to_thread(_copy, source, Path(target))
        else:
            await asyncio.to_thread(self._fs.put_file, str(source), target)

    async def get_file(self, path: str, target: Path) -> None:
        """Copy a key to a local file."""
        source = self._path(path)
        if self.is_local:
            await asyncio.to_thread(shutil.copyfile, source, target)
        else:
            await asyncio.to_thread(self._fs.get_file, source, str(target))

    async def list_names(self, folder: str) -> list[str]:
        """The names directly below a folder, sorted; a folder that is not there holds none.

        Raises:
            OSError: It cannot be told; where the whole bucket is not there this is a `FileNotFoundError`.
        """
        target = self._path(folder) if folder else self._root

        def names() -> list[str]:
            # A listing that fsspec remembers would hide what another process wrote.
            self._fs.invalidate_cache(target)
            try:
                found = self._fs.ls(target, detail=False)
            except FileNotFoundError as exc:
                # An empty folder is what the file system finds itself; that there is no bucket is what the store answers.
                if exc.__cause__ is not None:
                    raise
                return []
            return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)

        return await asyncio.to_thread(names)

    def local_path(self, key: str) -> Path | None:
        """The file of a key on this machine, if it is one; its folder is made."""
        if not self.is_local:
            return None
        target = Path(self._path(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


async def open_storage(storage: str) -> RunStorageBlock:
    """The run storage at a URL, or a saved block `batchflow-run-storage/<name>`.

    Raises:
        InvalidOptionError: There is no such block, or the URL cannot be one.
    """
    if not storage.startswith(f"{RunStorageBlock.get_block_type_slug()}/"):
        return RunStorageBlock(url=storage)
    try:
        block = await Block.aload(storage)
    except ValueError as exc:
        raise InvalidOptionError(f"There is no saved block {storage!r}: {exc}") from exc
    assert isinstance(block, RunStorageBlock)
    return block


def _replace(target: Path, content: bytes) -> None:
    with _beside(target) as (fd, temporary):
        _write(fd, content)
        temporary.replace(target)
    _sync_folder(target.parent)


def _create(target: Path, content: bytes) -> None:
    with _beside(target) as (fd, temporary):
        _write(fd, content)
        target.hardlink_to(temporary)
    _sync_folder(target.parent)


def _write(fd: int, content: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.fsync(fd)


def _copy(source: Path, target: Path) -> None:
    with _beside(target) as (fd, temporary):
        with source.open("rb") as read, open(fd, "wb", closefd=False) as file:
            shutil.copyfileobj(read, file, 1 << 20)
        os.fsync(fd)
        temporary.replace(target)
    _sync_folder(target.parent)


@contextlib.contextmanager
def _beside(target: Path) -> Any:
    """A temporary file in the target's folder, gone if it was not renamed."""
    try:
        fd, name = tempfile.mkstemp(prefix=".writing-", dir=target.parent)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=".writing-", dir=target.parent)
    try:
        os.fchmod(fd, 0o644)
        yield fd, Path(name)
    finally:
        os.close(fd)
        Path(name).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_DOCUMENTATION = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")


class ConnectionBlock(Block):
    """What the blocks of connections share."""

    def spec(self) -> dict[str, Any]:
        """The connection as promptflow's dictionary, secrets in clear."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        plain = {
            key: value.get_secret_value() if isinstance(value, SecretStr) else value for key, value in values.items()
        }
        given = {key: value for key, value in plain.items() if value not in (None, "")}
        return {"type": type(self).__name__.removesuffix("Block"), "value": given}


class OpenAIConnectionBlock(ConnectionBlock):
    """OpenAI, or a service with its interface, for flows.

    Example:
        ```python
        from prefect_batchflow.blocks import OpenAIConnectionBlock

        OpenAIConnectionBlock(api_key="...").save("my-openai")
        block = OpenAIConnectionBlock.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str | None] = "OpenAI Connection"
    _block_type_slug: ClassVar[str | None] = "openai-connection"
    _documentation_url: ClassVar[HttpUrl | None] = _DOCUMENTATION

    api_key: SecretStr = Field(description="The key.")
    organization: str = Field(default="", description="The organization's id; empty is the key's own.")
    base_url: str = Field(default="", description="URL of a service with OpenAI's interface; empty is OpenAI's.")


class AzureOpenAIConnectionBlock(ConnectionBlock):
    """An Azure OpenAI resource, for flows.

    Example:
        ```python
        from prefect_batchflow.blocks import AzureOpenAIConnectionBlock

        AzureOpenAIConnectionBlock(api_base="https://...", api_key="...").save("my-azure")
        block = AzureOpenAIConnectionBlock.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str | None] = "Azure OpenAI Connection"
    _block_type_slug: ClassVar[str | None] = "azure-openai-connection"
    _documentation_url: ClassVar[HttpUrl | None] = _DOCUMENTATION

    api_base: str = Field(description="The resource's endpoint.")
    api_key: SecretStr | None = Field(default=None, description="The key; not needed with auth_mode meid_token.")
    api_version: str = Field(default="2024-02-01", description="The version of the interface.")
    auth_mode: str = Field(default="key", description="key, or meid_token for Microsoft Entra ID.")
    resource_id: str = Field(default="", description="The resource's id in Azure.")


class CustomConnectionBlock(ConnectionBlock):
    """Any connection, for flows: by its type, or with keys of one's own.

    Example:
        ```python
        from prefect_batchflow.blocks import CustomConnectionBlock

        CustomConnectionBlock(configs={"url": "https://..."}, secrets={"token": "..."}).save("my-service")
        block = CustomConnectionBlock.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str | None] = "Custom Connection"
    _block_type_slug: ClassVar[str | None] = "custom-connection"
    _documentation_url: ClassVar[HttpUrl | None] = _DOCUMENTATION

    connection_type: str = Field(
        default="CustomConnection", description="The connection's type, such as SerpConnection; its keys go below."
    )
    configs: dict[str, str] = Field(default_factory=dict, description="What is no secret.")
    secrets: dict[str, SecretStr] = Field(default_factory=dict, description="Keys and passwords. Kept secret.")

    def spec(self) -> dict[str, Any]:
        """The connection as promptflow's dictionary, secrets in clear."""
        secrets = {key: value.get_secret_value() for key, value in self.secrets.items()}
        return {
            "type": self.connection_type,
            "value": {**self.configs, **secrets},
            "secret_keys": sorted(secrets),
        }


def block_name(connection: str) -> str:
    """The name of the block that has a connection: lower case, and dashes for what is no letter or digit."""
    return re.sub(r"[^a-z0-9]+", "-", connection.lower()).strip("-")


async def load_connections(named: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The connections of the blocks that are asked for.

    Args:
        named: Connection's name to block, `openai-connection/my-block` or `my-block` alone.

    Raises:
        InvalidOptionError: A block is not there, or two of the name are, of several types.
    """
    found = await _blocks({block.rpartition("/")[2] for block in named.values()})
    specs = {}
    for name, wanted in named.items():
        slug, _, block = wanted.rpartition("/")
        fitting = [b for b in found.get(block, []) if slug in ("", b.get_block_type_slug())]
        if len(fitting) != 1:
            there = " and ".join(b.get_block_type_slug() + "/" + block for b in fitting)
            raise InvalidOptionError(
                f"The connection {name!r} is to be the block {wanted!r}: expected one of the types openai-connection, "
                f"azure-openai-connection and custom-connection, found {there or 'none'}. "
                + (
                    "Say which one is meant."
                    if there
                    else "Make it in the Prefect UI or from Python, docs/connections.md."
                )
            )
        specs[name] = fitting[0].spec()
    return specs


async def find_connections(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The connections that there is a block for, by the block's name; those without are left out."""
    blocks = {name: block_name(name) for name in names}
    found = await _blocks({block for block in blocks.values() if block})
    return {name: found[block][0].spec() for name, block in blocks.items() if len(found.get(block, ())) == 1}


async def _blocks(names: set[str]) -> dict[str, list[ConnectionBlock]]:
    """The blocks of connections with these names, asked for at once."""
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


_KINDS: dict[str, type[ConnectionBlock]] = {
    str(kind.get_block_type_slug()): kind
    for kind in (AzureOpenAIConnectionBlock, CustomConnectionBlock, OpenAIConnectionBlock)
}
