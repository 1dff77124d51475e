"""Addresses that no client can reach, and keys that are empty, are told before the first line, with their variable."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.connections.addresses import check_address
from prefect_batchflow.connections.environment import filled_in, variables_in
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import (
    FlowEntryInitializationError,
    GetConnectionError,
    InvalidConnectionError,
    ResolveToolError,
)
from prefect_batchflow.execution.program.loader import load_program
from prefect_batchflow.tools import context

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("fresh_imports")

WRONG = [
    pytest.param("my-resource.openai.azure.com", "has no scheme", id="no-scheme"),
    pytest.param("//my-resource.openai.azure.com", "has no scheme", id="no-scheme-but-slashes"),
    pytest.param("https:/my-resource", "has no scheme", id="one-slash"),
    pytest.param("https://", "has no valid host", id="no-host"),
    pytest.param("https:///openai", "has no valid host", id="path-only"),
    pytest.param("https://<my-resource>.openai.azure.com", "has no valid host", id="placeholder"),
    pytest.param("https://${env:RESOURCE}.azure.com", "has no valid host", id="unfilled"),
    pytest.param("https://a b.com", "has no valid host", id="blank"),
    pytest.param("https://a.com:port", "has no valid host", id="port"),
    pytest.param("htps://my-resource.openai.azure.com", "has a scheme that is not http", id="misspelt"),
    pytest.param("sk-canary", "has no scheme", id="a-key"),
    pytest.param("  ", "is empty", id="blanks"),
    pytest.param("", "is empty", id="empty"),
    pytest.param(None, "is empty", id="none"),
    pytest.param(5, "is empty", id="number"),
]


@pytest.mark.parametrize(("address", "said"), WRONG)
def test_what_is_no_address_is_refused(address: Any, said: str) -> None:
    with pytest.raises(InvalidConnectionError, match=rf"^Here ({said}).*https://…") as caught:
        check_address(address, "Here")

    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8000/v1",
        "https://x.openai.azure.com/",
        "HTTPS://X",
        " https://x\n",
        "http://[::1]:80",
        "https://ü.de",
    ],
)
def test_an_address_is_taken(address: str) -> None:
    check_address(address, "Here")


@pytest.mark.parametrize("text", ["${env:MY_X}", "${ENV:MY_X}", "${Env: MY_X }"])
def test_a_variable_may_be_asked_for_in_capitals(text: str) -> None:
    assert variables_in(text) == ["MY_X"]
    assert filled_in(f"a {text}", {"MY_X": "b"}, "Here") == "a b"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(context, "_connections", None)


def load_prompty(folder: Path, configuration: dict[str, Any], connections: Any = None) -> None:
    front = {"model": {"configuration": configuration}, "inputs": {"q": {"type": "string"}}}
    (folder / "ask.prompty").write_text(f"---\n{json.dumps(front)}\n---\nuser:\n{{{{q}}}}\n")
    load_program(load_flow(folder / "ask.prompty"), connections=connections)


AZURE: dict[str, Any] = {"type": "azure_openai", "azure_deployment": "d", "api_key": "k"}
OPEN_AI: dict[str, Any] = {"type": "openai", "model": "m", "api_key": "k"}


@pytest.mark.parametrize(
    ("configuration", "variables", "said"),
    [
        ({**AZURE, "azure_endpoint": "x.azure.com"}, {}, "its azure_endpoint has no scheme"),
        (
            {**AZURE, "azure_endpoint": "${env:MY_X}"},
            {"MY_X": "x.azure.com"},
            "environment variable MY_X, has no scheme",
        ),
        (
            {**AZURE, "azure_endpoint": "${ENV:MY_X}"},
            {"MY_X": "x.azure.com"},
            "environment variable MY_X, has no scheme",
        ),
        ({**AZURE, "azure_endpoint": "${env:MY_X}"}, {"MY_X": ""}, "the environment variable MY_X is empty"),
        ({**AZURE, "azure_endpoint": "${env:MY_X}"}, {}, "the environment variable MY_X is not set"),
        ({**AZURE, "api_base": "${env:MY_X}"}, {"MY_X": " "}, "the environment variable MY_X is empty"),
        (AZURE, {"AZURE_OPENAI_ENDPOINT": "x"}, "environment variable AZURE_OPENAI_ENDPOINT, has no scheme"),
        (AZURE, {"AZURE_OPENAI_ENDPOINT": ""}, "has no azure_endpoint.*AZURE_OPENAI_ENDPOINT"),
        ({**OPEN_AI, "base_url": "localhost:8000/v1"}, {}, "its base_url has no scheme"),
        ({**OPEN_AI, "base_url": "${env:MY_X}"}, {"MY_X": "x/v1"}, "environment variable MY_X, has no scheme"),
        ({**OPEN_AI, "base_url": "${env:MY_X}"}, {"MY_X": ""}, "the environment variable MY_X is empty"),
        ({**OPEN_AI, "api_key": "${env:MY_X}"}, {"MY_X": ""}, "api_key is .*the environment variable MY_X is empty"),
        (OPEN_AI, {"OPENAI_BASE_URL": "localhost"}, "environment variable OPENAI_BASE_URL, has no scheme"),
    ],
    ids=str,
)
def test_a_prompty_tells_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configuration: dict[str, Any], variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(InvalidConnectionError, match=said):
        load_prompty(tmp_path, configuration)


def load_node(folder: Path, connection: dict[str, Any]) -> None:
    ask = {
        "name": "ask",
        "type": "llm",
        "source": {"type": "code", "path": "ask.jinja2"},
        "inputs": {"deployment_name": "d", "model": "m"},
        "connection": "my_ai",
        "api": "chat",
    }
    document = {"inputs": {"q": {"type": "string"}}, "outputs": {"a": {"reference": "${ask.output}"}}, "nodes": [ask]}
    (folder / "ask.jinja2").write_text("user:\nHi")
    (folder / "flow.dag.yaml").write_text(json.dumps(document))
    load_program(load_flow(folder), connections={"my_ai": connection})


def spec(kind: str, **value: Any) -> dict[str, Any]:
    return {"type": f"{kind}Connection", "value": {"api_key": "k", **value}}


CONNECTIONS = [
    (spec("AzureOpenAI", api_base="x.azure.com"), {}, "connection 'my_ai': its api_base has no scheme"),
    (spec("AzureOpenAI", api_base="${env:MY_X}"), {"MY_X": "x"}, "from the environment variable MY_X, has no scheme"),
    (spec("AzureOpenAI", api_base="${env:MY_X}"), {"MY_X": ""}, "from the environment variable MY_X, is empty"),
    (
        spec("AzureOpenAI", api_base="https://x"),
        {"MY_AI_API_BASE": "x"},
        "environment variable MY_AI_API_BASE, has no sch",
    ),
    (spec("AzureOpenAI", api_base=""), {}, "its api_base is empty"),
    (spec("AzureOpenAI", api_base="https://x", api_key="${env:MY_X}"), {"MY_X": ""}, "variable MY_X, is empty"),
    (spec("OpenAI", base_url="localhost:1/v1"), {}, "its base_url has no scheme"),
    (spec("OpenAI", base_url="${env:MY_X}"), {"MY_X": ""}, "from the environment variable MY_X, is empty"),
    (spec("OpenAI", api_key="${env:MY_X}"), {"MY_X": ""}, "its api_key, from the environment variable MY_X, is empty"),
    (spec("OpenAI", api_key=""), {}, "has no api_key. Give it one"),
    (spec("Serverless", api_base="x"), {}, "its api_base has no scheme"),
]


@pytest.mark.parametrize(("connection", "variables", "said"), CONNECTIONS, ids=str)
def test_an_llm_node_tells_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connection: dict[str, Any], variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(GetConnectionError, match=f"Node 'ask': the connection 'my_ai'.*|{said}") as caught:
        load_node(tmp_path, connection)

    assert isinstance(caught.value, ResolveToolError)
    caught.match(said)


@pytest.mark.parametrize(("connection", "variables", "said"), CONNECTIONS[:-1], ids=str)
def test_a_prompty_by_connection_tells_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connection: dict[str, Any], variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(InvalidConnectionError, match=said):
        load_prompty(tmp_path, {"connection": "my_ai", "model": "m"}, {"my_ai": connection})


@pytest.mark.parametrize("base_url", [None, "", "https://x/v1"])
def test_openai_needs_no_address(tmp_path: Path, base_url: str | None) -> None:
    load_node(tmp_path, spec("OpenAI", base_url=base_url))


@pytest.mark.parametrize(
    ("value", "variables", "said"),
    [
        ("x.azure.com", {}, "init 'c'.azure_endpoint has no scheme"),
        ("${env:MY_X}", {"MY_X": "x.azure.com"}, "environment variable MY_X, has no scheme"),
        ("${env:MY_X}", {"MY_X": ""}, "environment variable MY_X, is empty"),
        ("${env:MY_X}", {}, "the environment variable MY_X is not set"),
    ],
    ids=str,
)
def test_a_model_configuration_of_a_constructor_tells_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, variables: dict[str, str], said: str
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    (tmp_path / "flow.flex.yaml").write_text("entry: asking:Ask\n")
    (tmp_path / "asking.py").write_text(
        "from promptflow.core import AzureOpenAIModelConfiguration\n"
        "class Ask:\n"
        "    def __init__(self, c: AzureOpenAIModelConfiguration): pass\n"
        "    def __call__(self, q: str): return q\n"
    )

    with pytest.raises(FlowEntryInitializationError, match=said):
        load_program(load_flow(tmp_path), {"c": {"azure_deployment": "d", "azure_endpoint": value}})


@pytest.mark.parametrize(("connection", "variables", "said"), [CONNECTIONS[n] for n in (0, 1, 2, 3, 4, 6, 7)], ids=str)
def test_a_model_configuration_by_connection_tells_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connection: dict[str, Any], variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    kind = connection["type"].replace("Connection", "ModelConfiguration")
    code = f"from promptflow.core import {kind}\nclass Flow:\n    def __init__(self, c: {kind}): ...\n"
    (tmp_path / "asking.py").write_text(f"{code}    def __call__(self, q: str): ...\n")
    (tmp_path / "flow.flex.yaml").write_text("entry: asking:Flow")
    model = {"azure_deployment" if "Azure" in kind else "model": "m", "connection": "my_ai"}

    with pytest.raises(FlowEntryInitializationError, match="init 'c': the connection 'my_ai': its ") as caught:
        load_program(load_flow(tmp_path), {"c": model}, {"my_ai": connection})

    caught.match(said)
