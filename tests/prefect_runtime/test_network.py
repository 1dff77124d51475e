"""Certificates and proxies of the environment: refused by name if no request survives them, never used for this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from prefect_batchflow.exceptions import InvalidOptionError
from prefect_batchflow.prefect_runtime.network import address_of, prepare_network, proxy_of

if TYPE_CHECKING:
    from pathlib import Path

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        # Set first, so that what the code under test sets is taken back.
        for spelling in (name, name.lower()):
            monkeypatch.setenv(spelling, "")
            monkeypatch.delenv(spelling)
    return monkeypatch


def is_asked_through_a_proxy(client: httpx.Client, url: str) -> bool:
    return client._transport_for_url(httpx.URL(url)) is not client._transport


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("excepted", ["", "example.com", "example.com, 127.0.0.1", "localhost"])
def test_requests_to_this_machine_ask_no_proxy(name: str, excepted: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv(name, "http://proxy.example:3128")
    if excepted:
        environment.setenv("NO_PROXY", excepted)
    prepare_network()
    with httpx.Client() as client:
        for host in ("127.0.0.1:8123", "localhost", "[::1]:4200"):
            assert not is_asked_through_a_proxy(client, f"http://{host}/api/health")
            assert proxy_of(f"http://{host}/api") == ""
        assert is_asked_through_a_proxy(client, "http://models.example/v1")
        assert is_asked_through_a_proxy(client, "http://example.com/") is ("example.com" not in excepted)
    assert proxy_of("http://models.example/v1") == " through the proxy http://proxy.example:3128"


def test_it_changes_the_environment_once_and_only_where_there_is_a_proxy(environment: pytest.MonkeyPatch) -> None:
    prepare_network()
    assert "NO_PROXY" not in os.environ
    environment.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    prepare_network()
    prepare_network()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "127.0.0.1,localhost,::1"


def test_an_exception_for_every_host_stays(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTP_PROXY", "http://proxy.example:3128")
    environment.setenv("NO_PROXY", "*")
    prepare_network()
    assert os.environ["NO_PROXY"] == "*"


@pytest.mark.parametrize("name", ["ALL_PROXY", "http_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize(
    ("proxy", "finding"),
    [
        ("socks5://someone:pa55word@proxy.example:1080", r"SOCKS proxy \(socks5://proxy.example:1080\).*pip install '"),
        ("socks5h://someone:pa55word@proxy.example:1080", "socksio is missing"),
        ("socks4://someone:pa55word@proxy.example:1080", r"no client can use \(socks4://proxy.example:1080\).*http://"),
        ("htp://someone:pa55word@proxy.example:1080", "no client can use"),
        ("http://someone:pa55word@proxy.example:port", "that is no URL"),
    ],
)  # fmt: skip
def test_a_proxy_that_no_client_can_use_is_refused_by_its_variable(
    name: str, proxy: str, finding: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(name, proxy)
    environment.setattr("prefect_batchflow.prefect_runtime.network.find_spec", lambda _name: None)
    with pytest.raises(InvalidOptionError, match=f"{name} has .*{finding}") as caught:
        prepare_network()
    assert "pa55word" not in str(caught.value)


def test_a_socks_proxy_with_its_package_is_taken(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ALL_PROXY", "socks5://proxy.example:1080")
    environment.setattr("prefect_batchflow.prefect_runtime.network.find_spec", lambda name: name)
    prepare_network()


def test_a_proxy_without_a_scheme_is_taken(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTP_PROXY", "proxy.example:3128")
    prepare_network()
    assert proxy_of("http://models.example/") == " through the proxy http://proxy.example:3128"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:p@host:80/path?q=1#f", "http://host:80"),
        ("host:80", "http://host:80"),
        ("http://host:x", "that is no URL"),
        ("postgresql+asyncpg://u:p@db.example:5432/prefect", "postgresql+asyncpg://db.example:5432"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert address_of(url) == shown


@pytest.mark.parametrize("content", [None, "", "no certificate"], ids=["missing", "empty", "other text"])
def test_a_wrong_certificate_file_is_refused_by_name(
    content: str | None, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "corporate.pem"
    if content is not None:
        file.write_text(content)
    environment.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(InvalidOptionError, match=r"SSL_CERT_FILE names '.*corporate\.pem', which") as caught:
        prepare_network()
    assert ("does not exist" in str(caught.value)) is (content is None)


@pytest.mark.parametrize(
    "door",
    [
        "from prefect_batchflow import BatchEngine",
        "from prefect_batchflow import batch_run",
        "from prefect_batchflow import OpenAIConnectionBlock",
        "import sys; from prefect_batchflow.cli.commands import main; sys.exit(main(['list']))",
        "import sys; from prefect_batchflow.cli.commands import main; sys.exit(main(['show', 'r']))",
    ],
)
def test_a_missing_certificate_file_has_one_error_at_each_door(door: str) -> None:
    """Prefect cannot be imported with it; the cause comes before Prefect's traceback."""
    environment = {**os.environ, "SSL_CERT_FILE": "missing.pem"}
    done = subprocess.run([sys.executable, "-c", door], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "SSL_CERT_FILE names 'missing.pem', which does not exist" in done.stderr
    assert "prefect/blocks" not in done.stderr
