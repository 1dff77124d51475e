"""What a run ran: where its flow and data are, their fingerprints, its options, its sessions. A resume compares."""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_batchflow.exceptions import RunNotFoundError, StorageError
from prefect_batchflow.settings import RunOptions  # noqa: TC001 - pydantic resolves it when the model is built
from prefect_batchflow.storage.files import ANOTHER_STORAGE, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys

FORMAT = 1

M = TypeVar("M", bound=BaseModel)


class Session(BaseModel):
    """One start of a run."""

    model_config = ConfigDict(frozen=True)

    started_at: str
    """ISO, UTC."""
    prefect_flow_run_id: str | None
    versions: dict[str, str]
    """Package to version: prefect-batchflow, prefect, python."""
    resumed_from: str | None = None
    """The run whose completed lines were taken over, if any."""


class Manifest(BaseModel):
    """The manifest of a run, `manifest.json`."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    run_id: str
    flow_name: str
    flow: str | None
    """What `load_flow` was given, absolute; `None` for an object in memory, which no command can resume."""
    working_dir: str
    variant: str = ""
    """`${node.variant}`, if one was chosen."""
    node_connections: dict[str, dict[str, str]] = {}
    """Node to the connections, deployment and model that were chosen for it, if any."""
    environment_names: list[str] = []
    """Names of the run's environment variables; their values, which may be keys, are not kept."""
    data: dict[str, str]
    """Source name to URL."""
    run: str | None = None
    """The run it is built on, the source of `run.outputs` and `run.inputs`, if any."""
    inputs_mapping: dict[str, Any]
    init_names: list[str]
    """Names of the class entry's arguments; their values are not kept when they came from Python."""
    init_kwargs: dict[str, Any] | None
    """Their values, when they came as plain parameters."""
    connections: dict[str, str] = {}
    """Connection's name to the block that has it, as it was asked for."""
    options: RunOptions
    output_dir: str | None
    total_lines: int
    fingerprints: dict[str, str]
    """What is compared on resume, part to hash: `data:data`, `data:run.outputs`, `inputs_mapping`, `flow`, `init`, …"""
    sessions: list[Session]
    records_since: int = 0
    """The first session whose records count: an `on_change="rerun"` moves it to its own."""

    @property
    def last_started_at(self) -> datetime:
        """When it was started last."""
        return datetime.fromisoformat(self.sessions[-1].started_at)


def fingerprint(value: Any) -> str:
    """A short hash of a JSON value; what in it is not JSON counts by its type, since its repr may hold its address."""
    text = json.dumps(value, sort_keys=True, default=lambda item: f"{type(item).__module__}.{type(item).__qualname__}")
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fingerprint_files(files: Iterable[Path], base: Path) -> str:
    """A short hash of files: their places below `base` and their content."""
    digest = hashlib.sha256()
    for path in sorted(files):
        name = str(path.relative_to(base)) if path.is_relative_to(base) else path.name
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()[:32]


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is not what it was, in words."""
    words = {
        "inputs_mapping": "the inputs_mapping",
        "flow": "the flow's files",
        "init": "the init arguments",
        "variant": "the variant",
        "node_connections": "the choice of connections for nodes",
        "environment": "the environment variables",
    }
    changed = []
    for part in sorted(before.keys() | now.keys()):
        if before.get(part) == now.get(part):
            continue
        name = words.get(part) or f"the data of source {part.removeprefix('data:')!r}"
        how = "was not there" if part not in before else "is no longer there" if part not in now else "changed"
        changed.append(f"{name} {how}")
    return changed


def versions() -> dict[str, str]:
    """The versions that a session ran with."""
    return {
        "prefect-batchflow": metadata.version("prefect-batchflow"),
        "prefect": metadata.version("prefect"),
        "python": platform.python_version(),
    }


async def read_model(files: RunFiles, key: str, model: type[M], what: str) -> M | None:
    """One JSON file of a run as the model it is; `None` when there is none.

    Args:
        files: The storage's file system.
        key: The file's.
        model: What it should be.
        what: The same for people, as `manifest`.

    Raises:
        StorageError: It cannot be told, or it is not of this model.
    """
    with storage_errors(files, "read", key, ANOTHER_STORAGE):
        try:
            content = await files.read_path(key)
        except FileNotFoundError:
            return None
    try:
        return model.model_validate_json(content)
    except ValidationError as exc:
        raise StorageError(f"The {what} at {files.location(key)} is damaged or of another version: {exc}") from exc


async def read_manifest(files: RunFiles, keys: RunKeys) -> Manifest | None:
    """The manifest of a run; `None` when there is none.

    Raises:
        StorageError: It cannot be told, or it is not a manifest of this format.
    """
    manifest = await read_model(files, keys.manifest, Manifest, "manifest")
    if manifest is not None and manifest.format != FORMAT:
        raise StorageError(
            f"The manifest at {files.location(keys.manifest)} is of format {manifest.format}; this version reads {FORMAT}."
        )
    return manifest


async def run_names(files: RunFiles) -> list[str]:
    """The names in a storage: its runs, and whatever else lies there.

    Raises:
        StorageError: It cannot be listed.
    """
    with storage_errors(files, "list", cure=ANOTHER_STORAGE):
        return await files.list_names("")


async def require_manifest(files: RunFiles, keys: RunKeys) -> Manifest:
    """The manifest of a run that must be there.

    Raises:
        RunNotFoundError: It is not; the message names the storage and some runs that are there.
        StorageError: It cannot be told.
    """
    manifest = await read_manifest(files, keys)
    if manifest is None:
        there = await run_names(files)
        known = (
            f"It holds {len(there)} run{'s' * (len(there) > 1)}, such as {', '.join(there[-3:])}."
            if there
            else "It holds no runs."
        )
        raise RunNotFoundError(
            f"There is no run {keys.run_id!r} in {files.location()}. {known} `batchflow list` shows them all.",
            run_id=keys.run_id,
        )
    return manifest


async def write_manifest(files: RunFiles, keys: RunKeys, manifest: Manifest) -> None:
    """Write the manifest whole.

    Raises:
        StorageError: It cannot be written.
    """
    with storage_errors(files, "write", keys.manifest):
        await files.write_path(keys.manifest, (manifest.model_dump_json(indent=2) + "\n").encode())
