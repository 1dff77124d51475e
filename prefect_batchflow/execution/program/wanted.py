"""What a parameter's annotation asks for, in every spelling, and the values that are built for it.

promptflow has rules for `int`, `float`, `bool`, `str`, `list` and `dict`; they stay, and a run applies them when it reads the
data. Everything else (`list[int]`, dataclasses, pydantic models, `TypedDict`, `Literal`, enums, dates, paths …) is built by
pydantic's rules in lax mode, in the worker that has the classes. pydantic is imported only if an annotation needs it.
"""

from __future__ import annotations

import collections.abc
import inspect
import json
import typing
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypedDict, TypeVar

from prefect_batchflow.definition.annotations import bare, union_members
from prefect_batchflow.exceptions import InputTypeError
from prefect_batchflow.execution.program.connecting import connection_types, model_types
from prefect_batchflow.execution.program.user_errors import exception_text, passes_through
from prefect_batchflow.inputs.formats import shorten, too_deep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

TYPE_NAMES: Final[dict[Any, str]] = {
    int: "int", float: "double", bool: "bool", str: "string", list: "list", dict: "object"
}  # fmt: skip
"""Annotations that promptflow converts values for, to its type names."""
MARKER_TYPES: Final[dict[str, str]] = {
    "AssistantDefinition": "assistant_definition",
    "FilePath": "file_path",
    "Image": "image",
    "PromptTemplate": "prompt_template",
    "Secret": "secret",
}
"""The same for promptflow's own classes, or the mirror's, by name."""
_UNBUILT: Final = (
    type, collections.abc.Callable, collections.abc.Iterator, collections.abc.Generator,
    collections.abc.AsyncIterable, collections.abc.AsyncIterator, collections.abc.AsyncGenerator,
    collections.abc.Awaitable, collections.abc.Coroutine,
)  # fmt: skip
"""No row has a value for these; pydantic would wrap or refuse what it finds."""
_LIST_LIKE: Final = (
    collections.abc.Iterable, collections.abc.Collection, collections.abc.Container, collections.abc.Reversible
)  # fmt: skip
"""These count as `Sequence`, but what is no list stays as it is: pydantic does not know them, or reads their items later."""
_MAX_PROBLEMS = 3


class Wanted(NamedTuple):
    """What an annotation asks for."""

    type: str = "any"
    """promptflow's name of the type that the data is converted to; `any` is none."""
    optional: bool = False
    """Whether it allows `None`."""
    takes_text: bool = True
    """Whether an empty text is a value of its own, and not the lack of one."""
    build: bool = False
    """Whether the converted value is not yet all that it asks for."""
    is_rich: bool = False
    """Whether that is because of a type for which promptflow has no rule, at any depth."""


def wanted_by(annotation: Any) -> Wanted:
    """Read an annotation whose texts are evaluated; a text that could not be is no annotation."""
    annotation, is_constrained = bare(annotation)
    members = union_members(annotation)
    if members is not None:
        some = [member for member in members if member is not type(None)]
        if len(some) == 1:
            found = wanted_by(some[0])
            return found._replace(optional=True, build=found.build or is_constrained)
        each = [wanted_by(member) for member in some]
        is_rich = any(member.is_rich for member in each)
        optional = len(some) < len(members) or any(member.optional for member in each)
        takes_text = any(member.takes_text for member in each)
        return Wanted("any", optional, takes_text, build=bool(some), is_rich=is_rich)
    if annotation in (Any, object, inspect.Parameter.empty, None) or isinstance(annotation, str | TypeVar):
        return Wanted(optional=True)
    type_name = type_name_of(annotation, "any")
    if type_name != "any":
        return Wanted(type_name, takes_text=type_name == "string", build=is_constrained, is_rich=is_constrained)
    origin = typing.get_origin(annotation)
    if origin in (list, dict):
        parts = [wanted_by(part) for part in typing.get_args(annotation)]
        is_rich = any(part.is_rich for part in parts)
        return Wanted(TYPE_NAMES[origin], takes_text=False, build=bool(parts), is_rich=is_rich)
    if (origin or annotation) in _UNBUILT or annotation in _LIST_LIKE:
        return Wanted()
    return Wanted(takes_text=_has_empty_text(annotation), build=True, is_rich=True)


def type_name_of(annotation: Any, otherwise: str) -> str:
    """Promptflow's name of an annotation; an annotation that is text is known by its spelling."""
    annotation, _ = bare(annotation)
    for known, name in TYPE_NAMES.items():
        if annotation is known or annotation == known.__name__:
            return name
    if annotation in (typing.List, typing.Dict):  # noqa: UP006 - as users write them
        return TYPE_NAMES[typing.get_origin(annotation)]
    if isinstance(annotation, type) and annotation.__module__.startswith(("promptflow.", "prefect_batchflow.")):
        return MARKER_TYPES.get(annotation.__name__, otherwise)
    return MARKER_TYPES.get(annotation, otherwise) if isinstance(annotation, str) else otherwise


def constant_type(parameter: inspect.Parameter) -> str:
    """The type to convert a constant to: the annotation's, otherwise the default's.

    Source: promptflow `_utils/tool_utils.py`, `param_to_definition`.
    """
    annotation = parameter.annotation
    if annotation is parameter.empty and parameter.default is not parameter.empty:
        annotation = type(parameter.default)
    annotation, _ = bare(annotation)
    if (members := union_members(annotation)) is not None:
        some = [member for member in members if member is not type(None)]
        annotation, _ = bare(some[0]) if len(some) == 1 else (object, False)
    if _is_enum(annotation):
        annotation = str
    return type_name_of(typing.get_origin(annotation) or annotation, "object")


class MisfitError(ValueError):
    """A value does not fit an annotation; the text does not show the value, which can be a secret."""


class Builder:
    """Builds the values of one parameter.

    A default of the code stays as it is if it does not fit.
    """

    __slots__ = ("_adapter", "_default", "_empty_is_none", "_null_stays", "_others_stay", "asked")

    def __init__(self, annotation: Any, default: Any, adapter: Any) -> None:
        """Take a parameter's annotation and default, and pydantic's adapter of the annotation."""
        wanted = wanted_by(annotation)
        self.asked = spelled(annotation)
        """The annotation, for messages."""
        self._default = default
        self._others_stay = typing.get_origin(bare(annotation)[0]) in _LIST_LIKE
        self._adapter = adapter
        self._empty_is_none = (wanted.optional or default is None) and not wanted.takes_text
        # As for `int` and `list`, where null stays null.
        self._null_stays = default is None or not wanted.is_rich

    def build(self, value: Any) -> Any:
        """The value for the call.

        Raises:
            MisfitError: It does not fit.
        """
        if value is None and self._null_stays:
            return None
        if self._empty_is_none and isinstance(value, str) and not value:
            return None
        try:
            return self._adapter.validate_python(value)
        except Exception as exc:  # a class's own checks are user code
            if passes_through(exc):
                raise
            error = exc
        if type(value) is type(self._default) and value == self._default:
            return value
        if isinstance(value, str):
            parsed = _parsed(value)
            try:
                return self._adapter.validate_python(parsed)
            except Exception as exc:
                if passes_through(exc):
                    raise
                error = exc if isinstance(parsed, dict | list) else error
        if self._others_stay:
            return value
        raise MisfitError(_problems(error)) from error

    def of_line(self, value: Any, where: str) -> Any:
        """The same; raises an `InputTypeError` that names the place."""
        try:
            return self.build(value)
        except MisfitError as exc:
            raise InputTypeError(
                f"{where} is annotated {self.asked}, found {type(value).__name__} {shorten(value)} ({exc}). Change the value, "
                "or the annotation.",
                target="Executor",
            ) from exc


def builders_of(
    parameters: Iterable[inspect.Parameter], asks: Callable[[Wanted], bool] = lambda wanted: wanted.build
) -> dict[str, Builder]:
    """The builders of those parameters that need one; an annotation that pydantic does not know asks for nothing.

    Args:
        parameters: With evaluated annotations.
        asks: Whether an annotation counts.
    """
    found = {}
    for parameter in parameters:
        annotation = parameter.annotation
        if isinstance(annotation, str) or connection_types(annotation) or model_types(annotation):
            continue
        if asks(wanted_by(annotation)) and (adapter := _adapter_of(annotation)) is not None:
            found[parameter.name] = Builder(annotation, parameter.default, adapter)
    return found


def keys_of(kind: Any) -> Iterator[tuple[str, Any, bool]]:
    """The keys of a `TypedDict`, their annotations, and whether each is required."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        # `__required_keys__` is wrong where annotations are text.
        if typing.get_origin(hint) in (typing.Required, typing.NotRequired):
            yield name, typing.get_args(hint)[0], typing.get_origin(hint) is typing.Required
        else:
            yield name, hint, name in kind.__required_keys__


def spelled(annotation: Any) -> str:
    """An annotation as a person writes it."""
    return (
        annotation.__qualname__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
    )


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def _has_empty_text(annotation: Any) -> bool:
    if typing.get_origin(annotation) is Literal:
        return "" in typing.get_args(annotation)
    return _is_enum(annotation) and any(member.value == "" for member in annotation)


def _adapter_of(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    # Before Python 3.12, pydantic refuses `typing.TypedDict`, wherever it is, by the module of its metaclass, because
    # optional keys of a base class are not marked. A flow's author cannot know, and rows do not mind.
    meta = type(_AnyDict)
    module, meta.__module__ = meta.__module__, "typing_extensions"
    try:
        return TypeAdapter(_with_sequences(annotation))
    except Exception:  # noqa: BLE001 - classes of the user's that pydantic does not know
        return None
    finally:
        meta.__module__ = module


def _with_sequences(annotation: Any) -> Any:
    """An annotation with `Sequence` in place of `Iterable` and the like, also in a union."""
    named, _ = bare(annotation)
    if (members := union_members(named)) is not None and named is annotation:
        return typing.Union[tuple(map(_with_sequences, members))]  # noqa: UP007 - of a tuple
    if typing.get_origin(named) in _LIST_LIKE:
        return collections.abc.Sequence[typing.get_args(named)[0]]  # type: ignore[misc] # known at run time only
    return annotation


class _AnyDict(TypedDict):
    """Has the metaclass of each `TypedDict`."""


def _parsed(text: str) -> Any:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if too_deep(text, parsed) else parsed


def _problems(error: BaseException) -> str:
    """What is wrong, with the place inside the value."""
    if not hasattr(error, "errors"):
        return f"({type(error).__name__}) {exception_text(error)}"
    texts = list(_each(error))
    more = f" and {len(texts) - _MAX_PROBLEMS} more" * (len(texts) > _MAX_PROBLEMS)
    return "; ".join(dict.fromkeys(texts[:_MAX_PROBLEMS])) + more


def _each(error: Any) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(step) for step in problem["loc"])
        yield f"{place}: {problem['msg']}" if place else problem["msg"]
