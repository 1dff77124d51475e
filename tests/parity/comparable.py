"""A run of either side as plain JSON that can be compared: no times, ids or paths of a machine.

Of an error its codes are kept, and what user code raised; other messages are each side's own words.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from declared import Case

_USER_DETAILS = {"ToolExecutionErrorDetails", "FlexFlowExecutionErrorDetails"}
_USER_CODES = {"ToolExecutionError", "ScriptExecutionError"}
"""Errors with other codes have messages of each side's own."""
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def run_whole(
    case: Case,
    folder: Path,
    sources: Mapping[str, str],
    *,
    model_url: str,
    engine: Callable[..., Any],
    storage: Callable[[], Any],
    error_of: Callable[[Exception], dict[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a case with a `BatchEngine`, promptflow's or ours, and describe what came of it.

    Args:
        case: What to run.
        folder: Where its files were written.
        sources: Path by source name.
        model_url: The fake model server's address.
        engine: The class.
        storage: Gives a storage of run infos, for a case that resumes.
        error_of: Gives an exception's error dictionary.
        more: Arguments of the engine that its side needs besides.
    """
    output_dir = folder.parent / f"{folder.name}-output"
    stored = storage() if case.resumes else None
    tries = ["1", "2"] if case.resumes else [""]
    for attempt in tries:
        os.environ["PARITY_TRY"] = attempt
        output_dir = folder.parent / f"{folder.name}-output{attempt}"
        output_dir.mkdir()
        resume = {"resume_from_run_storage": stored} if attempt == "2" else {}
        if attempt == "2":
            resume["resume_from_run_output_dir"] = folder.parent / f"{folder.name}-output1"
        try:
            made = engine(
                entry_of(case, folder),
                folder,
                connections=connections_of(case, model_url),
                init_kwargs=case.init,
                storage=stored if attempt == "1" else None,
                **{"worker_count": 1, **case.engine},
                **(more or {}),
            )
            result = made.run(sources, case.mapping, output_dir, **resume, **case.run)
        except Exception as exc:  # noqa: BLE001 - a refusal is a result too
            return described_refusal(error_of(exc))
    text = (output_dir / "output.jsonl").read_text(encoding="utf-8")
    return described(result, [json.loads(line) for line in text.split("\n") if line], folder)


def entry_of(case: Case, folder: Path) -> Any:
    """What the engine is given: the flow's file, or the callable."""
    module, _, name = case.entry.partition(":")
    return getattr(import_module(module), name) if name else folder / case.entry


def connections_of(case: Case, model_url: str) -> Any:
    """The connections, with the model server's address in them."""
    return json.loads(json.dumps(case.connections or {}).replace("@MODEL_URL@", model_url))


def described(result: Any, outputs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What a `BatchResult` and the outputs say, promptflow's or ours: their fields have the same names."""
    summary, system = result.error_summary, result.system_metrics
    told = {
        "status": result.status.value,
        "total_lines": result.total_lines,
        "completed_lines": result.completed_lines,
        "failed_lines": result.failed_lines,
        "node_status": result.node_status,
        "outputs": outputs,
        "metrics": result.metrics or {},
        "errors": {str(line.line_number): error_facts(line.error) for line in summary.error_list or []},
        "aggregation_errors": {name: error_facts(error) for name, error in (summary.aggr_error_dict or {}).items()},
        "batch_error": error_facts(summary.batch_error_dict) if summary.batch_error_dict else None,
        "user_and_system_errors": [summary.failed_user_error_lines, summary.failed_system_error_lines],
        "tokens": [getattr(system, name) for name in ("total_tokens", "prompt_tokens", "completion_tokens")],
    }
    text = json.dumps(told, sort_keys=True).replace(str(folder), "<folder>")
    return dict(json.loads(_UUID.sub("<uuid>", text)))


def described_refusal(error: dict[str, Any]) -> dict[str, Any]:
    """What an exception says that left no result."""
    return {"raised": error_facts(error)["codes"]}


def error_facts(error: dict[str, Any]) -> dict[str, Any]:
    """The codes of an error, outermost first, and type and message of what user code raised."""
    codes, at = [], error
    while at:
        codes.append(at["code"])
        at = at.get("innerError") or {}
    facts: dict[str, Any] = {"codes": codes}
    for item in error.get("additionalInfo") or []:
        if item["type"] in _USER_DETAILS and codes[-1] in _USER_CODES:
            facts["user_code"] = f"{item['info']['type']}: {item['info']['message']}"
    return facts


def as_text(told: Mapping[str, Any]) -> str:
    """Facts as text in which 1, 1.0 and true differ, and NaN equals NaN."""
    return json.dumps(told, sort_keys=True, indent=1, ensure_ascii=False)


def memory_storage(base: type) -> Any:
    """A storage of run infos in memory, from promptflow's or our abstract class."""

    class Memory(base):  # type: ignore[misc] # a class that is given
        def __init__(self) -> None:
            self.lines: dict[int, Any] = {}
            self.nodes: dict[int, list[Any]] = {}

        def persist_node_run(self, run_info: Any) -> None:
            if run_info.index is not None:
                self.nodes.setdefault(run_info.index, []).append(run_info)

        def persist_flow_run(self, run_info: Any) -> None:
            self.lines[run_info.index] = run_info

        def load_node_run_info_for_line(self, line_number: int) -> list[Any]:
            return self.nodes.get(line_number, [])

        def load_flow_run_info(self, line_number: int) -> Any:
            return self.lines.get(line_number)

    return Memory()


@contextmanager
def surroundings(case: Case, model_url: str) -> Iterator[None]:
    """The environment of a case, and the environment as it was behind it."""
    before = dict(os.environ)
    os.environ.update({name: value.replace("@MODEL_URL@", model_url) for name, value in case.env.items()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
