"""Evaluating annotations that are text, each in the place where it was written."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import typing
from types import FunctionType, MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_WORDS: Mapping[str, Any] = {
    name: getattr(module, name) for module in (collections.abc, typing) for name in module.__all__
}
"""For modules that import these only for type checkers."""


def evaluated(annotation: Any, function: Any) -> Any:
    """Give an annotation with all texts in it evaluated; one with names that exist only for type checkers stays text.

    Args:
        annotation: As `inspect.signature` gives it.
        function: The callable that has it.
    """
    if not isinstance(annotation, str) and not typing.get_args(annotation):
        return annotation
    code = _code_of(function)
    names = getattr(code, "__globals__", {})
    local = {**_class_names(function), **_enclosed(code)}
    holder = SimpleNamespace(__annotations__={"it": annotation})
    for known in (names, {**_WORDS, **names}):
        # Annotations are user code and can raise anything.
        with contextlib.suppress(Exception):
            return typing.get_type_hints(holder, known, local, include_extras=True)["it"]
    return annotation


@contextlib.contextmanager
def evaluated_annotations(target: Any) -> Iterator[None]:
    """Evaluate the annotations of a callable in place, to send it by value: its module's other names do not travel.

    It has its own annotations again at the end.
    """
    definition: Any = target
    while isinstance(definition, functools.partial | MethodType):
        definition = definition.func if isinstance(definition, functools.partial) else definition.__func__
    owner = definition if isinstance(definition, type) else type(definition)
    methods = [vars(owner).get(name) for name in ("__init__", "__call__")]
    functions = [definition] if isinstance(definition, FunctionType) else methods
    with contextlib.ExitStack() as restored:
        for function in functions:
            while isinstance(function, FunctionType):
                before = function.__annotations__
                function.__annotations__ = {name: evaluated(it, function) for name, it in before.items()}
                restored.callback(setattr, function, "__annotations__", before)
                function = getattr(function, "__wrapped__", None)
        yield


def _code_of(function: Any) -> Callable[..., Any]:
    """The innermost function that a callable runs, which has the annotations."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif isinstance(function, type):
            function = function.__init__  # type: ignore[misc] # of the class itself
        elif hasattr(function, "__wrapped__") and not hasattr(function, "__signature__"):
            function = inspect.unwrap(function, stop=lambda found: hasattr(found, "__signature__"))
        elif not inspect.isroutine(function) and isinstance(found := type(function).__call__, FunctionType):
            function = found
        else:
            return function  # type: ignore[no-any-return]


def _class_names(function: Any) -> dict[str, Any]:
    """The names of the class whose method it is."""
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", function)
    if inspect.isroutine(owner) or inspect.ismodule(owner):
        return {}
    owner = owner if isinstance(owner, type) else type(owner)
    return {owner.__name__: owner, **{name: value for name, value in vars(owner).items() if isinstance(value, type)}}


def _enclosed(code: Any) -> dict[str, Any]:
    """The names of the functions around it that it uses."""
    names = getattr(getattr(code, "__code__", None), "co_freevars", ())
    found = {}
    for name, cell in zip(names, getattr(code, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):  # not assigned yet
            found[name] = cell.cell_contents
    return found
