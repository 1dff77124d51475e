"""Fetch an image that a row names, without letting the row reach private networks.

A row must not make a worker call an address that only the worker can reach. So the host is resolved here, all of its
addresses must be public, the connection goes to a checked address, and each redirect is checked the same way. Proxies from
the environment are not used. The standard library only.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from prefect_batchflow.errors.classes import ErrorClass, class_of_exception, class_of_status
from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.inputs.places import shown_url

if TYPE_CHECKING:
    from collections.abc import Callable

    Resolver = Callable[[str, int], list[str]]
    """Turns a host name and a port into addresses."""

T = TypeVar("T")
HOSTS_VARIABLE = "BATCHFLOW_IMAGE_HOSTS"
"""The worker's environment variable for hosts that may be on a private network, separated by commas."""
MAX_REDIRECTS = 5
TIMEOUT_SEC = 30.0
_BLOCK_BYTES = 1 << 16
_WRAPPING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")))
"""IPv6 addresses whose last 32 bits are an IPv4 address: NAT64, the old compatible form, and the translated one."""
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("64:ff9b:1::/48", "fec0::/10", "192.0.0.0/24")))
"""Networks of one site or one link that Python's list of private ones lacks."""


def resolved(host: str, port: int) -> list[str]:
    """Give the addresses of a host, according to the system."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def fetch(
    url: str, max_bytes: int, *, resolve: Resolver = resolved, private_hosts: frozenset[str] | None = None
) -> tuple[bytes, str]:
    """Give the content at an `http` or `https` address, and the type that its server names.

    Args:
        url: The address. Messages show it without its query, which can be a signature.
        max_bytes: The size limit.
        resolve: Gives a host's addresses.
        private_hosts: Hosts that may be on a private network; `None` takes those in `HOSTS_VARIABLE`.

    Raises:
        InvalidImageInput: The content is on a private network, missing, too large, or too slow. `error_class` is set if the
            service or the connection failed.
    """
    if private_hosts is None:
        private_hosts = frozenset(name.strip().lower() for name in os.environ.get(HOSTS_VARIABLE, "").split(","))
    deadline = time.monotonic() + TIMEOUT_SEC
    shown = shown_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        try:
            answer = _ask(url, max_bytes, resolve, private_hosts, deadline)
        except TimeoutError as exc:
            raise InvalidImageInput(
                f"{shown} took longer than {TIMEOUT_SEC:g} s. Give the image as a file.", error_class=ErrorClass.TIMEOUT
            ) from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise InvalidImageInput(
                f"{shown} cannot be fetched: ({type(exc).__name__}) {exc}. Check the address, or give the image as a file.",
                error_class=class_of_exception(exc),
            ) from exc
        if not isinstance(answer, str):
            return answer
        url = urljoin(url, answer)
    raise InvalidImageInput(f"{shown} redirects more than {MAX_REDIRECTS} times. Give the final address.")


def _ask(
    url: str, max_bytes: int, resolve: Resolver, private_hosts: frozenset[str], deadline: float
) -> tuple[bytes, str] | str:
    """Send one request; give the content and its type, or the address that it redirects to."""
    parts, shown = urlsplit(url), shown_url(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidImageInput(f"{shown[:200]} is not an http or https address. Give one, or a path.")
    if parts.username is not None:
        raise InvalidImageInput(f"{shown} contains credentials, which are never sent. Give an address without them.")
    connection = _connection(parts, resolve, private_hosts, deadline, shown)
    with contextlib.closing(connection), contextlib.ExitStack() as answered:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "prefect-batchflow"})
        response = answered.enter_context(connection.getresponse())
        if response.status in (301, 302, 303, 307, 308) and (location := response.getheader("Location")):
            return location
        if response.status != 200:
            raise InvalidImageInput(
                f"{shown} answered {response.status} {response.reason}, expected 200. Check the address.",
                error_class=class_of_status(response.status),
            )
        content = bytearray()
        while block := response.read(_BLOCK_BYTES):
            content += block
            if len(content) > max_bytes:
                raise InvalidImageInput(f"{shown} is larger than {max_bytes:,} bytes. Give a smaller image.")
        _check_whole(response, len(content), shown)
        return bytes(content), response.headers.get_content_type()


def _check_whole(response: http.client.HTTPResponse, size: int, shown: str) -> None:
    """Refuse half an image: `http.client` says nothing when the connection ends before the announced length."""
    announced = response.getheader("Content-Length")
    coding = response.getheader("Content-Encoding", "identity")
    if announced is not None and not response.chunked and announced.strip() != str(size):
        raise InvalidImageInput(
            f"{shown} announced {announced[:40]} bytes and sent {size:,}. Try again, or give the image as a file.",
            error_class=ErrorClass.TRANSIENT,
        )
    if not size:
        raise InvalidImageInput(f"{shown} is empty. Check the address, or give the image as a file.")
    if coding.strip().lower() != "identity":
        raise InvalidImageInput(
            f"{shown} is sent as {coding[:40]}, although it was asked for as it is. Give the image as a file."
        )


def _connection(
    parts: SplitResult, resolve: Resolver, private_hosts: frozenset[str], deadline: float, shown: str
) -> http.client.HTTPConnection:
    """Connect to a checked address of the host."""
    host = str(parts.hostname)
    is_secure = parts.scheme == "https"
    port = parts.port or (443 if is_secure else 80)
    addresses = _resolved_in_time(resolve, host, port, deadline)
    hidden = [address for address in addresses if not is_public(address)]
    if (hidden or not addresses) and host.lower() not in private_hosts:
        raise InvalidImageInput(
            f"{shown} is on a private network ({', '.join(hidden) or 'no address'}), so rows cannot fetch it. Give the image "
            f"as a file, or ask the people who run the workers to add {host} to {HOSTS_VARIABLE}."
        )
    made = (http.client.HTTPSConnection if is_secure else http.client.HTTPConnection)(host, port)
    plain = socket.create_connection((addresses[0], port), timeout=_left(deadline))
    try:
        if is_secure:
            context = ssl.create_default_context()
            context.sslsocket_class = _TimedTLS
            wrapped = context.wrap_socket(plain, server_hostname=host)
            assert isinstance(wrapped, _TimedTLS)
            wrapped.deadline = deadline
            made.sock = wrapped
        else:
            timed = _Timed(fileno=plain.detach())
            timed.deadline = deadline
            timed.settimeout(_left(deadline))
            made.sock = timed
    except BaseException:
        plain.close()
        raise
    return made


def _resolved_in_time(resolve: Resolver, host: str, port: int, deadline: float) -> list[str]:
    """Give a host's addresses. The system's lookup has no limit, so nothing waits for its thread."""
    return in_daemon_thread(lambda: resolve(host, port), "batchflow-image-host").result(_left(deadline))


def in_daemon_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Do something on a thread that nothing waits for: the end of the process would wait for a thread of an executor."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - handed to the caller
            done.set_exception(exc)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


def _left(deadline: float) -> float:
    """The seconds that are left; raises `TimeoutError` if none are."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time of the fetch is over")
    return left


class _Timed(socket.socket):
    """A connection with one deadline for all that it reads. A plain time limit counts anew with each byte that drips in."""

    deadline: float

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_left(self.deadline))
        return super().recv_into(*args, **kwargs)


class _TimedTLS(ssl.SSLSocket):
    """The same over TLS."""

    deadline: float

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_left(self.deadline))
        return super().recv_into(*args, **kwargs)


def is_public(address: str) -> bool:
    """Whether an address is public. One that wraps another (IPv4 in IPv6, 6to4, Teredo, NAT64) is judged by the inner one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if any(ip in network for network in _WRAPPING):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)
