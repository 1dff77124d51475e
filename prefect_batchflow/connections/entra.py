"""Tokens of Microsoft Entra ID, for services without a key: one credential per process, its token kept until it expires.

azure-identity is imported for the first token, because only flows without a key need it.
"""

from __future__ import annotations

import functools
import time
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from prefect_batchflow.errors.packages import pip_install
from prefect_batchflow.exceptions import AuthenticationError, InvalidConnectionError

if TYPE_CHECKING:
    from types import ModuleType

SCOPE: Final = "https://cognitiveservices.azure.com/.default"
"""What the tokens are for."""
RENEW_BEFORE_SEC: Final = 300.0
"""A token is renewed so long before it expires, as azure-identity does."""

_lock = Lock()
_kept: dict[int, tuple[str, float]] = {}
"""The token of a credential, by its id, and the time at which it is renewed."""


def check_installed(place: str) -> ModuleType:
    """Import azure-identity.

    Args:
        place: What has no key, for the message.

    Raises:
        InvalidConnectionError: It is not installed; the message has both ways out.
    """
    try:
        from azure import identity  # type: ignore[import-not-found, unused-ignore]
    except ImportError as exc:
        raise InvalidConnectionError(
            f"{place} has no api_key. Give it one, or log in with Microsoft Entra ID, which needs a package: "
            f"{pip_install('azure.identity')}"
        ) from exc
    return identity  # type: ignore[no-any-return, unused-ignore]


def entra_token(place: str) -> str:
    """Give a token of this process's identity, from `DefaultAzureCredential`.

    Args:
        place: What has no key, for messages.

    Raises:
        InvalidConnectionError: azure-identity is not installed.
        AuthenticationError: No way to log in works; the message has those that were tried.
    """
    credential = _credential(check_installed(place))
    with _lock:  # one login for all calls that wait for it
        token, renewed_at = _kept.get(id(credential), ("", 0.0))
        if time.time() >= renewed_at:
            try:
                found = credential.get_token(SCOPE)
            except Exception as exc:
                raise AuthenticationError(
                    f"{place} has no api_key, and Microsoft Entra ID gives no token: ({type(exc).__name__}) {exc} Log in, "
                    "for example with `az login`, or give it an api_key.",
                    target="Tool",
                    status=None,
                    retry_after_sec=None,
                ) from exc
            token = str(found.token)
            _kept[id(credential)] = token, float(found.expires_on) - RENEW_BEFORE_SEC
    return token


def has_token() -> bool:
    """Whether `entra_token` gives a token without a request."""
    return any(time.time() < renewed_at for _, renewed_at in _kept.values())


@functools.cache
def _credential(identity: ModuleType) -> Any:
    return identity.DefaultAzureCredential()
