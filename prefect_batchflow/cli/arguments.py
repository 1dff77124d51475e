"""Flags of the command line, and what their texts mean. No Prefect, no storage."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, make_dataclass
from glob import iglob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.settings import LIMITS, OPTION_NAMES, PARAMETERS, RETRIES, RUN, RUN_FILE_KEYS, Option, RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_NAMED_SOURCE = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)

_GROUPS = {
    "": Group.create_default_parameters(),
    **{name: Group.create_ordered(name) for name in (LIMITS, RETRIES, RUN)},
}
SCREEN = Group.create_ordered("Screen")


def flag(name: str, *, of_resume: bool = False) -> Parameter:
    """The flag for a parameter of `batch_run`."""
    option = PARAMETERS[name]
    default = _default_text(option)
    if of_resume and option.is_kept:
        default = f"{option.meaning_of_empty} [default: kept from the run]".strip()
    return Parameter(
        name=option.flags,
        group=_GROUPS[option.group],
        metavar=option.unit or None,
        allow_leading_hyphen=name == "data",  # `--data -` is standard input
        converter=number_of(option) if option.kind in (int, float) else None,
        validator=_checked_by(option) if name in OPTION_NAMES else None,
        help=" ".join(filter(None, (option.help, option.typed, default))),
    )


def number_of(option: Option) -> Callable[[Any, Any], int | float]:
    """Reads the typed number. cyclopts itself would round 0.4 to 0."""
    return lambda _, tokens: option.number(tokens[0].value)


def _default_text(option: Option) -> str:
    if option.name == "run_id":
        return "[default: a new name, by the time]"
    if option.word and not option.default:
        return f"[default: {option.empty}]"
    if option.kind in (int, float):
        return f"[default: {option.default:g}{f', {option.empty}' * (bool(option.empty) and not option.default)}]"
    default = option.default or option.empty
    return f"[default: {default}]" if isinstance(default, str) and default else ""


def _checked_by(option: Option) -> Callable[[Any, Any], None]:
    def check(_: Any, value: Any) -> None:
        if value is not None and (problem := option.problem(",".join(value) if option.errors else value)):
            raise ValueError(problem)

    return check


Texts = list[str] | None
FlowOrFile = Annotated[str, Parameter(help=f"{PARAMETERS['flow'].help} Not needed with a --file that names it.")]
RunFilePath = Annotated[
    str,
    Parameter(
        metavar="YAML",
        help=f"A run file of promptflow, with {', '.join(RUN_FILE_KEYS)}. Options on the command line override it.",
    ),
]
Storage = Annotated[str, flag("storage")]
Init = Annotated[Texts, flag("init_kwargs")]
Variant = Annotated[str, flag("variant")]
NodeConnections = Annotated[Texts, flag("node_connections")]
EnvironmentVariables = Annotated[Texts, flag("environment_variables")]
Connections = Annotated[Texts, flag("connections")]
OutputDir = Annotated[str, flag("output_dir")]
WorkingDir = Annotated[str, flag("working_dir")]
"""Flags that several commands have."""


class Flags:
    """The options of a run as typed, under the names of `batch_run`; `None` was not given."""

    if TYPE_CHECKING:

        def __init__(self, **options: Any) -> None: ...

    def given(self) -> dict[str, Any]:
        """The options that were given, as parameters of `batch_run`; refuses a misspelt class of errors."""
        values = {name: value for name in OPTION_NAMES if (value := getattr(self, name)) is not None}
        for name, value in values.items():
            if read_errors := PARAMETERS[name].errors:
                values[name] = ",".join(read_errors(",".join(value)))  # each may hold several
        return values


def _flag_type(name: str, *, of_resume: bool) -> Any:
    option = PARAMETERS[name]
    return Annotated[(list[str] if option.errors else option.kind) | None, flag(name, of_resume=of_resume)]


def _flags_class(class_name: str, *, of_resume: bool) -> Any:
    made = make_dataclass(
        class_name,
        [(name, _flag_type(name, of_resume=of_resume), None) for name in OPTION_NAMES],
        bases=(Flags,),
        namespace={"__module__": __name__},  # cyclopts skips the fields of classes in the standard library
        frozen=True,
        kw_only=True,
    )
    return Parameter(name="*")(made)


if TYPE_CHECKING:
    OptionFlags = Flags
    ResumeFlags = Flags
else:
    OptionFlags = _flags_class("OptionFlags", of_resume=False)
    ResumeFlags = _flags_class("ResumeFlags", of_resume=True)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """Flags of every command."""

    json: Annotated[bool, Parameter(group=SCREEN, help="Write JSON to standard output, for programs.")] = False
    debug: Annotated[bool, Parameter(group=SCREEN, help="Show tracebacks, and Prefect's log lines.")] = False


def parameters_of(options: RunOptions) -> dict[str, Any]:
    """The options of an earlier start of a run as parameters of `batch_run`.

    Without `on_change` and `rerun`: accepting one change says nothing about the next one.
    """
    return {name: getattr(options, name) for name in OPTION_NAMES if PARAMETERS[name].is_kept}


def parameters_of_resume(options: RunOptions, flags: Flags) -> dict[str, Any]:
    """The options of an earlier start, replaced by those given now. Another task runner does not get the old address."""
    given = flags.given()
    if "task_runner" in given:
        given = {"task_runner_address": "", **given}
    return {**parameters_of(options), **given}


def words_of(options: RunOptions) -> list[str]:
    """The options that are not the defaults, as typed, for a run of failed lines: `["--line-timeout", "5"]`.

    `--limit` and `--line-number-column` are left out: they are about the former data.
    """
    words: list[str] = []
    for name, value in parameters_of(options).items():
        if value != PARAMETERS[name].default and name not in ("max_lines_count", "line_number_column"):
            text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
            words += typed(PARAMETERS[name].flags[0], [text])
    return words


def typed(flag: str, values: Iterable[str]) -> list[str]:
    """An option, once per value; a value that looks like an option is tied to its own."""
    words = ([f"{flag}={value}"] if value.startswith("-") else [flag, value] for value in values)
    return [word for pair in words for word in pair]


def value_of(text: str) -> Any:
    """The value of a typed text: parsed if it is JSON, else the text itself.

    `3` is a number, `true` a boolean, `[1, 2]` a list, `"3"` with its quotes the text 3. `NaN` and `Infinity` are not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError):
        return text


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is too large")
    return value


def assignments(option: str, texts: Iterable[str]) -> dict[str, Any]:
    """Read the `name=value` texts of an option such as `--map`; `value_of` reads the values.

    Raises:
        InvalidOptionError: A text lacks a name or a value, or two have the same name.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InvalidOptionError(
                f"{option} takes name=value, found {text!r}. Give it once per name, such as {option} "
                + ("question='${data.q}'." if option == "--map" else "name=value.")
            )
        if name.strip() in values:
            raise InvalidOptionError(f"{option} gives {name.strip()!r} twice. Give it once.")
        values[name.strip()] = value_of(value)
    return values


def environment_of(texts: Iterable[str]) -> dict[str, str]:
    """Read `KEY=VALUE` texts of `--environment-variables`. Every value stays a text.

    Raises:
        InvalidOptionError: A text lacks a name or the equals sign. The message does not repeat it, because it may be secret.
    """
    values = {}
    for number, text in enumerate(texts, 1):
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InvalidOptionError(
                f"--environment-variables takes KEY=VALUE; number {number} has no {'name' if equals else 'equals sign'}. "
                "Give the option once per variable."
            )
        values[name.strip()] = value
    return values


def node_connections_of(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Read `NODE.INPUT=NAME` texts of `--node-connections` as node to input to name.

    Raises:
        InvalidOptionError: A text lacks a part, or two name the same input.
    """
    chosen: dict[str, dict[str, str]] = {}
    for text in texts:
        place, equals, value = text.partition("=")
        node, dot, name = place.strip().partition(".")
        if not (equals and dot and node and name and value):
            raise InvalidOptionError(
                f"--node-connections takes NODE.INPUT=NAME, such as answer.connection=other or answer.model=gpt-4o, "
                f"found {text!r}. "
                "Give the option once per input. To say where a connection is, use --connection NAME=FILE or NAME=BLOCK."
            )
        if name in chosen.setdefault(node, {}):
            raise InvalidOptionError(f"--node-connections gives '{node}.{name}' twice. Give it once.")
        chosen[node][name] = value
    return chosen


def joined(written: Mapping[str, dict[str, str]], typed: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The connections of nodes from a run file, replaced by those typed, input by input."""
    return {node: {**written.get(node, {}), **typed.get(node, {})} for node in (*written, *typed)}


def sources(texts: Iterable[str], *, needed: bool = True) -> dict[str, str]:
    """Read the sources of data, `URL` or `name=URL`. A source without a name is `data`.

    A text that is a path or pattern with a file on this machine is that path, even `year=2024/*.jsonl`.

    Args:
        texts: The values of `--data`.
        needed: Whether at least one source must be given.

    Raises:
        InvalidOptionError: A source is missing, or two have the same name.
    """
    urls: dict[str, str] = {}
    for text in texts:
        match = None if _exists(text) else _NAMED_SOURCE.fullmatch(text)
        name, url = match.groups() if match else ("data", text)
        if not url.strip():
            raise InvalidOptionError(
                "--data is empty: give the path or URL of a jsonl, csv, tsv, json, parquet or arrow file."
            )
        if name in urls:
            raise InvalidOptionError(
                f"--data gives the source {name!r} twice: {urls[name]} and {url}. A source without a name is 'data'. Name "
                f"the others: --data other={url}, for mappings such as ${{other.column}}."
            )
        urls[name] = url
    if not urls and needed:
        raise InvalidOptionError(
            "No data was given. Add --data with a path or URL: a jsonl, csv, tsv, json, parquet or arrow file, a folder, or a "
            "pattern such as 'data/*.jsonl'."
        )
    return urls


def data_parameters(urls: dict[str, str]) -> dict[str, Any]:
    """Sources as the parameters `data` and `more_data`."""
    more = {name: url for name, url in urls.items() if name != "data"}
    return {"data": urls.get("data", ""), "more_data": more}


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists() or next(iglob(text), None) is not None  # noqa: PTH207 - absolute ones, too
    except (OSError, ValueError, RuntimeError):
        return False
