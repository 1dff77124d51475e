"""Environment variables are filled in from connections, and what is missing is told without values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.execution.environment import resolved

CONNECTIONS = {
    "plain": {"type": "CustomConnection", "value": {"key": "s3cret", "port": 5}},
    "object": SimpleNamespace(key="other"),
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", "a"),
        ("", ""),
        ("${plain.key}", "s3cret"),
        (" ${plain.port} ", "5"),
        ("${object.key}", "other"),
        ("x ${plain.key}", "x ${plain.key}"),
        ("${HOME}", "${HOME}"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_a_whole_reference_is_filled_in(text: str, value: str) -> None:
    assert resolved({"A": text}, CONNECTIONS) == {"A": value}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "${lost.key}",
            "The environment variable A is a key of the connection 'lost', which was not given; given: 'plain'",
        ),
        ("${plain.lost}", "A is 'lost' of the connection 'plain', which has no such key"),
        ("${object.lost}", "A is 'lost' of the connection 'object', which has no such key"),
    ],
)
def test_a_reference_to_nothing_is_refused_without_values(text: str, told: str) -> None:
    with pytest.raises(InvalidOptionError, match=told) as caught:
        resolved({"A": text}, CONNECTIONS)

    assert "s3cret" not in str(caught.value)
