"""Reading signatures of user code: parameters, promptflow's types, whether it is async."""

from __future__ import annotations

import functools
import inspect
import types
from enum import Enum
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TYPE_NAMES: Mapping[Any, str] = {
    int: "int", float: "double", bool: "bool", str: "string", list: "list", dict: "object"
}  # fmt: skip
"""Annotations that promptflow converts values for, to its type names."""
MARKER_TYPES: Mapping[str, str] = {
    "AssistantDefinition": "assistant_definition",
    "FilePath": "file_path",
    "Image": "image",
    "PromptTemplate": "prompt_template",
    "Secret": "secret",
}
"""The same for promptflow's own classes, or the mirror's, by name."""


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """A callable's signature, its annotations evaluated if possible; `None` if Python does not know it."""
    for eval_str in (True, False):
        try:
            return inspect.signature(function, eval_str=eval_str)
        except ValueError:
            return None
        except Exception:  # noqa: BLE001, S112 - annotations are user code, often with names that only type checkers know
            continue
    return None


def named_parameters(signature: inspect.Signature) -> dict[str, inspect.Parameter]:
    """The parameters that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in signature.parameters.items() if parameter.kind in kinds}


def constant_type(parameter: inspect.Parameter) -> str:
    """The type to convert a constant to: the annotation's, otherwise the default's.

    Source: promptflow `_utils/tool_utils.py`, `param_to_definition`.
    """
    annotation = parameter.annotation
    if annotation is parameter.empty and parameter.default is not parameter.empty:
        annotation = type(parameter.default)
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        annotation = members[0] if len(members) == 1 else object
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        annotation = str
    return type_name_of(annotation, "object")


def type_name_of(annotation: Any, otherwise: str) -> str:
    """Promptflow's name of an annotation; an annotation that is text is known by its spelling."""
    for known, name in TYPE_NAMES.items():
        if annotation is known or annotation == known.__name__:
            return name
    if isinstance(annotation, type) and annotation.__module__.startswith(("promptflow.", "prefect_batchflow.")):
        return MARKER_TYPES.get(annotation.__name__, otherwise)
    return MARKER_TYPES.get(annotation, otherwise) if isinstance(annotation, str) else otherwise


def is_async_callable(function: Any) -> bool:
    """Whether a call gives a coroutine or async generator, also through partials and promptflow's decorator."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__original_function", function)
    if not inspect.isroutine(function):
        function = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def to_type(value: Any, type_name: str) -> Any:
    """Convert a constant to promptflow's type; a `ValueError` does not show the value, which can be a secret."""
    from prefect_batchflow.inputs.types import CONVERSION_ERRORS, CONVERTERS

    if type_name not in CONVERTERS:
        return value
    try:
        return CONVERTERS[type_name](value)
    except CONVERSION_ERRORS as exc:
        raise ValueError(
            f"expected a value of type {type_name}, found a {type(value).__name__} that cannot be converted."
        ) from exc
