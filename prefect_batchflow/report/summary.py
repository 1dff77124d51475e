"""The summary of a run as markdown, and its failed lines as rows. Values in, text out.

Text from rows, errors and names is escaped and shortened here, so that it makes no link, loads no image, adds no cell and
ends no table. This works in both of Prefect's user interfaces: V1 renders the cells of a table artifact as markdown and
knows five named entities only; V2 turns addresses in plain text into links after it has resolved entities. Therefore
backslashes escape punctuation, entities replace `<`, `>` and `&`, and an invisible word joiner breaks up addresses.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.errors.classes import class_of_error
from prefect_batchflow.errors.groups import advice_for, shortened
from prefect_batchflow.exceptions import innermost_code
from prefect_batchflow.results.texts import encodable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prefect_batchflow.results.models import BatchResult
    from prefect_batchflow.results.records import Receipt
    from prefect_batchflow.results.tally import Tally

MAX_MARKDOWN_BYTES: Final = 50_000
"""Larger markdown freezes the page that shows it."""
MAX_ERROR_GROUPS: Final = 20
"""The summary shows at most this many error groups, the largest ones."""
MAX_ROWS: Final = 50
"""Any other table of the summary shows at most this many rows."""
MAX_FAILED_ROWS: Final = 200
"""The table artifact has at most this many failed lines."""

_WORD_JOINER = "\u2060"
_PUNCTUATION = re.compile(r"[\\`*_\[\]|~#]")
_LIST_MARKER = re.compile(r"^(\d*)([-+.)])(?=[\s-]|$)")
"""A list marker or a rule, if a line or a list item begins with the text."""
_ADDRESS = re.compile(r":(?=//)|www(?=\.)|@", re.IGNORECASE)
_OPENERS = re.compile(r"[\]<]")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")


def one_line(value: object, limit: int = 300) -> str:
    """A text as one line of at most `limit` characters. Characters that cannot be printed become spaces."""
    text = encodable(str(value)[: 4 * limit])  # a value can have megabytes
    printable = "".join(char if char.isprintable() else " " for char in text)
    return shortened(" ".join(printable.split()), limit)


def escaped(value: object, limit: int = 300) -> str:
    """A text that markdown shows unchanged, on one line; for use inside a line or a table cell."""
    text = one_line(value, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _PUNCTUATION.sub(r"\\\g<0>", text)
    return _unlinked(_LIST_MARKER.sub(r"\g<1>\\\g<2>", text))


def inert(value: object, limit: int = 300) -> str:
    """A text that reads well as plain text, and makes no link, image or HTML if it is rendered."""
    return _unlinked(_OPENERS.sub(rf"\g<0>{_WORD_JOINER}", one_line(value, limit)))


def _unlinked(text: str) -> str:
    return _ADDRESS.sub(rf"\g<0>{_WORD_JOINER}", text)


def failed_table(failures: Iterable[Receipt], cap: int = MAX_FAILED_ROWS) -> list[dict[str, Any]]:
    """The rows of the table of failed lines, at most `cap`, in the order of their receipts."""
    return [
        {
            "line_number": receipt.line_number,
            "error": inert(innermost_code(receipt.error or {}), 100),
            "class": str(class_of_error(receipt.error or {})),
            "message": inert((receipt.error or {}).get("message", "")),
            "attempts": receipt.attempt,
        }
        for receipt in islice(failures, cap)
    ]


def summary_markdown(
    result: BatchResult,
    tally: Tally,
    *,
    run_id: str,
    flow_name: str,
    storage_url: str,
    outputs_url: str = "",
    next_command: str = "",
    reused_lines: int = 0,
    workers: str = "",
) -> str:
    """The summary of a run, at most `MAX_MARKDOWN_BYTES` of UTF-8. It leaves out a user name or password in the URLs.

    `workers` says how many there were and why. `outputs_url` and `next_command`, which resumes or repeats the run, are `""`
    for none. Reused lines, which an earlier run had completed, do not count for the speed.
    """
    # Only here: it brings in pydantic, and the command line needs this module's other functions at once.
    from prefect_batchflow.results.models import summary_line

    places = {"Records": storage_url, "Outputs": outputs_url}
    facts = {
        "Run": escaped(run_id, 200),
        "Flow": escaped(flow_name),
        **_facts(result, tally, reused_lines),
        **({"Workers": escaped(workers)} if workers else {}),
        **{name: escaped(_USER_INFO.sub("", url), 500) for name, url in places.items() if url},
    }
    sections = [
        f"# {escaped(flow_name, 100)}: {summary_line(result)}",
        _table(["", ""], facts.items()),
        _command(result, next_command),
        _run_errors(result),
        _line_errors(tally),
        _metrics(result.metrics),
        _nodes(result.node_status),
    ]
    return _capped("\n\n".join(section for section in sections if section) + "\n")


def _facts(result: BatchResult, tally: Tally, reused_lines: int) -> dict[str, str]:
    counts = {
        "completed": result.completed_lines,
        "failed": result.failed_lines,
        "canceled": result.canceled_lines,
        "not started": result.not_started_lines,
    }
    metrics = result.system_metrics
    ran = result.completed_lines + result.failed_lines - reused_lines
    facts = {
        "Status": result.status.value,
        "Lines": f"{result.total_lines}: " + ", ".join(f"{count} {name}" for name, count in counts.items()),
        "Reused": f"{_lines(reused_lines)} from an earlier run" if reused_lines else "",
        "Retried": f"{_lines(tally.retried_lines)} took more than one attempt" if tally.retried_lines else "",
        "Started": f"{result.start_time:%Y-%m-%d %H:%M:%S} UTC",
        "Duration": seconds_text(metrics.duration),
        "Speed": f"{ran / metrics.duration:.3g} lines per second" if ran > 0 and metrics.duration > 0 else "",
    }
    median, slow = tally.durations.quantile(0.5), tally.durations.quantile(0.95)
    if median is not None and slow is not None:
        facts["Time per line"] = f"{seconds_text(median)} (median), {seconds_text(slow)} (95th percentile)"
    if metrics.total_tokens:
        facts["Tokens"] = (
            f"{metrics.total_tokens:,}: {metrics.prompt_tokens:,} prompt, {metrics.completion_tokens:,} completion"
        )
    return {name: text for name, text in facts.items() if text}


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"


def seconds_text(seconds: float) -> str:
    """A duration for people, with three digits."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _command(result: BatchResult, command: str) -> str:
    if not command:
        return ""
    command = one_line(command, 2_000)
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    title = "Run it again" if result.completed_lines == result.total_lines else "Run the remaining lines"
    return f"## {title}\n\n{fence}shell\n{command}\n{fence}"


def _run_errors(result: BatchResult) -> str:
    summary = result.error_summary
    errors = [("the run", summary.batch_error_dict)] if summary.batch_error_dict else []
    errors += [(f"aggregation, {name}", error) for name, error in summary.aggr_error_dict.items()]
    rows = []
    for place, error in errors:
        code, message = innermost_code(error or {}), str((error or {}).get("message", ""))
        rows.append([escaped(place, 100), escaped(code, 100), escaped(message), _advice(advice_for(code, message))])
    return _section("Errors of the whole run", ["Where", "Error", "Message", "What to do"], rows)


def _line_errors(tally: Tally) -> str:
    groups = list(tally.error_groups)
    shown, rest = groups[:MAX_ERROR_GROUPS], groups[MAX_ERROR_GROUPS:]
    rows = [
        [
            str(group.count),
            escaped(group.code, 100),
            ", ".join(map(str, group.line_numbers)) + (", …" if group.count > len(group.line_numbers) else ""),
            escaped(group.sample),
        ]
        for group in shown
    ]
    left_out = sum(group.count for group in rest) + (tally.error_groups.other.count if tally.error_groups.other else 0)
    if left_out:
        rows.append([str(left_out), "other errors", "", "See the records of the failed lines."])
    if not rows:
        return ""
    # Below the table, each advice once: as a column it would be out of sight in the Prefect UI.
    advice = {group.advice: escaped(group.code, 100) for group in reversed(shown)}
    to_do = "\n".join(f"- {code}: {_advice(text)}" for text, code in reversed(advice.items()))
    return _section("Failed lines", ["Lines", "Error", "Line numbers", "Example"], rows) + f"\n\nWhat to do:\n\n{to_do}"


def _advice(text: str) -> str:
    """Our own markdown. Its only text from outside is the name of a module: word characters and dots."""
    return _unlinked(one_line(text))


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows = [[escaped(name, 100), escaped(value_text(value), 200)] for name, value in islice(metrics.items(), MAX_ROWS)]
    if len(metrics) > MAX_ROWS:
        rows.append([f"{len(metrics) - MAX_ROWS} more", ""])
    return _section("Metrics", ["Metric", "Value"], rows)


def value_text(value: Any) -> str:
    """A metric for people, on one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _nodes(node_status: Mapping[str, int]) -> str:
    nodes: dict[str, dict[str, int]] = {}
    for key, count in node_status.items():
        name, _, status = key.rpartition(".")
        nodes.setdefault(name, {})[status] = count
    kinds = [kind for kind in ("completed", "failed", "canceled", "bypassed") if any(kind in n for n in nodes.values())]
    rows = [
        [escaped(name, 100), *(str(counts.get(kind, 0)) for kind in kinds)]
        for name, counts in islice(nodes.items(), MAX_ROWS)
    ]
    if len(nodes) > MAX_ROWS:
        rows.append([f"{len(nodes) - MAX_ROWS} more"])
    return _section("Nodes", ["Node", *kinds], rows)


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"## {title}\n\n{_table(header, rows)}" if rows else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _capped(text: str) -> str:
    if len(text.encode()) <= MAX_MARKDOWN_BYTES:
        return text
    note = "\n\nThis summary is cut off here. The records of the run are complete.\n"
    kept = text.encode()[: MAX_MARKDOWN_BYTES - len(note.encode())]
    return kept[: kept.rindex(b"\n")].decode() + note
