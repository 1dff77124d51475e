"""The options of a run as one frozen model, from command line to task, and the defaults the environment sets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_batchflow.errors.classes import NOT_RETRIED, class_of_error, is_one_of
from prefect_batchflow.exceptions import InvalidOptionError

Granularity = Literal["auto", "line", "chunk"]
OnChange = Literal["refuse", "reuse", "rerun"]
TaskRunnerName = Literal["local", "dask", "ray"]
BadRows = Literal["refuse", "fail"]

DEFAULT_LINE_TIMEOUT_SEC = 600.0
DEFAULT_WORKER_COUNT = 4
DEFAULT_MAX_CONCURRENCY = 64


class LinePolicy(BaseModel):
    """How one line is run: its limit and its retries. Drives both granularities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_sec: Annotated[float, Field(gt=0)] = DEFAULT_LINE_TIMEOUT_SEC
    """Seconds a line may run, counted from when a worker has it."""
    retries: Annotated[int, Field(ge=0)] = 0
    """Further attempts after a failed one."""
    retry_delay_sec: Annotated[float, Field(ge=0)] = 0.0
    """Seconds before the first retry."""
    backoff: Annotated[float, Field(ge=1)] = 2.0
    """Each further delay is the one before times this."""
    max_retry_delay_sec: Annotated[float, Field(ge=0)] = 300.0
    """No delay is longer, jitter aside."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Each delay varies at random around itself, by up to this share."""
    retry_on: tuple[str, ...] = ()
    """Errors that are retried: by an `ErrorClass`, as `rate_limit`, any code of the chain, as `LineExecutionTimeoutError`, or
    the type of what the flow's code raised, as `RateLimitError`; empty retries all that may end otherwise."""

    def delays(self) -> list[float]:
        """The seconds before each retry, `retries` of them, jitter not included."""
        return [min(self.retry_delay_sec * self.backoff**n, self.max_retry_delay_sec) for n in range(self.retries)]

    def retries_error(self, error: dict[str, Any]) -> bool:
        """Whether an error dictionary is one that is retried, attempts aside."""
        if not self.retry_on:
            return class_of_error(error) not in NOT_RETRIED
        return is_one_of(self.retry_on, error)


MAX_FAILURES = r"^([1-9][0-9]*|(100|[1-9][0-9]?(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)%)?$"
"""`max_failures`: nothing, a number of lines, or a share above 0 % up to 100 %."""


def check_max_failures(text: str) -> None:
    """Refuse a `max_failures` that cannot be.

    Raises:
        InvalidOptionError: It is neither a number of lines nor a share.
    """
    if re.fullmatch(MAX_FAILURES, text) is None:
        raise InvalidOptionError(
            f"max_failures is {text!r}. It must be a number of lines, such as 1 or 50, a share, such as 5%, or empty for no "
            "limit."
        )


class RunOptions(BaseModel):
    """All options of a batch run but its flow, data and mapping."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: LinePolicy = LinePolicy()
    """Limit and retries of a line."""
    max_failures: Annotated[str, Field(pattern=MAX_FAILURES)] = ""
    """The failed lines that end the run, `1` or `50`, or the share of the ended lines above which it ends, `5%`, as soon as 20
    or all have ended; empty is no limit."""
    max_same_errors: Annotated[int, Field(ge=1)] | None = None
    """End when so many lines in a row, as they end, failed with the same error; `None` is no limit."""
    batch_timeout_sec: Annotated[float, Field(gt=0)] | None = None
    """Seconds the whole run may take; `None` is no limit."""
    worker_count: Annotated[int, Field(ge=1, le=1024)] = DEFAULT_WORKER_COUNT
    """Worker processes for sync code, a line at a time each."""
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = DEFAULT_MAX_CONCURRENCY
    """Lines at once for async code, in one worker process."""
    line_memory_mb: Annotated[int, Field(ge=16)] | None = None
    """MiB a line may add to its worker's memory; `None` is no limit."""
    granularity: Granularity = "auto"
    """One task run a line, one for many, or by the number of lines."""
    task_runner: TaskRunnerName = "local"
    """Whether lines run on this machine, or as tasks on a cluster."""
    task_runner_address: str = ""
    """Where the cluster is; empty starts one on this machine for the time of the run."""
    max_lines_count: Annotated[int, Field(ge=1)] | None = None
    """Rows read from each source; `None` is all."""
    bad_rows: BadRows = "refuse"
    """Whether a row that cannot be read, or lacks a column that others have, stops the run or becomes a failed line."""
    on_change: OnChange = "refuse"
    """What a resume does when data, mapping or flow are not what they were."""
    rerun: tuple[str, ...] = ()
    """Of the lines that failed in an earlier start, those that run again: `timed_out`, or by class, code or type of their
    error, as in `LinePolicy.retry_on`; empty is all of them."""


def positive_number(name: str, default: float | None) -> float | None:
    """A number from the environment; unset, unreadable or not above zero gives the default.

    Source: promptflow `batch/_batch_engine.py`, `PF_LINE_TIMEOUT_SEC` and its kin.
    """
    try:
        value = float(os.environ.get(name, ""))
    except ValueError:
        return default
    return value if value > 0 else default


def given_by_promptflows_variables() -> dict[str, Any]:
    """The parameters of `batch_run` that `PF_LINE_TIMEOUT_SEC`, `PF_BATCH_TIMEOUT_SEC` and `PF_WORKER_COUNT` set."""
    found = {
        "line_timeout_sec": positive_number("PF_LINE_TIMEOUT_SEC", None),
        "batch_timeout_sec": positive_number("PF_BATCH_TIMEOUT_SEC", None),
        "worker_count": int(positive_number("PF_WORKER_COUNT", None) or 0),
    }
    return {name: value for name, value in found.items() if value}


def default_home() -> Path:
    """Prefect's home without importing Prefect: `PREFECT_HOME`, else `~/.prefect`, absolute."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser().absolute()


def default_storage_url() -> str:
    """Where runs are kept when nothing is said: `BATCHFLOW_STORAGE`, else `batchflow/runs` under Prefect's home."""
    return os.environ.get("BATCHFLOW_STORAGE") or (default_home() / "batchflow" / "runs").as_uri()


class BatchRequest(BaseModel):
    """One batch run as it was asked for; what the command line, a deployment and `BatchEngine` come to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow: str
    """What `load_flow` takes; for an object in memory its name, for people."""
    variant: str = ""
    """`${node.variant}` of a DAG flow; empty is each node's default."""
    node_connections: dict[str, dict[str, str]] = {}
    """Node of a DAG flow to the connections, deployment and model that it has in this run."""
    working_dir: str | None = None
    """`None` is the flow's own folder."""
    data: dict[str, str] = {}
    """Source name to URL; relative paths are relative to `base_dir`."""
    base_dir: str | None = None
    """`None` is the current directory."""
    inputs_mapping: dict[str, Any] = {}
    """Input name to `${source.column}` or a literal."""
    init_kwargs: dict[str, Any] = {}
    """Arguments of a class entry's constructor, as plain values."""
    environment_variables: dict[str, str] = {}
    """Set where the flow's code runs, before it is imported; before those of the flow's yaml."""
    connections: dict[str, str] = {}
    """Connection's name to the block that has it."""
    run_id: str
    """The run's name, and its folder's."""
    run: str | None = None
    """Another run of the storage: its outputs are the source `run.outputs`, its data the source `run.inputs`."""
    resume_from: str | None = None
    """Another run, whose completed lines are taken over where their inputs are the same."""
    storage: str
    """URL of the run storage, or `batchflow-run-storage/<name>` for a saved block."""
    output_dir: str | None = None
    """A folder on this machine that gets the outputs too."""
    options: RunOptions = RunOptions()
