"""Connections: plain values with which a flow reaches a service, in promptflow's types.

Only the standard library, because worker processes import this. No `repr` and no error shows a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from prefect_batchflow.connections.entra import entra_token
from prefect_batchflow.exceptions import InvalidConnectionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

MODULE = "promptflow.connections"
"""The `module` of a connection whose type no other package defines."""


class Connection:
    """One connection: `configs` anyone may read, `secrets` only the flow's code.

    The values of both are also attributes (`connection.api_key`), items, and the items of `dict(connection)`.

    Args:
        name: Its name in the flow; `None` if the flow's code made it.
        configs: Values that are not secret.
        secrets: Keys and passwords.
        module: Where a custom strong type is defined.
        **kwargs: promptflow's dates of creation and expiry; accepted, but not used.
    Source: promptflow `core/_connection.py`, `_Connection`.
    """

    TYPE: ClassVar[str] = ""
    """promptflow's short name: the name of a class of this module without `Connection`; a flow's class inherits its base's."""
    configs: dict[str, Any]
    secrets: dict[str, Any]

    def __init_subclass__(cls) -> None:
        if cls.__module__ == __name__:
            cls.TYPE = cls.__name__.removesuffix("Connection")

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
        """`configs` or `secrets`, whichever has the key."""
        parts = (self.__dict__.get("configs", {}), self.__dict__.get("secrets", {}))
        return next((part for part in parts if key in part), None)

    def __getattr__(self, name: str) -> Any:
        part = self._part(name)
        if part is None:
            # Python asks for its own names before there is anything to show, for example while it unpickles.
            raise AttributeError(name if name.startswith("__") else f"{self!r} has no {name!r}")
        return part[name]

    def __setattr__(self, name: str, value: Any) -> None:
        part = self._part(name)
        (self.__dict__ if part is None else part)[name] = value

    def keys(self) -> list[str]:
        """The keys of `configs` and `secrets`."""
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
    """A connection that can use a token of Microsoft Entra ID instead of a key."""

    def get_token(self) -> str:
        """Give a token of this process's identity.

        Raises:
            InvalidConnectionError: Its `auth_mode` is `key` and it has one, or azure-identity is not installed.
            AuthenticationError: No way to log in works.
        """
        if self.auth_mode != "meid_token" and self.api_key:
            raise InvalidConnectionError(
                f"{self!r} has auth_mode {self.auth_mode!r}. Set it to 'meid_token' to get a token."
            )
        return entra_token(repr(self))


class AzureOpenAIConnection(_EntraIdConnection):
    """An Azure OpenAI resource."""

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
    """OpenAI, or a service with the same interface."""

    def __init__(
        self, api_key: str, organization: str | None = None, base_url: str | None = None, **kwargs: Any
    ) -> None:
        configs = {"organization": organization, "base_url": base_url}
        super().__init__(configs=configs, secrets={"api_key": api_key}, **kwargs)


class SerpConnection(Connection):
    """SerpAPI, a web search."""

    def __init__(self, api_key: str, **kwargs: Any) -> None:
        super().__init__(secrets={"api_key": api_key}, **kwargs)


class _AddressConnection(Connection):
    """A service with an address and a key."""

    def __init__(self, api_key: str, api_base: str, **kwargs: Any) -> None:
        super().__init__(configs={"api_base": api_base}, secrets={"api_key": api_key}, **kwargs)


class ServerlessConnection(_AddressConnection):
    """A model's serverless endpoint."""


class QdrantConnection(_AddressConnection):
    """A Qdrant vector database."""


class WeaviateConnection(_AddressConnection):
    """A Weaviate vector database."""


class CognitiveSearchConnection(_EntraIdConnection):
    """Azure AI Search."""

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

    def __init__(self, endpoint: str, api_key: str | None = None, auth_mode: str = "key", **kwargs: Any) -> None:
        super().__init__(configs={"endpoint": endpoint, "auth_mode": auth_mode}, secrets={"api_key": api_key}, **kwargs)


class AzureContentSafetyConnection(Connection):
    """Azure AI Content Safety."""

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

    def __init__(
        self,
        api_key: str,
        endpoint: str,
        api_version: str = "2023-07-31",
        api_type: str = "Form Recognizer",
        **kwargs: Any,
    ) -> None:
        super().__init__(api_key, endpoint, api_version, api_type, **kwargs)


class _AnyKeysConnection(Connection):
    def __init__(
        self, secrets: Mapping[str, Any] | None = None, configs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(secrets=secrets, configs=configs, **kwargs)


class CustomConnection(_AnyKeysConnection):
    """Any keys and values."""

    def is_secret(self, key: str) -> bool:
        """Whether a key is in `secrets`."""
        return key in self.secrets


class CustomStrongTypeConnection(_AnyKeysConnection):
    """The base of types that flows define: fields are annotations, secret ones `Secret`; made from custom connections.

    Unlike in promptflow, a field can have a default in the class.
    """

    def __getattribute__(self, name: str) -> Any:
        # A default in the class must not hide the connection's own value.
        values = object.__getattribute__(self, "__dict__")
        for part in (values.get("configs", {}), values.get("secrets", {})):
            if name in part:
                return part[name]
        return object.__getattribute__(self, name)


CustomStrongTypeConnection.TYPE = CustomConnection.TYPE


def strong_connection(custom: Any, kind: type[Any]) -> Any:
    """Make a connection of a type that the flow defines from a custom connection; missing keys get the fields' defaults.

    Raises:
        InvalidConnectionError: A field without a default is missing.
    """
    fields = _annotations(kind)
    values = {**custom.configs, **custom.secrets}
    values |= {name: getattr(kind, name) for name in fields if name not in values and hasattr(kind, name)}
    secret_keys = {*custom.secrets, *(name for name, annotation in fields.items() if _is_secret(annotation))}
    if missing := [name for name in fields if name not in values]:
        raise InvalidConnectionError(
            f"The connection {custom.name!r} has no {', '.join(missing)}, which {kind.__name__} requires. It has "
            f"{', '.join(values) or 'no keys'}. Add the missing keys to the connection."
        )
    return kind(**parts_of(values, secret_keys), name=custom.name, module=kind.__module__)


def parts_of(values: Mapping[str, Any], secret_keys: Collection[str]) -> dict[str, dict[str, Any]]:
    """Give the `secrets` and `configs` of a connection with any keys."""
    secrets = {key: value for key, value in values.items() if key in secret_keys}
    return {"secrets": secrets, "configs": {key: value for key, value in values.items() if key not in secrets}}


def _annotations(cls: type) -> dict[str, Any]:
    """The annotated fields of a user's class and of its base classes that are the user's own."""
    import inspect  # imported here, because not every worker needs it

    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__ != __name__ and not base.__module__.startswith("promptflow."):
            found |= inspect.get_annotations(base)
    return found


def _is_secret(annotation: Any) -> bool:
    """Whether an annotation is `Secret`, this package's or promptflow's, also written as a string."""
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
"""The classes by the `type` of a connection's dictionary."""


def is_connection_type(kind: Any) -> bool:
    """Whether an annotation is a connection class, of this package or of promptflow."""
    return isinstance(kind, type) and (
        issubclass(kind, Connection) or any(base.__name__ == "_Connection" for base in kind.__mro__)
    )
