"""How the command line shows the check of a flow."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from prefect_batchflow.cli.screen import console, indented, print_facts, printable, shell_line
from prefect_batchflow.definition.flow import NO_DEFAULT
from prefect_batchflow.report.summary import one_line, value_text

if TYPE_CHECKING:
    from prefect_batchflow.cli.flow_check import FlowCheck
    from prefect_batchflow.definition.flow import FlowInput
    from prefect_batchflow.execution.program.findings import Level

_LEVELS: Final[dict[Level, tuple[str, str]]] = {
    "stops": ("Fix first", "red"),
    "needs": ("You must give", "yellow"),
    "unsure": ("Look at", "yellow"),
    "note": ("Notes", ""),
}


def print_check(checked: FlowCheck) -> None:
    """Show what a flow is and what it needs."""
    out = console()
    problems, needs, unsure = (len(checked.of(level)) for level in ("stops", "needs", "unsure"))
    verdict = (
        f"cannot run here, {problems} thing{'s' * (problems > 1)} to fix"
        if problems
        else f"can run once you give {needs} thing{'s' * (needs > 1)}"
        if needs
        else f"may not run here, {unsure} thing{'s' * (unsure > 1)} to look at"
        if unsure
        else "can run"
    )
    kind = f", a {checked.kind}," if checked.kind else ""
    colour = "red" if problems else "yellow" if needs or unsure else "green"
    name = one_line(checked.name or checked.source, 200)
    out.print(Text.assemble((f"{name}{kind} {verdict}", f"bold {colour}")))
    print_facts(out, {item.name: _text_of(item, "mapped") for item in checked.inputs}, "Inputs")
    print_facts(out, {item.name: _text_of(item, "given") for item in checked.init}, "Constructor")
    nodes = {
        node.name: f"{node.type:<10}  {node.source}" + f"  ({node.how})" * bool(node.how) for node in checked.nodes
    }
    print_facts(out, nodes, "Nodes")
    for level, (title, style) in _LEVELS.items():
        findings = checked.of(level)
        if findings:
            out.print()
            out.print(Text(title, style="bold"))
        for finding in findings:
            out.print(indented(2, (one_line(finding.place), style)))
            out.print(indented(4, printable(finding.text)))
    if checked.runs:
        out.print()
        out.print(Text("Run it"))
        words = ["batchflow", "run", shell_line([checked.source]), "--data", "ROWS.jsonl"]
        # An input with a default is read from the data only if it is mapped.
        words += [
            shell_line(["--map", f"{item.name}=${{data.{item.name}}}"]) for item in checked.inputs if not item.required
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
        "verdict": checked.verdict,
        "imported": checked.is_imported,
        "inputs": list(map(_input_document, checked.inputs)),
        "init": list(map(_input_document, checked.init)),
        "nodes": [asdict(node) for node in checked.nodes],
        "findings": [asdict(finding) for finding in checked.findings],
    }


def _input_document(item: FlowInput) -> dict[str, Any]:
    default = {} if item.default is NO_DEFAULT else {"default": item.default}
    return {"name": item.name, "type": item.type, **default}


def _text_of(item: FlowInput, done: str) -> str:
    if item.required:
        return item.type
    default = "its code's default" if item.has_code_default else value_text(item.default)
    return f"{item.type}, {default} unless it is {done}"
