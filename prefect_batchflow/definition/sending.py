"""How the caller's objects travel to workers: by name where a worker can import them, otherwise by value.

A script that starts its run below `if __name__ == "__main__":` is run again by each worker, as `multiprocessing` does, so its
functions go by name, and its clients and locks are made anew. All else of a main module goes by value. A function in another
function goes with its own code and closure only: its globals are those of its module in the worker.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import io
import os
import sys
import threading
from contextvars import Context, ContextVar
from pathlib import Path
from types import CellType, FrameType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.code_parts import is_found
from prefect_batchflow.definition.flow import Script
from prefect_batchflow.definition.parsing import parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prefect_batchflow.definition.code_parts import CodeParts

MAIN = "__main__"
_LOCKS: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
}
_CACHED = type(functools.lru_cache(lambda: None))
_DEEPEST_CULPRIT = 4


_runs_later: ContextVar[bool] = ContextVar("runs_later", default=False)


@contextlib.contextmanager
def run_comes_later() -> Iterator[None]:
    """An engine that is made above the guard can run below it."""
    token = _runs_later.set(True)
    try:
        yield
    finally:
        _runs_later.reset(token)


class MainModule:
    """The caller's main module, if a worker can run it again: its run was started below the guard."""

    def __init__(self, module: ModuleType, file: Path, source: bytes, guarded: set[str]) -> None:
        self._module = module
        self._file, self._source = file, source
        self.guarded = guarded
        """Names that only the guarded part binds."""

    @classmethod
    def of_caller(cls) -> MainModule | None:
        """Give it; `None` for a notebook, an interactive session, and a script that starts its run without a guard."""
        module = sys.modules.get(MAIN)
        name = getattr(module, "__file__", None)
        if module is None or not name or not str(name).endswith(".py"):
            return None
        file = Path(name).resolve()
        frame = _main_frame(module)
        if frame is None:
            return None
        with contextlib.suppress(OSError, SyntaxError, ValueError):
            source = file.read_bytes()
            # A file that was changed since it started is not what runs here.
            if compile(source, name, "exec", dont_inherit=True) == frame[0]:
                guards = list(_guards(parsed(source)))
                ends = [guard.body[-1].end_lineno or 0 for guard in guards]
                starts = [0 if _runs_later.get() else guard.body[0].lineno for guard in guards]
                if any(start <= frame[1] <= end for start, end in zip(starts, ends, strict=True)):
                    return cls(module, file, source, set(_bound_in(guards)))
        return None

    def has(self, value: Any) -> bool:
        """Whether a worker finds the function or class in the script, once it has run it again."""
        name = getattr(value, "__qualname__", None)
        if getattr(value, "__module__", None) != MAIN or not isinstance(name, str):
            return False
        return name.split(".")[0] not in self.guarded and is_found(value)

    def script(self, parts: CodeParts) -> Script:
        """Give what a worker needs to run it again.

        Args:
            parts: The code of the flow. The globals that it refers to have the caller's values in the workers, too.
        """
        wanted = {
            name: value
            for name, value in parts.globals.items()
            if name in self.guarded or (name in parts.data and not isinstance(value, type | FunctionType | ModuleType))
        }
        absent: dict[str, str] = {}
        try:
            values = pickled(wanted, self)
        except Exception:  # noqa: BLE001 - find out which
            sent = {}
            for name, value in wanted.items():
                try:
                    pickled(value, self)
                except Exception as exc:  # noqa: BLE001 - the object's own pickling can raise anything
                    absent[name] = f"({type(exc).__name__}) {exc}"
                else:
                    sent[name] = value
            values = pickled(sent, self)
            absent = {name: reason for name, reason in absent.items() if name in self.guarded}
        spec = getattr(self._module, "__spec__", None)
        module = "" if spec is None else str(spec.name)
        return Script(self._file, self._source, module, tuple(sys.argv), os.getcwd(), values, absent)  # noqa: PTH109


def pickled(value: Any, main: MainModule | None, by_value: ModuleType | None = None) -> bytes:
    """Pickle an object for workers.

    Args:
        value: The object.
        main: The main module, if workers run it again; otherwise its functions and classes go by value.
        by_value: Another module that no worker can import.
    """
    import cloudpickle

    # By default, cloudpickle sends only the name of a module's object, even if a worker cannot import the module.
    with contextlib.ExitStack() as registered:
        if by_value is not None:
            cloudpickle.register_pickle_by_value(by_value)
            registered.callback(cloudpickle.unregister_pickle_by_value, by_value)
        modules = {module.__name__ for module in [by_value] if module is not None} | ({MAIN} if main is None else set())
        out = io.BytesIO()
        _pickler()(out, main, modules).dump(value)
    return out.getvalue()


@functools.cache
def _pickler() -> Callable[..., Any]:
    import cloudpickle

    class SendingPickler(cloudpickle.Pickler):  # type: ignore[misc]
        """cloudpickle's, for the objects that it sends otherwise or not at all."""

        def __init__(self, out: io.BytesIO, main: MainModule | None, by_value: set[str]) -> None:
            super().__init__(out)
            self._main, self._by_value = main, by_value

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type | FunctionType) and self._main is not None and self._main.has(obj):
                return NotImplemented  # by name
            if isinstance(obj, FunctionType):
                return self._function(obj)
            if isinstance(obj, _CACHED) and (obj.__module__ in self._by_value or not is_found(obj)):
                return _make_cached, (obj.__wrapped__, obj.cache_parameters())
            if obj is dataclasses.MISSING:
                # A copy of it would be a default value of each field.
                return getattr, (dataclasses, "MISSING")
            if type(obj) in _LOCKS:
                return _LOCKS[type(obj)], ()
            if type(obj) is threading.local:
                return threading.local, ()
            if isinstance(obj, ContextVar):
                return _make_variable, (obj.name, *_default_of(obj))
            return super().reducer_override(obj)

        def _function(self, function: FunctionType) -> Any:
            module = str(function.__globals__.get("__name__"))
            namespace = getattr(sys.modules.get(module), "__dict__", None)
            is_module = namespace is function.__globals__ and module not in self._by_value
            if not is_module or (is_found(function) and function.__module__ != MAIN):
                return super().reducer_override(function)
            cells = function.__closure__ or ()
            state = {
                "cells": [_contents(cell) for cell in cells],
                "__defaults__": function.__defaults__,
                "__kwdefaults__": function.__kwdefaults__,
                "__annotations__": function.__annotations__,
                "__qualname__": function.__qualname__,
                "__module__": function.__module__,
                "__doc__": function.__doc__,
                "__dict__": vars(function),
            }
            made = (module, function.__code__, function.__name__, len(cells))
            return _make_function, made, state, None, None, _set_function

    return SendingPickler


# --- what a worker calls ----------------------------------------------------------------------------------------------


def _make_function(module: str, code: Any, name: str, cells: int) -> FunctionType:
    namespace = vars(importlib.import_module(module))
    return FunctionType(code, namespace, name, None, tuple(CellType() for _ in range(cells)))


def _set_function(function: FunctionType, state: dict[str, Any]) -> None:
    for cell, contents in zip(function.__closure__ or (), state.pop("cells"), strict=True):
        if contents:
            cell.cell_contents = contents[0]
    vars(function).update(state.pop("__dict__"))
    for name, value in state.items():
        setattr(function, name, value)


def _contents(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _make_cached(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _make_variable(name: str, *default: Any) -> ContextVar[Any]:
    return ContextVar(name, default=default[0]) if default else ContextVar(name)


def _default_of(variable: ContextVar[Any]) -> tuple[Any, ...]:
    try:
        return (Context().run(variable.get),)
    except LookupError:
        return ()


# --- reading the caller -----------------------------------------------------------------------------------------------


def _main_frame(module: ModuleType) -> tuple[Any, int] | None:
    """The code of the main module that runs now, in this thread or the main one, and its line."""
    frame: FrameType | None = sys._getframe()
    if threading.current_thread() is not threading.main_thread():
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_globals is vars(module) and frame.f_code.co_name == "<module>":
            return frame.f_code, frame.f_lineno
        frame = frame.f_back
    return None


def _guards(tree: ast.AST) -> Iterator[ast.If]:
    """The `if __name__ == "__main__":` statements of a module."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and _is_guard(child.test):
            yield child
        elif isinstance(child, ast.stmt) and not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ):
            yield from _guards(child)


def _is_guard(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(map(_is_guard, test.values))
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return False
    sides = (test.left, test.comparators[0])
    return any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides) and any(
        isinstance(side, ast.Constant) and side.value == MAIN for side in sides
    )


def _bound_in(guards: list[ast.If]) -> Iterator[str]:
    """The names that statements below the guards bind."""
    for guard in guards:
        for statement in guard.body:
            for node in ast.walk(statement):
                match node:
                    case ast.Name(id=name, ctx=ast.Store()):
                        yield name
                    case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                        yield name
                    case ast.alias(name=name, asname=asname):
                        yield asname or name.split(".")[0]


def culprit(value: Any, main: MainModule | None, place: str, depth: int = 0) -> str:
    """Name the innermost part of an object that cannot be pickled, such as `x (a _io.TextIOWrapper), an attribute of …`."""
    parts: dict[str, Any] = {}
    if isinstance(value, dict):
        parts = {f"the value of {key!r}": item for key, item in value.items()}
    elif isinstance(value, list | tuple | set | frozenset):
        parts = dict(zip((f"item {number}" for number in range(len(value))), value, strict=True))
    elif hasattr(value, "__dict__") and not isinstance(value, type | FunctionType):
        parts = {f"the attribute '{name}'": item for name, item in vars(value).items()}
    is_library = type(value).__module__.split(".")[0] in sys.stdlib_module_names - {MAIN, "builtins"}
    if depth < _DEEPEST_CULPRIT and not is_library:
        for name, part in parts.items():
            try:
                pickled(part, main)
            except Exception:  # noqa: BLE001 - this is the one
                return culprit(part, main, f"{name} of {place}", depth + 1)
    return f"{place} (of type {type(value).__module__}.{type(value).__qualname__})"
