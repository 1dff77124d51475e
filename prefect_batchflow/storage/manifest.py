"""The manifest of a run: its flow, data, options and sessions, with fingerprints that a resume compares."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
from datetime import datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError

from prefect_batchflow.definition.code_parts import digest_of
from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.settings import RunOptions  # noqa: TC001 - pydantic resolves it when the model is built
from prefect_batchflow.storage.files import ANOTHER_STORAGE, storage_errors
from prefect_batchflow.storage.first_manifests import from_format_1
from prefect_batchflow.storage.retries import looks, read_sound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from pydantic_core import ErrorDetails

    from prefect_batchflow.storage.files import RunFiles
    from prefect_batchflow.storage.keys import RunKeys

FORMAT = 2
"""Raise it with a change that older manifests do not fit, and read these as the new ones, as `first_manifests` does."""

_CURE = "Use the version that started the run, or start a new run."
WITHOUT_MANIFEST = (
    "To keep its completed lines, run its flow and data again under its run id with on_change='reuse'; on_change='rerun' runs "
    "all lines again."
)
"""What to do about a run whose manifest is lost."""
_OTHER_FORMAT = "\0"
"""Marks a manifest that is sound, but not of this format. An older one beside it would not be the newest."""
_KEPT = re.compile(r"[0-9]{4,}\.json")

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
    """Whether it is no start, but copies records under new line numbers, because lines were inserted, removed or moved. It runs
    no line. If it has begun this and not done it, its records do not count."""


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
    identity: str = ""
    """The name of this run in its records: its first run id and a random part, so that records of another run show. Empty in
    the manifest of an older version."""
    unnamed_until: int = 0
    """The last session whose records can be without that name, because an older version wrote them."""
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


async def read_model(files: RunFiles, key: str, model: type[M], what: str) -> M | None:
    """Read one JSON file of a run; `None` if there is none. Messages call it `what`, such as `result`.

    Raises:
        StorageError: The file cannot be read, or does not fit the model.
    """

    def decode(content: bytes) -> M:
        found = _parsed(content, model, f"The {what} at {files.location(key)}")
        if isinstance(found, str):
            raise StorageError(f"{found} {_CURE}")
        return found

    with storage_errors(files, "read", key, ANOTHER_STORAGE):
        try:
            return await read_sound(files, key, decode)
        except FileNotFoundError:
            return None


def _parsed(content: bytes, model: type[M], what: str) -> M | str:
    """The content as a model, or a sentence about what is wrong with it."""
    try:
        # Not `model_validate_json`: it refuses the escapes that `json.dumps` writes for a path that is not UTF-8.
        return model.model_validate(json.loads(content)) if b"\\ud" in content else model.model_validate_json(content)
    except (ValidationError, ValueError, RecursionError) as exc:
        errors = exc.errors(include_url=False, include_context=False) if isinstance(exc, ValidationError) else []
        problems = [_problem(error) for error in errors] or ["the file is not JSON"]
        more = f" and {len(problems) - 3} more problems" if len(problems) > 3 else ""
        return f"{what} is damaged, or another version of prefect-batchflow wrote it: {'; '.join(problems[:3])}{more}."


def _problem(error: ErrorDetails) -> str:
    place = ".".join(map(str, error["loc"])) or "the file"
    known = {
        "missing": "is missing",
        "unexpected_keyword_argument": "is unknown to this version",
        "json_invalid": "is not JSON",
    }
    return f"{place} {known.get(error['type'], 'has an unexpected value')}"


class KeptManifest(NamedTuple):
    """What a storage has of a run's manifest."""

    manifest: Manifest | None
    """The newest one that is sound; `None` if there is none."""
    problem: str = ""
    """A sentence about what is wrong with `manifest.json`, empty if nothing is."""


async def look_for_manifest(files: RunFiles, keys: RunKeys) -> KeptManifest:
    """The manifest of a run. If `manifest.json` is damaged or gone, the one that the newest session has kept beside it.

    Raises:
        StorageError: The storage cannot be read.
    """
    found: str | None = None
    for look in looks():
        await look
        manifest = await _read_one(files, keys, keys.manifest)
        if isinstance(manifest, Manifest):
            return KeptManifest(manifest)
        found = manifest
        if found is None:
            break
        if found.startswith(_OTHER_FORMAT):
            return KeptManifest(None, found.removeprefix(_OTHER_FORMAT))
    async with contextlib.aclosing(kept_manifests(files, keys)) as copies:
        async for place, manifest in copies:
            return instead(place, manifest, found or f"The manifest {files.location(keys.manifest)} is gone.")
    return KeptManifest(None, found or "")


def instead(place: str, manifest: Manifest, problem: str) -> KeptManifest:
    """A copy at this place, used in place of a manifest with a problem."""
    return KeptManifest(manifest, f"{problem} The copy that a start has kept, {place}, is used.")


async def kept_manifests(files: RunFiles, keys: RunKeys) -> AsyncGenerator[tuple[str, Manifest]]:
    """The sound copies that the starts of a run have kept, the newest first, with their places."""
    with storage_errors(files, "list", keys.manifests, ANOTHER_STORAGE):
        try:
            names = await files.list_names(keys.manifests)
        except NotADirectoryError:
            names = []
    for name in sorted((name for name in names if _KEPT.fullmatch(name)), reverse=True):
        key = f"{keys.manifests}/{name}"
        if isinstance(kept := await _read_one(files, keys, key), Manifest):
            yield files.location(key), kept


async def _read_one(files: RunFiles, keys: RunKeys, key: str) -> Manifest | str | None:
    """One manifest, or what is wrong with it, or `None` if there is none.

    It has the name of the run's folder, which somebody can have renamed.
    """
    with storage_errors(files, "read", key, ANOTHER_STORAGE):
        try:
            content = await files.read_path(key)
        except (FileNotFoundError, NotADirectoryError):  # a file where the run's folder would be
            return None
    what = f"The manifest at {files.location(key)}"
    try:
        data = json.loads(content)
        checksum, found, sessions = data.pop("sha256", None), data["format"], data.get("sessions")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return _parsed(content, Manifest, what)
    # A manifest of an older version has neither of the two.
    if (checksum is not None or data.get("identity")) and checksum != _checksum(data):
        return f"{what} is damaged, or somebody has edited it: its checksum is wrong."
    if found == 1:
        with contextlib.suppress(LookupError, TypeError, AttributeError, ValueError):
            return Manifest.model_validate({**from_format_1(data), "run_id": keys.run_id})
    if found != FORMAT:
        try:
            version = f"prefect-batchflow {sessions[-1]['versions']['prefect-batchflow']}"
        except (LookupError, TypeError):
            version = "another version of prefect-batchflow"
        return f"{_OTHER_FORMAT}{what} has format {found}; this version reads format {FORMAT}. It was written by {version}."
    manifest = _parsed(content, Manifest, what)
    return manifest.model_copy(update={"run_id": keys.run_id}) if isinstance(manifest, Manifest) else manifest


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


async def read_manifest(files: RunFiles, keys: RunKeys) -> Manifest | None:
    """The manifest of a run; `None` if there is none.

    Raises:
        StorageError: It cannot be read, or has another format version.
    """
    manifest, problem = await look_for_manifest(files, keys)
    if manifest is None and problem:
        raise StorageError(f"{problem} {_CURE} {WITHOUT_MANIFEST}")
    return manifest


async def run_names(files: RunFiles) -> list[str]:
    """The names in a storage's folder: runs, and anything else that is there.

    Raises:
        StorageError: The storage cannot be listed.
    """
    with storage_errors(files, "list", cure=ANOTHER_STORAGE):
        return await files.list_names("")


async def write_manifest(files: RunFiles, keys: RunKeys, manifest: Manifest) -> None:
    """Write the manifest whole, beside it a copy that stays, and read both back.

    Raises:
        StorageError: The manifest cannot be written, or does not read back.
    """
    try:
        data = json.loads(manifest.model_dump_json())
    except PydanticSerializationError:  # a path that is not UTF-8
        data = manifest.model_dump(mode="json")
    text = json.dumps({**data, "sha256": _checksum(data)}, indent=2, ensure_ascii=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError:  # the ASCII form of JSON has an escape for each byte
        content = (json.dumps({**data, "sha256": _checksum(data)}, indent=2) + "\n").encode()
    for key in (keys.kept_manifest(len(manifest.sessions)), keys.manifest):
        with storage_errors(files, "write", key):
            await files.write_path(key, content)
            if not await _reads_back(files, key, content):
                raise StorageError(
                    f"The manifest at {files.location(key)} does not read back as it was written. Nothing was run. Start the "
                    "run again once the storage works.",
                    key=key,
                )


async def keep_manifest(files: RunFiles, keys: RunKeys, manifest: Manifest) -> bool:
    """Write the manifest again if it is not in the storage as it was written. Gives whether that was necessary."""
    for look in looks():
        await look
        if await _read_one(files, keys, keys.manifest) == manifest:
            return False
    await write_manifest(files, keys, manifest)
    return True


async def _reads_back(files: RunFiles, key: str, content: bytes) -> bool:
    for look in looks():
        await look
        with contextlib.suppress(FileNotFoundError):
            if await files.read_path(key) == content:
                return True
    return False
