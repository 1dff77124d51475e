"""Connections in files: promptflow's connection yaml, a `.env` file, or promptflow's dictionary as yaml or json."""

from __future__ import annotations

import difflib
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from prefect_batchflow.connections.environment import variables_of
from prefect_batchflow.connections.kinds import KINDS
from prefect_batchflow.exceptions import InvalidConnectionError, InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_BLOCK = re.compile(r"([a-z0-9-]+/)?[a-z0-9-]+")
_CUSTOM: Final = "CustomConnection"
_SILENT: Final = frozenset(
    {"$schema", "name", "type", "module", "created_date", "last_modified_date", "expiry_time", "is_default"}
)
"""Keys that need no note: those of every file, and those that promptflow shows."""
_STRONG_TYPE: Final = ("custom_type", "package", "package_version")
"""Keys with which promptflow finds the class of a custom type; here the flow's code says which class it takes."""
_ADDRESS: Final = ("base", "endpoint", "url")
"""The words for an address in the keys of one type or another."""
_ENTRA_ID: Final = "meid_token"


@dataclass(frozen=True, slots=True, repr=False)
class ConnectionFile:
    """A connection as a file has it. Its `repr` shows no value."""

    name: str
    """Empty if the file gives none."""
    spec: dict[str, Any]
    """promptflow's dictionary: `{type, value, secret_keys}`. A secret that the file leaves to the user is empty."""
    notes: tuple[str, ...] = ()
    """Keys without an effect."""

    def left_open(self, name: str, environ: Mapping[str, str]) -> list[str]:
        """The secrets that the file leaves to the user and that no variable gives."""
        values = self.spec["value"]
        empty = [key for key in self.spec["secret_keys"] if not values[key]]
        return [key for key in empty if not any(environ.get(variable) for variable in variables_of(name, key))]

    def with_values(self, values: Mapping[str, str]) -> ConnectionFile:
        """The same with these values."""
        return ConnectionFile(self.name, {**self.spec, "value": {**self.spec["value"], **values}}, self.notes)


def is_connection_file(text: str) -> bool:
    """Whether a text names a file, and not a saved block, as `my-block` and `openai-connection/my-block` do."""
    return _BLOCK.fullmatch(text) is None


def read_connection(place: str, changes: Mapping[str, str] | None = None, name: str = "") -> ConnectionFile:
    """Read a connection from a file.

    Args:
        place: The path of a yaml or json file; or of a `.env` file, whose values are the secrets of a custom connection.
        changes: Values that replace those of the file: `api_key`, or `configs.url` and `secrets.token` of a custom one.
        name: Its name in the flow, for messages and for variables.

    Raises:
        InvalidOptionError: There is no such file.
        InvalidConnectionError: The file is not yaml, or its type or a key is wrong or missing. The message shows no value.
    Source: promptflow-devkit `_sdk/schemas/_connection.py`, and `_sdk/_load_functions.py` for `.env` files.
    """
    file = Path(place).expanduser()
    if not file.is_file():
        found = "a folder" if file.is_dir() else "nothing"
        raise InvalidOptionError(
            f"Expected the file of a connection (yaml, json or .env) at {file.absolute()}, found {found}. Check the path."
        )
    return connection_of(_document(file), str(file), changes or {}, name)


def connection_of(
    document: Mapping[str, Any], place: str, changes: Mapping[str, str], name: str = ""
) -> ConnectionFile:
    """The connection of a document, as `read_connection`; `place` is for messages."""
    reader = _Reader(place, {**document}, changes)
    found = reader.read()
    return ConnectionFile(name or found.name, found.spec, found.notes)


def kind_named(text: str) -> str | None:
    """The class of a type in any spelling: `azure_open_ai`, `AzureOpenAI` and `AzureOpenAIConnection` are one."""
    return _KINDS_BY_NAME.get(_plain(text))


def yaml_type(kind: str) -> str:
    """The type of a class as promptflow's yaml has it: `azure_open_ai`."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind.removesuffix("Connection"))
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()


def fields_of(kind: str) -> dict[str, bool]:
    """The keys of a class, and whether each must be given. A custom connection has keys of its own."""
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is not p.VAR_KEYWORD}


def is_custom(kind: str) -> bool:
    """Whether a class takes any keys."""
    return kind in (_CUSTOM, "CustomStrongTypeConnection")


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower()).removesuffix("connection")


_KINDS_BY_NAME: Final = {_plain(name): name for name in KINDS}


def _document(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidConnectionError(f"{file}: not UTF-8 at byte {exc.start}. Save the file as UTF-8.") from None
    except OSError as exc:
        raise InvalidOptionError(f"{file}: cannot be read: {exc.strerror}.") from exc
    if file.name.endswith(".env"):
        from io import StringIO

        from dotenv import dotenv_values

        values = {key: value or "" for key, value in dotenv_values(stream=StringIO(text)).items()}
        if not values:
            raise InvalidConnectionError(f"{file}: no variable in it. Expected lines such as API_KEY=….")
        return {"type": "custom", "secrets": values}
    document = _texts_of(file, text)
    if not isinstance(document, dict):
        found = "a list" if isinstance(document, list) else "a text" if document else "an empty file"
        raise InvalidConnectionError(
            f"{file}: expected the keys of a connection (`name`, `type`, `api_key`, …), found {found}."
        )
    return document


def _texts_of(file: Path, text: str) -> Any:
    """The yaml or json of a file, with all values as texts: a key of digits only is no number."""
    try:
        loader = yaml.BaseLoader(text)
        node = loader.get_single_node()
        for mapping in [node] if isinstance(node, yaml.MappingNode) else []:
            keys = [key.value for key, _ in mapping.value]
            if twice := {key for key in keys if keys.count(key) > 1}:
                raise InvalidConnectionError(f"{file}: `{sorted(twice)[0]}` is there twice. Leave one of them out.")
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # Without the line itself, because it can hold a secret.
        raise InvalidConnectionError(f"{file}{place}: not valid yaml: {exc.problem or exc.context}.") from None
    except (yaml.YAMLError, RecursionError):
        raise InvalidConnectionError(f"{file}: not valid yaml. Save it again as yaml or json.") from None


@dataclass(slots=True, repr=False)
class _Reader:
    place: str
    document: dict[str, Any]
    changes: Mapping[str, str]
    notes: list[str] = field(default_factory=list)

    def read(self) -> ConnectionFile:
        document = self.document
        if isinstance(document.get("value"), dict):  # promptflow's dictionary
            document = self.document = {**document, **document["value"]}
            del document["value"]
        kind = self._kind(self.changes.get("type", document.get("type")))
        spec = self._custom() if is_custom(kind) else self._strong(kind)
        return ConnectionFile(self._text("name", document.get("name")), spec, tuple(self.notes))

    def _kind(self, given: Any) -> str:
        kinds = ", ".join(yaml_type(kind) for kind in KINDS if kind != "CustomStrongTypeConnection")
        if not given or not isinstance(given, str):
            found = "no `type`" if not given else f"a `type` that is a {type(given).__name__}"
            raise InvalidConnectionError(f"{self.place} has {found}. Write type: … with one of {kinds}.")
        kind = kind_named(given)
        if kind is None:
            near = difflib.get_close_matches(_plain(given), _KINDS_BY_NAME, n=1, cutoff=0.7)
            meant = f" Did you mean {yaml_type(_KINDS_BY_NAME[near[0]])}?" if near else ""
            raise InvalidConnectionError(
                f"{self.place}: the type {given!r} is unknown.{meant} Expected one of {kinds}."
            )
        return kind

    def _strong(self, kind: str) -> dict[str, Any]:
        fields = fields_of(kind)
        unknown = [key for key in self.changes if key not in (*fields, "type", "name")]
        if unknown:
            raise InvalidConnectionError(
                f"--set {unknown[0]}=…: a connection of type {yaml_type(kind)} has no {unknown[0]!r}. "
                f"{self._meant(unknown[0], fields)}Its keys: {', '.join(fields)}."
            )
        document = {**self.document, **self.changes}
        values = {key: self._text(key, document[key]) for key in fields if key in document}
        if "api_key" in fields:
            values["api_key"] = _given(values.get("api_key", ""))
        values = {key: value for key, value in values.items() if value or key == "api_key"}
        if "auth_mode" in values:
            values["auth_mode"] = self._auth_mode(values["auth_mode"])
        if values.get("auth_mode") == _ENTRA_ID and not values["api_key"]:
            del values["api_key"]
        others = [key for key in document if key not in fields and key not in _SILENT]
        if missing := [key for key, needed in fields.items() if needed and key not in values]:
            meant = "".join(self._meant(key, missing) for key in others)
            has = f"It has {', '.join(others)}. " if others else ""
            raise InvalidConnectionError(
                f"{self.place} has no {', '.join(missing)}, which the type {yaml_type(kind)} needs. {has}{meant}Write it "
                f"into the file, or give --set {missing[0]}=…."
            )
        if others:
            self.notes.append(
                f"{self.place}: {', '.join(others)} has no effect, because the type {yaml_type(kind)} has only "
                f"{', '.join(fields)}."
            )
        return {"type": kind, "value": values, "secret_keys": ["api_key"] * ("api_key" in values)}

    def _custom(self) -> dict[str, Any]:
        document, changed = self.document, dict(self.changes)
        parts: dict[str, dict[str, str]] = {}
        for part in ("configs", "secrets"):
            written = document.get(part) or {}
            if not isinstance(written, dict):
                raise InvalidConnectionError(
                    f"{self.place}: `{part}` is a {type(written).__name__}, expected keys and values."
                )
            parts[part] = {str(key): self._text(f"{part}.{key}", value) for key, value in written.items()}
        if "secret_keys" in document or not {"configs", "secrets"} & document.keys():
            # promptflow's dictionary: all keys in one place, and the names of the secret ones.
            secret = document.get("secret_keys") or []
            others = {k: v for k, v in document.items() if k not in (*_SILENT, *_STRONG_TYPE, "secret_keys", *parts)}
            for key, value in others.items():
                parts["secrets" if key in secret else "configs"][key] = self._text(key, value)
        for name, value in changed.items():
            part, _, key = name.partition(".")
            if key and part in parts:
                parts[part][key] = value
            elif name not in ("name", "type"):
                # A key that the connection has keeps its place; a new one may be secret.
                parts["configs" if name in parts["configs"] else "secrets"][name] = value
        secrets = {key: _given(value) for key, value in parts["secrets"].items()}
        if not {**parts["configs"], **secrets}:
            raise InvalidConnectionError(
                f"{self.place}: a custom connection without keys. Write `configs` or `secrets`."
            )
        return {"type": _CUSTOM, "value": {**parts["configs"], **secrets}, "secret_keys": list(secrets)}

    def _auth_mode(self, given: str) -> str:
        mode = given.lower()
        if mode not in ("key", _ENTRA_ID):
            raise InvalidConnectionError(f"{self.place}: auth_mode is {given!r}, expected key or {_ENTRA_ID}.")
        return mode

    def _text(self, key: str, value: Any) -> str:
        if value is None or (isinstance(value, str) and value in ("null", "~", "Null", "NULL")):
            return ""
        if isinstance(value, dict | list):
            raise InvalidConnectionError(f"{self.place}: `{key}` is a {type(value).__name__}, expected a text.")
        return str(value)

    def _meant(self, key: str, keys: Iterable[str]) -> str:
        keys = list(keys)
        near = difflib.get_close_matches(key, keys, n=1)
        if not near and any(word in key.lower() for word in _ADDRESS):
            near = [other for other in keys if any(word in other for word in _ADDRESS)]
        return f"Did you mean {near[0]}? " if near else ""


def _given(secret: str) -> str:
    """A secret; empty for a placeholder, which leaves it to the user."""
    is_open = secret in ("<user-input>", "<no-change>") or not secret.strip("*")
    return "" if is_open else secret


def connection_in_file(name: str, place: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Give promptflow's dictionary of a connection in a file, for a run.

    Raises:
        InvalidConnectionError: As `read_connection`, or the file leaves a secret to the user and no variable gives it.
    """
    found = read_connection(place, name=name)
    if left := found.left_open(name, environ):
        variables = " and ".join(variables_of(name, key)[0] for key in left)
        raise InvalidConnectionError(
            f"{place} leaves {', '.join(left)} of the connection {name!r} open. Set {variables} for the process that starts "
            "the run, or write ${env:NAME} into the file."
        )
    return found.spec
