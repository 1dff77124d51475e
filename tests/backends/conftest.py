"""The storages that the contract of backends runs on, each on a server of its own."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from backend_servers import AZURITE, SSHD, Backend, azurite, gcs, sftp
from s3_server import s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.contextmanager
def _s3(folder: Path) -> Iterator[Backend]:
    with s3_server(folder) as server, server.bucket() as bucket, s3_server(folder, checks_keys=True) as closed:
        options = {"key": "testing", "secret": "testing", "endpoint_url": server.endpoint}
        yield Backend(
            f"{bucket.url}/runs", options, {**options, "endpoint_url": closed.endpoint}, "s3://no-such-bucket/runs"
        )


@pytest.fixture(scope="module", params=["file", "memory", "s3", "azure", "gcs", "sftp"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A server of each kind; one that is not installed skips."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    if kind == "file":
        yield Backend(str(folder / "runs"))
    elif kind == "memory":
        yield Backend("memory://backends/runs")
    else:
        with pytest.MonkeyPatch.context() as patch:
            # On import, gcsfs would make ready to ask a server of Google for the kind of each bucket.
            patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            needs = {"s3": "moto", "azure": "adlfs", "gcs": "gcsfs", "sftp": "paramiko"}[kind]
            pytest.importorskip(needs, reason="pip install -c constraints.txt -e '.[test,backends-test]'")
            if kind == "azure" and AZURITE not in os.environ:
                pytest.skip(f"npm install azurite, and name its folder with {AZURITE}")
            if kind == "sftp" and not Path(SSHD).exists():
                pytest.skip("apt-get install openssh-server")
            with {"s3": _s3, "azure": azurite, "gcs": gcs, "sftp": sftp}[kind](folder) as backend:
                yield backend


@pytest.fixture
def backend(server: Backend) -> Backend:
    """A new folder on the server."""
    return Backend(f"{server.url}/{uuid.uuid4().hex[:8]}", server.options, server.bad_options, server.missing_url)
