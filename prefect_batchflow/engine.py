"""`BatchEngine`: promptflow's signature, translated into a call of `batch_run`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_batchflow.connections.files import is_connection_file
from prefect_batchflow.definition.document import environment_texts
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.definition.sending import run_comes_later
from prefect_batchflow.exceptions import InvalidOptionError, InvalidUserData, LineFailureError
from prefect_batchflow.execution.languages import register_executor
from prefect_batchflow.execution.services.proxy import AbstractExecutorProxy
from prefect_batchflow.flows import run_batch
from prefect_batchflow.inputs.places import absolute, is_local_path, locate
from prefect_batchflow.run.handle import LiveRun
from prefect_batchflow.settings import MAX_FAILURES_INSTEAD, OPTION_NAMES, PARAMETERS, given_by_promptflows_variables

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect_batchflow.definition.flow import Flow
    from prefect_batchflow.results.models import BatchResult
    from prefect_batchflow.storage.custom import AbstractBatchRunStorage, AbstractRunStorage


class BatchEngine:
    """Runs a flow over a dataset, as a Prefect flow.

    Args:
        flow_file: A flow's file or folder, `module:attr`, `path.py:attr`, or a callable or class.
        working_dir: The folder where the flow's code runs, and where relative paths of `run` start; `None` is the flow's
            folder.
        connections: The connections that the flow names, each as `{type, value, module, secret_keys}` or as an object, which
            are sent to the workers only; or as the path of a file or the name of a block, which the run keeps.
        storage: Gets the run infos of every line and node, in addition to the run's own records.
        batch_timeout_sec: Seconds a run may take; `None` or 0 is `PF_BATCH_TIMEOUT_SEC`, else no limit.
        line_timeout_sec: Seconds a line may take; `None` or 0 is `PF_LINE_TIMEOUT_SEC`, else the default.
        worker_count: Worker processes. `None` or 0 is `PF_WORKER_COUNT`, else the default, `"auto"`: their number follows
            what lines do.
        init_kwargs: Arguments of a class flow's constructor, any picklable values. The run does not keep them.
        **kwargs: The other options of docs/options.md by their names in Python, such as `retries` or `max_failures`. `retry_on`
            and `rerun` can be lists, `max_failures` can be a number, `image_roots` can be one path. `variant`,
            `node_connections` and `environment_variables` are as in `batch_run`; the run keeps only the names of environment
            variables. `run_storage_url` is the `storage` of `batch_run`. `listener` is called with each `ProgressReport`.
            promptflow's `batch_use_async` has no effect: async code always runs on an event loop.

    Raises:
        FlowNotFoundError: There is no flow at `flow_file`.
        InvalidFlowRequest: The flow's definition is wrong.
        InvalidOptionError: A keyword is unknown, or has a value of a wrong type.
    Source: promptflow `batch/_batch_engine.py`, `BatchEngine`.
    """

    def __init__(
        self,
        flow_file: str | Path | Callable[..., Any],
        working_dir: str | Path | None = None,
        *,
        connections: Mapping[str, Any] | None = None,
        storage: AbstractRunStorage | None = None,
        batch_timeout_sec: float | None = None,
        line_timeout_sec: float | None = None,
        worker_count: int | str | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        variables = kwargs.get("environment_variables")
        _refuse_other_types(storage, connections=connections, init_kwargs=init_kwargs, environment_variables=variables)
        if unknown := sorted(set(kwargs) - OPTIONS):
            instead = MAX_FAILURES_INSTEAD.get(unknown[0])
            hint = f"Use max_failures={instead!r}" if instead else f"It has {', '.join(sorted(OPTIONS))}"
            raise InvalidOptionError(f"BatchEngine has no {', '.join(unknown)}. {hint}.")
        with run_comes_later():
            self._flow: Flow = load_flow(
                flow_file,
                working_dir,
                variant=kwargs.get("variant", ""),
                node_connections=kwargs.get("node_connections"),
            )
        self._flow_object = None if isinstance(flow_file, str | os.PathLike) else flow_file
        places = {n: os.fspath(c) for n, c in (connections or {}).items() if isinstance(c, str | os.PathLike)}
        self._connections = {name: given for name, given in (connections or {}).items() if name not in places}
        self._places = {n: absolute(place) if is_connection_file(place) else place for n, place in places.items()}
        self._storage = storage
        self._init_kwargs = init_kwargs
        limits = {
            "batch_timeout_sec": batch_timeout_sec,
            "line_timeout_sec": line_timeout_sec,
            "worker_count": worker_count,
        }
        self._limits = given_by_promptflows_variables() | {name: value for name, value in limits.items() if value}
        self._environment_variables = environment_texts(kwargs.pop("environment_variables", None) or {})
        self._listener = kwargs.pop("listener", None)
        self._run_storage_url = kwargs.pop("run_storage_url", "")
        kwargs.pop("batch_use_async", None)
        roots = kwargs.pop("image_roots", None) or ()
        self._image_roots = list(map(os.fspath, [roots] if isinstance(roots, str | os.PathLike) else roots))
        for name, value in kwargs.items():
            is_list = isinstance(value, list | tuple | set | frozenset) and all(isinstance(item, str) for item in value)
            if is_list and name in PARAMETERS and PARAMETERS[name].errors:
                kwargs[name] = ",".join(value)
        self._options = kwargs
        self._live: LiveRun | None = None
        self._is_canceled = False

    def run(
        self,
        input_dirs: Mapping[str, str | Path],
        inputs_mapping: Mapping[str, Any] | None = None,
        output_dir: str | Path | None = None,
        run_id: str | None = None,
        max_lines_count: int | None = None,
        raise_on_line_failure: bool = False,
        resume_from_run_storage: AbstractBatchRunStorage | None = None,
        resume_from_run_output_dir: str | Path | None = None,
        executor_proxy: AbstractExecutorProxy | None = None,
    ) -> BatchResult:
        """Run every line of the data and wait for the result.

        Args:
            input_dirs: Source name to file, folder, pattern or URL.
            inputs_mapping: Input name to `${source.column}` or a constant.
            output_dir: A folder that also gets `output.jsonl`, `failed.jsonl` and `batch_result.json`.
            run_id: The run's name. A name that exists resumes that run. `None` is the id of the Prefect flow run.
            max_lines_count: Rows read from each source; `None` is all.
            raise_on_line_failure: Raise an error if a line failed, after everything is written.
            resume_from_run_storage: Has lines that are completed already, by line_number.
            resume_from_run_output_dir: The output folder of that run. Only images that the storage names by path are read from
                it; outputs come from the storage's records.
            executor_proxy: Runs the lines, in place of the executor for the flow's language.

        Raises:
            BatchflowException: There is no result, because the flow, mapping, data, storage or an option is wrong.
            LineFailureError: A line failed, with `raise_on_line_failure`. It has the `batch_result`.
        """
        if resume_from_run_output_dir is not None and resume_from_run_storage is None:
            raise InvalidOptionError(
                "resume_from_run_output_dir needs resume_from_run_storage, which has the completed lines. Give both, or "
                "neither."
            )
        live = self._live = LiveRun(
            flow=self._flow_object,
            init_kwargs=self._init_kwargs,
            environment_variables=self._environment_variables,
            connections=self._connections,
            run_storage=self._storage,
            resume_storage=resume_from_run_storage,
            resume_output_dir=None
            if resume_from_run_output_dir is None
            else locate(resume_from_run_output_dir, self._flow.working_dir),
            executor_proxy=executor_proxy,
            listener=self._listener,
        )
        if self._is_canceled:
            live.cancel()
        base = self._flow.working_dir
        data = {name: locate(url, base) for name, url in input_dirs.items()}
        parameters: dict[str, Any] = {
            "flow": self._flow.source or self._flow.name,
            "working_dir": str(base),
            "more_data": data,
            "image_roots": [locate(root, base) for root in self._image_roots],
            "inputs_mapping": dict(inputs_mapping or {}),
            "output_dir": "" if output_dir is None else locate(output_dir, base),
            "run_id": run_id or "",
            "max_lines_count": max_lines_count or 0,
            "connections": self._places,
            **self._limits,
            "storage": self._run_storage_url,
            **self._options,
        }
        try:
            result = run_batch(parameters, live)
        except InvalidUserData as exc:
            if hint := _start_of_paths(input_dirs, base):
                exc.message = f"{exc.message} {hint}"
                exc.args = (exc.message,)
            raise
        if raise_on_line_failure and result.failed_lines:
            first = result.error_summary.error_list[0]
            raise LineFailureError(
                f"{result.failed_lines} of {result.total_lines} lines failed; line {first.line_number}: "
                f"{first.error.get('message')}",
                batch_result=result,
            )
        return result

    def cancel(self) -> None:
        """End the current run, from any thread. `run` then returns the result so far, with the status `Canceled`."""
        self._is_canceled = True
        if self._live is not None:
            self._live.cancel()

    @classmethod
    def register_executor(cls, language: str, executor_proxy_cls: type[AbstractExecutorProxy]) -> None:
        """Run flows whose yaml says `language: <language>` through this class.

        Raises:
            InvalidOptionError: The class is not an `AbstractExecutorProxy`.
        """
        if not (isinstance(executor_proxy_cls, type) and issubclass(executor_proxy_cls, AbstractExecutorProxy)):
            raise InvalidOptionError(
                f"An executor for {language!r} must be a subclass of AbstractExecutorProxy, found {executor_proxy_cls!r}."
            )
        register_executor(language, executor_proxy_cls)


_MORE = (
    *("batch_use_async", "environment_variables", "image_roots", "listener", "node_connections", "run_storage_url"),
    "variant",
)
OPTIONS = frozenset({*OPTION_NAMES, *_MORE}).difference(
    *(inspect.signature(method).parameters for method in (BatchEngine.__init__, BatchEngine.run))
)
"""Keyword arguments of `BatchEngine` that promptflow does not have."""


def _start_of_paths(input_dirs: Mapping[str, str | Path], base: Path) -> str:
    """Say where relative paths start, if one of them leads to nothing. Users expect the current folder."""
    relative = [Path(url) for url in map(str, input_dirs.values()) if is_local_path(url) and url[:1] not in "/~$"]
    missing = [path for path in relative if not (base / path).exists()]
    if not missing:
        return ""
    here = next((path for path in missing if path.exists()), None)
    found = f" {str(here)!r} exists in the current folder: give its absolute path." if here is not None else ""
    return f"Relative paths start at the working_dir of the engine, {base}.{found}"


def _refuse_other_types(storage: Any, **mappings: Any) -> None:
    """Refuse arguments of other types. The messages show no values, because these can be secret."""
    for name, value in mappings.items():
        if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
            raise InvalidOptionError(f"{name} is a {type(value).__name__}. It must be a mapping of names to values.")
    if storage is not None and not callable(getattr(storage, "persist_flow_run", None)):
        found = f"storage is a {type(storage).__name__}"
        raise InvalidOptionError(f"{found}. It must be an AbstractRunStorage. A path or URL is a run_storage_url.")
    for name in ("persist_node_run", "persist_flow_run"):
        if inspect.iscoroutinefunction(getattr(storage, name, None)):
            raise InvalidOptionError(
                f"{type(storage).__name__}.{name} is an async function. Nothing waits for it, so it would keep nothing. Write "
                "it as a plain function (def)."
            )
