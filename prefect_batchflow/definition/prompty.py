"""`.prompty` files: yaml between lines of dashes (the model, inputs, outputs), then a template."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.document import (
    DISPLAY_KEYS,
    Problems,
    mapping_at,
    parse_document,
    parse_yaml,
    read_inputs,
    read_language,
    read_text,
    refuse_other_keys,
)
from prefect_batchflow.definition.flow import Flow, FlowInput, Prompt
from prefect_batchflow.exceptions import FlowDefinitionError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

KEYS = DISPLAY_KEYS | {
    "authors", "version", "model", "inputs", "outputs", "sample", "template", "language", "message_format"
}  # fmt: skip
MODEL_KEYS = frozenset({"api", "configuration", "parameters", "response"})
CONFIGURATION_KEYS = frozenset(
    {
        "type", "connection", "name", "model", "azure_deployment", "azure_endpoint", "api_base", "api_key", "api_type",
        "api_version", "auth_mode", "base_url", "organization", "resource_id",
    }
)  # fmt: skip
SAME_TYPES = {"number": "double", "integer": "int", "boolean": "bool", "array": "list"}
"""Type names of the prompty format, to promptflow's."""

_LINE_OF_DASHES = re.compile(r"^-{3,}[ \t]*$", re.MULTILINE)
_FILE_REFERENCE = re.compile(r"\$\{file:(?P<place>.+)\}")


def flow_of_prompty(file: Path, working_dir: Path) -> Flow:
    """Give the flow of a `.prompty` file.

    Its inputs are those under `inputs`, otherwise those under `sample`, otherwise the variables of the template.
    `${file:…}` is relative to the prompty.

    Raises:
        InvalidFlowRequest: The message lists every problem; the class is theirs if they share one.
    Source: promptflow `core/_flow.py`, `Prompty`.
    """
    front, template, template_line = _split(file)
    document = parse_document(front, file, "prompty", "`name`, `model`, `inputs`")
    problems = Problems(file)
    references = _References(file.parent, problems)
    document = {key: references.resolved(value, str(key)) for key, value in document.items()}
    refuse_other_keys(document, KEYS, "top level", problems)
    read_language(document, problems)
    model = _read_model(document, problems)
    sample = _read_sample(document, references, problems)
    outputs = mapping_at(document, "outputs", "top level", problems)
    _check_engine(document.get("template"), problems)
    variables = _variables(template, template_line, problems)
    inputs = _read_inputs(document, sample, variables, problems)
    if "self" in inputs:
        problems.add("inputs", "'self' is a name that jinja2 keeps for itself. Rename the input.")
    problems.raise_any()
    prompt = Prompt(file, template, model, tuple(outputs), sample, tuple(references.files))
    return Flow(str(document.get("name") or file.stem), working_dir, prompt, inputs, definition_file=file)


def _split(file: Path) -> tuple[str, str, int]:
    """Split it into front matter, template, and the template's first line in the file, counted from 0.

    The front matter starts with as many empty lines as precede it in the file, so that a yaml error names the file's line.
    """
    text = read_text(file, "prompty")
    first = _LINE_OF_DASHES.search(text)
    second = _LINE_OF_DASHES.search(text, first.end()) if first else None
    if first is None or second is None:
        found = "one line of dashes only" if first else "no line of dashes"
        raise FlowDefinitionError(
            f"{file}: expected a line of three dashes, the prompty's keys as yaml, another line of three dashes and the "
            f"template; found {found}."
        )
    front = "\n" * text.count("\n", 0, first.end()) + text[first.end() : second.start()]
    return front, text[second.end() :].removeprefix("\n"), text.count("\n", 0, second.end()) + 1


class _References:
    """Replaces `${file:place}` in values by the file's content. `${env:NAME}` stays; it is read where the value is used."""

    def __init__(self, folder: Path, problems: Problems) -> None:
        self._folder = folder.resolve()
        self._problems = problems
        self.files: list[Path] = []
        """All files that were read."""

    def resolved(self, value: Any, place: str) -> Any:
        """Replace the references in a value; a file's content may contain others, which stay text."""
        if isinstance(value, dict):
            return {key: self.resolved(part, f"{place}.{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [self.resolved(part, f"{place}[{index}]") for index, part in enumerate(value)]
        match = _FILE_REFERENCE.fullmatch(value) if isinstance(value, str) else None
        return value if match is None else self.read(match["place"], place)

    def read(self, name: str, place: str) -> Any:
        """Read a file beside the prompty: the value of json or yaml, otherwise the text. Problems are noted."""
        try:
            file = (self._folder / name).resolve()
            if not file.is_relative_to(self._folder):
                expected = f"Expected a file inside {self._folder}. Copy it there"
                self._problems.add(place, f"the file '{name}' is at {file}. {expected}.")
                return None
            text = read_text(file, "prompty")
            self.files.append(file)
            if file.suffix == ".json":
                return json.loads(text)
            return parse_yaml(text, file, "prompty") if file.suffix in {".yaml", ".yml"} else text
        except FlowDefinitionError as exc:
            self._problems.add(place, exc.message)
        except (OSError, ValueError, RecursionError) as exc:
            self._problems.add(place, f"the file '{name}' cannot be read: {exc}.")
        return None


def _read_model(document: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    model = mapping_at(dict(document), "model", "top level", problems)
    refuse_other_keys(model, MODEL_KEYS, "model", problems)
    for problem in problems_of_model(model):
        problems.add("model", problem)
    configuration = mapping_at(model, "configuration", "model", problems)
    refuse_other_keys(configuration, CONFIGURATION_KEYS, "model.configuration", problems)
    mapping_at(model, "parameters", "model", problems)
    return model


def problems_of_model(model: Mapping[str, Any]) -> list[str]:
    """Say which choices of a `model` are wrong, in a file or given by a caller."""
    choices = {"api": ("chat", "completion"), "response": ("first", "all")}
    return [
        f"'{key}' is {model[key]!r}, expected {' or '.join(map(repr, known))}."
        for key, known in choices.items()
        if model.get(key) is not None and model[key] not in known
    ]


def _read_sample(document: Mapping[str, Any], references: _References, problems: Problems) -> dict[str, Any]:
    """Read `sample`: a mapping, or the name of a json file that has one."""
    sample = document.get("sample")
    if isinstance(sample, str) and sample.endswith(".json"):
        sample = references.read(sample.removeprefix("file:"), "sample")
    return mapping_at({"sample": sample}, "sample", "top level", problems)


def _check_engine(template: Any, problems: Problems) -> None:
    engine = (template.get("format") or template.get("type")) if isinstance(template, dict) else template
    if engine not in (None, "jinja2"):
        problems.add("top level", f"'template' can only be 'jinja2', found {engine!r}.", UnsupportedFeatureError)


def _variables(template: str, first_line: int, problems: Problems) -> list[str]:
    """The variables of a template, sorted; a template that is not valid jinja2 is noted."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        # Parsed, never run.
        return sorted(meta.find_undeclared_variables(Environment().parse(template)))  # noqa: S701
    except TemplateSyntaxError as exc:
        problems.add(f"line {first_line + exc.lineno}", f"no valid template: {exc.message}.")
    except RecursionError:
        problems.add("template", "nested too deeply.")
    return []


def _read_inputs(
    document: dict[str, Any], sample: Mapping[str, Any], variables: Iterable[str], problems: Problems
) -> dict[str, FlowInput]:
    declared = mapping_at(document, "inputs", "top level", problems)
    if not declared:
        named = {name: _type_of(value) for name, value in sample.items()} or dict.fromkeys(variables, "any")
        return {name: FlowInput(name, kind) for name, kind in named.items()}
    for name, spec in declared.items():
        if isinstance(spec, dict) and isinstance(spec.get("type"), str):
            declared[name] = {**spec, "type": SAME_TYPES.get(spec["type"], spec["type"])}
    inputs = read_inputs({"inputs": declared}, "inputs", problems)
    return {
        name: replace(read, default=None) if read.required and "default" in declared[name] else read
        for name, read in inputs.items()
    }


def _type_of(value: Any) -> str:
    """The type of an input, by its sample value."""
    types = {bool: "bool", int: "int", float: "double", str: "string", list: "list"}
    return types.get(type(value), "object")
