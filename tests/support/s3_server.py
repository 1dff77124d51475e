"""A real S3 server, moto's, as a process of its own, and buckets on it; what is in them is told by boto3, not by s3fs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
"""What the environment says to whoever comes with a key; made up."""


@dataclass(frozen=True)
class S3Server:
    """Where a server answers."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that uses it."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint}

    def client(self) -> Any:
        """boto3's; to be closed."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",  # noqa: S106 - made up
            region_name="us-east-1",
        )

    @contextlib.contextmanager
    def bucket(self) -> Iterator[Bucket]:
        """A new bucket."""
        with contextlib.closing(self.client()) as client:
            name = f"b-{uuid.uuid4().hex[:12]}"
            client.create_bucket(Bucket=name)
            yield Bucket(name, client, self)


@dataclass(frozen=True)
class Bucket:
    """One bucket, seen by somebody else than the package."""

    name: str
    client: Any
    server: S3Server

    @property
    def url(self) -> str:
        """As fsspec writes it."""
        return f"s3://{self.name}"

    def put(self, key: str, text: str) -> str:
        """Write a key and give its URL."""
        self.client.put_object(Bucket=self.name, Key=key, Body=text.encode())
        return f"{self.url}/{key}"

    def text(self, key: str) -> str:
        """What a key holds."""
        return str(self.client.get_object(Bucket=self.name, Key=key)["Body"].read().decode())

    def download(self, prefix: str, folder: Path) -> None:
        """Put all keys that begin so into a folder, which is made anew."""
        shutil.rmtree(folder, ignore_errors=True)
        for key in self.keys(prefix):
            path = folder / key.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.text(key))

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that begin so."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]


@contextlib.contextmanager
def s3_server(folder: Path, *, checks_keys: bool = False) -> Iterator[S3Server]:
    """A server on a free port of 127.0.0.1, ended when this is left.

    Args:
        folder: For its log.
        checks_keys: Whether it refuses keys that it does not know, which are all.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = S3Server(f"http://127.0.0.1:{port}")
    env = {**os.environ, **({"INITIAL_NO_AUTH_ACTION_COUNT": "0"} if checks_keys else {})}
    log = folder / "s3.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip

    def answers() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{server.endpoint}/moto-api/", timeout=5).is_success
        return False

    try:
        wait_until(answers, description="the S3 server answers")
        yield server
    finally:
        process.kill()
        process.wait(30)
