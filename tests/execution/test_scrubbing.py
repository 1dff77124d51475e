"""No secret of a connection is kept: not in records, errors, printed output, however it is written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefect_batchflow.connections.kinds import OpenAIConnection
from prefect_batchflow.connections.model_configurations import OpenAIModelConfiguration
from prefect_batchflow.execution.program.record import encode_record
from prefect_batchflow.execution.scrubbing import MASK, Scrubber, secrets_of

KEY = "sk-ä'\"\n-canary"


def scrubber(key: str = KEY) -> Scrubber:
    return Scrubber(secrets_of({"my": {"type": "OpenAIConnection", "value": {"api_key": key}}}, {}, {}, ()))


@pytest.mark.parametrize("written", [KEY, repr(KEY)[1:-1], json.dumps(KEY)[1:-1]], ids=["plain", "repr", "json"])
def test_a_secret_is_found_however_it_is_written(written: str) -> None:
    assert scrubber().text(f"key={written}!") == f"key={MASK}!"
    assert scrubber().finds_in(json.dumps({"a": written}).encode())


@pytest.mark.parametrize(
    ("connections", "init_kwargs", "environ"),
    [
        ({"a": OpenAIConnection(api_key="canary-12345")}, {}, {}),
        ({"a": {"type": "CustomConnection", "value": {"k": "canary-12345"}, "secret_keys": ["k"]}}, {}, {}),
        ({"a": {"type": "OpenAIConnection", "value": {"api_key": "${env:X}"}}}, {}, {"X": "canary-12345"}),
        ({"a": {"type": "OpenAIConnection", "value": {"api_key": "k"}}}, {}, {"A_API_KEY": "canary-12345"}),
        ({"a": {"type": "unknown", "value": {"api_key": "canary-12345"}}}, {}, {}),
        ({}, {"model": {"model": "m", "api_key": "canary-12345"}}, {}),
        ({}, {"model": {"configuration": {"api_key": "${env:X}"}}}, {"X": "canary-12345"}),
        ({}, {"models": [OpenAIModelConfiguration(model="m", api_key="canary-12345")]}, {}),
        ({}, {}, {"OPENAI_API_KEY": "canary-12345"}),
        ({}, {}, {"SERP_TOKEN": "canary-12345"}),
    ],
    ids=[
        *("object", "custom", "variable", "override", "unknown type", "model configuration", "a prompty's model"),
        *("a configuration as object", "the environment's key", "a variable of the run"),
    ],
)
def test_every_place_a_secret_comes_from_is_known(
    connections: dict[str, Any], init_kwargs: dict[str, Any], environ: dict[str, str]
) -> None:
    assert Scrubber(secrets_of(connections, init_kwargs, environ, ["SERP_TOKEN"])).text("canary-12345") == MASK


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "hub_token", "DB_PASSWORD", "CLIENT_SECRET", "AWS_CREDENTIALS"])
def test_a_variable_of_the_run_that_is_named_as_a_secret_is_one(name: str) -> None:
    assert Scrubber(secrets_of({}, {}, {name: "canary-12345"}, [name])).text("a canary-12345") == f"a {MASK}"


def test_other_variables_stay() -> None:
    variables = {"KEYBOARD": "qwertz-layout", "MODEL": "gpt-4o-mini", "X_KEY": "short"}
    text = "qwertz-layout gpt-4o-mini short"
    assert Scrubber(secrets_of({}, {}, variables, variables)).text(text) == text


def test_what_is_no_secret_stays() -> None:
    spec = {"type": "CustomConnection", "value": {"url": "https://host", "key": "short"}, "secret_keys": ["key"]}
    assert Scrubber(secrets_of({"my": spec}, {}, {}, ())).text("https://host short") == "https://host short"
    variables = {"MODEL": "a-model-of-some-name", "OTHER_TOKEN": "not-of-the-run"}
    assert Scrubber(secrets_of({}, {}, variables, ["MODEL"])).text(str(variables)) == str(variables)
    assert Scrubber(secrets_of({"odd": 1}, {"n": 2}, {}, ())).value({"a": ["b"]}) == {"a": ["b"]}


def test_the_part_of_a_secret_at_a_cut_goes_too() -> None:
    key = "canary-0123456789"
    assert "canary" not in scrubber(key).beginning("text " * 10 + key[:12])
    assert "456789" not in scrubber(key).end(key[8:] + " text" * 10)


def test_a_record_keeps_its_shape() -> None:
    record: Any = {
        "status": "Failed",
        "inputs": {"q": KEY},
        "output": {"out": [KEY, {KEY: 1}]},
        "aggregation_inputs": {f"${{{KEY}.output}}": KEY},
        "error": {"message": f"bad {KEY}"},
        "metrics": {},
        "logs": KEY,
        "nodes": [{"node": "n", "inputs": {"c": KEY}, "output": float("nan"), "error": None, "metrics": {}}],
    }
    kept = scrubber().record(json.loads(encode_record(record)))
    assert kept["output"] == {"out": [MASK, {MASK: 1}]}
    assert kept["error"] == {"message": f"bad {MASK}"}
    assert kept["aggregation_inputs"] == {f"${{{KEY}.output}}": MASK}
    assert (kept["status"], kept["logs"], kept["nodes"][0]["inputs"]) == ("Failed", MASK, {"c": MASK})
