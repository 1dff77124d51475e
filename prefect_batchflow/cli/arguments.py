"""What is typed at the command line, as the values it means. Values in, values out: no Prefect, no storage."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, fields
from glob import iglob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from prefect_batchflow.exceptions import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect_batchflow.settings import RunOptions

# What `settings` says, whose import brings pydantic and would double the time of `--help`; a test compares them.
WORKER_COUNT, MAX_CONCURRENCY, LINE_TIMEOUT_SEC, LEAST_MEMORY_MB = 4, 64, 600, 16
Granularity = Literal["auto", "line", "chunk"]
OnChange = Literal["refuse", "reuse", "rerun"]
TaskRunnerName = Literal["local", "dask", "ray"]
BadRows = Literal["refuse", "fail"]

_NAMED_SOURCE = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)

LIMITS = Group.create_ordered("Workers and limits")
RETRIES = Group.create_ordered("Retries")
RUN = Group.create_ordered("The run")
SCREEN = Group.create_ordered("Screen")


def _option(*names: str, group: Group, **more: Any) -> Parameter:
    return Parameter(name=names or None, group=group, **more)


def _memory_limit(_: Any, value: int | None) -> None:
    if value is not None and value != 0 and value < LEAST_MEMORY_MB:
        raise ValueError(f"Must be 0 or at least {LEAST_MEMORY_MB}.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class OptionFlags:
    """The options of a run; each field is named as `batch_run` has it, and `None` was not given."""

    worker_count: Annotated[
        int | None,
        _option(
            "--workers",
            group=LIMITS,
            metavar="N",
            validator=Number(gte=1, lte=1024),
            help=f"Worker processes for sync code, a line at a time each. [default: {WORKER_COUNT}]",
        ),
    ] = None
    max_concurrency: Annotated[
        int | None,
        _option(
            group=LIMITS,
            validator=Number(gte=1, lte=10_000),
            help=f"Lines at once for async code, in one process. [default: {MAX_CONCURRENCY}]",
        ),
    ] = None
    line_timeout_sec: Annotated[
        float | None,
        _option(
            "--line-timeout",
            "--line-timeout-sec",
            group=LIMITS,
            metavar="SEC",
            validator=Number(gt=0),
            help=f"Seconds a line may run, from when a worker has it. [default: {LINE_TIMEOUT_SEC}]",
        ),
    ] = None
    line_memory_mb: Annotated[
        int | None,
        _option(
            group=LIMITS,
            metavar="MIB",
            validator=_memory_limit,
            help=f"MiB a line may add to its worker's memory, {LEAST_MEMORY_MB} at least; 0 is no limit. [default: 0]",
        ),
    ] = None
    batch_timeout_sec: Annotated[
        float | None,
        _option(
            "--batch-timeout",
            "--batch-timeout-sec",
            group=LIMITS,
            metavar="SEC",
            validator=Number(gte=0),
            help="Seconds the whole run may take; 0 is no limit. [default: 0]",
        ),
    ] = None
    max_failures: Annotated[
        str | None,
        _option(
            group=LIMITS,
            metavar="N|N%",
            help="End the run at this number of failed lines, such as 1 or 50, or when more than this share of the lines that "
            "have ended failed, such as 5%. A share counts once 20 lines or all have ended. [default: no limit]",
        ),
    ] = None
    max_same_errors: Annotated[
        int | None,
        _option(
            group=LIMITS,
            metavar="N",
            validator=Number(gte=0),
            help="End the run when so many lines in a row failed with the same error; 0 is no limit. [default: 0]",
        ),
    ] = None
    max_lines_count: Annotated[
        int | None,
        _option(
            "--limit",
            group=LIMITS,
            metavar="ROWS",
            validator=Number(gte=0),
            help="Read only so many rows, the first ones; 0 is all. [default: 0]",
        ),
    ] = None
    bad_rows: Annotated[
        BadRows | None,
        _option(
            group=LIMITS,
            help="A row that cannot be read, or lacks a column that others have: refuse to start, or fail that line only. "
            "[default: refuse]",
        ),
    ] = None
    granularity: Annotated[
        Granularity | None,
        _option(
            group=LIMITS,
            help="One Prefect task run a line, or one for a chunk of lines; auto is line up to 1,000 lines. [default: auto]",
        ),
    ] = None
    task_runner: Annotated[
        TaskRunnerName | None,
        _option(
            group=LIMITS,
            help="Where lines run: on this machine, or as tasks on a Dask or Ray cluster; docs/scaling.md. [default: local]",
        ),
    ] = None
    task_runner_address: Annotated[
        str | None,
        _option(
            group=LIMITS,
            metavar="ADDRESS",
            help="Of the cluster: tcp://host:8786 for dask; ray://host:10001 or auto for ray. [default: one that is started on "
            "this machine for the time of the run]",
        ),
    ] = None
    retries: Annotated[
        int | None,
        _option(group=RETRIES, validator=Number(gte=0), help="Further attempts for a line that failed. [default: 0]"),
    ] = None
    retry_delay_sec: Annotated[
        float | None,
        _option(
            "--retry-delay",
            "--retry-delay-sec",
            group=RETRIES,
            metavar="SEC",
            validator=Number(gte=0),
            help="Seconds before the first retry. [default: 0]",
        ),
    ] = None
    retry_backoff: Annotated[
        float | None,
        _option(group=RETRIES, validator=Number(gte=1), help="Each delay is the one before times this. [default: 2]"),
    ] = None
    retry_jitter: Annotated[
        float | None,
        _option(
            group=RETRIES,
            validator=Number(gte=0, lte=1),
            help="Stretch each delay by a random part of itself, up to this share. [default: 0]",
        ),
    ] = None
    retry_on: Annotated[
        list[str] | None,
        _option(
            group=RETRIES,
            metavar="CLASS",
            help="Errors that are retried: rate_limit, transient, timeout, crash, out_of_memory, user_code, bad_input, "
            "refused; codes and types of exceptions, too. Several by commas. [default: all but bad_input and refused]",
        ),
    ] = None
    on_change: Annotated[
        OnChange | None,
        _option(
            group=RUN,
            help="When a run goes on whose data, mapping or flow is not what it was: refuse; reuse the lines whose "
            "inputs are the same; or rerun all. [default: refuse]",
        ),
    ] = None
    rerun: Annotated[
        list[str] | None,
        _option(
            group=RUN,
            metavar="CLASS",
            help="Of the lines that failed before, run only these again; the others stay failed: timed_out, or classes, codes "
            "and types of errors as in --retry-on. Several by commas. [default: failed, which is all]",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that were given, as parameters of `batch_run`.

        Raises:
            InvalidOptionError: A misspelt class of errors.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.retry_on is not None:
            from prefect_batchflow.errors.chosen import retried_errors

            values["retry_on"] = ",".join(retried_errors(",".join(self.retry_on)))  # each may hold several
        if self.rerun is not None:
            from prefect_batchflow.errors.chosen import rerun_errors

            values["rerun"] = ",".join(rerun_errors(",".join(self.rerun)))
        return {name: value for name, value in values.items() if value is not None}


def parameters_of(options: RunOptions) -> dict[str, Any]:
    """The options of an earlier start of a run as parameters of `batch_run`.

    `on_change` is not among them: that a change was accepted once says nothing about the next one; nor is `rerun`, for which
    it is the same.
    """
    policy = options.policy
    return {
        "worker_count": options.worker_count,
        "max_concurrency": options.max_concurrency,
        "line_timeout_sec": policy.timeout_sec,
        "line_memory_mb": options.line_memory_mb or 0,
        "batch_timeout_sec": options.batch_timeout_sec or 0.0,
        "max_failures": options.max_failures,
        "max_same_errors": options.max_same_errors or 0,
        "max_lines_count": options.max_lines_count or 0,
        "bad_rows": options.bad_rows,
        "granularity": options.granularity,
        "task_runner": options.task_runner,
        "task_runner_address": options.task_runner_address,
        "retries": policy.retries,
        "retry_delay_sec": policy.retry_delay_sec,
        "retry_backoff": policy.backoff,
        "retry_jitter": policy.jitter,
        "retry_on": ",".join(policy.retry_on),
    }


def parameters_of_resume(options: RunOptions, flags: OptionFlags) -> dict[str, Any]:
    """The options of an earlier start with those that are given now in their place; another task runner has no old address."""
    given = flags.given()
    if "task_runner" in given:
        given = {"task_runner_address": "", **given}
    return {**parameters_of(options), **given}


def words_of(options: RunOptions) -> list[str]:
    """The options that are not the defaults, as they are typed: `["--line-timeout", "5"]`; `--limit` left out."""
    values, defaults = parameters_of(options), parameters_of(type(options)())
    words: list[str] = []
    for name, hint in get_type_hints(OptionFlags, include_extras=True).items():
        value = values.get(name)
        if value == defaults.get(name) or name == "max_lines_count":
            continue
        flag_names = get_args(hint)[1].name or (f"--{name.replace('_', '-')}",)
        words.append(flag_names[0])
        words.append(f"{value:g}" if isinstance(value, float) else str(value))
    return words


def value_of(text: str) -> Any:
    """A value as it was typed: JSON if it is JSON, else the text itself.

    `3` is a number, `true` a boolean, `[1, 2]` a list, `"3"` with its quotes the text 3. `NaN` and its kin are no JSON.
    """
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError):
        return text


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is beyond what a number holds")
    return value


def assignments(option: str, texts: Iterable[str]) -> dict[str, Any]:
    """Read `name=value` texts, values as `value_of` has them.

    Args:
        option: The option they were given with, for messages: `--map`.
        texts: As typed, `question=${data.q}`.

    Raises:
        InvalidOptionError: One lacks a name or a value, or two have the same name.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InvalidOptionError(
                f"{option} takes name=value, found {text!r}. Give it once for each name, as {option} "
                + ("question='${data.q}'." if option == "--map" else "name=value.")
            )
        if name.strip() in values:
            raise InvalidOptionError(f"{option} gives {name.strip()!r} twice: keep one of them.")
        values[name.strip()] = value_of(value)
    return values


def environment_of(texts: Iterable[str]) -> dict[str, str]:
    """Read `KEY=VALUE` texts of `--environment-variables`; a value is text, whatever it looks like.

    Raises:
        InvalidOptionError: One lacks a name or the equals sign; the message does not repeat it, for it may be a key.
    """
    values = {}
    for number, text in enumerate(texts, 1):
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InvalidOptionError(
                f"--environment-variables takes KEY=VALUE; number {number} has no {'name' if equals else 'equals sign'}. "
                "Give the option once for each variable."
            )
        values[name.strip()] = value
    return values


def node_connections_of(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Read `NODE.INPUT=NAME` texts of `--node-connections`, node to input to name.

    Raises:
        InvalidOptionError: One lacks a part, or two say something of the same input.
    """
    chosen: dict[str, dict[str, str]] = {}
    for text in texts:
        place, equals, value = text.partition("=")
        node, dot, name = place.strip().partition(".")
        if not (equals and dot and node and name and value):
            raise InvalidOptionError(
                f"--node-connections takes NODE.INPUT=NAME, as answer.connection=other or answer.model=gpt-4o, found {text!r}. "
                "Give the option once for each. The Prefect block that has a connection is said by --connection NAME=BLOCK."
            )
        if name in chosen.setdefault(node, {}):
            raise InvalidOptionError(f"--node-connections gives '{node}.{name}' twice: keep one of them.")
        chosen[node][name] = value
    return chosen


def sources(texts: Iterable[str], *, needed: bool = True) -> dict[str, str]:
    """Read the data's sources, `URL` or `name=URL`; the one without a name is `data`.

    A text that is the path of something on this machine, or fits something, is that path, `year=2024/*.jsonl` too.

    Args:
        texts: As typed with `--data`.
        needed: Whether nothing else says where the rows are.

    Raises:
        InvalidOptionError: There is none that is needed, or two have the same name.
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
                f"--data gives the source {name!r} twice: {urls[name]} and {url}. A source without a name is 'data'; name "
                f"the others, as --data other={url}, for mappings as ${{other.column}}."
            )
        urls[name] = url
    if not urls and needed:
        raise InvalidOptionError(
            "No data was given. Add --data with the path or URL of a jsonl, csv, tsv, json, parquet or arrow file, of a "
            "folder, or a pattern such as 'data/*.jsonl'."
        )
    return urls


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists() or next(iglob(text), None) is not None  # noqa: PTH207 - absolute ones, too
    except (OSError, ValueError, RuntimeError):
        return False
