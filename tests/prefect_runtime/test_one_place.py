"""Reaches into Prefect itself have one room, which is all that an upgrade of Prefect has to check."""

from __future__ import annotations

import ast
from pathlib import Path

import prefect_batchflow

PACKAGE = Path(prefect_batchflow.__file__).parent
INTERNAL = (
    *("prefect._", "prefect.client.orchestration", "prefect.context"),
    *("prefect.events", "prefect.server", "prefect.utilities"),
)


def imported(source: str) -> set[str]:
    names: set[str] = set()
    for found in ast.walk(ast.parse(source)):
        if isinstance(found, ast.ImportFrom) and found.module and not found.level:
            names.add(found.module)
        elif isinstance(found, ast.Import):
            names |= {alias.name for alias in found.names}
    return names


def test_only_prefect_runtime_reaches_into_prefect() -> None:
    reaches = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "prefect_runtime"
        for name in imported(path.read_text())
        if name.startswith(INTERNAL)
    }
    assert reaches == set()


def test_only_one_file_makes_states_with_messages() -> None:
    """Texts of users are made fit for Prefect there."""
    makers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "prefect.states" in imported(path.read_text())
    }
    assert makers == {"prefect_runtime/flow_runs.py", "prefect_runtime/states.py"}
