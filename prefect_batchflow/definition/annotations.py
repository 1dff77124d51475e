"""Reading annotations in every spelling; those that are text are evaluated in the place where they were written."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import sys
import types
import typing
from types import FunctionType, MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

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
    return _in_place(annotation, getattr(code, "__globals__", {}), {**_class_names(function), **_enclosed(code)})


@contextlib.contextmanager
def evaluated_annotations(target: Any) -> Iterator[None]:
    """Evaluate the annotations of a callable in place, to send it by value: its module's other names do not travel.

    The same goes for the classes of its module that they name. All have their own annotations again at the end.
    """
    definition: Any = target
    while isinstance(definition, functools.partial | MethodType):
        definition = definition.func if isinstance(definition, functools.partial) else definition.__func__
    owner = definition if isinstance(definition, type) else type(definition)
    methods = [vars(owner).get(name) for name in ("__init__", "__call__")]
    classes: dict[type, None] = {}
    with contextlib.ExitStack() as restored:
        for function in [definition] if isinstance(definition, FunctionType) else methods:
            while isinstance(function, FunctionType):
                found = {name: evaluated(it, function) for name, it in function.__annotations__.items()}
                restored.callback(setattr, function, "__annotations__", function.__annotations__)
                function.__annotations__ = found
                classes |= dict.fromkeys(_classes_in(found.values(), function.__module__))
                function = getattr(function, "__wrapped__", None)
        for kind in (each := _Growing(classes)):
            names = vars(sys.modules.get(kind.__module__, typing))
            own = vars(kind).get("__annotations__", {})
            found = {name: _in_place(it, names, {kind.__name__: kind}) for name, it in own.items()}
            each.add(_classes_in(found.values(), kind.__module__))
            if found != own:
                restored.callback(own.update, dict(own))
                own.update(found)
            for name, field in vars(kind).get("__dataclass_fields__", {}).items():
                if isinstance(field.type, str):
                    restored.callback(setattr, field, "type", field.type)
                    field.type = found.get(name, field.type)
        yield


def bare(annotation: Any) -> tuple[Any, bool]:
    """An annotation without names for it and notes on it, and whether one of the notes is for pydantic."""
    is_constrained = False
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            is_constrained |= any(map(_is_for_pydantic, annotation.__metadata__))
            annotation = annotation.__origin__
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif isinstance(annotation, typing.TypeVar) and (annotation.__bound__ or annotation.__constraints__):
            annotation = annotation.__bound__ or typing.Union[annotation.__constraints__]  # noqa: UP007 - of a tuple
        else:
            return annotation, is_constrained


def _is_for_pydantic(note: Any) -> bool:
    module = type(note).__module__.partition(".")[0]
    return module in ("pydantic", "annotated_types", "pydantic_core") or hasattr(note, "__get_pydantic_core_schema__")


def union_members(annotation: Any) -> tuple[Any, ...] | None:
    """The members of a union, those of a union in it included; `None` for anything else."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return None
    found: list[Any] = []
    for member in typing.get_args(annotation):
        found += union_members(bare(member)[0]) or [member]
    return tuple(found)


class _Growing:
    """A loop over classes to which it can add more; each comes once."""

    def __init__(self, classes: Iterable[type]) -> None:
        self._classes = list(classes)

    def __iter__(self) -> Iterator[type]:
        yield from self._classes

    def add(self, classes: Iterable[type]) -> None:
        """Add those that are new."""
        self._classes += [kind for kind in classes if kind not in self._classes]


def _classes_in(annotations: Iterable[Any], module: str | None) -> Iterator[type]:
    """The classes of a module in evaluated annotations."""
    for annotation in annotations:
        if isinstance(annotation, type) and annotation.__module__ == module:
            yield annotation
        yield from _classes_in(typing.get_args(annotation), module)


def _in_place(annotation: Any, names: dict[str, Any], local: Mapping[str, Any]) -> Any:
    if not isinstance(annotation, str | typing.ForwardRef) and not typing.get_args(annotation):
        return annotation
    holder = SimpleNamespace(__annotations__={"it": annotation})
    for known in (names, {**_WORDS, **names}):
        # Annotations are user code and can raise anything.
        with contextlib.suppress(Exception):
            return typing.get_type_hints(holder, known, local, include_extras=True)["it"]
    return annotation


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
