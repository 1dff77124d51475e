"""The imports of a flow's Python files, read without running them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect_batchflow.exceptions import FlowDefinitionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class SourceImport:
    """One name that a file imports."""

    file: Path
    line: int
    """Counted from 1."""
    module: str
    name: str = ""
    """The name in `from module import name`; empty for `import module`."""
    always: bool = True
    """Whether importing the file always imports it: it is in no function, `try` or `if`."""


def imports_of(file: Path) -> Iterator[SourceImport]:
    """Give the imports of a file by absolute name, in the file's order, without those for type checkers.

    Raises:
        FlowDefinitionError: The file cannot be read, or is not Python.
    """
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (OSError, SyntaxError, ValueError, RecursionError) as exc:
        raise FlowDefinitionError(f"{file} cannot be imported: ({type(exc).__name__}) {exc}.") from exc
    yield from _imports(tree, file, always=True)


def _imports(node: ast.AST, file: Path, *, always: bool) -> Iterator[SourceImport]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield SourceImport(file, child.lineno, alias.name, always=always)
        elif isinstance(child, ast.ImportFrom):
            if child.level == 0 and child.module:
                for alias in child.names:
                    yield SourceImport(file, child.lineno, child.module, alias.name, always=always)
        elif isinstance(child, ast.If) and _is_for_types(child.test):
            for branch in child.orelse:
                yield from _imports(branch, file, always=False)
        else:
            unconditional = not isinstance(
                child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Try | ast.If
            )
            yield from _imports(child, file, always=always and unconditional)


def _is_for_types(test: ast.expr) -> bool:
    """Whether it is `TYPE_CHECKING` or `typing.TYPE_CHECKING`."""
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))
