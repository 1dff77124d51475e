"""What a run promises on every kind of storage: whole outputs, a resume that pays for nothing twice, one clear error."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from prefect.settings import PREFECT_API_URL
from pydantic import SecretStr

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.cli.commands import main

if TYPE_CHECKING:
    from pathlib import Path

    from backend_servers import Backend

pytestmark = [pytest.mark.backends, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(180)]

LINES = 24
FLOW = """
import os
from pathlib import Path

def main(n: int, folder: str) -> dict:
    fd = os.open(f"{folder}/begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{n}\\n".encode())
    os.close(fd)
    if n == 17 and not Path(folder, "mended").exists():
        raise ValueError("not yet")
    return {"square": n * n}
"""
ERROR_WITHIN_SEC = 60.0


def block_of(backend: Backend, *, url: str = "", options: dict[str, str] | None = None) -> str:
    """Save a block for a storage, and give its name."""
    name = f"backend-{uuid.uuid4().hex[:12]}"
    given = backend.options if options is None else options
    RunStorageBlock(
        url=url or backend.url, storage_options={key: SecretStr(str(value)) for key, value in given.items()}
    ).save(name)
    return f"batchflow-run-storage/{name}"


class Run:
    """One run on a storage, started as often as a test likes."""

    def __init__(self, folder: Path, storage: str) -> None:
        self.folder = folder
        self.storage = storage
        (folder / "flow.py").write_text(FLOW)
        rows = [{"n": n, "folder": str(folder)} for n in range(LINES)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    @property
    def words(self) -> list[str]:
        words = ["run", f"{self.folder / 'flow.py'}:main", "--data", str(self.folder / "rows.jsonl"), "--run-id", "r1"]
        return [*words, "--storage", self.storage, "--workers", "2", "--output-dir", str(self.folder / "out")]

    def start(self, *options: str) -> int:
        return main([*self.words, *options])

    def begun(self) -> Counter[int]:
        path = self.folder / "begun"
        return Counter(map(int, path.read_text().split())) if path.exists() else Counter()

    def outputs(self) -> list[dict[str, int]]:
        return [json.loads(row) for row in (self.folder / "out" / "output.jsonl").read_text().splitlines()]


WHOLE = [{"line_number": n, "square": n * n} for n in range(LINES)]


@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_a_run_that_stopped_is_resumed_and_pays_for_no_completed_line_again(
    backend: Backend, tmp_path: Path, granularity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, block_of(backend))

    stopped = run.start("--granularity", granularity, "--max-failures", "1")
    done = {row["line_number"] for row in run.outputs()}
    (tmp_path / "mended").touch()
    resumed = run.start("--granularity", granularity)
    again = run.start("--granularity", granularity)
    listed = main(["list", "--storage", run.storage])

    assert stopped == 1
    assert (resumed, again, listed) == (0, 0, 0)
    assert run.outputs() == WHOLE
    assert [n for n in done if run.begun()[n] > 1] == []
    assert "r1" in capsys.readouterr().out


@pytest.mark.anyio
# The stores' packages hand large parts to aiohttp as bytes; aiohttp says that this may take a while.
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
async def test_files_are_written_read_listed_and_deleted_alike(backend: Backend, tmp_path: Path) -> None:
    files = RunStorageBlock(
        url=backend.url, storage_options={name: SecretStr(str(value)) for name, value in backend.options.items()}
    )
    (tmp_path / "large").write_bytes(large := b"0123456789" * 700_000)

    assert await files.list_names("r1/records") == []
    with pytest.raises(FileNotFoundError):
        await files.read_path("r1/records/a.json")
    await files.write_path("r1/records/a.json", b"first")
    await files.write_path("r1/records/a.json", b"second")
    await files.create_path("r1/records/b.json", b"created")
    await files.put_file("r1/large", tmp_path / "large")
    await files.get_file("r1/large", tmp_path / "back")

    assert await files.read_path("r1/records/a.json") == b"second"
    assert await files.read_path("r1/records/b.json") == b"created"
    assert (tmp_path / "back").read_bytes() == large
    assert await files.list_names("r1/records") == ["a.json", "b.json"]
    assert await files.list_names("r1") == ["large", "records"]
    await files.delete_path("r1/records/a.json")
    await files.delete_path("r1/records/a.json")
    assert await files.list_names("r1/records") == ["b.json"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "server", ["file", "memory", "s3", "azure", "sftp"], indirect=True
)  # GCS's emulator has no conditions
async def test_a_new_key_has_one_writer(backend: Backend) -> None:
    files = RunStorageBlock(
        url=backend.url, storage_options={name: SecretStr(str(value)) for name, value in backend.options.items()}
    )
    await files.create_path("r1/lease", b"first")
    with pytest.raises(FileExistsError):
        await files.create_path("r1/lease", b"second")
    assert await files.read_path("r1/lease") == b"first"


@pytest.mark.parametrize("spoil", [lambda content: content[:-40], lambda content: b""], ids=["cut", "emptied"])
def test_a_damaged_record_is_found_and_only_its_lines_run_again(
    backend: Backend, tmp_path: Path, spoil: object, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mended").touch()
    run = Run(tmp_path, block_of(backend))
    assert run.start("--granularity", "line") == 0

    async def damage() -> str:
        files = RunStorageBlock(
            url=backend.url, storage_options={name: SecretStr(str(value)) for name, value in backend.options.items()}
        )
        name = next(name for name in await files.list_names("r1/records") if name.endswith(".jsonl"))
        key = f"r1/records/{name}"
        await files.write_path(key, spoil(await files.read_path(key)))  # type: ignore[operator]
        return name

    first, last, *_ = map(int, asyncio.run(damage()).split("-")[:2])
    before = run.begun()
    capsys.readouterr()

    status = run.start("--granularity", "line")

    assert status == 0
    assert run.outputs() == WHOLE
    again = run.begun() - before
    assert again == Counter(range(first, last + 1))


@pytest.mark.parametrize("server", ["s3", "azure", "gcs"], indirect=True)
@pytest.mark.parametrize("command", ["run", "resume", "show", "list"])
def test_a_bucket_that_is_not_there_is_one_clear_error_before_the_first_line(
    backend: Backend, tmp_path: Path, command: str
) -> None:
    _refused(Run(tmp_path, block_of(backend, url=backend.missing_url)), command, backend.missing_url)


@pytest.mark.parametrize("server", ["s3", "azure", "sftp"], indirect=True)
@pytest.mark.parametrize("command", ["run", "resume", "show", "list"])
def test_wrong_credentials_are_one_clear_error_before_the_first_line(
    backend: Backend, tmp_path: Path, command: str
) -> None:
    assert backend.bad_options is not None
    _refused(Run(tmp_path, block_of(backend, options=backend.bad_options)), command, backend.url)


def _refused(run: Run, command: str, place: str) -> None:
    words = (
        run.words if command == "run" else [command, *(["r1"] if command != "list" else []), "--storage", run.storage]
    )
    began = time.monotonic()

    ended = subprocess.run(
        [sys.executable, "-m", "prefect_batchflow.cli", *words],
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), "COLUMNS": "200"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip

    assert ended.returncode in (1, 2)
    assert ended.stderr.count("Error: ") == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert place in ended.stderr
    assert run.begun() == Counter()
    assert time.monotonic() - began < ERROR_WITHIN_SEC
