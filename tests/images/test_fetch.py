"""Images from addresses: what may be fetched, and what a row must not make a worker ask."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest

from prefect_batchflow.errors.classes import ErrorClass, class_of_exception
from prefect_batchflow.exceptions import InvalidImageInput
from prefect_batchflow.images import fetch as fetching
from prefect_batchflow.images.fetch import fetch, is_public
from prefect_batchflow.inputs.places import shown_url

if TYPE_CHECKING:
    from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
LOCAL = frozenset({"127.0.0.1", "images.example"})


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"], self.path))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(PNG)))
        self.end_headers()
        self.wfile.write(PNG)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """A server of images on this machine; its address."""
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_an_image_comes_with_its_type(server: str) -> None:
    assert fetch(f"{server}/a.png", 1000, private_hosts=LOCAL) == (PNG, "image/png")


def test_the_connection_goes_to_the_address_that_was_looked_at(server: str) -> None:
    asked = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    url = server.replace("127.0.0.1", "images.example") + "/a.png"

    assert fetch(url, 1000, resolve=resolve, private_hosts=LOCAL)[0] == PNG
    assert asked == ["images.example"], "resolved once: what is connected to is what was checked"
    assert Handler.asked[0][0].startswith("images.example:")


def test_redirects_are_followed(server: str) -> None:
    assert fetch(f"{server}/to//b.png?x=1", 1000, private_hosts=LOCAL)[0] == PNG
    assert [path for _, path in Handler.asked] == ["/to//b.png?x=1", "/b.png?x=1"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:127.0.0.1", "192.168.0.1"]
)
def test_a_private_network_is_refused_and_not_asked(server: str, address: str) -> None:
    port = server.rpartition(":")[2]

    with pytest.raises(InvalidImageInput, match=r"innocent\.example:\d+/a\.png is on a private network"):
        fetch(
            f"http://innocent.example:{port}/a.png?key=1", 1000, resolve=lambda *_: [address], private_hosts=frozenset()
        )

    assert Handler.asked == []


def test_one_private_address_among_public_ones_is_enough() -> None:
    with pytest.raises(InvalidImageInput, match=r"\(10\.1\.2\.3\)"):
        fetch("http://a.example/", 9, resolve=lambda *_: ["93.184.216.34", "10.1.2.3"], private_hosts=frozenset())


def test_a_redirect_into_a_private_network_is_refused(server: str) -> None:
    inner = "http://metadata.example/secret"

    def resolve(host: str, port: int) -> list[str]:
        return ["169.254.169.254"] if host == "metadata.example" else ["127.0.0.1"]

    with pytest.raises(InvalidImageInput, match=r"metadata\.example/secret is on a private network"):
        fetch(f"{server}/to/{inner}", 1000, resolve=resolve, private_hosts=LOCAL)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://a.example/x", "http://me:pw@127.0.0.1/x"])
def test_a_redirect_to_something_else_is_refused(server: str, target: str) -> None:
    with pytest.raises(InvalidImageInput, match=r"is not an http or https address|contains credentials"):
        fetch(f"{server}/to/{target}", 1000, private_hosts=LOCAL)


def test_redirects_without_end_are_ended(server: str) -> None:
    url = f"{server}/to/" * 8 + server

    with pytest.raises(InvalidImageInput, match="redirects more than 5 times"):
        fetch(url, 1000, private_hosts=LOCAL)


def test_what_is_too_large_or_not_there_is_told(server: str) -> None:
    with pytest.raises(InvalidImageInput, match=r"/a\.png is larger than 20 bytes"):
        fetch(f"{server}/a.png", 20, private_hosts=LOCAL)
    with pytest.raises(InvalidImageInput, match=r"/missing answered 404 Not Found, expected 200"):
        fetch(f"{server}/missing", 1000, private_hosts=LOCAL)


def test_what_takes_too_long_is_ended(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_SEC", -1.0)

    with pytest.raises(InvalidImageInput, match="took longer than"):
        fetch(f"{server}/a.png", 1000, private_hosts=LOCAL)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (HEAD + b"Content-Length: 5000\r\n\r\n" + PNG, "announced 5000 bytes and sent 72"),
        (HEAD + b"Content-Length: 73\r\n\r\n" + PNG, "announced 73 bytes and sent 72"),
        (HEAD + b"Content-Length: -5\r\n\r\n" + PNG, "announced -5 bytes"),
        (HEAD + b"Content-Length: many\r\n\r\n" + PNG, "announced many bytes"),
        (HEAD + b"Content-Length: 10\r\nContent-Length: 72\r\n\r\n" + PNG, "announced 10, 72 bytes and sent 10"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n" + PNG, "IncompleteRead"),
        (HEAD + b"Content-Length: 0\r\n\r\n", "is empty"),
        (HEAD + b"\r\n", "is empty"),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 72\r\n\r\n" + PNG, "is sent as gzip"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_half_an_image_is_no_image(answer: bytes, told: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(InvalidImageInput, match=told):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/x.png", 10**6, private_hosts=LOCAL)
        thread.join()


def test_hosts_of_the_operator_may_be_private(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidImageInput, match=r"add 127\.0\.0\.1 to BATCHFLOW_IMAGE_HOSTS"):
        fetch(f"{server}/a.png", 1000)

    monkeypatch.setenv("BATCHFLOW_IMAGE_HOSTS", "intranet.example, 127.0.0.1")

    assert fetch(f"{server}/a.png", 1000)[0] == PNG


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("224.0.0.1", False),
        ("100.64.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::a00:1", False),
        ("fc00::1", False),
        ("no address", False),
        *(
            (address, False)
            for address in (
                "::127.0.0.1",
                "::10.0.0.1",
                "64:ff9b:1::7f00:1",
                "::ffff:0:127.0.0.1",
                "::ffff:0:10.0.0.1",
                "fec0::1",
                "192.0.0.8",
                "2001:0:7f00:1::",
                "::",
                "2002:a00:1::",
            )
        ),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_messages_show_neither_credentials_nor_query() -> None:
    assert shown_url("https://me:pw@a.example/x.png?sig=secret#f") == "https://a.example/x.png"


class Dripping:
    """A server that sends one byte after the other and never ends, behind what it is told to send first."""

    def __init__(self, begin: bytes, drip: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._begin, self._drip = begin, drip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/a.png"

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(self._begin)
            while not self._stop.wait(0.01):
                connection.sendall(self._drip)

    def close(self) -> None:
        self._stop.set()
        self._listener.close()
        self._thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (HEAD + b"Content-Length: 100000\r\n\r\n", b"x"),
        (HEAD + b"\r\n", b"x"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
        (HEAD + b"X: ", b"x"),
        (b"HTTP/1.1 ", b"2"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["content", "content without length", "chunks", "a chunk's size", "a header", "the status", "100 after 100"],
)
def test_bytes_that_drip_in_do_not_pass_the_time_limit(
    monkeypatch: pytest.MonkeyPatch, begin: bytes, drip: bytes
) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_SEC", 0.3)
    server = Dripping(begin, drip)
    started = time.monotonic()
    try:
        with pytest.raises(InvalidImageInput, match=r"took longer than 0\.3 s") as caught:
            fetch(server.url, 10**6, private_hosts=LOCAL)
    finally:
        server.close()

    assert time.monotonic() - started < 5
    assert class_of_exception(caught.value) is ErrorClass.TIMEOUT


def test_redirects_and_a_slow_look_up_share_the_time_limit(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_SEC", 0.3)
    asleep = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        asleep.wait(20)
        return ["127.0.0.1"]

    try:
        with pytest.raises(InvalidImageInput, match=r"took longer than 0\.3 s"):
            fetch(f"{server}/a.png", 10**6, resolve=resolve, private_hosts=LOCAL)
    finally:
        asleep.set()
