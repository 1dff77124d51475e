"""Types: promptflow's conversions, value by value."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from prefect_batchflow.inputs.formats import MAX_DEPTH
from prefect_batchflow.inputs.types import CONVERSION_ERRORS, CONVERTERS

DEEP = "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)


@pytest.mark.parametrize(
    ("type_name", "value", "expected"),
    [
        ("int", 4.7, 4),
        ("int", "12", 12),
        ("int", True, 1),
        ("double", "2.5", 2.5),
        ("double", 1, 1.0),
        ("double", "inf", math.inf),
        ("bool", True, True),
        ("bool", "TRUE", True),
        ("bool", "false", False),
        ("string", None, "None"),
        ("string", True, "True"),
        ("string", 1, "1"),
        ("string", {"a": 1}, "{'a': 1}"),
        ("string", "é\ud800", "é\ud800"),
        ("list", [1], [1]),
        ("list", '["a", 1]', ["a", 1]),
        ("object", '{"a": 1}', {"a": 1}),
        ("object", "12", 12),
        ("object", "just text", "just text"),
        ("object", None, None),
        ("object", 3, 3),
        ("object", DEEP, DEEP),
        ("object", "9" * 5000, "9" * 5000),
    ],
)
def test_a_value_that_fits_is_converted(type_name: str, value: Any, expected: Any) -> None:
    converted = CONVERTERS[type_name](value)

    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("int", "4.7"),
        ("int", None),
        ("int", ""),
        ("int", math.nan),
        ("int", math.inf),
        ("int", [1]),
        ("int", "9" * 5000),
        ("double", "x"),
        ("double", 10**400),
        ("bool", 0),
        ("bool", 1),
        ("bool", ""),
        ("bool", None),
        ("bool", "yes"),
        ("list", "{}"),
        ("list", 3),
        ("list", None),
        ("list", DEEP),
        ("list", "[" * 100_000),
    ],
)
def test_a_value_that_does_not_fit_raises(type_name: str, value: Any) -> None:
    with pytest.raises(CONVERSION_ERRORS):
        CONVERTERS[type_name](value)


def test_a_list_that_is_no_json_is_told_apart() -> None:
    with pytest.raises(json.JSONDecodeError):
        CONVERTERS["list"]("a, b")


def test_other_types_are_not_converted() -> None:
    assert set(CONVERTERS) == {"int", "double", "bool", "string", "list", "object"}
