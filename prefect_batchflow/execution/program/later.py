"""Stands for a public name that needs Prefect, while a worker imports the file that also starts the run.

`from prefect_batchflow import BatchEngine` at the top of a script would cost each worker a second and 100 MB for a class
that only the main module uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from collections.abc import Callable


class Later:
    """Becomes the object when it is used: called, derived from, or asked for an attribute."""

    def __init__(self, find: Callable[[], Any], name: str, refuse: Callable[[], None]) -> None:
        self._find, self._name, self._refuse = find, name, refuse

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Call it. An engine that is made above the guard is made later, if anything still uses it."""
        if self._name == "batch_run":
            self._refuse()
        if self._name == "BatchEngine":
            return _Made(lambda: self._find()(*positional, **named), self._refuse)
        return self._find()(*positional, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return getattr(self._find(), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        """Be the base of a class."""
        return (self._find(),)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, self._find())

    def __or__(self, other: Any) -> Any:
        """Be part of an annotation."""
        return Union[self._find(), other]  # noqa: UP007 - `other` can be anything

    def __ror__(self, other: Any) -> Any:
        return Union[other, self._find()]  # noqa: UP007


class _Made:
    """An engine that is not made yet. To run it while a worker imports its file is refused."""

    def __init__(self, make: Callable[[], Any], refuse: Callable[[], None]) -> None:
        self._make, self._refuse = make, refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        self._refuse()
        return getattr(self._make(), name)
