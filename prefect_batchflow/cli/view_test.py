"""How the command line shows one line that was tried."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from prefect_batchflow.cli.screen import console, indented, print_facts, printable
from prefect_batchflow.errors.groups import advice_for
from prefect_batchflow.exceptions import innermost_code
from prefect_batchflow.report.summary import one_line, value_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from prefect_batchflow.results.records import ModelCall
    from prefect_batchflow.run.trial import Trial

MAX_TEXT_CHARS: Final = 20_000
"""Of one text on the screen; `--json` has all."""
_BASE64: Final = re.compile(r"(?=[a-z0-9+/]*[A-Z])(?=[A-Z0-9+/]*[a-z])(?=[A-Za-z+/]*\d)[A-Za-z0-9+/]{500,}={0,2}")
_OWN_CODE: Final = ("ScriptExecutionError", "ToolExecutionError")
"""Errors of the flow's own code, whose traceback says it all."""
_PARAMETERS_LEFT_OUT: Final = frozenset({"messages", "prompt", "input", "model", "stream_options"})


def print_trial(trial: Trial) -> None:
    """Show the output or the error, the prompts, what was printed, the nodes, tokens and time."""
    out, record = console(), trial.record
    completed = record["status"] == "Completed"
    colour = "green" if completed else "red"
    name = one_line(trial.flow.name, 200)
    out.print(Text.assemble((f"{name}: {record['status'].lower()}", f"bold {colour}")))
    if completed:
        _print_values(out, "Output", record["output"] or {})
    else:
        _print_error(out, trial)
    for number, call in enumerate(record.get("model_calls", ()), 1):
        _print_call(out, trial, number, call)
    if record["logs"]:
        _print_title(out, "Printed")
        out.print(indented(2, _shown(record["logs"].rstrip("\n"))))
    nodes = {node["node"]: f"{node['status'].lower():<9}  {_time(node['duration_sec'])}" for node in record["nodes"]}
    print_facts(out, nodes, "Nodes")
    out.print()
    print_facts(out, _facts(trial))


def trial_document(trial: Trial) -> dict[str, Any]:
    """The same for programs."""
    record = trial.record
    return {
        "flow": trial.flow.source or trial.flow.name,
        "flow_name": trial.flow.name,
        "status": record["status"],
        "inputs": record["inputs"],
        "output": record["output"],
        "error": record["error"],
        "prompts": [
            {"node": _node_of(trial, call), "api": call["api"], "model": call["sent"].get("model"), **call["sent"]}
            for call in record.get("model_calls", ())
        ],
        "tokens": record["tokens"],
        "duration_sec": record["duration_sec"],
        "logs": record["logs"],
        "metrics": record["metrics"],
        "nodes": [
            {key: node[key] for key in ("node", "status", "inputs", "output", "error", "duration_sec")}
            for node in record["nodes"]
        ],
        "has_aggregation": trial.has_aggregation,
        "notes": list(trial.notes),
    }


def _facts(trial: Trial) -> dict[str, str]:
    record = trial.record
    tokens = record["tokens"]
    total = tokens.get("total_tokens", 0)
    calls = len(record.get("model_calls", ()))
    facts = {
        "Tokens": f"{total:,}: {tokens.get('prompt_tokens', 0):,} prompt, {tokens.get('completion_tokens', 0):,} completion"
        if total or calls
        else "0",
        "Time": f"{_time(record['duration_sec'])} for the line, {_time(trial.duration_sec)} with the start of the flow",
    }
    if trial.has_aggregation:
        facts["Aggregation"] = "not run, because it needs the lines of a whole run: batchflow run"
    return facts


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.01 else f"{seconds * 1000:.2f} ms"


def _print_title(out: Console, title: str) -> None:
    out.print()
    out.print(Text(title, style="bold"))


def _print_values(out: Console, title: str, values: dict[str, Any]) -> None:
    _print_title(out, title)
    width = min(max(map(len, values), default=0), 40)
    for name, value in values.items():
        text = _shown(value_text(_without_bytes(value)))
        if "\n" in text:
            out.print(Text(f"  {one_line(name, 100)}"))
            out.print(indented(4, text))
        else:
            out.print(Text(f"  {one_line(name, 100):<{width}}  {text}"), soft_wrap=True)
    if not values:
        out.print("  none")


def _print_error(out: Console, trial: Trial) -> None:
    error = trial.record["error"] or {}
    code, message = innermost_code(error), str(error.get("message", ""))
    _print_title(out, "Error")
    failed = [node["node"] for node in trial.record["nodes"] if node["status"] == "Failed"]
    place = f", node {', '.join(failed)}" if failed else ""
    out.print(indented(2, (one_line(code, 100), "red"), one_line(place, 200)))
    out.print(indented(4, _shown(message)))
    for trace in _traces(error):
        out.print(indented(4, _shown(trace.rstrip("\n"))))
    if code not in _OWN_CODE and (advice := advice_for(code, message)):
        out.print(indented(4, (one_line(advice), "italic")))


def _traces(error: dict[str, Any]) -> Iterator[str]:
    """The tracebacks of the flow's code."""
    for item in error.get("additionalInfo") or ():
        info = item.get("info")
        if isinstance(info, dict) and isinstance(trace := info.get("traceback"), str) and trace:
            yield trace


def _print_call(out: Console, trial: Trial, number: int, call: ModelCall) -> None:
    sent = call["sent"]
    node, model = _node_of(trial, call), sent.get("model")
    where = "".join([f", node {node}" if node else "", f", {model}" if model else ""])
    _print_title(out, one_line(f"Prompt {number}{where}", 300))
    for role, text in _texts(sent):
        if role:
            out.print(Text(f"  {one_line(role, 100)}:", style="cyan"))
        out.print(indented(4 if role else 2, _shown(text)))
    others = {name: value for name, value in sent.items() if name not in _PARAMETERS_LEFT_OUT}
    if others:
        out.print(
            Text("  " + one_line(", ".join(f"{n}={value_text(v)}" for n, v in others.items()), 1_000), style="dim")
        )


def _texts(sent: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Role and text of each message; other requests have one text without a role."""
    for message in sent.get("messages") or ():
        content = message.get("content") if isinstance(message, dict) else message
        role = str(message.get("role", "")) if isinstance(message, dict) else ""
        parts = content if isinstance(content, list) else [content]
        yield role, "\n".join(_part(part) for part in parts if part is not None)
    for name in ("prompt", "input"):
        if name in sent:
            yield "", sent[name] if isinstance(sent[name], str) else value_text(_without_bytes(sent[name]))


def _part(part: Any) -> str:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    return part if isinstance(part, str) else value_text(_without_bytes(part))


def _without_bytes(value: Any) -> Any:
    """A value with the bytes of images as their number."""
    if isinstance(value, dict):
        return {key: _without_bytes(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_bytes(part) for part in value]
    if isinstance(value, str):
        return _BASE64.sub(lambda match: f"({len(match[0]) * 3 // 4:,} bytes)", value)
    return value


def _shown(text: str) -> str:
    kept = text[:MAX_TEXT_CHARS]
    more = f"\n… {len(text) - len(kept):,} more characters, see --json" if len(text) > len(kept) else ""
    return printable(kept) + more


def _node_of(trial: Trial, call: ModelCall) -> str | None:
    """The node that made a call: the one that ran then, if it was only one."""
    ran = [n["node"] for n in trial.record["nodes"] if n["start_time"] <= call["time"] <= n["end_time"]]
    return ran[0] if len(ran) == 1 else None
