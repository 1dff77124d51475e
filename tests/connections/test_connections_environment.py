"""`${env:NAME}` in texts."""

from __future__ import annotations

import re

import pytest

from prefect_batchflow.connections.environment import filled_in, is_variable, variables_in
from prefect_batchflow.connections.given import make_connection
from prefect_batchflow.connections.variables import connection_of_variables
from prefect_batchflow.exceptions import InvalidConnectionError

ENVIRON = {"HOST": "h", "PORT": "1"}


@pytest.mark.parametrize(
    ("text", "names", "filled", "is_one"),
    [
        ("plain", [], "plain", False),
        ("${env:HOST}", ["HOST"], "h", True),
        (" ${env: HOST } ", ["HOST"], " h ", True),
        ("https://${env:HOST}:${env:PORT}/${env:HOST}", ["HOST", "PORT"], "https://h:1/h", False),
        ("${HOST} $HOST ${env:}", [], "${HOST} $HOST ${env:}", False),
    ],
)
def test_references_are_found_and_filled_in(text: str, names: list[str], filled: str, is_one: bool) -> None:
    assert variables_in(text) == names
    assert filled_in(text, ENVIRON, "'x'") == filled
    assert is_variable(text) is is_one


def test_a_variable_that_is_not_set_is_named_with_its_place() -> None:
    with pytest.raises(
        InvalidConnectionError, match=r"^'key' of 'my' is \$\{env:NOPE\}, .* variable NOPE is not set\. Set it"
    ):
        filled_in("${env:HOST}${env:NOPE}", ENVIRON, "'key' of 'my'")


@pytest.mark.parametrize("name", ["prefect", "PREFECT", "prefect_api", "batchflow", "Prefect-", "batchflow.x"])
def test_the_keys_of_the_worker_itself_give_no_connection(name: str) -> None:
    """A run can choose the names of its connections, and Prefect's key must not be sent to a model's service."""
    prefix = re.sub("[^A-Z]", "_", name.upper())
    environ = {f"{prefix}_API_KEY": "of-the-worker", f"{prefix}_API_BASE": "https://x", f"{prefix}_TYPE": "custom"}

    assert connection_of_variables(name, environ) is None
    assert connection_of_variables(name, environ, ["CustomConnection"]) is None
    given = {"type": "OpenAIConnection", "value": {"api_key": "given"}}
    assert make_connection(name, given, environ).api_key == "given"
