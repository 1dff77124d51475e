"""Azure OpenAI without a key: which flows log in with Microsoft Entra ID, how often, and what is said if that fails."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from model_server import ModelServer

from prefect_batchflow.connections import entra
from prefect_batchflow.connections.model_configurations import AzureOpenAIModelConfiguration
from prefect_batchflow.definition.load import load_flow
from prefect_batchflow.exceptions import BatchflowException, innermost_code
from prefect_batchflow.execution.program.loader import load_program
from prefect_batchflow.tools import context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_batchflow.execution.program.program import Program

pytestmark = pytest.mark.usefixtures("fresh_imports")

TEMPLATE = "user:\n{{ question }}\n"


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as started:
        yield started


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key and no token of this machine or of another test."""
    for name in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_VERSION"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(context, "_connections", None)
    monkeypatch.setattr(entra, "_kept", {})


class Identity(ModuleType):
    """azure.identity, whose tokens are numbered."""

    def __init__(self) -> None:
        super().__init__("azure.identity")
        self.made = 0
        self.scopes: list[str] = []
        self.lasts_sec = 3600.0
        self.failure: Exception | None = None

    def DefaultAzureCredential(self) -> Any:  # noqa: N802 - azure's name
        self.made += 1
        return SimpleNamespace(get_token=self._token)

    def _token(self, *scopes: str) -> Any:
        self.scopes += scopes
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace(token=f"token-{len(self.scopes)}", expires_on=int(time.time() + self.lasts_sec))


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Identity:
    found = Identity()
    azure = ModuleType("azure")
    azure.identity = found  # type: ignore[attr-defined] # as the import leaves it
    monkeypatch.setitem(sys.modules, "azure", azure)
    monkeypatch.setitem(sys.modules, "azure.identity", found)
    return found


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure", None)
    monkeypatch.setitem(sys.modules, "azure.identity", None)


def prompty(folder: Path, configuration: dict[str, Any]) -> Path:
    model = {"api": "chat", "configuration": configuration}
    front = {"model": model, "inputs": {"question": {"type": "string"}}}
    file = folder / "ask.prompty"
    file.write_text(f"---\n{json.dumps(front)}\n---\n{TEMPLATE}")
    return file


def of_prompty(folder: Path, url: str) -> Program:
    keys = {"type": "azure_openai", "azure_deployment": "d", "azure_endpoint": url, "api_version": "2024-06-01"}
    return load_program(load_flow(prompty(folder, keys)))


def of_prompty_by_environment(folder: Path, url: str) -> Program:
    import os

    os.environ["AZURE_OPENAI_ENDPOINT"] = url  # restored by `no_login`
    return load_program(load_flow(prompty(folder, {"type": "azure_openai", "azure_deployment": "d"})))


def of_prompty_by_connection(folder: Path, url: str) -> Program:
    value = {"api_base": url, "auth_mode": "meid_token", "api_key": "old"}
    connections = {"azure": {"type": "AzureOpenAIConnection", "value": value}}
    return load_program(
        load_flow(prompty(folder, {"connection": "azure", "azure_deployment": "d"})), connections=connections
    )


def of_configuration(folder: Path, url: str) -> Program:
    return load_program(
        load_flow(prompty(folder, {"type": "openai", "model": "m", "api_key": "k"})),
        {"model": {"configuration": AzureOpenAIModelConfiguration("d", azure_endpoint=url)}},
    )


FLEX = """
from promptflow.core import AsyncPrompty, AzureOpenAIModelConfiguration, Prompty

class Ask:
    def __init__(self, model_config: AzureOpenAIModelConfiguration):
        self.prompty = KIND.load(PATH, model={"configuration": model_config})

    ASYNC def __call__(self, question: str):
        return AWAIT self.prompty(question=question)
"""


def of_class(folder: Path, model_config: dict[str, Any], *, is_async: bool, connections: Any = None) -> Program:
    file = prompty(folder, {"type": "openai", "model": "m", "api_key": "k"})
    words = {"PATH": repr(str(file)), "KIND": "AsyncPrompty" if is_async else "Prompty"}
    words |= {"ASYNC ": "async " if is_async else "", "AWAIT ": "await " if is_async else ""}
    code = dedent(FLEX)
    for word, text in words.items():
        code = code.replace(word, text)
    (folder / "asking.py").write_text(code)
    (folder / "flow.flex.yaml").write_text("entry: asking:Ask\n")
    return load_program(load_flow(folder / "flow.flex.yaml"), {"model_config": model_config}, connections)


def of_sync_class(folder: Path, url: str) -> Program:
    return of_class(folder, {"azure_deployment": "d", "azure_endpoint": url}, is_async=False)


def of_async_class(folder: Path, url: str) -> Program:
    return of_class(folder, {"azure_deployment": "d", "azure_endpoint": url}, is_async=True)


def of_class_by_connection(folder: Path, url: str) -> Program:
    value = {"api_base": url, "auth_mode": "meid_token", "api_key": "old"}
    connections = {"azure": {"type": "AzureOpenAIConnection", "value": value}}
    configuration = {"azure_deployment": "d", "connection": "azure"}
    return of_class(folder, configuration, is_async=False, connections=connections)


def of_node(folder: Path, url: str, **value: Any) -> Program:
    ask = {
        "name": "ask",
        "type": "llm",
        "source": {"type": "code", "path": "ask.jinja2"},
        "inputs": {"deployment_name": "d", "question": "${inputs.question}"},
        "connection": "azure",
        "api": "chat",
    }
    document = {
        "inputs": {"question": {"type": "string"}},
        "outputs": {"a": {"reference": "${ask.output}"}},
        "nodes": [ask],
    }
    (folder / "ask.jinja2").write_text(TEMPLATE)
    (folder / "flow.dag.yaml").write_text(json.dumps(document))
    connections = {"azure": {"type": "AzureOpenAIConnection", "value": {"api_base": url, **value}}}
    return load_program(load_flow(folder / "flow.dag.yaml"), connections=connections)


def of_node_with_the_mode(folder: Path, url: str) -> Program:
    return of_node(folder, url, auth_mode="meid_token", api_key="old")


DOORS = [
    of_prompty,
    of_prompty_by_environment,
    of_prompty_by_connection,
    of_configuration,
    of_sync_class,
    of_async_class,
    of_class_by_connection,
    of_node,
    of_node_with_the_mode,
]


def run(program: Program, count: int = 1) -> list[Any]:
    async def lines() -> list[Any]:
        answers: list[Any] = await asyncio.gather(
            *(program.run_line_async(n, {"question": f"q {n}"}) for n in range(count))
        )
        return answers

    return asyncio.run(lines())


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_flow_without_a_key_sends_a_token(door: Any, tmp_path: Path, server: ModelServer, identity: Identity) -> None:
    (record,) = run(door(tmp_path, server.url))

    assert record["error"] is None
    assert server.calls[0].headers["authorization"].lower() == "bearer token-1"
    assert "api-key" not in server.calls[0].headers
    assert identity.scopes == ["https://cognitiveservices.azure.com/.default"]


@pytest.mark.parametrize("door", [of_prompty, of_node, of_sync_class], ids=lambda door: door.__name__)
def test_all_lines_share_one_login(door: Any, tmp_path: Path, server: ModelServer, identity: Identity) -> None:
    program = door(tmp_path, server.url)

    assert {record["error"] is None for record in run(program, 20) + run(program, 20)} == {True}

    assert (identity.made, len(identity.scopes), len(server.calls)) == (1, 1, 40)


def test_a_token_is_renewed_before_it_expires(tmp_path: Path, server: ModelServer, identity: Identity) -> None:
    identity.lasts_sec = entra.RENEW_BEFORE_SEC - 1
    program = of_node(tmp_path, server.url)

    run(program)
    run(program)

    told = [call.headers["authorization"].lower() for call in server.calls]
    assert told == ["bearer token-1", "bearer token-2"]
    assert identity.made == 1


def test_a_key_is_used_without_a_login(tmp_path: Path, server: ModelServer, not_installed: None) -> None:
    run(of_node(tmp_path, server.url, api_key="k\n"))

    assert server.calls[0].headers["api-key"] == "k"
    assert "authorization" not in server.calls[0].headers


@pytest.mark.parametrize("door", [of_prompty, of_node, of_node_with_the_mode], ids=lambda door: door.__name__)
def test_a_missing_package_is_told_before_the_first_line(door: Any, tmp_path: Path, not_installed: None) -> None:
    with pytest.raises(BatchflowException) as caught:
        door(tmp_path, "https://x.openai.azure.com")

    assert "has no api_key. Give it one, or log in with Microsoft Entra ID, which needs a package: " in str(
        caught.value
    )
    assert "pip install azure-identity" in str(caught.value)


def test_a_login_that_fails_is_told_and_not_tried_again(
    tmp_path: Path, server: ModelServer, identity: Identity
) -> None:
    identity.failure = RuntimeError("DefaultAzureCredential failed to retrieve a token")

    (record,) = run(of_node(tmp_path, server.url))

    assert innermost_code(record["error"]) == "AuthenticationError"
    assert "gives no token: (RuntimeError) DefaultAzureCredential failed" in record["error"]["message"]
    assert "`az login`, or give it an api_key" in record["error"]["message"]
    assert len(identity.scopes) == 1
    assert not server.calls
