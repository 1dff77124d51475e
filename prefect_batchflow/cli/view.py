"""What the command line shows: progress, a run, a list of runs, a check of a flow, an error.

For people by rich, for programs as JSON.

Texts of rows, errors and names are printed as plain text: no markup is read in them, no control character leaves.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Self

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from prefect_batchflow.cli.arguments import words_of
from prefect_batchflow.errors.groups import advice_for
from prefect_batchflow.exceptions import InvalidUserData, innermost_code
from prefect_batchflow.report.markdown import one_line, seconds_text, value_text
from prefect_batchflow.results.models import summary_line
from prefect_batchflow.results.records import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from rich.console import RenderableType

    from prefect_batchflow.cli.flow_check import FlowCheck, Level
    from prefect_batchflow.cli.runs import Listing, StoredRun
    from prefect_batchflow.definition.flow import FlowInput
    from prefect_batchflow.results.models import BatchResult
    from prefect_batchflow.run.handle import ProgressReport

MAX_ERROR_GROUPS: Final = 10
"""Error groups shown, the largest; `--json` has all."""
MAX_MESSAGE_CHARS: Final = 400
MAX_METRICS: Final = 50

_COLOURS = {
    "Completed": "green",
    "Failed": "red",
    "Canceled": "yellow",
    "Running": "cyan",
    "Unfinished": "yellow",
}
_BAR_FROM_COLUMNS = 60
_LIST_GAP = 2
_LEFT_OUT_FIRST = ("TOOK", "STARTED", "FLOW", "TOTAL", "COMPLETED")
"""Columns of the list, in the order in which a narrow terminal goes without."""
_PIPE_COLUMNS = 1_000


def console(*, error: bool = False) -> Console:
    """A console for one of the two streams; where nobody looks, lines are as long as they are."""
    made = Console(stderr=error, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _PIPE_COLUMNS
    return made


def printable(text: object) -> str:
    """A text whose lines hold printable characters only; others become spaces."""
    lines = str(text).splitlines()
    return "\n".join("".join(char if char.isprintable() else " " for char in line) for line in lines)


def print_error(message: object) -> None:
    """Say on standard error what went wrong."""
    console(error=True).print(Text.assemble(("Error: ", "bold red"), printable(message)))


def print_note(message: object) -> None:
    """Say on standard error what is worth knowing."""
    console(error=True).print(Text.assemble(("Note: ", "yellow"), printable(message)))


def print_json(document: Any) -> None:
    """Write the one document that programs read; escapes keep every character printable."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


# --- progress -------------------------------------------------------------------------------------------------------


def progress_text(report: ProgressReport) -> str:
    """Where a run stands, in one line: `40 of 136 lines, 2 failed, 4 running, 12.3 a second, 8 s left`."""
    ended = report.completed_lines + report.failed_lines
    parts = [f"{ended} of {report.total_lines} lines"]
    if report.failed_lines:
        parts.append(f"{report.failed_lines} failed")
    if report.running_lines:
        parts.append(f"{report.running_lines} running")
    ran = ended - report.reused_lines
    if ran > 0 and report.elapsed_sec > 0:
        rate = ran / report.elapsed_sec
        parts.append(f"{rate:.3g} a second")
        if ended < report.total_lines:
            parts.append(f"{seconds_text(max(1, round((report.total_lines - ended) / rate)))} left")
    if ended >= report.total_lines:
        parts.append("ending the run")
    return ", ".join(parts)


class Progress:
    """Tells on standard error how far a run is: one living line on a terminal, now and then a line elsewhere.

    Args:
        screen: Where to; `None` is standard error.
        living: Whether to draw a line over itself; `None` is on a terminal.
    """

    PLAIN_STEPS: Final = 10
    """Elsewhere, a line whenever such a part of the lines has ended,"""
    PLAIN_AT_LEAST_SEC: Final = 2.0
    """but not more often than this,"""
    PLAIN_AT_MOST_SEC: Final = 60.0
    """and after this in any case."""

    def __init__(self, screen: Console | None = None, *, living: bool | None = None) -> None:
        self._console = screen or console(error=True)
        self._what = ""
        self._printed: set[str] = set()
        self._report: ProgressReport | None = None
        self._told = (0, 0.0)
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        if self._console.is_terminal if living is None else living:
            self._live = Live(console=self._console, get_renderable=self._line, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, what: str) -> None:
        """Tell what goes on beside lines, as that a server starts; it stands until the next report."""
        self._what = what
        if self._live is None and what not in self._printed:
            self._printed.add(what)
            self._console.print(Text(printable(what)))

    def update(self, report: ProgressReport) -> None:
        """Take a report; it is seen when it is time."""
        self._report, self._what = report, ""
        if self._live is None and self._is_due(report):
            self._console.print(Text(progress_text(report)))

    def _is_due(self, report: ProgressReport) -> bool:
        ended = report.completed_lines + report.failed_lines
        step = ended * self.PLAIN_STEPS // max(report.total_lines, 1)
        last_step, last_sec = self._told
        waited = report.elapsed_sec - last_sec
        if waited < (self.PLAIN_AT_LEAST_SEC if step > last_step else self.PLAIN_AT_MOST_SEC):
            return False
        self._told = (step, report.elapsed_sec)
        return True

    def _line(self) -> RenderableType:
        report = self._report
        if report is None or self._what:
            self._spinner.update(text=Text(printable(self._what or "Starting")))
            return self._spinner
        line = Table.grid(padding=(0, 1))
        ended = report.completed_lines + report.failed_lines
        text = Text(progress_text(report), no_wrap=True, overflow="ellipsis")
        if self._console.width < _BAR_FROM_COLUMNS:
            return text
        line.add_row(ProgressBar(total=max(report.total_lines, 1), completed=ended, width=24), text)
        return line


# --- a run ----------------------------------------------------------------------------------------------------------


def print_run(
    run: StoredRun, *, reused_lines: int = 0, prefect_url: str | None = None, storage_option: str = ""
) -> None:
    """Show a run: counts, metrics, errors, notes, where things are, and what to do next.

    Args:
        run: The run.
        reused_lines: Of the completed lines, those that were done before this start.
        prefect_url: Its page in Prefect's UI; `None` for none.
        storage_option: The storage as it must be given again; `""` is the default one.
    """
    out = console()
    result = run.result
    out.print(
        Text.assemble(
            (f"{one_line(run.manifest.flow_name, 100)}: {summary_line(result)}", f"bold {_headline_colour(run)}")
        )
    )
    _print_facts(out, _facts(run, reused_lines))
    _print_facts(
        out, {name: value_text(value) for name, value in list(result.metrics.items())[:MAX_METRICS]}, "Metrics"
    )
    if len(result.metrics) > MAX_METRICS:
        out.print(f"  and {len(result.metrics) - MAX_METRICS} more")
    _print_errors(out, run)
    _print_notes(out, run.notes)
    places = {
        "Folder": run.folder,
        "Outputs": run.outputs,
        "Failed lines": run.failed,
        "Copies": run.manifest.output_dir if run.is_finished else None,
        "Prefect": prefect_url,
    }
    out.print()
    _print_facts(out, {name: place for name, place in places.items() if place})
    for purpose, command in next_commands(run, storage_option):
        out.print()
        out.print(Text(purpose))
        out.print(Text("  " + printable(command), style="bold"), soft_wrap=True)


def run_document(
    run: StoredRun, *, reused_lines: int = 0, prefect_url: str | None = None, storage_option: str = ""
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
    """What may be done next: purpose and command, none for a run that is whole, goes on, or cannot be found again."""
    manifest, result = run.manifest, run.result
    left = result.total_lines - result.completed_lines
    if not left or run.status == "Running" or manifest.flow is None:
        return []
    storage = ["--storage", storage_option] if storage_option else []
    what = "the line that is" if left == 1 else f"the {left} lines that are"
    commands = [(f"Run {what} not completed:", ["batchflow", "resume", manifest.run_id, *storage])]
    # Values of a constructor and of the environment may be secret: they are not printed, and such a run has no second command.
    is_secret = bool(manifest.init_names or manifest.environment_names)
    # Nor has one whose failed lines are rows that could not be read: they have no inputs to run with.
    codes = {group.code for group in run.error_groups}
    if run.failed and not is_secret and codes != {InvalidUserData.__name__}:
        mapping = [part for name in _mapped(manifest.inputs_mapping) for part in ("--map", f"{name}=${{data.{name}}}")]
        again = [
            "batchflow",
            "run",
            manifest.flow,
            "--data",
            run.failed,
            *mapping,
            *(["--variant", manifest.variant] if manifest.variant else []),
            *_node_connections(manifest.node_connections),
            *words_of(manifest.options),
            *storage,
        ]
        commands.append(("Run the failed lines as a run of their own:", again))
    return [(purpose, shlex.join(words)) for purpose, words in commands]


def _node_connections(chosen: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """What was chosen for nodes, as it is typed."""
    for node, inputs in chosen.items():
        for name, value in inputs.items():
            yield from ("--node-connections", f"{node}.{name}={value}")


def _mapped(inputs_mapping: Iterable[str]) -> Iterator[str]:
    """The mapped inputs: in the file of failed lines each is a column of its name."""
    return (name for name in inputs_mapping if name != "line_number")


def _headline_colour(run: StoredRun) -> str:
    if run.status == Status.Completed and run.result.completed_lines < run.result.total_lines:
        return "yellow"
    return _COLOURS.get(run.status, "")


def _facts(run: StoredRun, reused_lines: int) -> dict[str, str]:
    result, metrics = run.result, run.result.system_metrics
    facts = {"Run": run.manifest.run_id, "Status": run.status}
    if reused_lines:
        facts["Done before"] = f"{reused_lines} of the completed lines"
    facts["Started"] = f"{result.start_time.astimezone():%Y-%m-%d %H:%M:%S}"
    if run.is_finished:
        ran = result.completed_lines + result.failed_lines - reused_lines
        speed = f", {ran / metrics.duration:.3g} lines a second" if ran > 0 and metrics.duration > 0 else ""
        facts["Duration"] = seconds_text(metrics.duration) + speed
    if metrics.total_tokens:
        facts["Tokens"] = (
            f"{metrics.total_tokens:,}: {metrics.prompt_tokens:,} prompt, {metrics.completion_tokens:,} completion"
        )
    return facts


def _print_facts(out: Console, facts: dict[str, str], title: str = "") -> None:
    """Name and value a line; not wrapped, so that a long one can be copied whole."""
    if title and facts:
        out.print()
        out.print(Text(title, style="bold"))
    indent = "  " if title else ""
    width = min(max(map(len, facts), default=0), 40)
    for name, value in facts.items():
        out.print(Text(f"{indent}{one_line(name, 100):<{width}}  {one_line(value, 2_000)}"), soft_wrap=True)


def _print_errors(out: Console, run: StoredRun) -> None:
    shown: list[tuple[str, str, str, str]] = []
    for place, error in _errors_beside_lines(run.result):
        code, message = innermost_code(error), str(error.get("message", ""))
        shown.append((place, code, message, advice_for(code, message)))
    groups = list(run.error_groups)
    for group in groups[:MAX_ERROR_GROUPS]:
        numbers = ", ".join(map(str, group.line_numbers))
        first = "the first " if group.count > len(group.line_numbers) else ""
        place = f"line {numbers}" if group.count == 1 else f"{group.count} lines: {first}{numbers}"
        shown.append((place, group.code, group.sample, group.advice))
    if not shown:
        return
    out.print()
    out.print(Text("Errors", style="bold"))
    for place, code, message, advice in shown:
        out.print(_indented(2, (one_line(code, 100), "red"), f", {one_line(place)}"))
        out.print(_indented(4, one_line(message, MAX_MESSAGE_CHARS)))
        out.print(_indented(4, (one_line(advice), "italic")))
    left_out = sum(group.count for group in groups[MAX_ERROR_GROUPS:])
    left_out += run.error_groups.other.count if run.error_groups.other else 0
    if left_out:
        out.print(f"  and {left_out} lines with errors of further kinds; the file of failed lines has them all")


def _indented(columns: int, *parts: str | tuple[str, str]) -> Padding:
    """A paragraph that keeps its indent where it is wrapped."""
    return Padding.indent(Text.assemble(*parts), columns)


def _errors_beside_lines(result: BatchResult) -> Iterator[tuple[str, dict[str, Any]]]:
    summary = result.error_summary
    if summary.batch_error_dict:
        yield "the run", summary.batch_error_dict
    for name, error in summary.aggr_error_dict.items():
        yield f"aggregation, {name}", error or {}


def _print_notes(out: Console, notes: Iterable[str]) -> None:
    for number, note in enumerate(notes):
        if not number:
            out.print()
            out.print(Text("Notes", style="bold"))
        out.print(_indented(2, printable(note)))


# --- a check of a flow ----------------------------------------------------------------------------------------------

_LEVELS: Final[dict[Level, tuple[str, str]]] = {
    "stops": ("Stops it", "red"),
    "needs": ("To be given", "yellow"),
    "note": ("Notes", ""),
}


def print_check(checked: FlowCheck) -> None:
    """Show what a flow is and what it needs."""
    out = console()
    problems, needs = len(checked.of("stops")), len(checked.of("needs"))
    verdict = (
        f"cannot run here, {problems} thing{'s' * (problems > 1)} to mend"
        if problems
        else f"can run once {needs} thing{'s are' if needs > 1 else ' is'} given"
        if needs
        else "can run"
    )
    kind = f", a {checked.kind}," if checked.kind else ""
    colour = "red" if problems else "yellow" if needs else "green"
    name = one_line(checked.name or checked.source, 200)
    out.print(Text.assemble((f"{name}{kind} {verdict}", f"bold {colour}")))
    inputs = {item.name: _input_text(item) for item in checked.inputs}
    _print_facts(out, inputs, "Inputs")
    _print_facts(out, {item.name: _init_text(item) for item in checked.init}, "Constructor")
    nodes = {
        node.name: f"{node.type:<10}  {node.source}" + f"  ({node.how})" * bool(node.how) for node in checked.nodes
    }
    _print_facts(out, nodes, "Nodes")
    for level, (title, style) in _LEVELS.items():
        findings = checked.of(level)
        if findings:
            out.print()
            out.print(Text(title, style="bold"))
        for finding in findings:
            out.print(_indented(2, (one_line(finding.place), style)))
            out.print(_indented(4, printable(finding.text)))
    if checked.runs:
        out.print()
        out.print(Text("Run it"))
        words = ["batchflow", "run", shlex.quote(checked.source), "--data", "ROWS.jsonl"]
        # What has a default is read from the data where it is mapped only.
        words += [
            shlex.join(["--map", f"{item.name}=${{data.{item.name}}}"]) for item in checked.inputs if not item.required
        ]
        words += [f"--init {item.name}=…" for item in checked.init if item.required]
        command = " ".join(words)
        out.print(Text("  " + printable(command), style="bold"), soft_wrap=True)


def check_document(checked: FlowCheck) -> dict[str, Any]:
    """The same for programs."""
    return {
        "flow": checked.source,
        "name": checked.name,
        "kind": checked.kind,
        "runs": checked.runs,
        "inputs": [
            {"name": item.name, "type": item.type} | ({} if item.required else {"default": item.default})
            for item in checked.inputs
        ],
        "init": [
            {"name": item.name, "type": item.type} | ({} if item.required else {"default": item.default})
            for item in checked.init
        ],
        "nodes": [asdict(node) for node in checked.nodes],
        "findings": [asdict(finding) for finding in checked.findings],
    }


def _input_text(item: FlowInput) -> str:
    return item.type if item.required else f"{item.type}, {value_text(item.default)} unless it is mapped"


def _init_text(item: FlowInput) -> str:
    return item.type if item.required else f"{item.type}, {value_text(item.default)} unless it is given"


# --- a list of runs -------------------------------------------------------------------------------------------------


def print_runs(listing: Listing, location: str) -> None:
    """Show the runs of a storage as a table."""
    out = console()
    if not listing.runs:
        out.print(Text(f"No runs in {printable(location)} yet. `batchflow run` makes one."))
        return
    rows = [_list_cells(run) for run in listing.runs]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _LIST_GAP, 0, 0))
    columns = _fitting(rows, out.width)
    for column in columns:
        right = column in ("COMPLETED", "FAILED", "TOTAL", "TOOK")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    out.print(table)
    if len(listing.runs) < listing.total:
        print_note(f"These are the newest {len(listing.runs)} of {listing.total} runs; `--limit 0` shows all.")


def _list_cells(run: StoredRun) -> dict[str, Text]:
    result = run.result
    return {
        "RUN": Text(run.manifest.run_id),
        "FLOW": Text(one_line(run.manifest.flow_name, 60)),
        "STATUS": Text(run.status, style=_COLOURS.get(run.status, "")),
        "COMPLETED": Text(str(result.completed_lines)),
        "FAILED": Text(str(result.failed_lines), style="red" if result.failed_lines else ""),
        "TOTAL": Text(str(result.total_lines)),
        "STARTED": Text(f"{result.start_time.astimezone():%Y-%m-%d %H:%M}"),
        "TOOK": Text(seconds_text(result.system_metrics.duration) if run.is_finished else "-"),
    }


def _fitting(rows: list[dict[str, Text]], width: int) -> list[str]:
    """The columns that a terminal has room for."""
    columns = {name: max(len(name), *(row[name].cell_len for row in rows)) for name in rows[0]}
    for name in _LEFT_OUT_FIRST:
        if sum(columns.values()) + _LIST_GAP * (len(columns) - 1) <= width:
            break
        del columns[name]
    return list(columns)


def runs_document(listing: Listing) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "run_id": run.manifest.run_id,
            "flow": run.manifest.flow,
            "flow_name": run.manifest.flow_name,
            "status": run.status,
            "completed_lines": run.result.completed_lines,
            "failed_lines": run.result.failed_lines,
            "total_lines": run.result.total_lines,
            "started_at": run.result.start_time.isoformat(),
            "duration_sec": run.result.system_metrics.duration if run.is_finished else None,
            "folder": run.folder,
        }
        for run in listing.runs
    ]
