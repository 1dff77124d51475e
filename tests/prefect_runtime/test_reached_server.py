"""A Prefect server that cannot be used ends the run before its first line, with the cause in one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    temporary_settings,
)

from prefect_batchflow import BatchEngine
from prefect_batchflow.exceptions import PrefectServerError
from prefect_batchflow.prefect_runtime import reached_server, server_calls
from prefect_batchflow.prefect_runtime.reached_server import check_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Answer = tuple[int, bytes, str]
JSON, HTML = "application/json", "text/html"


@contextmanager
def answering(
    *answers: Answer | None, scheme: str = "http", certificate: tuple[Path, Path] | None = None
) -> Iterator[str]:
    """The configured server gives these answers, the last one again and again; `None` is no answer. Gives its API's URL."""
    left, over = list(answers), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = left.pop(0) if len(left) > 1 else left[0]
            if answer is None:
                over.wait(60)
                return
            status, body, kind = answer
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if 300 <= status < 400:
                self.send_header("Location", body.decode())
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815 - the server's name

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(*certificate)
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"{scheme}://127.0.0.1:{server.server_address[1]}/api"
            # Without CSRF support, one request gets one answer.
            with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
                yield url
        finally:
            over.set()
            server.shutdown()
            thread.join()


def certificate_of_this_machine(folder: Path) -> tuple[Path, Path]:
    """A new certificate that nobody else has signed, and its key."""
    key, this_machine = ec.generate_private_key(ec.SECP256R1()), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now, hour = datetime.datetime.now(datetime.UTC), datetime.timedelta(hours=1)
    serial = x509.random_serial_number()
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial, now - hour, now + hour)
    signed = builder.add_extension(x509.SubjectAlternativeName([this_machine]), critical=False).sign(
        key, hashes.SHA256()
    )
    no_password = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(private)
    return files


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ((404, b'{"detail": "Not Found"}', JSON), "answers 404 Not Found. Set PREFECT_API_URL to the address of its API"),
        ((401, b'{"detail": "Unauthorized"}', JSON), "refuses access: 401 Unauthorized. Set PREFECT_API_AUTH_STRING"),
        ((403, b"no", "text/plain"), "refuses access: 403 Forbidden"),
        ((500, b"oops", "text/plain"), "answers 500 Internal Server Error. Its own log says why"),
        ((599, b"?", "text/plain"), "answers 599."),
        ((200, b"<html>Sign in</html>", HTML), "answers with something other than JSON, such as a web page"),
        ((200, b"\xff\xfe\x00", JSON), "answers with something other than JSON"),
        ((200, b'{"status": "ok"}', JSON), "answers, but not as a Prefect server"),
        ((302, b"http://nowhere.invalid/login", HTML), "sends requests on to http://nowhere.invalid, which cannot be reached"),
        (None, "does not answer within 0 s. It hangs or is overloaded: restart it"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else None,
)  # fmt: skip
def test_a_wrong_answer_is_told_by_its_cause(
    answer: Answer | None, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer is None:
        monkeypatch.setattr(reached_server, "ANSWER_WITHIN_SEC", 0.2)
    with answering(answer) as url, pytest.raises(PrefectServerError) as caught:
        asyncio.run(check_server())
    text = str(caught.value)
    assert text.startswith(f"The Prefect server at {url} {cause}")
    assert "None" not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("http://127.0.0.1:{port}/api", "cannot be reached: All connection attempts failed. Start it"),
        ("https://127.0.0.1:{port}/api", "cannot be reached"),
        ("http://someone:pa55word@nowhere.invalid/api", "cannot be reached: [Errno -2] Name or service not known. Start it"),
        ("ftp://nowhere.invalid/api", "does not begin with http:// or https://"),
        ("127.0.0.1:4200/api", "'127.0.0.1:4200/api', which does not begin with http"),
    ],
)  # fmt: skip
def test_an_address_without_a_server_is_told_by_its_cause(url: str, cause: str) -> None:
    with (
        temporary_settings({PREFECT_API_URL: url.format(port=free_port())}),
        pytest.raises(PrefectServerError) as caught,
    ):
        asyncio.run(check_server())
    assert cause in str(caught.value)
    assert "pa55word" not in str(caught.value)


def test_http_behind_https_is_told() -> None:
    with answering((200, b"[]", JSON), scheme="https"), pytest.raises(PrefectServerError, match="begin with http://"):
        asyncio.run(check_server())


def test_a_missing_certificate_of_prefects_own_setting_is_told() -> None:
    settings = {PREFECT_API_URL: "https://127.0.0.1:1/api", PREFECT_API_SSL_CERT_FILE: "missing.pem"}
    with temporary_settings(settings), pytest.raises(PrefectServerError, match=r"SSL_CERT_FILE names 'missing\.pem'"):
        asyncio.run(check_server())


@pytest.mark.parametrize("is_trusted", [True, False])
def test_an_address_that_sends_on_to_one_with_tls_is_asked_with_certificates(tmp_path: Path, is_trusted: bool) -> None:
    files = certificate_of_this_machine(tmp_path)
    trusted = {PREFECT_API_SSL_CERT_FILE: str(files[0])} if is_trusted else {}
    with (
        temporary_settings(trusted),
        answering((200, b"[]", JSON), scheme="https", certificate=files) as tls,
        answering((307, f"{tls}/flows/filter".encode(), HTML)),
        contextlib.nullcontext()
        if is_trusted
        else pytest.raises(PrefectServerError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        assert asyncio.run(check_server()) is None


def test_a_busy_server_is_waited_for_and_said_so() -> None:
    said: list[str] = []
    with answering((503, b"busy", "text/plain"), (200, b"[]", JSON)):
        asyncio.run(check_server(said.append))
    assert [text.partition("(")[2].partition(")")[0] for text in said] == ["503 Service Unavailable"]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_stays_busy_is_given_up_in_time(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reached_server, "BUSY_FOR_SEC", 0.0)
    with answering((status, b"busy", "text/plain")), pytest.raises(PrefectServerError) as caught:
        asyncio.run(check_server())
    assert f"is busy: it answered {status} " in str(caught.value)


def test_the_key_is_sent_and_never_told() -> None:
    key = "pnu_0123456789"
    refusing, with_key = answering((401, b"{}", JSON)), temporary_settings({PREFECT_API_KEY: key})
    with refusing, with_key, pytest.raises(PrefectServerError) as caught:
        asyncio.run(check_server())
    assert key not in str(caught.value)


def test_a_run_from_python_ends_with_the_cause_and_writes_nothing(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"q": "x"}\n')
    with answering((404, b"{}", JSON)), pytest.raises(PrefectServerError, match="answers 404"):
        BatchEngine(len).run({"data": str(data)}, {}, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.programs
def test_a_server_that_freezes_before_it_has_registered_the_run_ends_it_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_calls, "BEGIN_SEC", 0.2)
    monkeypatch.setattr(reached_server, "ANSWER_WITHIN_SEC", 0.5)
    (tmp_path / "flow_code.py").write_text("def main(n):\n    return n\n")
    (tmp_path / "data.jsonl").write_text('{"n": 1}\n')
    began = time.monotonic()

    with (
        answering((200, b"[]", JSON), None),
        pytest.raises(PrefectServerError, match=r"does not answer within 0 s\. It hangs or is overloaded"),
    ):
        BatchEngine(f"{tmp_path / 'flow_code.py'}:main").run(
            {"data": str(tmp_path / "data.jsonl")}, {"n": "${data.n}"}, tmp_path / "out"
        )
    assert time.monotonic() - began < 30
    assert not (tmp_path / "out").exists(), "nothing has run"
