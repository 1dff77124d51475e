"""Addresses of services. One that no client can reach is refused before the first line."""

from __future__ import annotations

from urllib.parse import urlsplit

from prefect_batchflow.exceptions import InvalidConnectionError


def check_address(address: object, place: str) -> None:
    """Refuse what is no address of a service.

    Args:
        address: As it was written or found in a variable.
        place: Where, and which variable, for the message.

    Raises:
        InvalidConnectionError: It is empty, has no scheme or no host. The message does not show it: it can be a key in the
            wrong place.
    """
    text = address.strip() if isinstance(address, str) else ""
    scheme, separator, _ = text.partition("://")
    if not text:
        found = "is empty"
    elif not separator:
        found = "has no scheme"
    elif scheme.lower() not in ("http", "https"):
        found = "has a scheme that is not http or https"
    elif not _has_host(text):
        found = "has no valid host"
    else:
        return
    raise InvalidConnectionError(f"{place} {found}. Write the service's whole address: https://…")


def _has_host(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return bool(parts.hostname) and parts.port != 0 and not set(' <>{}$|"\\') & set(parts.netloc)
    except ValueError:  # of the port
        return False
