"""Every option of a batch run, declared once: its name, type, bounds, default and help.

The form of `batch_run`, the flags of the command line, the keywords of `BatchEngine`, the keys of run files, what the manifest
keeps and the table in docs/options.md all come from `BatchRequest` and `RunOptions`. A new option is one field of
`RunOptions`. A new field of `BatchRequest` also needs its flag in `cli.commands` and its place in the manifest.
Nothing here imports pydantic: it would double the time of `batchflow --help`. The file is long because it is a table.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import KW_ONLY, MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, get_args, get_origin, get_type_hints

from prefect_batchflow.errors.chosen import LineNumbers, numbered_lines, rerun_errors, retried_errors
from prefect_batchflow.errors.classes import NOT_RETRIED, class_of_error, is_one_of
from prefect_batchflow.exceptions import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Granularity = Literal["auto", "line", "chunk"]
OnChange = Literal["refuse", "reuse", "rerun"]
TaskRunnerName = Literal["local", "dask", "ray"]
BadRows = Literal["refuse", "fail"]
InputsWithDefault = Literal["column", "default"]

LIMITS, RETRIES, RUN = "Workers and limits", "Retries", "The run"
"""Groups of options in the command line's help."""

_WHOLE = r"-?[0-9]{1,18}"
_DECIMAL = r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"


@dataclass(frozen=True, slots=True)
class Option:
    """What an option means, what it allows, and how the command line spells it. It annotates its field."""

    help: str
    """Sentences for every place that shows the option."""
    _: KW_ONLY
    empty: str = ""
    """What 0 or an empty text means, such as "no limit". This value is allowed, whatever the bounds."""
    word: str = ""
    """A word for 0, which a number can be written as, except in the form."""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    pattern: str = ""
    """A regular expression that a text fits as a whole, also the digits of a whole number,"""
    allowed: str = ""
    """and the same for people, after "It must be"."""
    errors: Callable[[str], tuple[str, ...]] | None = None
    """Reads a list of errors, separated by commas; raises `InvalidOptionError`."""
    group: str = RUN
    flag: str = ""
    """On the command line; empty is the name with dashes."""
    metavar: str = ""
    written: str = ""
    """What the form adds to the help,"""
    typed: str = ""
    """and what the command line adds."""
    run_file: str = ""
    """The key of promptflow's run file that gives it, if there is one."""
    is_kept: bool = True
    """Whether a resume takes it over from the run."""
    name: str = ""
    kind: Any = str
    default: Any = ...
    """These three are the field's own, filled in by `PARAMETERS`; no default is `...`."""

    def __repr__(self) -> str:  # short, because Prefect prints the signature of batch_run when a call does not fit
        return f"Option({self.name!r})"

    @property
    def flags(self) -> tuple[str, ...]:
        """Its names on the command line; a duration has a short one and the full one."""
        full = f"--{self.name.replace('_', '-')}"
        return (full.removesuffix("-sec"), full) if full.endswith("-sec") else (self.flag or full,)

    @property
    def unit(self) -> str:
        """What stands for its value in the command line's help; nothing for choices."""
        return self.metavar or ("SEC" if self.name.endswith("_sec") else {int: "N", float: "X"}.get(self.kind, ""))

    @property
    def meaning_of_empty(self) -> str:
        """What 0 or an empty text means, as a sentence."""
        return f"{'0' if self.kind in (int, float) else 'Empty'} means {self.empty}." if self.empty else ""

    @property
    def description(self) -> str:
        """What the form says."""
        return " ".join(filter(None, (self.help, self.written, self.meaning_of_empty)))

    @property
    def rule(self) -> str:
        """What it must be, as a sentence; empty where there is no simple one."""
        if get_origin(self.kind) is Literal:
            *choices, last = get_args(self.kind)
            return f"It must be {', '.join(choices)} or {last}."
        if self.kind is str:
            return f"It must be {self.allowed or 'a text'}."
        if self.kind not in (int, float):
            return ""
        number = "a whole number" if self.kind is int else "a finite number"
        bound = f" of at least {self.at_least:g}" if self.at_least is not None else ""
        if self.above is not None:
            bound = f" above {self.above:g}"
        if self.at_most is not None:
            bound = f" from {self.at_least:g} to {self.at_most:g}"
        empty = self.word or f"0 for {self.empty}"
        return f"It must be {f'{empty}, or ' if self.has_gap else ''}{number}{bound}."

    @property
    def has_gap(self) -> bool:
        """Whether its 0 lies apart from the other values it allows."""
        return bool(self.empty) and self.at_least is not None and self.at_least > 0

    def problem(self, value: Any) -> str:
        """What the value must be, as sentences; empty when it is that."""
        if self.kind in (int, float):
            is_number = isinstance(value, int if self.kind is int else int | float) and not isinstance(value, bool)
            return "" if is_number and abs(value) < math.inf and self._is_within(value) else self.rule
        if get_origin(self.kind) is Literal:
            return "" if value in get_args(self.kind) else self.rule
        if self.kind is str and (not isinstance(value, str) or not re.fullmatch(self.pattern or "(?s:.*)", value)):
            return self.rule
        if self.errors is not None:
            try:
                self.errors(value)
            except InvalidOptionError as exc:
                return str(exc)
        return ""

    def number(self, text: str) -> int | float:
        """The number that a text spells in plain digits; other texts, and numbers out of bounds, raise `ValueError`."""
        if self.word and text == self.word:
            return 0
        value: Any = self.kind(text) if re.fullmatch(_WHOLE if self.kind is int else _DECIMAL, text) else None
        if self.problem(value):
            raise ValueError(f"found {text!r}. {self.rule}")
        return value  # type: ignore[no-any-return]

    def _is_within(self, value: float) -> bool:
        if self.empty and value == 0:
            return True
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Let pydantic convert a value as it does, and refuse it as the command line would."""
        from pydantic_core import PydanticCustomError, core_schema

        option = replace(self, kind=source)

        def checked(value: Any, convert: Callable[[Any], Any]) -> Any:
            try:
                if isinstance(value, str) and option.kind in (int, float):
                    value = option.number(value)
                # Pydantic would take True as 1, and bytes as text.
                if option.rule and isinstance(value, bool | bytes | bytearray):
                    raise ValueError
                value = convert(str(value) if option.pattern and isinstance(value, int) else value)
            except ValueError:
                if option.rule:
                    raise PydanticCustomError("option", "{rule}", {"rule": option.rule}) from None
                raise
            if problem := option.problem(value):
                raise PydanticCustomError("option", "{rule}", {"rule": problem})
            return value

        return core_schema.no_info_wrap_validator_function(checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Its bounds in the form's schema, by which Prefect's server refuses a run before it starts."""
        bounds = {
            "minimum": 0 if self.has_gap else self.at_least,
            "exclusiveMinimum": self.above,
            "maximum": self.at_most,
            "pattern": f"^{self.pattern}$" if self.pattern else None,
            "not": {"exclusiveMinimum": 0, "exclusiveMaximum": self.at_least} if self.has_gap else None,
        }
        return handler(schema) | {name: bound for name, bound in bounds.items() if bound is not None}


Limit, Retry = partial(Option, group=LIMITS), partial(Option, group=RETRIES)


def check_options(values: Mapping[str, Any]) -> None:
    """Refuse options, by name, that are out of bounds.

    Raises:
        InvalidOptionError: The message names each such option, its value and what is allowed.
    """
    problems = {name: PARAMETERS[name].problem(value) for name, value in values.items()}
    if wrong := [f"{name} is {values[name]!r}. {problem}" for name, problem in problems.items() if problem]:
        raise InvalidOptionError(" ".join(wrong))


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run runs: what its manifest keeps, and a resume takes over."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    max_lines_count: Annotated[
        int,
        Limit(
            "Read only this many rows of each source, the first ones.",
            empty="all",
            at_least=0,
            flag="--limit",
            metavar="ROWS",
        ),
    ] = 0
    worker_count: Annotated[
        int,
        Limit(
            "Worker processes for sync code. Each runs one line at a time.",
            empty="auto: begin with one per processor (2 to 4), add more up to max_concurrency and 64 while lines wait, "
            "and end some while they compute",
            word="auto",
            at_least=1,
            at_most=1024,
            flag="--workers",
            metavar="N|auto",
        ),
    ] = 0
    max_concurrency: Annotated[
        int, Limit("Lines of async code that run at once, all in one process.", at_least=1, at_most=10_000)
    ] = 64
    line_timeout_sec: Annotated[float, Limit("Seconds a line may run, counted from when a worker has it.", above=0)] = (
        600.0
    )
    line_memory_mb: Annotated[
        int,
        Limit(
            "MiB a line can add to the memory of its worker, at least 16.", empty="no limit", at_least=16, metavar="MIB"
        ),
    ] = 0
    batch_timeout_sec: Annotated[float, Limit("Seconds the whole run may take.", empty="no limit", at_least=0)] = 0.0
    max_failures: Annotated[
        str,
        Limit(
            "End the run at this number of failed lines, such as 1 or 50, or when more than this percentage of the ended lines "
            "failed, such as 5%. A percentage applies after 20 lines, or all lines, have ended.",
            empty="no limit",
            pattern=r"([1-9][0-9]{0,17}|(100|[1-9][0-9]?(\.[0-9]{1,9})?|0\.[0-9]{0,9}[1-9][0-9]{0,9})%)?",
            allowed="a number of lines, such as 1 or 50, a share, such as 5%, or empty for no limit",
            metavar="N|N%",
        ),
    ] = ""
    max_same_errors: Annotated[
        int,
        Limit("End the run when this many lines in a row failed with the same error.", empty="no limit", at_least=0),
    ] = 0
    retries: Annotated[int, Retry("More attempts for a line that failed.", at_least=0, at_most=1000)] = 0
    retry_delay_sec: Annotated[float, Retry("Seconds before the first retry.", at_least=0)] = 0.0
    retry_backoff: Annotated[float, Retry("Each further delay is this many times the one before.", at_least=1)] = 2.0
    retry_jitter: Annotated[
        float,
        Retry(
            "Vary each delay at random. With 0.5 it is 0.63 to 1.5 times as long, with 1 it is 0.42 to 2 times as long. The "
            "average stays about the same.",
            at_least=0,
            at_most=1,
        ),
    ] = 0.0
    retry_on: Annotated[
        str,
        Retry(
            "Errors to retry, separated by commas: classes (rate_limit, transient, timeout, crash, out_of_memory, user_code, "
            "bad_input, refused), codes such as LineExecutionTimeoutError, or types of exceptions.",
            empty="all but bad_input and refused, which would fail again",
            errors=retried_errors,
            allowed="names of errors, separated by commas",
            metavar="CLASS",
        ),
    ] = ""
    granularity: Annotated[
        Granularity,
        Limit(
            "One Prefect task run per line, or one per chunk of lines. auto gives each task run about a second of work, and "
            "at least one line. A cluster always gets chunks."
        ),
    ] = "auto"
    task_runner: Annotated[
        TaskRunnerName,
        Limit("Where lines run: on this machine, or as tasks on a Dask or Ray cluster (docs/scaling.md)."),
    ] = "local"
    task_runner_address: Annotated[
        str,
        Limit(
            "Address of the cluster: tcp://host:8786 for dask; ray://host:10001 or auto for ray.",
            empty="a cluster on this machine, started for this run",
            metavar="ADDRESS",
        ),
    ] = ""
    bad_rows: Annotated[
        BadRows,
        Limit(
            "When a row cannot be read, or lacks a column that other rows have: refuse to start, or fail that line only."
        ),
    ] = "refuse"
    line_number_column: Annotated[
        str,
        Option(
            "Column whose whole numbers identify the lines and join the sources. A source without it is numbered by "
            "line_number, else by position. The name none numbers every source by position.",
            pattern=r"[\s\S]+",
            allowed="none, or the name of a column",
            metavar="none|NAME",
        ),
    ] = "line_number"
    inputs_with_default: Annotated[
        InputsWithDefault,
        Option(
            "What an input with a default gets if it is not mapped and the data has a column of its name: the column, or the "
            "default, as in promptflow and in runs from its run files.",
        ),
    ] = "column"
    on_change: Annotated[
        OnChange,
        Option(
            "When a run resumes and its data, mapping, flow, variant, node connections, constructor arguments or environment "
            "variables have changed: refuse, reuse the lines whose inputs are the same, wherever they stand now, or rerun all "
            "lines. With resume_from, reuse also allows a run of another flow.",
            is_kept=False,
        ),
    ] = "refuse"
    rerun: Annotated[
        str,
        Option(
            "Which failed lines run again when a run resumes, separated by commas: failed, timed_out, crashed, or classes, "
            "codes and types of errors as in retry_on. The others stay failed.",
            empty="failed, which is all of them",
            errors=rerun_errors,
            allowed="names of errors, separated by commas",
            metavar="CLASS",
            is_kept=False,
        ),
    ] = ""
    rerun_lines: Annotated[
        str,
        Option(
            "Lines that run again when a run resumes, completed or not: numbers from 0 and ranges, separated by commas, such "
            "as 3,7,20-30. Their earlier records are kept, and the new ones count. Other failed lines stay failed, unless "
            "rerun names their errors.",
            empty="no line but those that rerun chooses",
            errors=numbered_lines,
            allowed="numbers and ranges of lines, separated by commas",
            metavar="LINES",
            is_kept=False,
        ),
    ] = ""

    def __post_init__(self) -> None:
        for name in OPTION_NAMES:
            if (word := PARAMETERS[name].word) and getattr(self, name) == word:
                object.__setattr__(self, name, 0)
        check_options(asdict(self))

    @property
    def policy(self) -> LinePolicy:
        """The time limit and retries of a line."""
        return LinePolicy(
            timeout_sec=self.line_timeout_sec,
            retries=self.retries,
            retry_delay_sec=self.retry_delay_sec,
            retry_backoff=self.retry_backoff,
            retry_jitter=self.retry_jitter,
            retry_on=retried_errors(self.retry_on),
        )

    @property
    def errors_to_rerun(self) -> tuple[str, ...]:
        """The errors whose lines run again; empty is all."""
        return rerun_errors(self.rerun)

    @property
    def lines_to_rerun(self) -> LineNumbers:
        """The lines that run again, whether they completed or not."""
        return LineNumbers(numbered_lines(self.rerun_lines))


@dataclass(frozen=True, kw_only=True)
class LinePolicy:
    """How one line runs: its time limit and its retries. The fields mean what they do in `RunOptions`."""

    timeout_sec: float = RunOptions.line_timeout_sec
    retries: int = RunOptions.retries
    retry_delay_sec: float = RunOptions.retry_delay_sec
    retry_backoff: float = RunOptions.retry_backoff
    max_retry_delay_sec: float = 300.0
    """No delay is longer, apart from jitter."""
    retry_jitter: float = RunOptions.retry_jitter
    retry_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = ("retries", "retry_delay_sec", "retry_backoff", "retry_jitter")
        check_options({"line_timeout_sec": self.timeout_sec, **{name: getattr(self, name) for name in names}})

    def delays(self) -> Iterator[float]:
        """The seconds before each retry, `retries` of them, without jitter."""
        delay = self.retry_delay_sec
        for _ in range(self.retries):
            delay = min(delay, self.max_retry_delay_sec)
            yield delay
            delay *= self.retry_backoff

    def retries_error(self, error: dict[str, Any]) -> bool:
        """Whether an error dictionary is one to retry, attempts aside."""
        if not self.retry_on:
            return class_of_error(error) not in NOT_RETRIED
        return is_one_of(self.retry_on, error)


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """One batch run: what to run, and how."""

    flow: Annotated[
        str,
        Option(
            "The flow: a folder with a flow.dag.yaml or flow.flex.yaml, one of these files, a .prompty file, "
            "path/to/file.py:attr, or module:attr.",
            run_file="flow",
        ),
    ]
    data: Annotated[
        str,
        Option(
            "Path or URL of the rows: jsonl (or ndjson), csv, tsv or json (also .gz or .zst), parquet or arrow, a folder, or a "
            "pattern such as data/*.jsonl. The mapping calls it data.",
            group="",
            metavar="[NAME=]URL",
            typed="- is standard input. NAME=URL adds a source of another name. Repeatable.",
            run_file="data",
        ),
    ] = ""
    inputs_mapping: Annotated[
        dict[str, Any],
        Option(
            "Set an input from a column (${data.column}) or to a value. Other inputs come from the column with the same name.",
            group="",
            flag="--map",
            metavar="NAME=VALUE",
            typed="Repeatable: --map question='${data.q}'. VALUE is read as JSON if it is JSON (3, true, null, a list), else "
            "as text.",
            run_file="column_mapping",
        ),
    ] = field(default_factory=dict)
    run_id: Annotated[
        str,
        Option(
            "Name of the run. A name that exists resumes that run.",
            empty="the id of the Prefect flow run, so that Retry resumes",
            metavar="NAME",
            run_file="name",
        ),
    ] = ""
    run: Annotated[
        str,
        Option(
            "Build on another run in the same storage: its outputs become the source run.outputs and its data run.inputs, for "
            "mappings such as ${run.outputs.answer}.",
            metavar="RUN",
            run_file="run",
        ),
    ] = ""
    resume_from: Annotated[
        str,
        Option(
            "Start with the completed lines of another run, where their inputs are the same. A run of another flow is refused "
            "unless on_change is reuse.",
            metavar="RUN",
            typed="Its id, or the folder of a run of promptflow, such as ~/.promptflow/.runs/NAME.",
        ),
    ] = ""
    more_data: Annotated[
        dict[str, str], Option("More sources, name to URL, for mappings such as ${name.column}.", flag="--data")
    ] = field(default_factory=dict)
    image_roots: Annotated[
        list[str],
        Option(
            "Folders, paths or URLs, where the images that rows name can be, besides the folder of the data. An absolute path "
            "must be below one of them. A relative path that the data's folder does not have is looked for in them.",
            group="",
            flag="--image-root",
            metavar="FOLDER",
            typed="Repeatable.",
        ),
    ] = field(default_factory=list)
    init_kwargs: Annotated[
        dict[str, Any],
        Option(
            "Arguments of a class flow's constructor.",
            flag="--init",
            metavar="NAME=VALUE",
            typed="Repeatable, with values as in --map.",
            run_file="init",
        ),
    ] = field(default_factory=dict)
    connections: Annotated[
        dict[str, str],
        Option(
            "Where the connection NAME is: a connection file of promptflow (yaml, json, .env), or a saved Prefect block: "
            "openai-connection/BLOCK, or BLOCK alone. Other connections come from the block with the connection's own name, or "
            "from variables such as NAME_API_KEY. The run keeps the place, not the values.",
            flag="--connection",
            metavar="NAME=FILE|BLOCK",
            typed="Repeatable.",
        ),
    ] = field(default_factory=dict)
    options: RunOptions = field(default_factory=RunOptions)
    storage: Annotated[
        str,
        Option(
            "Where runs are kept: a path, a URL, or batchflow-run-storage/NAME for a saved block.",
            empty="BATCHFLOW_STORAGE, or else batchflow/runs below PREFECT_HOME",
            metavar="URL",
        ),
    ] = ""
    output_dir: Annotated[
        str,
        Option(
            "A folder on the machine of the run that also gets output.jsonl, failed.jsonl and batch_result.json.",
            metavar="FOLDER",
        ),
    ] = ""
    working_dir: Annotated[
        str, Option("Folder where the flow's code runs.", empty="the flow's own folder", metavar="FOLDER")
    ] = ""
    variant: Annotated[
        str,
        Option(
            "Variant of a node of a flow.dag.yaml, as ${node.variant_1}.",
            empty="each node's default",
            metavar="'${NODE.VARIANT}'",
            run_file="variant",
        ),
    ] = ""
    node_connections: Annotated[
        dict[str, dict[str, str]],
        Option(
            "Override a node's connection, deployment_name, model or connection parameter, in a flow.dag.yaml.",
            metavar="NODE.INPUT=NAME",
            written='For example {"answer": {"connection": "other_ai"}}.',
            typed="Repeatable, for example answer.connection=other_ai.",
            run_file="connections",
        ),
    ] = field(default_factory=dict)
    environment_variables: Annotated[
        dict[str, Any],
        Option(
            "Environment variables for the flow's code. They override those of its yaml. The run keeps only their names.",
            written="Prefect stores values from the form in clear text.",
            metavar="KEY=VALUE",
            typed="Repeatable.",
            run_file="environment_variables",
        ),
    ] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, str]:
        """Source name to URL."""
        return {**({"data": self.data} if self.data else {}), **self.more_data}


def _declared(model: type[BatchRequest | RunOptions]) -> dict[str, Option]:
    hints = get_type_hints(model, include_extras=True)
    found: dict[str, Option] = {}
    for item in fields(model):
        if item.name == "options":
            found |= _declared(RunOptions)
            continue
        kind, option = get_args(hints[item.name])
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        default = ... if default is MISSING else default
        found[item.name] = replace(option, name=item.name, kind=kind, default=default)
    return found


PARAMETERS: Final = _declared(BatchRequest)
"""Every parameter of `batch_run` by its name, in the form's order."""
RUN_FILE_KEYS: Final = {option.run_file: option.name for option in PARAMETERS.values() if option.run_file}
"""Key of promptflow's run file to the parameter that it gives."""
MAX_FAILURES_INSTEAD: Final = {"fail_fast": "1", "max_failed_lines": "50", "max_failed_percent": "5%"}
"""Likely guesses, to the value of `max_failures` for each."""
OPTION_NAMES: Final = tuple(item.name for item in fields(RunOptions))


def given_by_promptflows_variables() -> dict[str, Any]:
    """The parameters of `batch_run` that `PF_LINE_TIMEOUT_SEC`, `PF_BATCH_TIMEOUT_SEC` and `PF_WORKER_COUNT` set.

    A variable that is unset, unreadable or not above zero sets nothing.
    Source: promptflow `batch/_batch_engine.py`.
    """
    workers = _number_from("PF_WORKER_COUNT")
    found = {
        "line_timeout_sec": _number_from("PF_LINE_TIMEOUT_SEC"),
        "batch_timeout_sec": _number_from("PF_BATCH_TIMEOUT_SEC"),
        "worker_count": int(workers) if math.isfinite(workers) else workers,
    }
    return {name: value for name, value in found.items() if value > 0}


def _number_from(variable: str) -> float:
    try:
        return float(os.environ.get(variable, ""))
    except ValueError:
        return 0


def default_home() -> Path:
    """Prefect's home without importing Prefect: `PREFECT_HOME`, else `~/.prefect`, absolute."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser().absolute()


def default_storage_url() -> str:
    """Where runs are kept by default: `BATCHFLOW_STORAGE`, else `batchflow/runs` under Prefect's home."""
    return os.environ.get("BATCHFLOW_STORAGE") or (default_home() / "batchflow" / "runs").as_uri()
