"""The package's Prefect blocks, for the run storage and for connections.

A new kind of connection also goes into the table of `prefect_runtime.connection_blocks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from prefect.blocks.core import Block
from prefect.filesystems import WritableFileSystem
from pydantic import Field, HttpUrl, PrivateAttr, SecretStr, field_validator

from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.storage.files import RunFiles, folder_url
from prefect_batchflow.storage.retries import open_files

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

__all__ = [
    "AzureOpenAIConnectionBlock",
    "CustomConnectionBlock",
    "OpenAIConnectionBlock",
    "RunStorageBlock",
    "open_storage",
]


def __dir__() -> list[str]:
    # `prefect block register` registers all block classes that it finds, base classes too.
    return __all__


class RunStorageBlock(WritableFileSystem):
    """Where batch runs are kept: one folder per run, readable with `ls`, `jq` and `cat`.

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
        description="Folder of the runs: a path, or a URL that fsspec knows (file://, s3://, gs://, az://, memory://)."
    )
    storage_options: dict[str, SecretStr] = Field(
        default_factory=dict, description="Options for fsspec, such as keys and endpoints. Kept secret."
    )

    _files: RunFiles = PrivateAttr()
    _may_write: Callable[[str], Awaitable[None]] | None = PrivateAttr(default=None)

    @field_validator("url")
    @classmethod
    def _one_folder(cls, url: str) -> str:
        return folder_url(url)

    def model_post_init(self, context: Any, /) -> None:
        """Open the file system, so that a missing package is reported before anything runs."""
        super().model_post_init(context)
        options = {name: value.get_secret_value() for name, value in self.storage_options.items()}
        self._files = open_files(self.url, options)

    def _resolve_path(self, path: str) -> str | None:
        # Prefect would keep an unsaved block's answer as the record's key; our keys stay relative.
        return None

    def fenced(self, may_write: Callable[[str], Awaitable[None]]) -> RunStorageBlock:
        """The same storage for one writer of a run: `may_write` gets each key before each try, and can refuse it."""
        block = self.model_copy()
        block._files = self._files.fenced(may_write)
        block._may_write = may_write
        return block

    async def check_writer(self, key: str = "") -> None:
        """Raise what `fenced` refuses, before something is written that depends on this run alone."""
        if self._may_write is not None:
            await self._may_write(key)

    def location(self, key: str = "") -> str:
        """A key's place for messages: a path on this machine, otherwise a URL."""
        return self._files.location(key)

    def scrubbed(self, text: str) -> str:
        """A text, such as that of an error, without the secrets in the storage's URL and options."""
        return self._files.scrubbed(text)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return self._files.is_local

    def local_path(self, key: str) -> Path | None:
        """The path of a key on this machine; `None` on a remote storage."""
        return self._files.local_path(key)

    async def read_path(self, path: str) -> bytes:
        """Give a key's bytes."""
        return await self._files.read_path(path)

    async def write_path(self, path: str, content: bytes) -> None:
        """Write a key whole."""
        await self._files.write_path(path, content)

    async def create_path(self, path: str, content: bytes) -> None:
        """Write a new key whole."""
        await self._files.create_path(path, content)

    async def put_file(self, path: str, source: Path) -> None:
        """Copy a local file to a key, whole."""
        await self._files.put_file(path, source)

    async def get_file(self, path: str, target: Path) -> None:
        """Copy a key to a local file."""
        await self._files.get_file(path, target)

    async def size_of(self, path: str) -> int | None:
        """How many bytes a key has; `None` if the storage does not know."""
        return await self._files.size_of(path)

    async def move(self, path: str, target: str) -> None:
        """Give a key another name, without reading it."""
        await self._files.move(path, target)

    async def delete_path(self, path: str) -> None:
        """Delete a key, if it exists."""
        await self._files.delete_path(path)

    async def delete_folder(self, folder: str) -> None:
        """Delete a folder with everything in it, if it exists."""
        await self._files.delete_folder(folder)

    async def list_names(self, folder: str) -> list[str]:
        """The names directly below a folder, sorted."""
        return await self._files.list_names(folder)

    def when_failing(self, call: Callable[[bool], None]) -> None:
        """Call this method when the storage begins to fail, and when it works or has failed for good; kept weakly."""
        self._files.when_failing(call)


def is_block(storage: str) -> bool:
    """Whether the text names a saved block, not a URL or a folder."""
    return storage.startswith(f"{RunStorageBlock.get_block_type_slug()}/")


async def open_storage(storage: str) -> RunStorageBlock:
    """The run storage at a URL, or a saved block `batchflow-run-storage/<name>`.

    Raises:
        InvalidOptionError: There is no such block, or the URL is not valid.
    """
    if not is_block(storage):
        return RunStorageBlock(url=storage)
    try:
        block = await Block.aload(storage)
    except ValueError as exc:
        raise InvalidOptionError(f"There is no saved block {storage!r}: {exc}") from exc
    assert isinstance(block, RunStorageBlock)
    return block


_DOCUMENTATION = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")


class ConnectionBlock(Block):
    """Base of the connection blocks."""

    def spec(self) -> dict[str, Any]:
        """The connection as promptflow's dictionary, with secrets in clear text."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        plain = {
            key: value.get_secret_value() if isinstance(value, SecretStr) else value for key, value in values.items()
        }
        given = {key: value for key, value in plain.items() if value not in (None, "")}
        return {"type": type(self).__name__.removesuffix("Block"), "value": given}


class OpenAIConnectionBlock(ConnectionBlock):
    """A connection to OpenAI, or to a service with the same API.

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

    api_key: SecretStr = Field(description="The API key.")
    organization: str = Field(
        default="", description="The organization's id. Empty for the key's default organization."
    )
    base_url: str = Field(default="", description="URL of a service with OpenAI's API. Empty for OpenAI itself.")


class AzureOpenAIConnectionBlock(ConnectionBlock):
    """A connection to an Azure OpenAI resource.

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
    api_key: SecretStr | None = Field(default=None, description="The API key. Not needed with auth_mode meid_token.")
    api_version: str = Field(default="2024-02-01", description="The API version.")
    api_type: str = Field(default="azure", description="promptflow's api_type, which has no effect.")
    auth_mode: str = Field(default="key", description="key, or meid_token for Microsoft Entra ID.")
    resource_id: str = Field(default="", description="The resource's id in Azure.")


class CustomConnectionBlock(ConnectionBlock):
    """A connection of any other type, or with keys of your own.

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
        default="CustomConnection", description="The connection's type, such as SerpConnection."
    )
    configs: dict[str, str] = Field(default_factory=dict, description="Values that are not secret.")
    secrets: dict[str, SecretStr] = Field(default_factory=dict, description="Keys and passwords. Kept secret.")

    def spec(self) -> dict[str, Any]:
        """The connection as promptflow's dictionary, with secrets in clear text."""
        secrets = {key: value.get_secret_value() for key, value in self.secrets.items()}
        return {
            "type": self.connection_type,
            "value": {**self.configs, **secrets},
            "secret_keys": sorted(secrets),
        }
