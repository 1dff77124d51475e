"""What a manifest keeps of connections and environment variables: hashes of what is no secret."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefect_batchflow.connections.kinds import AzureOpenAIConnection
from prefect_batchflow.storage.surroundings import is_secret_name, named_variables, surroundings, without_secrets

SECRET, OTHER = "q7Zk-canary-4711", "another-secret-1"
AZURE = {
    "type": "AzureOpenAIConnection",
    "value": {"api_key": SECRET, "api_base": "https://a"},
    "secret_keys": ["api_key"],
}
CUSTOM = {
    "type": "CustomConnection",
    "value": {"url": "https://a?sig=abc&v=1", "token": SECRET, "password": "in the open"},
    "secret_keys": ["token"],
}


def changed(before: dict[str, str], now: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}


def around(
    connections: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **more: Any
) -> dict[str, str]:
    variables = more.pop("variables", {})
    return surroundings(connections or {}, variables, more.pop("named", ()), {**(environ or {}), **variables}, **more)


def with_values(spec: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**spec, "value": {**spec["value"], **values}}


@pytest.mark.parametrize(
    ("before", "now", "names"),
    [
        (AZURE, with_values(AZURE, api_base="https://b"), {"connection my.api_base"}),
        (AZURE, with_values(AZURE, api_version="2030-01-01"), {"connection my.api_version"}),
        (AZURE, with_values(AZURE, api_key=OTHER), set()),
        (AZURE, with_values(AZURE, api_version="2024-02-01"), set()),
        (AZURE, AzureOpenAIConnection("https://a", SECRET), set()),
        (CUSTOM, with_values(CUSTOM, token=OTHER), set()),
        (CUSTOM, with_values(CUSTOM, password=OTHER), set()),
        (CUSTOM, with_values(CUSTOM, url="https://a?sig=xyz&v=1"), set()),
        (CUSTOM, with_values(CUSTOM, url="https://user:pass@a?sig=xyz&v=1"), set()),
        (CUSTOM, with_values(CUSTOM, url="https://a?sig=abc&v=2"), {"connection my.url"}),
        (CUSTOM, with_values(CUSTOM, url=f"https://a/{SECRET}/x"), {"connection my.url"}),
    ],
    ids=[
        "address", "version", "key", "default written out", "an object", "custom secret", "open password", "signature",
        "user and password", "query", "path",
    ],
)  # fmt: skip
def test_a_connection_counts_by_what_is_no_secret(before: Any, now: Any, names: set[str]) -> None:
    assert changed(around({"my": before}), around({"my": now})) == names


def test_a_value_is_that_of_the_variable_that_replaces_it() -> None:
    spec = with_values(AZURE, api_base="${env:PLACE}")
    here, there = around({"my": spec}, {"PLACE": "https://a"}), around({"my": spec}, {"PLACE": "https://b"})
    assert changed(here, there) == {"connection my.api_base", "variable PLACE"}
    replaced = around({"my": AZURE}, {"MY_API_BASE": "https://b"})
    assert changed(around({"my": AZURE}), replaced) == {"connection my.api_base"}


def test_a_secret_in_an_open_value_leaves_no_trace() -> None:
    one = around({"my": with_values(CUSTOM, token=SECRET, url=f"https://a/{SECRET}")})
    two = around({"my": with_values(CUSTOM, token=OTHER, url=f"https://a/{OTHER}")})
    assert one == two


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("model: ${env:MODEL}", ["MODEL"]),
        ("model: ${ENV:MODEL} and ${Env: OTHER }", ["MODEL", "OTHER"]),
        ("api_key: ${env:ANYTHING}", []),
        ('"api_key": "${env:ANYTHING}"', []),
        ("model: ${env:MY_API_KEY}", []),
        ("max_tokens: ${env:MAX_TOKENS}", ["MAX_TOKENS"]),
        ("model: $MODEL", []),
    ],
)
def test_variables_are_found_as_flows_write_them(text: str, names: list[str]) -> None:
    assert list(named_variables(text)) == names


def test_variables_of_the_run_count_and_secret_ones_only_by_their_name() -> None:
    one = around(variables={"MODE": "fast", "DB_PASSWORD": SECRET, "ADDRESS": "${env:PLACE}"}, environ={"PLACE": "a"})
    two = around(variables={"MODE": "slow", "DB_PASSWORD": "other", "ADDRESS": "${env:PLACE}"}, environ={"PLACE": "b"})
    assert changed(one, two) == {"variable MODE", "variable PLACE"}
    assert "variable DB_PASSWORD" in one


def test_the_usual_variables_count_where_a_prompty_can_read_them() -> None:
    environ = {"AZURE_OPENAI_ENDPOINT": "https://a", "AZURE_OPENAI_API_KEY": SECRET}
    assert around(environ=environ) == {}
    assert around(environ=environ, uses_models=True).keys() == {"variable AZURE_OPENAI_ENDPOINT"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AZURE_OPENAI_API_KEY", True), ("apiKey", True), ("apikey", True), ("dbPassword", True), ("hf_token", True),
        ("sig", True), ("STORAGE_CONNECTION_STRING", True), ("ConnectionString", True), ("client_secret", True),
        ("MAX_TOKENS", False), ("auth_mode", False), ("keyword", False), ("MODEL", False), ("signal", False),
    ],
)  # fmt: skip
def test_names_of_secrets(name: str, expected: bool) -> None:
    assert is_secret_name(name) is expected


def test_arguments_lose_secrets_at_any_depth() -> None:
    given = {"model": {"api_key": SECRET, "azure_endpoint": "https://a"}, "more": [{"token": SECRET}]}
    kept = without_secrets(given)
    assert kept == {"model": {"api_key": "str", "azure_endpoint": "https://a"}, "more": [{"token": "str"}]}
    assert SECRET not in json.dumps(kept)
