"""How the command line lists the runs of a storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from prefect_batchflow.cli.screen import STATUS_COLOURS, console, print_note, printable
from prefect_batchflow.report.summary import one_line, seconds_text

if TYPE_CHECKING:
    from prefect_batchflow.cli.runs import Listing, StoredRun

_LIST_GAP = 2
_LEFT_OUT_FIRST = ("TOOK", "STARTED", "FLOW", "TOTAL", "COMPLETED")
"""Columns that a narrow terminal does not show, in this order."""


def print_runs(listing: Listing, location: str) -> None:
    """Show the runs of a storage as a table."""
    out = console()
    if not listing.runs:
        out.print(Text(f"No runs in {printable(location)} yet. `batchflow run` starts one."))
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
        print_note(f"These are the newest {len(listing.runs)} of {listing.total} runs. `--limit 0` shows all.")


def _list_cells(run: StoredRun) -> dict[str, Text]:
    result = run.result
    return {
        "RUN": Text(run.manifest.run_id),
        "FLOW": Text(one_line(run.manifest.flow_name, 60)),
        "STATUS": Text(run.status, style=STATUS_COLOURS.get(run.status, "")),
        "COMPLETED": Text(str(result.completed_lines)),
        "FAILED": Text(str(result.failed_lines), style="red" if result.failed_lines else ""),
        "TOTAL": Text(str(result.total_lines)),
        "STARTED": Text(f"{result.start_time.astimezone():%Y-%m-%d %H:%M}"),
        "TOOK": Text(seconds_text(result.system_metrics.duration) if run.is_finished else "-"),
    }


def _fitting(rows: list[dict[str, Text]], width: int) -> list[str]:
    """The columns that fit into the terminal."""
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
