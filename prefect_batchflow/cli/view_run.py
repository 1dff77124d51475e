"""How the command line shows a run: its result, its files, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from prefect_batchflow.cli.arguments import typed, words_of
from prefect_batchflow.cli.screen import STATUS_COLOURS, console, indented, print_facts, printable, shell_line
from prefect_batchflow.definition.load import NAMED_CALLABLE
from prefect_batchflow.errors.groups import advice_for
from prefect_batchflow.exceptions import InvalidUserData, innermost_code, listed
from prefect_batchflow.inputs.places import without_credentials
from prefect_batchflow.report.summary import one_line, seconds_text, value_text
from prefect_batchflow.results.models import summary_line
from prefect_batchflow.results.records import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from prefect_batchflow.cli.runs import StoredRun
    from prefect_batchflow.results.models import BatchResult
    from prefect_batchflow.storage.manifest import Manifest

SHOWN_ERROR_GROUPS: Final = 10
"""The largest error groups are shown; `--json` has all."""
MAX_MESSAGE_CHARS: Final = 400
MAX_METRICS: Final = 50


def print_run(
    run: StoredRun,
    *,
    reused_lines: int = 0,
    prefect_url: str | None = None,
    storage_option: str = "",
    workers: str = "",
) -> None:
    """Show a run: counts, metrics, errors, notes, where things are, and what to do next.

    Args:
        run: The run.
        reused_lines: How many of the completed lines were done before this start.
        prefect_url: Its page in Prefect's UI, if there is one.
        storage_option: The value of `--storage` in the commands shown; empty is the default storage.
        workers: How many worker processes it used and why, if it has just run.
    """
    out = console()
    result = run.result
    out.print(
        Text.assemble(
            (f"{one_line(run.manifest.flow_name, 100)}: {summary_line(result)}", f"bold {_headline_colour(run)}")
        )
    )
    print_facts(out, _facts(run, reused_lines) | ({"Workers": workers} if workers else {}))
    print_facts(out, {name: value_text(value) for name, value in list(result.metrics.items())[:MAX_METRICS]}, "Metrics")
    if len(result.metrics) > MAX_METRICS:
        out.print(f"  and {len(result.metrics) - MAX_METRICS} more")
    _print_errors(out, run)
    if run.notes:
        out.print()
        out.print(Text("Notes", style="bold"))
    for note in run.notes:
        out.print(indented(2, printable(note)))
    places = {
        "Folder": run.folder,
        "Outputs": run.outputs,
        "Failed lines": run.failed,
        "Copies": run.manifest.output_dir if run.is_finished else None,
        "Prefect": prefect_url,
    }
    out.print()
    print_facts(out, {name: place for name, place in places.items() if place})
    for purpose, command in next_commands(run, storage_option):
        out.print()
        out.print(Text(purpose))
        out.print(Text("  " + printable(command), style="bold"), soft_wrap=True)


def run_document(
    run: StoredRun,
    *,
    reused_lines: int = 0,
    prefect_url: str | None = None,
    storage_option: str = "",
    workers: str = "",
) -> dict[str, Any]:
    """The same for programs."""
    return {
        "run_id": run.manifest.run_id,
        "flow": run.manifest.flow,
        "flow_name": run.manifest.flow_name,
        "status": run.status,
        "is_finished": run.is_finished,
        "result": run.result.model_dump(mode="json"),
        "reused_lines": reused_lines,
        "workers": workers,
        "error_groups": [
            {
                "count": group.count,
                "code": group.code,
                "message": group.sample,
                "line_numbers": group.line_numbers,
                "advice": group.advice,
            }
            for group in run.error_groups
        ],
        "notes": list(run.notes),
        "folder": run.folder,
        "outputs": run.outputs,
        "failed_lines": run.failed,
        "output_dir": run.manifest.output_dir,
        "prefect_url": prefect_url,
        "next_commands": [command for _, command in next_commands(run, storage_option)],
    }


def next_commands(run: StoredRun, storage_option: str = "") -> list[tuple[str, str]]:
    """What to do next, as purposes and commands. Empty for a run that is complete, is running, or ran a Python object."""
    manifest, result = run.manifest, run.result
    left = result.total_lines - result.completed_lines
    if not left or run.status == "Running" or manifest.flow is None:
        return []
    storage = typed("--storage", [without_credentials(storage_option)] if storage_option else [])
    what = "line that has" if left == 1 else f"{left} lines that have"
    again, left_out = _given_again(manifest)
    purpose = f"To run the {what} not completed" + (f", with {listed(left_out)} given again" if left_out else "")
    if "-" in manifest.data.values():
        purpose += " (pipe the same data into the command)"
    commands = [(f"{purpose}:", ["batchflow", "resume", manifest.run_id, *storage, *again])]
    # Arguments of a constructor and environment variables may be secret: they are not printed, so there is no second command.
    is_secret = bool(manifest.init_names or manifest.environment_names or manifest.connection_names)
    # Rows that could not be read have no inputs to run with, so there is none for them either.
    codes = {group.code for group in run.error_groups}
    if run.failed and not is_secret and codes != {InvalidUserData.__name__}:
        commands.append(
            ("To run the failed lines as a new run:", [*failed_lines_words(manifest, run.failed), *storage])
        )
    return [(purpose, shell_line(words)) for purpose, words in commands]


def failed_lines_words(manifest: Manifest, failed: str) -> list[str]:
    """The command that runs the failed lines of a run as a new run, as typed: everything that the run was given but its data.

    The data is the file of the failed lines, which has the inputs as the flow got them. So neither a limit of rows, nor the
    column of line numbers, nor the run that this one was built on is needed.
    """
    mapped = [name for name in manifest.inputs_mapping if name != "line_number"]
    chosen = manifest.node_connections.items()
    return [
        *("batchflow", "run", manifest.flow or "", "--data", failed),
        *typed("--map", [f"{name}=${{data.{name}}}" for name in mapped]),
        *typed("--image-root", manifest.image_roots),
        *typed("--working-dir", _own_working_dir(manifest)),
        *typed("--variant", [manifest.variant] if manifest.variant else []),
        *typed("--node-connections", [f"{node}.{n}={value}" for node, inputs in chosen for n, value in inputs.items()]),
        *typed("--connection", [f"{name}={place}" for name, place in manifest.connections.items()]),
        *words_of(manifest.options),
    ]


def _given_again(manifest: Manifest) -> tuple[list[str], list[str]]:
    """What a resume needs and the run does not keep: as words with a place for each value, and its names."""
    is_kept = manifest.init_kwargs is not None
    parts = {
        "--init": [] if is_kept else manifest.init_names,
        "--environment-variables": manifest.environment_names,
        "--connection": manifest.connection_names,
    }
    words = [word for flag, names in parts.items() for word in typed(flag, [f"{name}=…" for name in names])]
    return words, [name for names in parts.values() for name in names]


def _own_working_dir(manifest: Manifest) -> list[str]:
    """The working directory, if the flow's place does not give it."""
    flow = manifest.flow or ""
    named = NAMED_CALLABLE.fullmatch(flow)
    if named and not Path(flow).exists():
        place = named["file"] and Path(named["file"]).parent
    else:
        place = Path(flow) if Path(flow).is_dir() else Path(flow).parent
    return [] if place and str(place) == manifest.working_dir else [manifest.working_dir]


def _headline_colour(run: StoredRun) -> str:
    if run.status == Status.Completed and run.result.completed_lines < run.result.total_lines:
        return "yellow"
    return STATUS_COLOURS.get(run.status, "")


def _facts(run: StoredRun, reused_lines: int) -> dict[str, str]:
    result, metrics = run.result, run.result.system_metrics
    facts = {"Run": run.manifest.run_id, "Status": run.status}
    if reused_lines:
        facts["Done before"] = f"{reused_lines} of the completed lines"
    facts["Started"] = f"{result.start_time.astimezone():%Y-%m-%d %H:%M:%S}"
    if run.is_finished:
        ran = result.completed_lines + result.failed_lines - reused_lines
        speed = f", {ran / metrics.duration:.3g} lines per second" if ran > 0 and metrics.duration > 0 else ""
        facts["Duration"] = seconds_text(metrics.duration) + speed
    if metrics.total_tokens:
        facts["Tokens"] = (
            f"{metrics.total_tokens:,}: {metrics.prompt_tokens:,} prompt, {metrics.completion_tokens:,} completion"
        )
    return facts


def _print_errors(out: Console, run: StoredRun) -> None:
    shown: list[tuple[str, str, str, str]] = []
    for place, error in _errors_beside_lines(run.result):
        code, message = innermost_code(error), str(error.get("message", ""))
        shown.append((place, code, message, advice_for(code, message)))
    groups = list(run.error_groups)
    for group in groups[:SHOWN_ERROR_GROUPS]:
        numbers = ", ".join(map(str, group.line_numbers))
        first = "the first " if group.count > len(group.line_numbers) else ""
        place = f"line {numbers}" if group.count == 1 else f"{group.count} lines: {first}{numbers}"
        shown.append((place, group.code, group.sample, group.advice))
    if not shown:
        return
    out.print()
    out.print(Text("Errors", style="bold"))
    for place, code, message, advice in shown:
        out.print(indented(2, (one_line(code, 100), "red"), f", {one_line(place)}"))
        out.print(indented(4, one_line(message, MAX_MESSAGE_CHARS)))
        out.print(indented(4, (one_line(advice), "italic")))
    left_out = sum(group.count for group in groups[SHOWN_ERROR_GROUPS:])
    left_out += run.error_groups.other.count if run.error_groups.other else 0
    if left_out:
        out.print(f"  and {left_out} more lines with other errors, see the file of failed lines")


def _errors_beside_lines(result: BatchResult) -> Iterator[tuple[str, dict[str, Any]]]:
    summary = result.error_summary
    if summary.batch_error_dict:
        yield "the run", summary.batch_error_dict
    for name, error in summary.aggr_error_dict.items():
        yield f"aggregation, {name}", error or {}
