"""Connections: what a flow needs to reach a service, by name; plain values of promptflow's types.

The standard library only, for worker processes read this too. `Connections` is what looks them up by name there; no secret of
one is ever shown: not by a `repr`, and not by an error here.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from prefect_batchflow.exceptions import GetConnectionError, InvalidConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MISSING = "MissingConnection"
"""In an error's additional information: the name of a connection that was not given."""
MODULE = "promptflow.connections"
"""What `module` of a connection says that is of no package's own type."""
_ENVIRONMENT = re.compile(r"\s*\$\{env:(?P<variable>[^}]+)\}\s*")


class Connection:
    """One connection: `configs` may be read by anyone, `secrets` by the flow's code only.

    Both are attributes by their keys as well (`connection.api_key`), items, and what `dict(connection)` gives.

    Args:
        name: What the flow calls it; `None` for one that its code has made.
        configs: What is no secret.
        secrets: Keys and passwords.
        module: Where a custom strong type is defined.
        **kwargs: promptflow's dates of creation and expiry: taken, and used nowhere.
    Source: promptflow `core/_connection.py`, `_Connection`.
    """

    TYPE: ClassVar[str] = ""
    """promptflow's short name."""
    configs: dict[str, Any]
    secrets: dict[str, Any]

    def __init__(
        self,
        name: str | None = None,
        *,
        configs: Mapping[str, Any] | None = None,
        secrets: Mapping[str, Any] | None = None,
        module: str = MODULE,
        **kwargs: Any,
    ) -> None:
        self.__dict__.update(
            name=name,
            type=self.TYPE,
            class_name=type(self).__name__,
            module=module,
            configs=dict(configs or {}),
            secrets=dict(secrets or {}),
        )

    def _part(self, key: str) -> dict[str, Any] | None:
        """Which of the two a key is in."""
        parts = (self.__dict__.get("configs", {}), self.__dict__.get("secrets", {}))
        return next((part for part in parts if key in part), None)

    def __getattr__(self, name: str) -> Any:
        part = self._part(name)
        if part is None:
            # Python asks for its own names before there is anything to show, as when one is unpickled.
            raise AttributeError(name if name.startswith("__") else f"{self!r} has no {name!r}")
        return part[name]

    def __setattr__(self, name: str, value: Any) -> None:
        part = self._part(name)
        (self.__dict__ if part is None else part)[name] = value

    def keys(self) -> list[str]:
        """The keys of both, configs first."""
        return [*self.__dict__.get("configs", ()), *self.__dict__.get("secrets", ())]

    def __getitem__(self, key: str) -> Any:
        part = self._part(key)
        if part is None:
            raise KeyError(key)
        return part[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._part(key) is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__dict__.get('name')!r}, keys: {', '.join(self.keys()) or 'none'}>"


class _EntraIdConnection(Connection):
    """One that takes a token of Microsoft Entra ID in the place of a key."""

    def get_token(self) -> str:
        """A token of the identity that this process has.

        Raises:
            InvalidConnectionError: Its `auth_mode` is `key`, or azure-identity is not installed.
        """
        if self.auth_mode != "meid_token":
            raise InvalidConnectionError(f"{self!r} has auth_mode {self.auth_mode!r}. A token needs 'meid_token'.")
        try:
            from azure.identity import DefaultAzureCredential  # type: ignore[import-not-found, unused-ignore]
        except ImportError as exc:
            raise InvalidConnectionError(
                f"{self!r} has auth_mode 'meid_token', which needs a package that is not there: pip install azure-identity"
            ) from exc
        return str(DefaultAzureCredential().get_token("https://cognitiveservices.azure.com/.default").token)


class AzureOpenAIConnection(_EntraIdConnection):
    """An Azure OpenAI resource."""

    TYPE = "AzureOpenAI"

    def __init__(
        self,
        api_base: str,
        api_key: str | None = None,
        api_type: str = "azure",
        api_version: str = "2024-02-01",
        auth_mode: str = "key",
        resource_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        configs = {
            "api_base": api_base,
            "api_type": api_type,
            "api_version": api_version,
            "auth_mode": auth_mode,
            "resource_id": resource_id,
        }
        super().__init__(configs=configs, secrets={"api_key": api_key}, **kwargs)


class OpenAIConnection(Connection):
    """OpenAI, or a service with its interface."""

    TYPE = "OpenAI"

    def __init__(
        self, api_key: str, organization: str | None = None, base_url: str | None = None, **kwargs: Any
    ) -> None:
        configs = {"organization": organization, "base_url": base_url}
        super().__init__(configs=configs, secrets={"api_key": api_key}, **kwargs)


class ServerlessConnection(Connection):
    """A serverless endpoint of a model."""

    TYPE = "Serverless"

    def __init__(self, api_key: str, api_base: str, **kwargs: Any) -> None:
        super().__init__(configs={"api_base": api_base}, secrets={"api_key": api_key}, **kwargs)


class SerpConnection(Connection):
    """SerpAPI, a web search."""

    TYPE = "Serp"

    def __init__(self, api_key: str, **kwargs: Any) -> None:
        super().__init__(secrets={"api_key": api_key}, **kwargs)


class _EmbeddingStoreConnection(Connection):
    """A vector database."""

    def __init__(self, api_key: str, api_base: str, **kwargs: Any) -> None:
        super().__init__(configs={"api_base": api_base}, secrets={"api_key": api_key}, **kwargs)


class QdrantConnection(_EmbeddingStoreConnection):
    """A Qdrant vector database."""

    TYPE = "Qdrant"


class WeaviateConnection(_EmbeddingStoreConnection):
    """A Weaviate vector database."""

    TYPE = "Weaviate"


class CognitiveSearchConnection(_EntraIdConnection):
    """Azure AI Search."""

    TYPE = "CognitiveSearch"

    def __init__(
        self,
        api_base: str,
        api_key: str | None = None,
        api_version: str = "2023-11-01",
        auth_mode: str = "key",
        **kwargs: Any,
    ) -> None:
        configs = {"api_base": api_base, "api_version": api_version, "auth_mode": auth_mode}
        super().__init__(configs=configs, secrets={"api_key": api_key}, **kwargs)


class AzureAIServicesConnection(_EntraIdConnection):
    """Azure AI services."""

    TYPE = "AzureAIServices"

    def __init__(self, endpoint: str, api_key: str | None = None, auth_mode: str = "key", **kwargs: Any) -> None:
        super().__init__(configs={"endpoint": endpoint, "auth_mode": auth_mode}, secrets={"api_key": api_key}, **kwargs)


class AzureContentSafetyConnection(Connection):
    """Azure AI Content Safety."""

    TYPE = "AzureContentSafety"

    def __init__(
        self,
        api_key: str,
        endpoint: str,
        api_version: str = "2023-10-01",
        api_type: str = "Content Safety",
        **kwargs: Any,
    ) -> None:
        configs = {"endpoint": endpoint, "api_version": api_version, "api_type": api_type}
        super().__init__(configs=configs, secrets={"api_key": api_key}, **kwargs)


class FormRecognizerConnection(AzureContentSafetyConnection):
    """Azure AI Document Intelligence."""

    TYPE = "FormRecognizer"

    def __init__(
        self,
        api_key: str,
        endpoint: str,
        api_version: str = "2023-07-31",
        api_type: str = "Form Recognizer",
        **kwargs: Any,
    ) -> None:
        super().__init__(api_key, endpoint, api_version, api_type, **kwargs)


class CustomConnection(Connection):
    """Any keys and values."""

    TYPE = "Custom"

    def __init__(
        self, secrets: Mapping[str, Any] | None = None, configs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(secrets=secrets, configs=configs, **kwargs)

    def is_secret(self, key: str) -> bool:
        """Whether a key is one of the secrets."""
        return key in self.secrets


class CustomStrongTypeConnection(Connection):
    """To be subclassed by a flow, its fields as annotations, the secret ones `Secret`; a custom connection becomes it.

    Ours: a field may have a default in the class.
    """

    TYPE = "Custom"

    def __init__(
        self, secrets: Mapping[str, Any] | None = None, configs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(secrets=secrets, configs=configs, **kwargs)

    def __getattribute__(self, name: str) -> Any:
        # A default of the class must not hide the value that the connection has.
        values = object.__getattribute__(self, "__dict__")
        for part in (values.get("configs", {}), values.get("secrets", {})):
            if name in part:
                return part[name]
        return object.__getattribute__(self, name)


def strong_connection(custom: Any, kind: type[Any]) -> Any:
    """A custom connection as a type that the flow defines; a key that it lacks is the default of its field.

    Raises:
        InvalidConnectionError: It lacks a field without default.
    """
    values = {**custom.configs, **custom.secrets}
    secret_keys = set(custom.secrets)
    missing = []
    for name, annotation in _annotations(kind).items():
        if _is_secret(annotation):
            secret_keys.add(name)
        if name in values:
            continue
        if hasattr(kind, name):
            values[name] = getattr(kind, name)
        else:
            missing.append(name)
    if missing:
        raise InvalidConnectionError(
            f"The connection {custom.name!r} has no {', '.join(missing)}, which {kind.__name__} needs; it has "
            f"{', '.join(values) or 'no keys'}. Add what is missing to the connection."
        )
    return kind(
        secrets={key: value for key, value in values.items() if key in secret_keys},
        configs={key: value for key, value in values.items() if key not in secret_keys},
        name=custom.name,
        module=kind.__module__,
    )


def _annotations(cls: type) -> dict[str, Any]:
    """The annotated fields of a user's class and of those above it, as far as they are the user's."""
    import inspect  # not by every worker: flows with such types have it anyway

    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__ != __name__ and not base.__module__.startswith("promptflow."):
            found |= inspect.get_annotations(base)
    return found


def _is_secret(annotation: Any) -> bool:
    """Whether an annotation is `Secret`, also as text, and also promptflow's own."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.rpartition(".")[2] == "Secret"


KINDS: Mapping[str, type[Connection]] = {
    cls.__name__: cls
    for cls in (
        AzureAIServicesConnection,
        AzureContentSafetyConnection,
        AzureOpenAIConnection,
        CognitiveSearchConnection,
        CustomConnection,
        CustomStrongTypeConnection,
        FormRecognizerConnection,
        OpenAIConnection,
        QdrantConnection,
        SerpConnection,
        ServerlessConnection,
        WeaviateConnection,
    )
}
"""What `type` of a connection's dictionary may be."""


class ModelConfiguration:
    """The base of the two."""


@dataclass
class AzureOpenAIModelConfiguration(ModelConfiguration):
    """Which deployment of an Azure OpenAI resource: by the name of a connection, or by endpoint and key.

    Source: promptflow `core/_model_configuration.py`, `AzureOpenAIModelConfiguration`.
    """

    azure_deployment: str
    azure_endpoint: str | None = None
    api_version: str | None = None
    api_key: str | None = field(default=None, repr=False)
    connection: str | None = None

    def __post_init__(self) -> None:
        _refuse_both(self.connection, azure_endpoint=self.azure_endpoint, api_key=self.api_key)

    @classmethod
    def from_connection(cls, connection: Any, azure_deployment: str) -> AzureOpenAIModelConfiguration:
        """The configuration that a connection and a deployment come to."""
        _expect(cls, connection, "AzureOpenAIConnection")
        return cls(
            azure_deployment=azure_deployment,
            azure_endpoint=connection.api_base,
            api_version=connection.api_version,
            api_key=connection.api_key,
        )


@dataclass
class OpenAIModelConfiguration(ModelConfiguration):
    """Which model of OpenAI: by the name of a connection, or by base URL and key.

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
        """The configuration that a connection and a model come to."""
        _expect(cls, connection, "OpenAIConnection")
        return cls(
            model=model,
            base_url=connection.base_url,
            api_key=connection.api_key,
            organization=connection.organization,
        )


def _refuse_both(connection: str | None, **inline: str | None) -> None:
    given = [name for name, value in inline.items() if value]
    if connection and given:
        raise InvalidConnectionError(
            f"The model configuration has the connection {connection!r} and {', '.join(given)} as well. Give one of the two."
        )


def _expect(cls: type, connection: Any, kind: str) -> None:
    # By name: where promptflow is installed, connections are of its own classes.
    if type(connection).__name__ != kind:
        raise InvalidConnectionError(f"{cls.__name__} is made from an {kind}, found {type(connection).__name__}.")


def make_connection(
    name: str,
    spec: Any,
    environ: Mapping[str, str],
    kind_of: Callable[[str], type[Any] | None] = KINDS.get,
) -> Any:
    """Make a connection of promptflow's dictionary.

    Args:
        name: What the flow calls it.
        spec: `{type, value, module, secret_keys}`, or a connection, which is made anew under the name.
        environ: `<NAME>_<KEY>`, in capitals, takes the place of a value, and `${env:X}` as a value is that variable's.
        kind_of: Gives the class of a type, where it is not one of these.

    Raises:
        InvalidConnectionError: The dictionary's type, keys or variables are wrong; no value is told.
    Source: promptflow `core/_connection_provider/_dict_connection_provider.py`, and `core/_utils.py` for the variables.
    """
    if is_connection(spec):
        spec = connection_spec(spec)
    if not isinstance(spec, dict):
        raise InvalidConnectionError(
            f"The connection {name!r} is a {type(spec).__name__}. Expected {{'type': …, 'value': {{…}}}}, or a connection."
        )
    type_name = spec.get("type")
    kind = kind_of(type_name) if isinstance(type_name, str) else None
    if kind is None:
        raise InvalidConnectionError(
            f"The connection {name!r} has the type {type_name!r}. Expected one of {', '.join(sorted(KINDS))}."
        )
    value = spec.get("value") or {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidConnectionError(
            f"The 'value' of the connection {name!r} is a {type(value).__name__}. Expected its keys and their values."
        )
    value = {key: _from_environment(name, key, found, environ) for key, found in value.items()}
    module = spec.get("module") or MODULE
    if type_name in ("CustomConnection", "CustomStrongTypeConnection"):
        secret_keys = set(spec.get("secret_keys") or ())
        secrets = {key: found for key, found in value.items() if key in secret_keys}
        configs = {key: found for key, found in value.items() if key not in secret_keys}
        return kind(secrets=secrets, configs=configs, name=name, module=module)
    return _strong(name, kind, value)


def connection_spec(connection: Any) -> dict[str, Any]:
    """A connection as promptflow's dictionary of it; one of a type that a flow defines becomes a custom one."""
    name = type(connection).__name__
    return {
        "type": name if name in KINDS else "CustomConnection",
        "value": {**connection.configs, **connection.secrets},
        "module": connection.module,
        "secret_keys": list(connection.secrets),
    }


def connection_value(name: str, spec: Any, key: str, environ: Mapping[str, str]) -> Any:
    """One value of a connection, with the environment's part in it as in `make_connection`; `None` for a key that is not there.

    Raises:
        InvalidConnectionError: It is a variable's that is not set.
    """
    spec = connection_spec(spec) if is_connection(spec) else spec
    values = spec.get("value") if isinstance(spec, dict) else None
    if not isinstance(values, dict) or key not in values:
        return None
    return _from_environment(name, key, values[key], environ)


def is_connection(value: Any) -> bool:
    """Whether a value is a connection, of these classes or of promptflow's own."""
    return is_connection_type(type(value))


def is_connection_type(kind: Any) -> bool:
    """Whether an annotation is a class of connections, of these or of promptflow's own."""
    return isinstance(kind, type) and (
        issubclass(kind, Connection) or any(base.__name__ == "_Connection" for base in kind.__mro__)
    )


def _strong(name: str, kind: type[Any], value: dict[str, Any]) -> Any:
    """A connection of a type with fields; keys that are none of them are left out, as promptflow does."""
    import inspect

    fields = {
        field: parameter
        for field, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    given = {key: found for key, found in value.items() if key in fields}
    missing = [key for key, parameter in fields.items() if parameter.default is parameter.empty and key not in given]
    if missing:
        raise InvalidConnectionError(
            f"The connection {name!r} has no {', '.join(missing)}, which {kind.__name__} needs; it has "
            f"{', '.join(value) or 'no keys'}. It takes {', '.join(fields)}."
        )
    return kind(**given, name=name)


def _from_environment(name: str, key: str, value: Any, environ: Mapping[str, str]) -> Any:
    override = f"{name.replace(' ', '_')}_{key}".upper()
    if override in environ:
        value = environ[override]
    match = _ENVIRONMENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    variable = match["variable"].strip()
    if variable not in environ:
        raise InvalidConnectionError(
            f"{key!r} of the connection {name!r} is ${{env:{variable}}}, and the environment has no {variable}. Set it for the "
            "process that runs the flow."
        )
    return environ[variable]


def secret_values(specs: Mapping[str, Any], environ: Mapping[str, str]) -> set[str]:
    """The secrets of connections, as texts, also of one that cannot be made: what is called `api_key` or a secret key."""
    found: set[str] = set()
    for name, given in specs.items():
        spec = connection_spec(given) if is_connection(given) else given
        value = spec.get("value") if isinstance(spec, dict) else None
        if not isinstance(value, dict):
            continue
        for key in {"api_key", *(spec.get("secret_keys") or ())} & value.keys():
            try:
                found.add(str(_from_environment(name, key, value[key], environ) or ""))
            except InvalidConnectionError:
                continue  # a variable that is not there keeps no secret
    return found - {""}


class Connections:
    """The connections that a run was given, by name; each is made when it is first asked for.

    Args:
        specs: Name to promptflow's dictionary, or to a connection.
        environ: The environment that completes them.
    """

    def __init__(self, specs: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._specs = dict(specs or {})
        self._environ = environ or {}
        self._made: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._specs)

    @property
    def names(self) -> list[str]:
        """What may be asked for, sorted."""
        return sorted(self._specs)

    def get(self, name: str, needed_by: str = "") -> Any:
        """The connection of a name: promptflow's own class where promptflow is installed, else one of these.

        Args:
            name: As the flow says it.
            needed_by: For the message: `node 'answer'`.

        Raises:
            GetConnectionError: It was not given, or cannot be made of what was; a `ResolveToolError`.
        """
        if name not in self._made:
            place = f" for {needed_by}" if needed_by else ""
            if name not in self._specs:
                there = ", ".join(self.names) or "none"
                raise GetConnectionError(
                    f"The connection {name!r}{place} is not there; given were: {there}. Give it in `connections`, save it "
                    "as a Prefect block, or correct the name in the flow.",
                    target="Tool",
                    additional_info={MISSING: name},
                )
            try:
                self._made[name] = make_connection(name, self._specs[name], self._environ, installed_kind)
            except InvalidConnectionError as exc:
                raise GetConnectionError(
                    f"The connection {name!r}{place} cannot be made. {exc}", target="Tool"
                ) from exc
        return self._made[name]


def installed_kind(type_name: str) -> type[Any] | None:
    """The class of a type: promptflow's own where that is imported and has it, since flows ask what a connection is."""
    own = KINDS.get(type_name)
    for module in ("promptflow.connections", "promptflow.core._connection"):
        found = getattr(sys.modules.get(module), type_name, None) if own is not None else None
        if isinstance(found, type):
            return found
    return own
