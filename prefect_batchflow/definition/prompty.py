"""`.prompty` files: front matter between lines of dashes, which says what is asked of which model, then a template."""

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
"""The names that prompty's own format has for promptflow's types."""

_LINE_OF_DASHES = re.compile(r"^-{3,}[ \t]*$", re.MULTILINE)
_FILE_REFERENCE = re.compile(r"\$\{file:(?P<place>.+)\}")


def flow_of_prompty(file: Path, working_dir: Path) -> Flow:
    """Give the flow of a `.prompty` file.

    Its inputs are those of `inputs`; without these, those of `sample`; without both, the variables of the template.

    Args:
        file: The file, which is there.
        working_dir: As for any flow; what `${file:…}` names is looked for beside the prompty.

    Raises:
        InvalidFlowRequest: The message lists every problem; its class is the problems' own if they share one.
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
    problems.raise_any()
    prompt = Prompt(file, template, model, tuple(outputs), sample, tuple(references.files))
    return Flow(str(document.get("name") or file.stem), working_dir, prompt, inputs, definition_file=file)


def _split(file: Path) -> tuple[str, str, int]:
    """The front matter, the template, and the 0-based line of the file that the template begins on.

    The front matter keeps the lines before it as empty ones, so that a yaml error names the file's line.
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
    """`${file:place}` in values, replaced by what the file holds; `${env:NAME}` is left to who uses the value."""

    def __init__(self, folder: Path, problems: Problems) -> None:
        self._folder = folder.resolve()
        self._problems = problems
        self.files: list[Path] = []
        """All that were read."""

    def resolved(self, value: Any, place: str) -> Any:
        """A value with its references replaced; those in a file that was read stay text."""
        if isinstance(value, dict):
            return {key: self.resolved(part, f"{place}.{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [self.resolved(part, f"{place}[{index}]") for index, part in enumerate(value)]
        match = _FILE_REFERENCE.fullmatch(value) if isinstance(value, str) else None
        return value if match is None else self.read(match["place"], place)

    def read(self, name: str, place: str) -> Any:
        """What a file beside the prompty holds: a json's or yaml's value, any other's text; noted when it cannot be."""
        try:
            file = (self._folder / name).resolve()
            if not file.is_relative_to(self._folder):
                expected = f"expected one in {self._folder} or below. Copy it there"
                self._problems.add(FlowDefinitionError, place, f"the file '{name}' is at {file}, {expected}.")
                return None
            text = read_text(file, "prompty")
            self.files.append(file)
            if file.suffix == ".json":
                return json.loads(text)
            return parse_yaml(text, file, "prompty") if file.suffix in {".yaml", ".yml"} else text
        except FlowDefinitionError as exc:
            self._problems.add(FlowDefinitionError, place, exc.message)
        except (OSError, ValueError, RecursionError) as exc:
            self._problems.add(FlowDefinitionError, place, f"the file '{name}' cannot be read: {exc}.")
        return None


def _read_model(document: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    model = mapping_at(dict(document), "model", "top level", problems)
    refuse_other_keys(model, MODEL_KEYS, "model", problems)
    for problem in problems_of_model(model):
        problems.add(FlowDefinitionError, "model", problem)
    configuration = mapping_at(model, "configuration", "model", problems)
    refuse_other_keys(configuration, CONFIGURATION_KEYS, "model.configuration", problems)
    mapping_at(model, "parameters", "model", problems)
    return model


def problems_of_model(model: Mapping[str, Any]) -> list[str]:
    """What is wrong with the choices of a `model`, whether written in the file or given for it."""
    choices = {"api": ("chat", "completion"), "response": ("first", "all")}
    return [
        f"'{key}' is {model[key]!r}, expected {' or '.join(map(repr, known))}."
        for key, known in choices.items()
        if model.get(key) is not None and model[key] not in known
    ]


def _read_sample(document: Mapping[str, Any], references: _References, problems: Problems) -> dict[str, Any]:
    """The mapping under `sample`, or in the json file that it names."""
    sample = document.get("sample")
    if isinstance(sample, str) and sample.endswith(".json"):
        sample = references.read(sample.removeprefix("file:"), "sample")
    return mapping_at({"sample": sample}, "sample", "top level", problems)


def _check_engine(template: Any, problems: Problems) -> None:
    engine = (template.get("format") or template.get("type")) if isinstance(template, dict) else template
    if engine not in (None, "jinja2"):
        problems.add(
            UnsupportedFeatureError, "top level", f"'template' is supported as 'jinja2' only, found {engine!r}."
        )


def _variables(template: str, first_line: int, problems: Problems) -> list[str]:
    """What a template asks for, in alphabetical order; noted when it is no template."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        # Only parsed here, never run.
        return sorted(meta.find_undeclared_variables(Environment().parse(template)))  # noqa: S701
    except TemplateSyntaxError as exc:
        problems.add(FlowDefinitionError, f"line {first_line + exc.lineno}", f"no valid template: {exc.message}.")
    except RecursionError:
        problems.add(FlowDefinitionError, "template", "nested too deeply.")
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
    """The type of an input that a sample is known of."""
    types = {bool: "bool", int: "int", float: "double", str: "string", list: "list"}
    return types.get(type(value), "object")
