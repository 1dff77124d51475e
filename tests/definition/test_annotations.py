"""Annotations that are text are evaluated where they were written, also before a callable is sent by value."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Optional, get_type_hints

import pytest

from prefect_batchflow.definition.annotations import evaluated, evaluated_annotations

if TYPE_CHECKING:
    Unknown = int


@dataclass
class Inner:
    n: int | None = None


@dataclass
class Outer:
    inner: Inner
    more: list[Outer] | None = None


def plain(v: Outer, u: Unknown, *rest: Optional[int]) -> None:  # noqa: UP045 - as users write it
    """Has one annotation that exists only for type checkers."""


class Called:
    class Own:
        pass

    def __init__(self, own: Own) -> None:
        self.own = own

    def __call__(self, v: Inner) -> None:
        """Takes a class of the module."""


@functools.wraps(plain)
def wrapped(*given: Any) -> None:
    """Has the annotations of another function."""


@pytest.mark.parametrize(
    ("annotation", "function", "found"),
    [
        ("Inner", plain, Inner),
        ("Inner", functools.partial(plain, Outer(Inner())), Inner),
        ("Inner", Called.__call__, Inner),
        ("Inner", Called(Called.Own()), Inner),
        ("Inner", Called(Called.Own()).__call__, Inner),
        ("Inner", wrapped, Inner),
        ("Own", Called, Called.Own),
        ("Unknown", plain, "Unknown"),
        ("1 +", plain, "1 +"),
        ("Mapping[str, int]", plain, None),
        (int, plain, int),
    ],
    ids=[
        "function", "partial", "method", "object", "bound", "wraps", "of its class", "type checkers", "no Python",
        "typing", "class",
    ],
)  # fmt: skip
def test_a_text_means_what_it_means_to_its_function(annotation: Any, function: Any, found: Any) -> None:
    assert evaluated(annotation, function) == (found or get_type_hints(_known)["it"])


def _known(it: dict[str, int]) -> None: ...


_known.__annotations__ = {"it": __import__("typing").Mapping[str, int]}


@pytest.mark.parametrize(
    "target", [plain, functools.partial(plain, u=1), wrapped], ids=["function", "partial", "wraps"]
)
def test_the_classes_that_a_callable_names_are_evaluated_too_and_all_are_as_before(target: Any) -> None:
    before = [dict(kind.__annotations__) for kind in (plain, Inner, Outer)]

    with evaluated_annotations(target):
        assert plain.__annotations__ == {"v": Outer, "u": "Unknown", "rest": int | None, "return": type(None)}
        assert Outer.__annotations__ == {"inner": Inner, "more": list[Outer] | None}
        assert [field.type for field in fields(Inner)] == [int | None]

    assert [dict(kind.__annotations__) for kind in (plain, Inner, Outer)] == before
    assert [field.type for field in fields(Inner)] == ["int | None"]
