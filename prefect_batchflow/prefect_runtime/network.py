"""The network settings of this process: certificates and proxies. Prefect reads them when it is imported."""

from __future__ import annotations

import os
import ssl
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from prefect_batchflow.exceptions import InvalidOptionError

_THIS_MACHINE: Final = ("127.0.0.1", "localhost", "::1")
_PROXY_SCHEMES: Final = ("http", "https", "socks5", "socks5h")


def prepare_network() -> None:
    """Keep requests to this machine away from proxies, and refuse settings that no request survives.

    Idempotent and quick. It changes `NO_PROXY` of this process, and so of the workers and the server that it starts.

    Raises:
        InvalidOptionError: `SSL_CERT_FILE` or a proxy variable is wrong.
    """
    _check_certificates()
    _check_proxies()
    _bypass_proxies_for_this_machine()


def proxy_of(url: str) -> str:
    """The proxy for a URL, as text: ` through the proxy host:3128`; empty if there is none."""
    parts, proxies = urlsplit(url), getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    return f" through the proxy {address_of(proxy)}"


def address_of(url: str) -> str:
    """A URL without user, password, path and query."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "that is no URL"
    return f"{parts.scheme}://{parts.hostname or ''}{port}"


def _check_certificates() -> None:
    # httpx loads this file for every client, also for one that needs no certificates.
    file = os.environ.get("SSL_CERT_FILE")
    if not file:
        return
    try:
        ssl.create_default_context(cafile=file)
    except (OSError, ValueError) as exc:
        cause = "does not exist" if isinstance(exc, FileNotFoundError) else f"cannot be used: {exc}"
        raise InvalidOptionError(
            f"The environment variable SSL_CERT_FILE names {file!r}, which {cause}. Set it to a file of certificates (PEM), or "
            "unset it."
        ) from None


def _check_proxies() -> None:
    for kind, proxy in getproxies_environment().items():
        if kind not in ("http", "https", "all") or not proxy:
            continue
        name = next((n for n in (f"{kind}_proxy", f"{kind.upper()}_PROXY") if os.environ.get(n)), f"{kind}_proxy")
        shown = address_of(proxy)
        scheme = proxy.partition("://")[0].lower() if "://" in proxy else "http"
        if scheme not in _PROXY_SCHEMES or "no URL" in shown:
            raise InvalidOptionError(
                f"The environment variable {name} has an address that no client can use ({shown}). Expected one that begins "
                f"with {', '.join(f'{known}://' for known in _PROXY_SCHEMES)}. Correct it or unset it."
            )
        if scheme.startswith("socks") and find_spec("socksio") is None:
            raise InvalidOptionError(
                f"The environment variable {name} has a SOCKS proxy ({shown}), for which the package socksio is missing. Run "
                f"`pip install 'httpx[socks]'`, or unset {name}."
            )


def _bypass_proxies_for_this_machine() -> None:
    proxies = getproxies_environment()
    if not any(proxies.get(kind) for kind in ("http", "https", "all")):
        return
    given = [host.strip() for host in proxies.get("no", "").split(",") if host.strip()]
    if "*" in given:
        return
    hosts = ",".join([*given, *(host for host in _THIS_MACHINE if host not in given)])
    # Libraries differ in which of the two they read first.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = hosts
