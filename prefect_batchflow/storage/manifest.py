"""The manifest of a run: its flow, data, options and sessions, with fingerprints that a resume compares."""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError

from prefect_batchflow.definition.code_parts import digest_of
from prefect_batchflow.exceptions import RunNotFoundError, StorageError
from prefect_batchflow.settings import RunOptions  # noqa: TC001 - pydantic resolves it when the model is built
from prefect_batchflow.storage.files import ANOTHER_STORAGE, storage_errors
from prefect_batchflow.storage.retries import read_sound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic_core import ErrorDetails

    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys

FORMAT = 2
"""Raise it with a change that older manifests do not fit. In 2, `max_failures` replaced three options."""

_CURE = "Use the version that started the run, or start a new run."

M = TypeVar("M", bound=BaseModel)


class Session(BaseModel):
    """One start of a run."""

    model_config = ConfigDict(frozen=True)

    started_at: str
    """ISO format, UTC."""
    prefect_flow_run_id: str | None
    versions: dict[str, str]
    """Package to version: prefect-batchflow, prefect, python."""
    resumed_from: str | None = None
    """The run whose completed lines were copied, if any."""
    renumbers: Literal["begun", "done"] | None = None
    """Whether it copies records under new line numbers, because lines were inserted, removed or moved. A session that has begun
    this and not done it ran no line, and its records do not count."""


class Manifest(BaseModel):
    """The manifest of a run, `manifest.json`."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    run_id: str
    flow_name: str
    flow: str | None
    """The flow's path or entry, absolute; `None` for an object in memory, which no command can resume."""
    working_dir: str
    variant: str = ""
    """The chosen `${node.variant}`, if any."""
    node_connections: dict[str, dict[str, str]] = {}
    """Node to the connections, deployment and model chosen for it."""
    environment_names: list[str] = []
    """Names of the run's environment variables. Their values can be secret, so they are not stored."""
    data: dict[str, str]
    """Source name to URL."""
    image_roots: list[str] = []
    """More folders where images can be, absolute paths or URLs."""
    run: str | None = None
    """The run that this one is built on, the source of `run.outputs` and `run.inputs`, if any."""
    inputs_mapping: dict[str, Any]
    init_names: list[str]
    """Names of the class entry's arguments."""
    init_kwargs: dict[str, Any] | None
    """Their values, if they came as plain parameters; values from Python are not stored."""
    connections: dict[str, str] = {}
    """Connection name to the block or file that the user named for it."""
    connection_names: list[str] = []
    """Names of the connections that came as values, which are not stored."""
    options: RunOptions
    output_dir: str | None
    total_lines: int
    fingerprints: dict[str, str]
    """Compared on resume. Part to hash: `data:data`, `data:run.outputs`, `inputs_mapping`, `flow`, `init`, …"""
    flow_parts: dict[str, str] = {}
    """The files of the flow and the parts of its code, each to a short hash, so that a resume can name them."""
    packages: dict[str, str] = {}
    """The installed packages that the flow imports, and their versions."""
    surroundings: dict[str, str] | None = None
    """The flow's environment variables and the values of its connections, each to a short hash; secrets have none. `None` in
    the manifest of an older version."""
    sessions: list[Session]
    records_since: int = 0
    """The first session whose records count by their line numbers; `on_change="rerun"` and new line numbers set it to the
    new session."""
    contents_since: int | None = None
    """The first session whose records count by their inputs. Only `on_change="rerun"` sets it to the new session."""

    @property
    def last_started_at(self) -> datetime:
        """When the last session started."""
        return datetime.fromisoformat(self.sessions[-1].started_at)


def fingerprint(value: Any) -> str:
    """A short hash of a JSON value, and of objects in it by their state, or by their type if they have locks and the like."""
    text = json.dumps(value, sort_keys=True, default=lambda item: {type(item).__qualname__: digest_of(item)})
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def changes(
    before: Mapping[str, str], now: Mapping[str, str], details: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Describe the fingerprints that differ, by part. `details` has better words for some of them."""
    words = {
        "inputs_mapping": "the inputs_mapping",
        "flow": "the flow's files",
        "packages": "the installed packages",
        "init": "the init arguments",
        "variant": "the variant",
        "node_connections": "the choice of connections for nodes",
        "connections": "the connections",
        "environment": "the environment variables",
        "line_number_column": "the line_number_column",
        "inputs_with_default": "the choice of inputs_with_default",
    }
    changed = {}
    for part, how in differences(before, now):
        name = words.get(part) or f"the data of source {part.removeprefix('data:')!r}"
        changed[part] = (details or {}).get(part) or f"{name} {how}"
    return changed


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str]]:
    """The names whose values differ, each with the words for it."""
    return [
        (name, "is new" if name not in before else "is gone" if name not in now else "changed")
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def versions() -> dict[str, str]:
    """The versions of this session."""
    return {
        "prefect-batchflow": metadata.version("prefect-batchflow"),
        "prefect": metadata.version("prefect"),
        "python": platform.python_version(),
    }


async def read_model(
    files: RunFiles, key: str, model: type[M], what: str, check: Callable[[bytes], None] | None = None
) -> M | None:
    """Read one JSON file of a run; `None` if there is none. Messages call it `what`, such as `manifest`.

    `check` gets its content first.

    Raises:
        StorageError: The file cannot be read, or does not fit the model.
    """

    def decode(content: bytes) -> M:
        if check is not None:
            check(content)
        # Not `model_validate_json`: it refuses the escapes that `json.dumps` writes for a path that is not UTF-8.
        return model.model_validate(json.loads(content)) if b"\\ud" in content else model.model_validate_json(content)

    with storage_errors(files, "read", key, ANOTHER_STORAGE):
        try:
            return await read_sound(files, key, decode)
        except FileNotFoundError:
            return None
        except ValidationError as exc:
            problems = [_problem(error) for error in exc.errors(include_url=False, include_context=False)]
            more = f" and {len(problems) - 3} more problems" if len(problems) > 3 else ""
            raise StorageError(
                f"The {what} at {files.location(key)} is damaged, or another version of prefect-batchflow wrote it: "
                f"{'; '.join(problems[:3])}{more}. {_CURE}"
            ) from exc


def _problem(error: ErrorDetails) -> str:
    place = ".".join(map(str, error["loc"])) or "the file"
    known = {
        "missing": "is missing",
        "unexpected_keyword_argument": "is unknown to this version",
        "json_invalid": "is not JSON",
    }
    return f"{place} {known.get(error['type'], 'has an unexpected value')}"


async def read_manifest(files: RunFiles, keys: RunKeys) -> Manifest | None:
    """The manifest of a run; `None` if there is none.

    Raises:
        StorageError: It cannot be read, or has another format version.
    """

    def check_format(content: bytes) -> None:
        try:
            found = json.loads(content)["format"]
        except (ValueError, KeyError, TypeError):
            return  # the model names the problem
        if found != FORMAT:
            raise StorageError(
                f"The manifest at {files.location(keys.manifest)} has format {found}; this version reads format {FORMAT}. "
                f"The versions under `sessions` in the file say which version wrote it. {_CURE}"
            )

    return await read_model(files, keys.manifest, Manifest, "manifest", check_format)


async def run_names(files: RunFiles) -> list[str]:
    """The names in a storage's folder: runs, and anything else that is there.

    Raises:
        StorageError: The storage cannot be listed.
    """
    with storage_errors(files, "list", cure=ANOTHER_STORAGE):
        return await files.list_names("")


async def require_manifest(files: RunFiles, keys: RunKeys) -> Manifest:
    """The manifest of a run that must exist.

    Raises:
        RunNotFoundError: There is no such run; the message names the storage and some of its runs.
        StorageError: The manifest cannot be read.
    """
    manifest = await read_manifest(files, keys)
    if manifest is None:
        there = await run_names(files)
        known = (
            f"The storage has {len(there)} run{'s' * (len(there) > 1)}, such as {', '.join(there[-3:])}."
            if there
            else "The storage has no runs."
        )
        raise RunNotFoundError(
            f"There is no run {keys.run_id!r} in {files.location()}. {known} `batchflow list` shows them all.",
            run_id=keys.run_id,
        )
    return manifest


async def write_manifest(files: RunFiles, keys: RunKeys, manifest: Manifest) -> None:
    """Write the manifest whole.

    Raises:
        StorageError: The manifest cannot be written.
    """
    try:
        text = manifest.model_dump_json(indent=2)
    except PydanticSerializationError:  # a path that is not UTF-8: the ASCII form of JSON has an escape for each byte
        text = json.dumps(manifest.model_dump(mode="json"), indent=2)
    with storage_errors(files, "write", keys.manifest):
        await files.write_path(keys.manifest, (text + "\n").encode())
