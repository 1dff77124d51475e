"""Connections: promptflow's types as plain values, made of its dictionaries, and never shown with a secret."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from prefect_batchflow.connections.given import Connections, connection_spec, make_connection
from prefect_batchflow.connections.kinds import (
    KINDS,
    AzureOpenAIConnection,
    CustomConnection,
    CustomStrongTypeConnection,
    OpenAIConnection,
    strong_connection,
)
from prefect_batchflow.connections.model_configurations import AzureOpenAIModelConfiguration, OpenAIModelConfiguration
from prefect_batchflow.exceptions import GetConnectionError, InvalidConnectionError, ResolveToolError, error_dict

CANARY = "sk-canary-12345678"


class Secret(str):
    __slots__ = ()


class Mine(CustomStrongTypeConnection):
    api_key: Secret
    url: str
    region: str = "west"


def make(type_name: str, environ: dict[str, str] | None = None, **value: Any) -> Any:
    return make_connection("my con", {"type": type_name, "value": value}, environ or {})


class TestTypes:
    @pytest.mark.parametrize(
        ("type_name", "value", "configs", "short"),
        [
            (
                "AzureOpenAIConnection",
                {"api_base": "b"},
                {"api_type": "azure", "api_version": "2024-02-01"},
                "AzureOpenAI",
            ),
            ("OpenAIConnection", {}, {"organization": None, "base_url": None}, "OpenAI"),
            ("ServerlessConnection", {"api_base": "b"}, {"api_base": "b"}, "Serverless"),
            ("SerpConnection", {}, {}, "Serp"),
            ("QdrantConnection", {"api_base": "b"}, {"api_base": "b"}, "Qdrant"),
            ("WeaviateConnection", {"api_base": "b"}, {"api_base": "b"}, "Weaviate"),
            ("CognitiveSearchConnection", {"api_base": "b"}, {"api_version": "2023-11-01"}, "CognitiveSearch"),
            ("AzureAIServicesConnection", {"endpoint": "e"}, {"auth_mode": "key"}, "AzureAIServices"),
            ("AzureContentSafetyConnection", {"endpoint": "e"}, {"api_type": "Content Safety"}, "AzureContentSafety"),
            ("FormRecognizerConnection", {"endpoint": "e"}, {"api_version": "2023-07-31"}, "FormRecognizer"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_a_connection_has_the_fields_of_its_type(
        self, type_name: str, value: dict[str, Any], configs: dict[str, Any], short: str
    ) -> None:
        connection = make(type_name, api_key=CANARY, **value)
        assert (type(connection), connection.type, connection.name) == (KINDS[type_name], short, "my con")
        assert connection.api_key == connection["api_key"] == connection.secrets["api_key"] == CANARY
        assert configs.items() <= connection.configs.items()
        assert dict(connection) == {**connection.configs, "api_key": CANARY}

    def test_of_a_custom_connection_every_key_is_an_attribute(self) -> None:
        spec = {"type": "CustomConnection", "value": {"url": "u", "api_key": CANARY}, "secret_keys": ["api_key"]}
        connection = make_connection("my", spec, {})
        assert (connection.url, connection.api_key) == ("u", CANARY)
        assert (connection.configs, connection.secrets) == ({"url": "u"}, {"api_key": CANARY})
        assert connection.is_secret("api_key")
        assert "url" in connection

    def test_a_key_that_is_set_replaces_the_connections(self) -> None:
        connection = OpenAIConnection(api_key="old")
        connection.api_key = "new"
        connection.note = "own"
        assert (connection.secrets, connection.note) == ({"api_key": "new"}, "own")

    @pytest.mark.parametrize("show", [repr, str, "{}".format], ids=["repr", "str", "format"])
    def test_no_secret_is_shown(self, show: Any) -> None:
        assert CANARY not in show(OpenAIConnection(api_key=CANARY, name="my"))
        assert CANARY not in show(CustomConnection({"key": CANARY}))
        assert CANARY not in show(OpenAIModelConfiguration(model="m", api_key=CANARY))
        assert CANARY not in show(AzureOpenAIModelConfiguration(azure_deployment="d", api_key=CANARY))

    def test_a_missing_key_is_said_without_values(self) -> None:
        with pytest.raises(AttributeError, match=r"<OpenAIConnection 'my', keys: .*> has no 'api_base'") as caught:
            _ = OpenAIConnection(api_key=CANARY, name="my").api_base
        assert CANARY not in str(caught.value)

    def test_a_connection_is_copied_and_pickled(self) -> None:
        connection = make("OpenAIConnection", api_key=CANARY)
        for other in (copy.deepcopy(connection), pickle.loads(pickle.dumps(connection))):  # noqa: S301 - made here
            assert (type(other), dict(other), other.name) == (OpenAIConnection, dict(connection), "my con")

    def test_a_token_needs_the_mode_and_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "azure.identity", None)
        with pytest.raises(InvalidConnectionError, match="auth_mode 'key'"):
            AzureOpenAIConnection("b", CANARY).get_token()
        with pytest.raises(InvalidConnectionError, match="pip install azure-identity"):
            AzureOpenAIConnection("b", auth_mode="meid_token").get_token()


class TestStrongTypes:
    def test_a_custom_connection_becomes_the_flows_own_type(self) -> None:
        custom = CustomConnection({"api_key": CANARY}, {"url": "u", "region": "east"}, name="my")
        mine = strong_connection(custom, Mine)
        assert (type(mine), mine.name, mine.url, mine.api_key, mine.region) == (Mine, "my", "u", CANARY, "east")
        assert mine.secrets == {"api_key": CANARY}

    def test_a_field_annotated_secret_is_one(self) -> None:
        mine = strong_connection(CustomConnection({}, {"url": "u", "api_key": CANARY}), Mine)
        assert mine.secrets == {"api_key": CANARY}
        assert mine.region == "west"

    def test_a_field_that_is_missing_is_named(self) -> None:
        with pytest.raises(
            InvalidConnectionError, match=r"'my' has no url, which Mine requires\. It has api_key"
        ) as caught:
            strong_connection(CustomConnection({"api_key": CANARY}, name="my"), Mine)
        assert CANARY not in str(caught.value)


class TestEnvironment:
    def test_a_variable_named_after_the_connection_and_key_wins(self) -> None:
        assert make("OpenAIConnection", {"MY_CON_API_KEY": "over"}, api_key="k").api_key == "over"

    def test_a_value_may_be_a_variable(self) -> None:
        assert make("OpenAIConnection", {"KEY": CANARY}, api_key="${env:KEY}").api_key == CANARY

    def test_a_variable_that_is_not_there_is_named(self) -> None:
        with pytest.raises(InvalidConnectionError, match=r"'api_key' of the connection 'my con' is \$\{env:KEY\}"):
            make("OpenAIConnection", api_key="${env:KEY}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "Nope", "value": {}}, "has the type 'Nope'. Expected one of AzureAIServicesConnection, "),
        ({"value": {}}, "has the type None"),
        ({"type": ["x"]}, "has the type"),
        (
            {"type": "OpenAIConnection", "value": {"base_url": CANARY}},
            "has no api_key, which OpenAIConnection requires. It has",
        ),
        ({"type": "OpenAIConnection", "value": CANARY}, "'value' of the connection 'my' is a str"),
        (CANARY, "The connection 'my' is a str"),
    ],
    ids=["unknown type", "no type", "odd type", "missing key", "value is no mapping", "no dictionary"],
)
def test_a_connection_that_cannot_be_made_is_told_without_values(spec: Any, message: str) -> None:
    with pytest.raises(InvalidConnectionError) as caught:
        make_connection("my", spec, {})
    assert message in str(caught.value)
    assert CANARY not in str(caught.value)


class TestModelConfigurations:
    def test_they_are_made_from_connections(self) -> None:
        azure = AzureOpenAIConnection("base", CANARY, api_version="v")
        configuration = AzureOpenAIModelConfiguration.from_connection(azure, azure_deployment="d")
        assert (configuration.azure_endpoint, configuration.api_version, configuration.api_key) == ("base", "v", CANARY)
        configured = OpenAIModelConfiguration.from_connection(OpenAIConnection(CANARY, "org", "url"), model="m")
        assert (configured.base_url, configured.organization, configured.api_key) == ("url", "org", CANARY)

    def test_one_of_another_type_is_refused(self) -> None:
        with pytest.raises(InvalidConnectionError, match="needs an OpenAIConnection, found AzureOpenAIConnection"):
            OpenAIModelConfiguration.from_connection(AzureOpenAIConnection("base"), model="m")

    def test_a_connection_and_keys_at_once_are_refused(self) -> None:
        with pytest.raises(InvalidConnectionError, match="the connection 'my' and also api_key"):
            OpenAIModelConfiguration(model="m", api_key=CANARY, connection="my")


class TestLookUp:
    def test_a_connection_is_made_once_when_it_is_asked_for(self) -> None:
        connections = Connections({"a": {"type": "OpenAIConnection", "value": {"api_key": "k"}}, "broken": 1})
        assert connections.get("a") is connections.get("a")
        assert connections.names == ["a", "broken"]

    def test_an_object_is_taken_too(self) -> None:
        mine = strong_connection(CustomConnection({"api_key": CANARY}, {"url": "u"}), Mine)
        connections = Connections({"a": OpenAIConnection(api_key="${env:KEY}"), "b": mine}, {"KEY": CANARY})
        assert (connections.get("a").api_key, connections.get("a").name) == (CANARY, "a")
        assert type(connections.get("b")) is CustomConnection
        assert connection_spec(mine)["secret_keys"] == ["api_key"]

    def test_one_that_was_not_given_is_told_with_those_that_were(self) -> None:
        connections = Connections({"a": {"type": "OpenAIConnection", "value": {"api_key": CANARY}}, "b": 1})
        with pytest.raises(
            ResolveToolError, match="The connection 'c' for node 'n' was not given; given: a, b"
        ) as caught:
            connections.get("c", "node 'n'")
        error = error_dict(caught.value)
        assert (error["code"], error["innerError"]["innerError"]["innerError"]["code"]) == (
            "UserError",
            "GetConnectionError",
        )
        assert CANARY not in str(error)

    def test_one_that_cannot_be_made_is_told_as_such(self) -> None:
        with pytest.raises(GetConnectionError, match=r"'b' cannot be created\. The connection 'b' is a int"):
            Connections({"b": 1}).get("b")
