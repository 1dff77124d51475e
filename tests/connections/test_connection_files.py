"""Connections in files: promptflow's yaml, `.env` files and dictionaries, and those that variables give alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.connections.files import (
    connection_in_file,
    fields_of,
    is_connection_file,
    kind_named,
    read_connection,
    yaml_type,
)
from prefect_batchflow.connections.given import make_connection
from prefect_batchflow.connections.kinds import KINDS
from prefect_batchflow.connections.variables import connection_of_variables, missing_variables
from prefect_batchflow.exceptions import BatchflowException, InvalidConnectionError, InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CANARY = "sk-canary-0a1b2c3d4e5f"
AZURE = {"api_key": CANARY, "api_base": "https://x", "api_type": "azure", "api_version": "2024-02-01"}
AZURE_YAML = "$schema: https://schemas/AzureOpenAIConnection.json\nname: my_ai\ntype: azure_open_ai\n" + "".join(
    f"{key}: {value}\n" for key, value in AZURE.items()
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(text: str, name: str = "connection.yml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("Custom")])
def test_every_kind_is_read_from_promptflows_yaml(write: Callable[..., str], kind: str) -> None:
    values = {key: CANARY if key == "api_key" else f"the {key}" for key in fields_of(kind) if key != "auth_mode"}
    text = f"name: my\ntype: {yaml_type(kind)}\n" + "".join(f"{key}: {value}\n" for key, value in values.items())

    found = read_connection(write(text))

    connection = make_connection("my", found.spec, {})
    assert (found.name, type(connection), found.notes) == ("my", KINDS[kind], ())
    assert values.items() <= dict(connection).items()
    assert found.spec["secret_keys"] == ["api_key"]


CUSTOM = {"type": "CustomConnection", "value": {"url": "u", "token": CANARY}, "secret_keys": ["token"]}


@pytest.mark.parametrize(
    ("name", "text", "spec"),
    [
        ("c.yaml", AZURE_YAML, {"type": "AzureOpenAIConnection", "value": AZURE, "secret_keys": ["api_key"]}),
        ("c.yml", f"type: custom\nconfigs: {{url: u}}\nsecrets: {{token: {CANARY}}}\n", CUSTOM),
        (
            "c.yml",
            f"type: custom\nmodule: m\ncustom_type: Mine\npackage: p\npackage_version: 1.0\nconfigs: {{url: u}}\n"
            f"secrets:\n  token: {CANARY}\n",
            CUSTOM,
        ),
        (
            "c.json",
            f'{{"type": "CustomConnection", "value": {{"url": "u", "token": "{CANARY}"}}, "secret_keys": ["token"]}}',
            CUSTOM,
        ),
        (
            "c.json",
            f'{{"type": "OpenAIConnection", "module": "promptflow.connections", "value": {{"api_key": "{CANARY}"}}}}',
            {"type": "OpenAIConnection", "value": {"api_key": CANARY}, "secret_keys": ["api_key"]},
        ),
        (
            ".env",
            f"# keys\nTOKEN={CANARY}\nexport OTHER='a b'\n",
            {
                "type": "CustomConnection",
                "value": {"TOKEN": CANARY, "OTHER": "a b"},
                "secret_keys": ["TOKEN", "OTHER"],
            },
        ),
        (
            "c.yml",
            "type: serp\napi_key: 0123456789\n",
            {"type": "SerpConnection", "value": {"api_key": "0123456789"}, "secret_keys": ["api_key"]},
        ),
        (
            "c.yml",
            "type: open_ai\napi_key: ${env:KEY}\norganization: null\nbase_url:\n",
            {"type": "OpenAIConnection", "value": {"api_key": "${env:KEY}"}, "secret_keys": ["api_key"]},
        ),
        (
            "c.yml",
            "type: cognitive_search\napi_base: b\nauth_mode: MEID_TOKEN\n",
            {
                "type": "CognitiveSearchConnection",
                "value": {"api_base": "b", "auth_mode": "meid_token"},
                "secret_keys": [],
            },
        ),
    ],
    ids=["azure", "custom", "strong type", "dictionary", "dictionary of a kind", ".env", "digits", "null", "Entra ID"],
)
def test_a_file_becomes_promptflows_dictionary(
    write: Callable[..., str], name: str, text: str, spec: dict[str, Any]
) -> None:
    found = read_connection(write(text, name))

    assert found.spec == spec
    assert CANARY not in repr(found)


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"api_key": "new"}, {**AZURE, "api_key": "new"}),
        ({"api_version": "2", "resource_id": "r"}, {**AZURE, "api_version": "2", "resource_id": "r"}),
        ({"api_key": "a=b"}, {**AZURE, "api_key": "a=b"}),
    ],
    ids=["a secret", "others", "an equals sign"],
)
def test_a_value_can_be_replaced(write: Callable[..., str], changes: dict[str, str], value: dict[str, str]) -> None:
    assert read_connection(write(AZURE_YAML), changes).spec["value"] == value


def test_keys_of_a_custom_connection_are_replaced_and_added(write: Callable[..., str]) -> None:
    text = "type: custom\nconfigs: {url: u}\nsecrets: {token: t}\n"

    spec = read_connection(write(text), {"url": "v", "secrets.token": "s", "configs.zone": "z", "more": "m"}).spec

    assert spec["value"] == {"url": "v", "zone": "z", "token": "s", "more": "m"}
    assert spec["secret_keys"] == ["token", "more"], "a new key without a part may be secret"


@pytest.mark.parametrize("open_value", ["<user-input>", "'*****'", "''", "", "<no-change>"])
def test_a_secret_can_be_left_to_the_user_or_to_a_variable(write: Callable[..., str], open_value: str) -> None:
    place = write(f"type: open_ai\napi_key: {open_value}\n")
    found = read_connection(place)

    assert found.left_open("my ai", {}) == ["api_key"]
    assert found.left_open("my ai", {"MY_AI_API_KEY": CANARY}) == []
    assert make_connection("my ai", found.spec, {"MY_AI_API_KEY": CANARY}).api_key == CANARY
    assert found.with_values({"api_key": CANARY}).left_open("my ai", {}) == []
    with pytest.raises(
        InvalidConnectionError, match=r"leaves api_key of the connection 'my ai' open\. Set MY_AI_API_KEY"
    ):
        connection_in_file("my ai", place, {})


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        ("api_key: k\n", {}, r"has no `type`\. Write type: … with one of azure_ai_services, "),
        ("type: open_aii\n", {}, r"the type 'open_aii' is unknown\. Did you mean open_ai\? Expected one of "),
        ("type: [open_ai]\n", {}, "has a `type` that is a list"),
        (
            "type: azure_open_ai\napi_key: k\napi_bas: b\n",
            {},
            r"has no api_base, .* It has api_bas\. Did you mean api_base\?",
        ),
        (
            "type: azure_open_ai\napi_key: k\nazure_endpoint: b\n",
            {},
            r"It has azure_endpoint\. Did you mean api_base\?",
        ),
        (
            "type: azure_open_ai\napi_base: b\nauth_mode: token\n",
            {},
            "auth_mode is 'token', expected key or meid_token",
        ),
        (
            "type: open_ai\n",
            {"key": CANARY},
            r"has no 'key'\. Did you mean api_key\? Its keys: api_key, organization, ",
        ),
        ("type: open_ai\napi_key: {a: b}\n", {}, "`api_key` is a dict, expected a text"),
        ("type: custom\n", {}, "a custom connection without keys"),
        ("type: custom\nsecrets: [a]\n", {}, "`secrets` is a list, expected keys and values"),
        ("a: [\n", {}, "line 2, column 1: not valid yaml"),
        ("type: serp\napi_key: a\napi_key: b\n", {}, "`api_key` is there twice"),
        ("- type: serp\n", {}, "found a list"),
        ("", {}, "found an empty file"),
    ],
)
def test_a_wrong_file_is_refused_by_its_place(
    write: Callable[..., str], text: str, changes: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidConnectionError, match=said) as refused:
        read_connection(write(text), changes)
    assert CANARY not in str(refused.value)


def test_no_file_is_told(tmp_path: Path) -> None:
    for place, found in (("no.yml", "nothing"), (".", "a folder")):
        with pytest.raises(InvalidOptionError, match=rf"Expected the file of a connection .*, found {found}\. Check"):
            read_connection(str(tmp_path / place))


def test_a_key_without_an_effect_is_noted(write: Callable[..., str]) -> None:
    (note,) = read_connection(write(AZURE_YAML + "deployment: d\n")).notes
    assert "deployment has no effect, because the type azure_open_ai has only api_base, " in note


@pytest.mark.parametrize(
    ("text", "is_file"),
    [
        *(("my-ai", False), ("openai-connection/my-ai", False)),
        *(("my_ai.yml", True), ("./my-ai", True), ("/a/b", True), (".env", True), ("~/a", True), ("a/b/c.yaml", True)),
    ],
)
def test_a_place_is_a_file_or_a_block(text: str, is_file: bool) -> None:
    assert is_connection_file(text) is is_file


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_type_has_several_spellings(kind: str) -> None:
    for text in (
        kind,
        kind.removesuffix("Connection"),
        yaml_type(kind),
        yaml_type(kind).upper(),
        yaml_type(kind).replace("_", "-"),
    ):
        assert kind_named(text) == kind
    assert kind_named("azure_openai") == "AzureOpenAIConnection"


MODELS = ["AzureOpenAIConnection", "OpenAIConnection", "ServerlessConnection"]
KEY, BASE = ("MY_AI_API_KEY", CANARY), ("MY_AI_API_BASE", "https://x")


@pytest.mark.parametrize(
    ("kinds", "environ", "kind", "value"),
    [
        ((), [KEY], "OpenAIConnection", {"api_key": CANARY}),
        ((), [KEY, BASE], "AzureOpenAIConnection", {"api_key": CANARY, "api_base": "https://x"}),
        (MODELS, [KEY], "OpenAIConnection", {"api_key": CANARY}),
        (MODELS, [KEY, BASE], "AzureOpenAIConnection", {"api_key": CANARY, "api_base": "https://x"}),
        (MODELS, [KEY, ("MY_AI_BASE_URL", "u")], "OpenAIConnection", {"api_key": CANARY, "base_url": "u"}),
        (
            MODELS,
            [KEY, BASE, ("MY_AI_TYPE", "serverless")],
            "ServerlessConnection",
            {"api_key": CANARY, "api_base": "https://x"},
        ),
        (["OpenAIConnection"], [KEY, BASE], "OpenAIConnection", {"api_key": CANARY, "base_url": "https://x"}),
        (["QdrantConnection"], [KEY, BASE], "QdrantConnection", {"api_key": CANARY, "api_base": "https://x"}),
        (["SerpConnection"], [KEY], "SerpConnection", {"api_key": CANARY}),
        (
            ["AzureOpenAIConnection"],
            [BASE, ("MY_AI_AUTH_MODE", "meid_token")],
            "AzureOpenAIConnection",
            {"api_base": "https://x", "auth_mode": "meid_token"},
        ),
        (["CustomConnection"], [("MY_AI_URL", "u"), KEY], "CustomConnection", {"url": "u", "api_key": CANARY}),
        (["Mine"], [("MY_AI_TOKEN", CANARY)], "CustomConnection", {"token": CANARY}),
        (["OpenAIConnection", "Mine"], [KEY], "OpenAIConnection", {"api_key": CANARY}),
    ],
)
def test_variables_alone_make_a_connection(
    kinds: list[str], environ: list[tuple[str, str]], kind: str, value: dict[str, str]
) -> None:
    spec = connection_of_variables("my_ai", dict(environ), kinds)

    assert spec is not None
    assert (spec["type"], spec["value"]) == (kind, value)
    assert [value[key] for key in spec["secret_keys"]] == [CANARY] * (CANARY in value.values())
    assert make_connection("my_ai", spec, dict(environ)).secrets == {k: value[k] for k in spec["secret_keys"]} | (
        {"api_key": None} if "auth_mode" in value else {}
    )


@pytest.mark.parametrize(
    ("kinds", "environ"),
    [
        ((), {}),
        ((), {"MY_AI_API_KEY": ""}),
        ((), {"MY_AI_VERSION": "3"}),
        (["AzureOpenAIConnection"], {"MY_AI_API_KEY": CANARY}),
        (["QdrantConnection"], {"MY_AI_API_BASE": "b"}),
        (["CustomConnection"], {"MY_OTHER_KEY": CANARY}),
        (MODELS, {"OTHER_MY_AI_API_KEY": CANARY}),
    ],
)
def test_variables_that_give_no_whole_connection_make_none(kinds: list[str], environ: dict[str, str]) -> None:
    assert connection_of_variables("my_ai", environ, kinds) is None


def test_a_wrong_type_in_a_variable_is_refused() -> None:
    with pytest.raises(
        BatchflowException, match="The variable MY_AI_TYPE is 'openia', which is no type of a connection"
    ):
        connection_of_variables("my-ai", {"MY_AI_TYPE": "openia", "MY_AI_API_KEY": CANARY})


@pytest.mark.parametrize("name", ["my_ai", "my ai", "My-AI", "my.ai"])
def test_a_name_becomes_one_that_a_shell_can_set(name: str) -> None:
    environ = {"MY_AI_API_KEY": CANARY}
    spec = connection_of_variables(name, environ)
    assert spec is not None
    assert spec["value"] == {"api_key": CANARY}
    given = {"type": "OpenAIConnection", "value": {"api_key": "old"}}
    assert make_connection(name, given, environ).api_key == CANARY


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ((), "MY_AI_API_KEY"),
        (MODELS, "MY_AI_API_KEY"),
        (["AzureOpenAIConnection"], "MY_AI_API_KEY and MY_AI_API_BASE"),
        (["CustomConnection"], "MY_AI_<KEY>"),
    ],
)
def test_the_variables_that_would_do_are_named(kinds: list[str], said: str) -> None:
    assert missing_variables("my_ai", kinds) == said
