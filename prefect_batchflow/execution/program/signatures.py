"""Reading signatures of user code: parameters, promptflow's types, whether it is async."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from prefect_batchflow.definition.annotations import evaluated

if TYPE_CHECKING:
    from collections.abc import Callable


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """A callable's signature, its annotations evaluated as far as possible; `None` if Python does not know it."""
    try:
        signature = inspect.signature(function)
    except Exception:  # noqa: BLE001 - user code can have odd callables
        return None
    parameters = [
        parameter.replace(annotation=evaluated(parameter.annotation, function))
        for parameter in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters)


def named_parameters(signature: inspect.Signature) -> dict[str, inspect.Parameter]:
    """The parameters that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in signature.parameters.items() if parameter.kind in kinds}


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
