"""The model that a flow uses: by the name of a connection, or by address and key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefect_batchflow.exceptions import InvalidConnectionError


class ModelConfiguration:
    """The base class of model configurations."""


@dataclass
class AzureOpenAIModelConfiguration(ModelConfiguration):
    """A deployment of an Azure OpenAI resource: by the name of a connection, or by endpoint and key.

    Source: promptflow `core/_model_configuration.py`, `AzureOpenAIModelConfiguration`.
    """

    azure_deployment: str
    azure_endpoint: str | None = None
    api_version: str | None = None
    api_key: str | None = field(default=None, repr=False)
    connection: str | None = None

    def __post_init__(self) -> None:
        _refuse_both(
            self.connection, azure_endpoint=self.azure_endpoint, api_key=self.api_key, api_version=self.api_version
        )

    @classmethod
    def from_connection(cls, connection: Any, azure_deployment: str) -> AzureOpenAIModelConfiguration:
        """Make the configuration from a connection and a deployment."""
        _expect(cls, connection, "AzureOpenAIConnection")
        return cls(
            azure_deployment=azure_deployment,
            azure_endpoint=connection.api_base,
            api_version=connection.api_version,
            # With another mode, promptflow's connections have no key, and Entra ID gives a token.
            api_key=connection.api_key if getattr(connection, "auth_mode", "key") == "key" else None,
        )


@dataclass
class OpenAIModelConfiguration(ModelConfiguration):
    """A model of OpenAI: by the name of a connection, or by base URL and key.

    Source: promptflow `core/_model_configuration.py`, `OpenAIModelConfiguration`.
    """

    model: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    organization: str | None = None
    connection: str | None = None

    def __post_init__(self) -> None:
        _refuse_both(self.connection, base_url=self.base_url, api_key=self.api_key, organization=self.organization)

    @classmethod
    def from_connection(cls, connection: Any, model: str) -> OpenAIModelConfiguration:
        """Make the configuration from a connection and a model."""
        _expect(cls, connection, "OpenAIConnection")
        return cls(
            model=model, base_url=connection.base_url, api_key=connection.api_key, organization=connection.organization
        )


def _refuse_both(connection: str | None, **inline: str | None) -> None:
    given = [name for name, value in inline.items() if value]
    if connection and given:
        raise InvalidConnectionError(
            f"The model configuration has the connection {connection!r} and also {', '.join(given)}. Give only one of the two."
        )


def _expect(cls: type, connection: Any, kind: str) -> None:
    # By name, because connections are of promptflow's classes if promptflow is installed.
    if type(connection).__name__ != kind:
        raise InvalidConnectionError(f"{cls.__name__} needs an {kind}, found {type(connection).__name__}.")
