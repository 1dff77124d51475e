"""Environment variables are filled in from connections, and what is missing is told without values."""

from __future__ import annotations

import pytest

from prefect_batchflow.connections.kinds import CustomConnection
from prefect_batchflow.exceptions import BatchflowException, GetConnectionError
from prefect_batchflow.execution.program.environment import connections_in, resolved

CONNECTIONS = {
    "plain": {"type": "CustomConnection", "value": {"key": "s3cret", "port": 5}},
    "object": CustomConnection({"key": "other"}, name="object"),
    "mine": {"type": "CustomConnection", "value": {"key": "${env:MY_KEY}", "lost": "${env:LOST}", "port": 5}},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", "a"),
        ("", ""),
        ("${plain.key}", "s3cret"),
        (" ${plain.port} ", "5"),
        ("${object.key}", "other"),
        ("${mine.key}", "from the environment"),
        ("${mine.port}", "6"),
        ("x ${plain.key}", "x ${plain.key}"),
        ("${HOME}", "${HOME}"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_a_whole_reference_is_filled_in(text: str, value: str) -> None:
    environ = {"MY_KEY": "from the environment", "MINE_PORT": "6"}

    assert resolved({"A": text}, CONNECTIONS, environ) == {"A": value}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "${lost.key}",
            "The environment variable A refers to the connection 'lost', which was not given. Given: 'plain'",
        ),
        ("${plain.lost}", "A refers to 'lost' of the connection 'plain', which has no such key"),
        (
            "${mine.lost}",
            "variable A: 'lost' of the connection 'mine' is .*, but the environment variable LOST is not set",
        ),
        ("${object.lost}", "A refers to 'lost' of the connection 'object', which has no such key"),
    ],
)
def test_a_reference_to_nothing_is_refused_without_values(text: str, told: str) -> None:
    with pytest.raises(BatchflowException, match=told) as caught:
        resolved({"A": text}, CONNECTIONS, {})

    assert "s3cret" not in str(caught.value)


def test_a_connection_that_was_not_given_is_told_by_its_name_for_those_who_may_find_it() -> None:
    with pytest.raises(GetConnectionError) as caught:
        resolved({"A": "${lost.key}"}, {}, {})

    assert caught.value.additional_info == {"MissingConnection": "lost"}
    assert connections_in({"A": "${lost.key}", "B": " ${my ai.k} ", "C": "${HOME}", "D": "x"}) == {"lost", "my ai"}
