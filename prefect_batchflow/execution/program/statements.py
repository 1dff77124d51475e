"""The statements of a Python file, and what is known about them without running any: names, imports, whether they run."""

from __future__ import annotations

import ast
import builtins
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Reach = Literal["always", "maybe", "handled"]
"""Whether a statement runs when its file is imported; `handled`: in a `try` or `suppress` that expects its failure."""

Function = ast.FunctionDef | ast.AsyncFunctionDef

_OPEN_CALLS: Final = frozenset({"exec", "eval", "globals", "locals", "vars", "__import__"})


@dataclass(frozen=True, slots=True)
class SourceImport:
    """One name that a file imports."""

    line: int
    """Counted from 1."""
    module: str
    """Empty for `from . import name`."""
    name: str
    """The name in `from module import name`; empty for `import module`."""
    reach: Reach
    level: int = 0
    """The dots of a relative import."""


def bound_names(tree: ast.Module) -> dict[str, list[ast.stmt]]:
    """The names that a module binds, each with the statements that can bind it."""
    bound: dict[str, list[ast.stmt]] = {}
    for statement, _ in _statements(tree, "always"):
        names: list[str] = []
        if isinstance(statement, (Function, ast.ClassDef)):
            names = [statement.name]
        elif isinstance(statement, ast.Import):
            names = [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            names = [alias.asname or alias.name for alias in statement.names]
        elif isinstance(statement, ast.AnnAssign) and statement.value is None:
            pass  # an annotation alone
        else:
            names = [
                part.id
                for part in _own_parts(statement)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            ]
            caught = (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)
            names += [part.name for part in _own_parts(statement) if isinstance(part, caught) and part.name]
            names += [part.rest for part in _own_parts(statement) if isinstance(part, ast.MatchMapping) and part.rest]
        for name in names:
            bound.setdefault(name, []).append(statement)
    for part in ast.walk(tree):
        if isinstance(part, ast.Global):
            for name in part.names:
                bound.setdefault(name, []).append(part)
    return bound


def _own_parts(statement: ast.stmt) -> Iterator[ast.AST]:
    """A statement's parts without the statements in it."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += [child for child in ast.iter_child_nodes(part) if not isinstance(child, (ast.stmt, ast.Lambda))]


def _statements(node: ast.AST, reach: Reach) -> Iterator[tuple[ast.stmt, Reach]]:
    """The statements that importing a file can run, without the bodies of functions and classes."""
    for part, its_reach in _children(node, reach):
        if isinstance(part, ast.stmt):
            yield part, its_reach
        if not isinstance(part, (Function, ast.ClassDef, ast.expr)):
            yield from _statements(part, its_reach)


def walked(node: ast.AST, reach: Reach) -> Iterator[tuple[ast.AST, Reach]]:
    """All parts of a file that can run, each with its reach; the bodies of functions are `maybe`."""
    for part, its_reach in _children(node, reach):
        yield part, its_reach
        yield from walked(part, its_reach)


def _children(node: ast.AST, reach: Reach) -> Iterator[tuple[ast.AST, Reach]]:
    """The parts of a node with their reach. What only type checkers or a start as a script run is left out."""
    less: Reach = "handled" if reach == "handled" else "maybe"
    if isinstance(node, ast.If):
        decided = False if _is_for_types(node.test) or _is_for_scripts(node.test) else _decided(node.test)
        yield node.test, reach
        for branch in [] if decided is False else node.body:
            yield branch, reach if decided else less
        for branch in [] if decided else node.orelse:
            yield branch, less if decided is None else reach
    elif isinstance(node, ast.Try | ast.TryStar):
        its_reach = _reach_of_try(node, reach)
        for branch in node.body:
            yield branch, its_reach
        for part in (*node.handlers, *node.orelse):
            yield part, less
        for branch in node.finalbody:
            yield branch, reach
    elif isinstance(node, ast.With | ast.AsyncWith):
        suppresses = any(
            "suppress" in ast.unparse(item.context_expr)
            and (not isinstance(item.context_expr, ast.Call) or any(map(_can_be_missing, item.context_expr.args)))
            for item in node.items
        )
        for item in node.items:
            yield item, reach
        for branch in node.body:
            yield branch, "handled" if suppresses else reach
    elif isinstance(node, (Function, ast.Lambda)):
        body = node.body if isinstance(node.body, list) else [node.body]
        for child in ast.iter_child_nodes(node):
            yield child, less if child in body else reach
    elif isinstance(node, ast.For | ast.While | ast.AsyncFor | ast.Match | ast.IfExp | ast.BoolOp):
        for child in ast.iter_child_nodes(node):
            yield child, less
    else:
        for child in ast.iter_child_nodes(node):
            yield child, reach


def _reach_of_try(node: ast.Try | ast.TryStar, reach: Reach) -> Reach:
    """The reach of a `try`'s body: `handled` if a handler catches a missing module and goes on."""
    catching = next((h for h in node.handlers if h.type is None or _can_be_missing(h.type)), None)
    return reach if catching is None or _gives_up(catching.body[-1]) else "handled"


def _can_be_missing(kind: ast.expr) -> bool:
    """Whether the classes of a handler can be those of a failed import; a class that is not built in can."""
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    found = [getattr(builtins, each.id, None) if isinstance(each, ast.Name) else None for each in kinds]
    return any(each is None or issubclass(ModuleNotFoundError, each) for each in found)


def _gives_up(statement: ast.stmt) -> bool:
    """Whether a statement ends the import of its file."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return ast.unparse(statement.value.func) in ("exit", "quit", "sys.exit", "os._exit")
    return isinstance(statement, ast.Raise)


def imports_in(tree: ast.Module, reach: Reach) -> Iterator[SourceImport]:
    """Every import of a file, with its reach, in the file's order."""
    for part, its_reach in walked(tree, reach):
        if isinstance(part, ast.Import):
            for alias in part.names:
                yield SourceImport(part.lineno, alias.name, "", its_reach)
        elif isinstance(part, ast.ImportFrom):
            for alias in part.names:
                yield SourceImport(part.lineno, part.module or "", alias.name, its_reach, part.level)


def origins_in(nodes: list[ast.AST]) -> dict[str, str]:
    """Names to what they were imported from, in any scope of a file."""
    origins: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                origins[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                origins[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return origins


def _decided(test: ast.expr) -> bool | None:
    """The value of a test of Python's version or platform; `None` for any other test."""
    for part in ast.walk(test):
        known = isinstance(part, ast.Compare | ast.Tuple | ast.Constant | ast.BoolOp | ast.UnaryOp | ast.expr_context)
        known |= isinstance(part, ast.cmpop | ast.boolop | ast.unaryop | ast.Subscript | ast.Slice)
        known |= isinstance(part, ast.Name) and part.id in ("sys", "os")
        known |= isinstance(part, ast.Attribute) and part.attr in ("version_info", "platform", "name", "major", "minor")
        if not known:
            return None
    try:
        return bool(eval(compile(ast.Expression(test), "<test>", "eval"), {"sys": sys, "os": os}))  # noqa: S307 - see above
    except Exception:  # noqa: BLE001 - such as a comparison of other types
        return None


def _is_for_types(test: ast.expr) -> bool:
    """Whether it is `TYPE_CHECKING` or `typing.TYPE_CHECKING`."""
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def _is_for_scripts(test: ast.expr) -> bool:
    """Whether it is `__name__ == "__main__"`, which is false in a worker."""
    return isinstance(test, ast.Compare) and ast.unparse(test) in (
        "__name__ == '__main__'",
        "'__main__' == __name__",
    )


def can_bind_more(node: ast.AST) -> bool:
    """Whether a part of a file can give its module names that are not written there."""
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "*" for alias in node.names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in _OPEN_CALLS or (node.func.id == "setattr" and "sys.modules" in ast.unparse(node))
    return False


def is_constant(statement: ast.stmt) -> bool:
    """Whether it assigns a plain value, which is no method."""
    if not isinstance(statement, ast.Assign):
        return False
    try:
        ast.literal_eval(statement.value)
    except (ValueError, TypeError, RecursionError, MemoryError):
        names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
        return len(names) == len(statement.targets) and not any(name.startswith("__") for name in names)
    return True
