"""Servers of every kind of run storage, real or made for tests, on 127.0.0.1: Azurite, an emulator of GCS, OpenSSH's SFTP."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

AZURITE = "BATCHFLOW_TEST_AZURITE"
"""In the environment: the folder where `npm install azurite` was run."""
ACCOUNT = "devstoreaccount1"
SSHD = "/usr/sbin/sshd"


@dataclass(frozen=True)
class Backend:
    """A storage on a server."""

    url: str
    """A folder in a new bucket."""
    options: dict[str, str] = field(default_factory=dict)
    """What a block's `storage_options` must say."""
    bad_options: dict[str, str] | None = None
    """The same with wrong credentials; `None` if the server asks for none."""
    missing_url: str = ""
    """A folder in a bucket that is not there; empty if folders are created as needed."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(words: list[str], folder: Path, port: int, env: dict[str, str] | None = None) -> Iterator[None]:
    """A server, from the time that its port answers until this is left."""
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, cwd=folder, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )

    def answers() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
        return False

    try:
        wait_until(answers, description=f"{words[0]} answers", timeout_sec=60)
        yield
    finally:
        process.kill()
        process.wait(30)


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Backend]:
    """Azure Blob Storage as Microsoft's emulator has it. Its key is made here."""
    installed = Path(os.environ[AZURITE], "node_modules", ".bin", "azurite-blob")
    node = shutil.which("node")
    assert node is not None, "node is not installed"
    port, key = _free_port(), base64.b64encode(os.urandom(64)).decode()
    words = [node, str(installed.resolve()), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    words += ["--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]

    def options(account_key: str) -> dict[str, str]:
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        parts = {"AccountName": ACCOUNT, "AccountKey": account_key, "BlobEndpoint": endpoint}
        text = ";".join(f"{name}={value}" for name, value in parts.items())
        return {"connection_string": f"DefaultEndpointsProtocol=http;{text};"}

    with _process(words, folder, port, {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"}):
        from azure.storage.blob import BlobServiceClient

        bucket = f"b-{uuid.uuid4().hex[:12]}"
        with BlobServiceClient.from_connection_string(options(key)["connection_string"]) as client:
            client.create_container(bucket)
        wrong = base64.b64encode(os.urandom(64)).decode()
        yield Backend(f"az://{bucket}/runs", options(key), options(wrong), "az://no-such-container/runs")


@contextlib.contextmanager
def gcs(folder: Path) -> Iterator[Backend]:
    """Google Cloud Storage as the package gcp-storage-emulator has it, which asks for no credentials."""
    port = _free_port()
    program = "import sys; from gcp_storage_emulator.__main__ import main; sys.exit(main())"
    words = [sys.executable, "-W", "ignore", "-c", program, "start", "--host", "127.0.0.1", "--port", str(port)]
    with _process([*words, "--in-memory"], folder, port):
        bucket = f"b-{uuid.uuid4().hex[:12]}"
        endpoint = f"http://127.0.0.1:{port}"
        httpx.post(f"{endpoint}/storage/v1/b?project=test", json={"name": bucket}).raise_for_status()
        options = {"endpoint_url": endpoint, "token": "anon", "project": "test"}
        yield Backend(f"gs://{bucket}/runs", options, None, "gs://no-such-bucket/runs")


@contextlib.contextmanager
def sftp(folder: Path) -> Iterator[Backend]:
    """OpenSSH's server with SFTP, for keys that are made here."""
    keygen = shutil.which("ssh-keygen")
    assert keygen is not None, "ssh-keygen is not installed"
    for name in ("host", "user", "stranger"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    port = _free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/authorized\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start without it
    user = Path(os.path.expanduser("~")).owner()  # noqa: PTH111
    with _process([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], folder, port):

        def options(name: str) -> dict[str, str]:
            given: dict[str, Any] = {"port": port, "username": user, "key_filename": str(folder / name)}
            return {**given, "allow_agent": False, "look_for_keys": False}

        yield Backend(f"sftp://127.0.0.1{folder}/storage/runs", options("user"), options("stranger"))
