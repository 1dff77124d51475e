"""Threads that a line starts belong to this line, whoever makes them: its prints and its model calls count there.

A new thread belongs to the line that starts it. A thread of a pool belongs to the line that submits the work, as long as this
work runs: a pool can be older than the line and serve others. Installed in workers only, before user code is imported.
"""

from __future__ import annotations

import _thread
import functools
import threading
from typing import TYPE_CHECKING, Any

from prefect_batchflow.tools.context import carried, in_this_line
from prefect_batchflow.tools.on_import import when_imported

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_INHERITED = "_batchflow_inherited"


def install() -> None:
    """Let threads and pools of this process inherit the line from now on."""
    threading.Thread.start = _starting(threading.Thread.start)  # type: ignore[method-assign]
    # Not `run`, which subclasses override.
    threading.Thread._bootstrap_inner = _begun(threading.Thread._bootstrap_inner)  # type: ignore[attr-defined]
    _thread.start_new_thread = _with_function(_thread.start_new_thread)
    when_imported("concurrent.futures._base", _follow_futures)
    when_imported("concurrent.futures.thread", _follow_executors)
    when_imported("multiprocessing.pool", _follow_pools)


def _starting(start: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(start)
    def inheriting(self: threading.Thread) -> None:
        self.__dict__[_INHERITED] = carried()
        try:
            start(self)
        except BaseException:  # it has begun before, or the system has no more threads
            self.__dict__.pop(_INHERITED, None)
            raise

    return inheriting


def _begun(begin: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(begin)
    def in_its_line(self: threading.Thread) -> None:
        for variable, value in self.__dict__.pop(_INHERITED, ()):
            variable.set(value)
        begin(self)

    return in_its_line


def _with_function(take: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(take)
    def inheriting(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return take(in_this_line(function), *args, **kwargs)

    return inheriting


def _follow_futures(module: ModuleType) -> None:
    """A callback runs in a thread of the pool, after the work."""
    add_done_callback = module.Future.add_done_callback

    @functools.wraps(add_done_callback)
    def inheriting(self: Any, fn: Callable[..., Any]) -> None:
        add_done_callback(self, in_this_line(fn))

    module.Future.add_done_callback = inheriting


def _follow_executors(module: ModuleType) -> None:
    submit = module.ThreadPoolExecutor.submit

    @functools.wraps(submit)
    def inheriting(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return submit(self, in_this_line(fn), *args, **kwargs)

    module.ThreadPoolExecutor.submit = inheriting


def _follow_pools(module: ModuleType) -> None:
    """The pool of threads of `multiprocessing`, which joblib uses too. Its `map` and `starmap` call `_map_async`."""
    for name in ("apply_async", "_map_async", "imap", "imap_unordered"):
        setattr(module.ThreadPool, name, _with_functions(getattr(module.ThreadPool, name)))


def _with_functions(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose arguments `func`, `callback` and `error_callback` are called in the line."""
    from inspect import signature

    parameters = signature(method)

    @functools.wraps(method)
    def inheriting(*args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(*args, **kwargs)
        for name in ("func", "callback", "error_callback"):
            if callable(given.arguments.get(name)):
                given.arguments[name] = in_this_line(given.arguments[name])
        return method(*given.args, **given.kwargs)

    return inheriting
