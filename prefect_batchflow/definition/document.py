"""Reading a flow's yaml as plain values, within limits, and collecting its problems."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from prefect_batchflow.definition.flow import MESSAGE_FORMATS, NO_DEFAULT, PYTHON, FlowInput
from prefect_batchflow.exceptions import (
    FlowDefinitionError,
    InvalidFlowRequest,
    InvalidOptionError,
    UnsupportedFeatureError,
    UserErrorException,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

SIZE_LIMIT = 1024 * 1024
"""Bytes that a flow's yaml can have, at most."""
VALUE_LIMIT = 100_000
"""Values that a flow's yaml can have once aliases are expanded; a few aliases can mean billions of values."""

INPUT_TYPES = frozenset(
    {
        "int", "double", "bool", "string", "list", "object",
        "secret", "prompt_template", "file_path", "image", "assistant_definition",
    }
)  # fmt: skip
"""The types of a flow's inputs. The last five convert nothing."""
DISPLAY_KEYS = frozenset({"$schema", "id", "name", "type", "display_name", "description", "tags", "environment"})
"""Top level keys that have no effect here, nor in promptflow's batch: texts for people, and the `environment` of images."""


@dataclass
class Problems:
    """All problems of one flow file, raised together."""

    file: Path
    found: list[tuple[type[UserErrorException], str]] = field(default_factory=list)

    def add(self, place: str, text: str, kind: type[UserErrorException] = FlowDefinitionError) -> None:
        """Note one problem: its `place` in the file, and a `text`: what was found, expected and is to be done."""
        self.found.append((kind, f"{place}: {text}"))

    def raise_any(self) -> None:
        """Raise one exception for all problems, of their class if they share one, otherwise of the base class."""
        if not self.found:
            return
        kinds = {kind for kind, _ in self.found}
        texts = [text for _, text in self.found]
        if len(texts) == 1:
            message = f"{self.file}: {texts[0]}"
        else:
            message = f"{self.file} has {len(texts)} problems:" + "".join(f"\n- {text}" for text in texts)
        raise (kinds.pop() if len(kinds) == 1 else InvalidFlowRequest)(message, problems=texts)


class _CoreLoader(yaml.SafeLoader):
    """Reads plain scalars as YAML 1.2, as promptflow does: `yes` and `on` are texts, `010` is ten.

    Dates stay texts, because lines are JSON.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape


def _scalar(tag: str, pattern: str, first: Iterable[str]) -> None:
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_scalar("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_scalar("null", "~|null|Null|NULL|", ["~", "n", "N", ""])
_scalar("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+|0b[01]+", "-+0123456789")
_scalar("float", r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_scalar("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")
_scalar("merge", "<<", "<")


def _construct_int(loader: _CoreLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0) if text[:2] in {"0o", "0x", "0b"} else int(text)


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_document(file: Path, kind: str = "flow", keys: str = "`nodes` or `entry`") -> dict[str, Any]:
    """Read the top level mapping of a yaml file.

    Args:
        file: An existing file.
        kind: What the file describes, for messages.
        keys: Its usual keys, for messages.

    Raises:
        FlowDefinitionError: The file is too large, not UTF-8, not valid YAML (with line and column), or not a mapping.
    """
    return parse_document(read_text(file, kind), file, kind, keys)


def read_text(file: Path, kind: str = "flow") -> str:
    """Read a file's text.

    Raises:
        FlowDefinitionError: The file is too large, or not UTF-8.
    """
    size = file.stat().st_size
    if size > SIZE_LIMIT:
        raise FlowDefinitionError(
            f"{file}: the file has {size:,} bytes. A {kind}'s yaml can have at most {SIZE_LIMIT:,}."
        )
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise FlowDefinitionError(f"{file}: not UTF-8 at byte {exc.start}. Save the file as UTF-8.") from exc


def parse_document(text: str, file: Path, kind: str, keys: str) -> dict[str, Any]:
    """Parse a yaml text that is a mapping; the other arguments are for messages, as in `read_document`."""
    document = parse_yaml(text, file, kind)
    if not isinstance(document, dict):
        found = "an empty file" if document is None else f"a {type(document).__name__}"
        raise FlowDefinitionError(f"{file}: expected a mapping with the keys of a {kind} ({keys}), found {found}.")
    return document


def parse_yaml(text: str, file: Path, kind: str) -> Any:
    """Parse a yaml text.

    Raises:
        FlowDefinitionError: It is not valid YAML (with line and column), or exceeds the limits.
    """
    try:
        return _load(text)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise FlowDefinitionError(f"{file}{place}: not valid YAML: {exc.problem or exc.context}.") from exc
    except yaml.YAMLError as exc:
        raise FlowDefinitionError(f"{file}: not valid YAML: {exc}.") from exc
    except RecursionError as exc:
        raise FlowDefinitionError(f"{file}: nested too deeply for a {kind}'s yaml.") from exc


def _load(text: str) -> Any:
    loader = _CoreLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_node(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the values of a node, aliases expanded; refuse too many values, a cycle, and a duplicate key."""
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise yaml.constructor.ConstructorError(
                None, None, "an alias inside the value that it names", node.start_mark
            )
        return sizes[id(node)]
    sizes[id(node)] = 0
    children: Iterable[yaml.Node] = ()
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' twice", key.start_mark)
                seen.add(key.value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size = 1 + sum(_check_node(child, sizes) for child in children)
    if size > VALUE_LIMIT:
        problem = f"more than {VALUE_LIMIT:,} values once aliases are expanded"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    sizes[id(node)] = size
    return size


def says_nothing(value: Any) -> bool:
    """Whether the value means the same as no value: null, false or empty."""
    return value is None or value is False or value in ("", [], {})


def refuse_other_keys(given: dict[str, Any], known: Iterable[str], place: str, problems: Problems) -> None:
    """Note every unknown key that has a value."""
    known = set(known)
    for key, value in given.items():
        if key in known or says_nothing(value):
            continue
        hint = _nearest(str(key), known) or "Remove it if the flow does not need it."
        problems.add(place, f"the key '{key}' is not supported. {hint}", UnsupportedFeatureError)


def mapping_at(given: dict[str, Any], key: str, place: str, problems: Problems) -> dict[str, Any]:
    """The mapping under a key; empty if the key is missing, or if its value is not a mapping, which is noted."""
    value = given.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.add(place, f"'{key}' should map names to values, found {value!r}.")
        return {}
    for name in [name for name in value if not isinstance(name, str)]:
        problems.add(place, f"'{key}' has the name {name!r}. Write it in quotes: '{name}'.")
    return {str(name): entry for name, entry in value.items()}


def read_inputs(
    given: dict[str, Any], key: str, problems: Problems, *, empty_is_none: bool = False
) -> dict[str, FlowInput]:
    """Read the key `inputs` or `init`. With `empty_is_none`, an empty text as default means no default, as in flex flows."""
    inputs = {}
    for name, spec in mapping_at(given, key, "top level", problems).items():
        place = f"{key} '{name}'"
        if not isinstance(spec, dict) or "type" not in spec:
            problems.add(place, f"expected `type: …` at least, found {spec!r}.")
            # Kept, so that references to it do not become further problems.
            inputs[name] = FlowInput(name, "string")
            continue
        # `enum` and the chat marks are for promptflow's editors; its engine ignores them.
        known = {"type", "default", "description", "enum", "is_chat_input", "is_chat_history"}
        refuse_other_keys(spec, known, place, problems)
        # A constructor's argument can be a connection or a model configuration, also of the flow's own classes.
        is_class = key == "init" and str(spec["type"]).endswith(("Connection", "ModelConfiguration"))
        if str(spec["type"]) not in INPUT_TYPES and not is_class:
            expected = ", ".join(sorted(INPUT_TYPES))
            text = f"the type '{spec['type']}' is not supported. Expected one of {expected}."
            problems.add(place, text, UnsupportedFeatureError)
        default = spec.get("default")
        if default is None or (empty_is_none and default == ""):
            default = NO_DEFAULT
        inputs[name] = FlowInput(name, spec["type"], default, str(spec.get("description") or ""))
    return inputs


def read_environment(given: dict[str, Any], problems: Problems) -> dict[str, str]:
    """Read `environment_variables`, values as texts."""
    return environment_texts(mapping_at(given, "environment_variables", "top level", problems))


def environment_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Turn the values of environment variables into texts: lists and mappings into JSON, others by `str`.

    Raises:
        InvalidOptionError: No process can have such a variable. The message shows no value.
    Source: promptflow `contracts/flow.py`, `FlowBase.get_environment_variables_with_overrides`.
    """
    texts = {
        name: json.dumps(value) if isinstance(value, dict | list) else str(value) for name, value in values.items()
    }
    for name, text in texts.items():
        if not name or "=" in name or not _fits_in_environment(name):
            raise InvalidOptionError(
                f"environment_variables: {name!r} cannot be the name of a variable. It needs valid text without = and NUL."
            )
        if not _fits_in_environment(text):
            raise InvalidOptionError(
                f"environment_variables: the value of {name} has a NUL or is no valid text, which no variable can hold."
            )
    return texts


def _fits_in_environment(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def read_language(given: dict[str, Any], problems: Problems) -> str:
    """Read `language`, in lower case and without spaces around it."""
    language = given.get("language") or PYTHON
    if not isinstance(language, str):
        problems.add("top level", f"'language' should be a name, found {language!r}.")
        return PYTHON
    return language.strip().lower() or PYTHON


def read_message_format(given: dict[str, Any], problems: Problems, known: tuple[str, ...] = MESSAGE_FORMATS) -> str:
    """Read `message_format`: how the flow writes images."""
    found = given.get("message_format") or MESSAGE_FORMATS[0]
    message_format = found.lower() if isinstance(found, str) else ""
    if message_format not in known:
        text = f"the key 'message_format' must be {' or '.join(map(repr, known))}, found {found!r}."
        problems.add("top level", text, UnsupportedFeatureError)
    return message_format


def _nearest(key: str, known: set[str]) -> str:
    from difflib import get_close_matches

    matches = get_close_matches(key, known, 1)
    return f"Did you mean '{matches[0]}'?" if matches else ""
