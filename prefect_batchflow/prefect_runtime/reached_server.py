"""Whether the Prefect server can be used, and if not, the cause in one sentence."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from pydantic import ValidationError

from prefect_batchflow.exceptions import PrefectServerError, told
from prefect_batchflow.prefect_runtime.network import address_of, proxy_of
from prefect_batchflow.prefect_runtime.own_server import has_own_server

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_WITHIN_SEC: Final = 15.0
"""The longest wait for one answer. A server that took in a thousand task runs answered within 1.1 s."""
BUSY_FOR_SEC: Final = 60.0
"""The longest wait for a server that answers that it is busy."""
_ASK_AGAIN_AFTER_SEC: Final = 1.0
_BUSY: Final = frozenset({429, 502, 503, 504})


async def check_server(say: Callable[[str], None] = lambda _text: None) -> None:
    """Ask the configured server one question. Does nothing for an ephemeral server, which the process starts itself.

    Args:
        say: Gets one sentence if the server is busy and the run waits for it.

    Raises:
        PrefectServerError: It does not answer, refuses, or is no Prefect server.
    """
    url = str(get_current_settings().api.url or "")
    if has_own_server() or not url:
        return
    shown = url.rpartition("@")[2]
    if urlsplit(url).scheme not in ("http", "https"):
        raise PrefectServerError(
            f"PREFECT_API_URL is {shown!r}, which does not begin with http:// or https://. Set it to the address of the "
            "server's API, such as http://127.0.0.1:4200/api."
        )
    shown = f"{address_of(url)}{urlsplit(url).path}"
    ends = time.monotonic() + BUSY_FOR_SEC
    while (status := await _status(url, shown, has_tls=urlsplit(url).scheme == "https")) is not None:
        if time.monotonic() > ends:
            raise PrefectServerError(
                f"The Prefect server at {shown} is busy: it answered {_named(status)} for {BUSY_FOR_SEC:.0f} s. Start the run "
                "later, or use a server with a PostgreSQL database, which takes in more."
            )
        say(f"The Prefect server at {shown} is busy ({_named(status)}). Waiting for it, at most {BUSY_FOR_SEC:.0f} s.")
        await asyncio.sleep(_ASK_AGAIN_AFTER_SEC)


async def _status(url: str, shown: str, *, has_tls: bool) -> int | None:
    """`None` if the server answers as it should, the status if it is busy. Without TLS, no certificates are loaded."""
    client_settings = None if has_tls else {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            async with asyncio.timeout(ANSWER_WITHIN_SEC), get_client(httpx_settings=client_settings) as client:
                answer = await client.request("POST", "/flows/filter", json={"limit": 1})
                if isinstance(answer.json(), list):
                    return None
        cause, cure = _NOT_PREFECT
    except httpx.HTTPStatusError as exc:
        if exc.response.status_code in _BUSY:
            return exc.response.status_code
        cause, cure = _of_status(exc.response.status_code)
    except TimeoutError:
        cause, cure = f"does not answer within {ANSWER_WITHIN_SEC:.0f} s", "It hangs or is overloaded: restart it."
    except (json.JSONDecodeError, UnicodeDecodeError):
        cause, cure = "answers with something other than JSON, such as a web page", _ADDRESS_CURE
    except httpx.TimeoutException:
        cause, cure = "does not accept a connection in time", _START_CURE
    except httpx.HTTPError as exc:
        if not has_tls and exc.request.url.scheme == "https":  # it sends requests on to an address with TLS
            return await _status(url, shown, has_tls=True)
        cause, cure = _of_connection(exc, url)
    except ValidationError:
        cause, cure = _NOT_PREFECT
    except Exception as exc:  # noqa: BLE001 - a wrong setting of Prefect's
        cause, cure = f"cannot be asked: {told(exc)}".partition("\n")[0], _START_CURE
        if isinstance(exc, OSError) and (file := get_current_settings().api.ssl_cert_file):
            cure = (
                f"PREFECT_API_SSL_CERT_FILE names {str(file)!r}: set it to a file of certificates (PEM), or unset it."
            )
    raise PrefectServerError(
        f"The Prefect server at {shown}{proxy_of(url)} {cause}. {cure} `prefect config view --show-sources` shows where "
        "PREFECT_API_URL is set."
    )


def name_of_server() -> str:
    """The server that the settings name, as the subject of a sentence."""
    if has_own_server():
        return "The Prefect server of this run"
    url = str(get_current_settings().api.url or "")
    return f"The Prefect server at {address_of(url)}{urlsplit(url).path}{proxy_of(url)}"


def cause_of(exc: httpx.HTTPError) -> str:
    """What an error of a call says about the server, as the end of a sentence."""
    if isinstance(exc, httpx.HTTPStatusError):
        if exc.response.status_code == HTTPStatus.NOT_FOUND:
            return "does not know this flow run, because it has another database now"
        return _of_status(exc.response.status_code)[0]
    if isinstance(exc, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
        return "does not answer"
    return f"cannot be reached: {str(exc).rstrip('.') or type(exc).__name__}"


_START_CURE: Final = "Start it (`prefect server start`), or unset PREFECT_API_URL to run without one."
_ADDRESS_CURE: Final = "Set PREFECT_API_URL to the address of its API, such as http://127.0.0.1:4200/api."
_NOT_PREFECT: Final = "answers, but not as a Prefect server", _ADDRESS_CURE


def _of_status(status: int) -> tuple[str, str]:
    cause = f"answers {_named(status)}"
    if status in (401, 403):
        return f"refuses access: {_named(status)}", (
            "Set PREFECT_API_AUTH_STRING to its user:password, or PREFECT_API_KEY for Prefect Cloud."
        )
    if status < 500:
        return cause, _ADDRESS_CURE
    return cause, "Its own log says why."


def _of_connection(exc: httpx.HTTPError, asked: str) -> tuple[str, str]:
    text = str(exc).rstrip(".")
    cause = f"cannot be reached: {text or type(exc).__name__}"
    if exc.request.url.host != urlsplit(asked).hostname:
        return f"sends requests on to {address_of(str(exc.request.url))}, which {cause}", _ADDRESS_CURE
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return cause, "Set PREFECT_API_SSL_CERT_FILE to the certificate of the authority that signed the server's."
    if "SSL" in text:
        return cause, "If the server has no TLS, let PREFECT_API_URL begin with http://."
    if isinstance(exc, httpx.ProxyError):
        return cause, "Correct the proxy, or put the server's host into NO_PROXY."
    return cause, _START_CURE


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
