"""Runs whose data and storage are on S3: started, killed, resumed, listed, refused, as a user does it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from faulted_run import FaultedRun
from prefect.settings import PREFECT_API_URL
from pydantic import SecretStr
from s3_server import KEYS, s3_server
from waiting import wait_until

from prefect_batchflow import BatchEngine
from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.cli.commands import main
from prefect_batchflow.inputs.readers import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3_server import Bucket, S3Server

ROOT = Path(__file__).parent.parent.parent
TRIAGE = ROOT / "flows" / "ticket_triage"

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(180)]


class S3Run(FaultedRun):
    """A run that is kept in a bucket.

    Args:
        folder: A folder of its own, for its data and its witness.
        faults: What each line does.
        options: Further words of the command line.
        bucket: Where it is kept.
    """

    def __init__(self, folder: Path, faults: list[str], *options: str, bucket: Bucket) -> None:
        super().__init__(folder, faults, *options, storage=f"{bucket.url}/runs")
        self._bucket = bucket

    def text(self, name: str) -> str | None:
        key = f"runs/{self.run_id}/{name}"
        return self._bucket.text(key) if key in self._bucket.keys(key) else None

    def segments(self) -> list[str]:
        folder = f"runs/{self.run_id}/"
        return [key.removeprefix(folder) for key in self._bucket.keys(f"{folder}records/")]

    def fetch(self) -> None:
        self._bucket.download(f"runs/{self.run_id}/", self.run)


def batchflow(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end; by itself it ends, and says nothing of what it left open."""
    env = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), "COLUMNS": "200", **environment}
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-m", "prefect_batchflow.cli", *words],
        env=env, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    for complaint in ("Traceback", "nclosed client", "nclosed connector", "was never retrieved", "never awaited"):
        assert complaint not in done.stderr, done.stderr
    return done


def test_a_run_with_data_and_storage_on_s3_is_whole_and_found_again(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bucket.put("rows.jsonl", (TRIAGE / "tickets.jsonl").read_text())
    storage = f"{bucket.url}/runs"
    copies = tmp_path / "copies"

    run = batchflow(
        "run", str(TRIAGE), "--data", data, "--storage", storage, "--run-id", "r1", "--output-dir", str(copies)
    )
    again = batchflow("resume", "r1", "--storage", storage, "--json")
    assert main(["list", "--storage", storage]) == main(["show", "r1", "--storage", storage]) == 0
    shown = capsys.readouterr().out

    assert run.returncode == 0, run.stderr
    assert "136 of 136 lines completed" in run.stdout
    assert f"{storage}/r1/outputs.jsonl" in run.stdout
    outputs = bucket.text("runs/r1/outputs.jsonl")
    assert [json.loads(line)["line_number"] for line in outputs.splitlines()] == list(range(136))
    assert (copies / "output.jsonl").read_text() == outputs
    assert json.loads(bucket.text("runs/r1/leases/000001.json"))["released"] is True
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["result"]["completed_lines"] == 136
    assert re.search("r1 +ticket_triage +Completed +136", shown)
    assert "accuracy" in shown


@pytest.mark.parametrize("granularity", ["line", "chunk"])
def test_a_run_that_is_killed_loses_nothing_that_was_kept(bucket: Bucket, tmp_path: Path, granularity: str) -> None:
    faults = [""] * 40
    faults[17] = faults[21] = "wait"
    run = S3Run(tmp_path, faults, "--granularity", granularity, bucket=bucket)
    process = run.start()
    wait_until(lambda: run.held() == 2 or process.poll() is not None, description="two lines wait", timeout_sec=90)
    assert process.poll() is None, (tmp_path / "log").read_text()

    process.kill()
    process.wait(30)

    run.check_invariants()


def test_a_second_start_of_a_running_run_is_refused(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = S3Run(tmp_path, ["wait", "", ""], bucket=bucket)
    first = run.start()
    wait_until(lambda: run.held() == 1 or first.poll() is not None, description="a line waits", timeout_sec=90)

    try:
        refused = run.ended(run.start())
        listed = main(["list", "--storage", f"{bucket.url}/runs"])
    finally:
        (tmp_path / "go").touch()
        status = run.ended(first)

    assert refused == 2
    assert f"is already running by process {first.pid}" in (tmp_path / "log").read_text()
    assert listed == 0
    assert "Running" in capsys.readouterr().out
    assert status == 0, (tmp_path / "log").read_text()
    assert len(run.begun()) == 3


class TestWrongUse:
    @pytest.fixture
    def error(self, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        """Type a command that ends with one paragraph about what is wrong, and give it."""

        def call(*words: str, status: int = 1) -> str:
            capsys.readouterr()
            assert main(words) == status
            said = capsys.readouterr().err
            assert "Traceback" not in said
            assert "\nError: " in f"\n{said}"
            return f"\n{said}".rpartition("\nError: ")[2]

        return call

    @pytest.fixture
    def closed(self, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """The environment names a server that lets nobody in."""
        from s3fs import S3FileSystem  # the module is collected where it is not installed

        with s3_server(tmp_path, checks_keys=True) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
            # fsspec keeps file systems by what they were asked for with, which the environment is not.
            S3FileSystem.clear_instance_cache()
            yield
            S3FileSystem.clear_instance_cache()

    @pytest.mark.parametrize("command", ["run", "resume", "show", "list"])
    def test_a_bucket_that_is_not_there_is_told(self, s3: S3Server, error: Callable[..., str], command: str) -> None:
        storage = "s3://no-such-bucket/runs"

        said = error(*_words(command), "--storage", storage)

        assert f"the run storage at {storage}" in said
        assert "bucket does not exist. " in said
        assert "--storage or BATCHFLOW_STORAGE" in said

    @pytest.mark.usefixtures("closed")
    def test_keys_that_are_refused_are_told(self, error: Callable[..., str], tmp_path: Path) -> None:
        storage = "s3://bucket/runs"
        for command in ("run", "resume", "show", "list"):
            said = error(*_words(command), "--storage", storage)

            assert f"the run storage at {storage}" in said
            assert "(PermissionError)" in said
            assert ".." not in said
            assert "--storage or BATCHFLOW_STORAGE" in said

        said = error(
            "run", str(TRIAGE), "--data", "s3://bucket/rows.jsonl", "--storage", str(tmp_path / "runs"), status=2
        )

        assert "s3://bucket/rows.jsonl cannot be read: PermissionError" in said
        assert not list(tmp_path.glob("runs/*"))

    @pytest.mark.parametrize("bucket_name", ["no-such-bucket", None], ids=["no bucket", "no key"])
    def test_data_that_is_not_there_is_told_and_nothing_is_written(
        self, bucket: Bucket, error: Callable[..., str], bucket_name: str | None
    ) -> None:
        data = f"s3://{bucket_name or bucket.name}/rows.jsonl"

        said = error("run", str(TRIAGE), "--data", data, "--storage", f"{bucket.url}/runs", status=2)

        assert f"{data} not found" in said
        assert bucket.keys() == []


def _words(command: str) -> list[str]:
    if command == "run":
        return ["run", str(TRIAGE), "--data", str(TRIAGE / "tickets.jsonl")]
    return [command] if command == "list" else [command, "r1"]


def test_a_saved_block_brings_the_keys_of_the_storage(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    for name in (*KEYS, "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    options = {"key": "testing", "secret": "canary-of-a-secret", "endpoint_url": bucket.server.endpoint}
    block = RunStorageBlock(
        url=f"{bucket.url}/runs", storage_options={name: SecretStr(text) for name, text in options.items()}
    )
    block.save("on-s3", overwrite=True)
    flow = tmp_path / "double.py"
    flow.write_text("def main(n: int) -> dict:\n    return {'double': 2 * n}\n")

    result = BatchEngine(f"{flow}:main", run_storage_url="batchflow-run-storage/on-s3").run(
        {"data": str(tmp_path / "rows.jsonl")}, {"n": "${data.n}"}, run_id="of-a-block"
    )
    shown = main(["show", "of-a-block", "--storage", "batchflow-run-storage/on-s3"])

    assert result.completed_lines == 2
    assert shown == 0
    assert "2 of 2 lines completed" in capsys.readouterr().out
    assert bucket.text("runs/of-a-block/outputs.jsonl").splitlines() == [
        '{"line_number": 0, "double": 2}',
        '{"line_number": 1, "double": 4}',
    ]
    for key in bucket.keys("runs/of-a-block/"):
        assert "canary-of-a-secret" not in bucket.text(key)


class TestWhatOthersWrote:
    """s3fs remembers listings for as long as a process lives, and looks keys up in them."""

    @pytest.mark.anyio
    async def test_a_key_beside_those_that_were_listed_is_found(self, bucket: Bucket) -> None:
        files = RunStorageBlock(url=f"{bucket.url}/runs")
        await files.write_path("r1/manifest.json", b"{}")
        assert await files.list_names("r1/records") == []
        assert await files.list_names("r1") == ["manifest.json"]

        bucket.put("runs/r1/control.json", "{}")

        assert await files.read_path("r1/control.json") == b"{}"
        assert await files.list_names("r1") == ["control.json", "manifest.json"]

    def test_data_is_looked_for_anew_each_time(self, bucket: Bucket) -> None:
        bucket.put("rows/a.jsonl", '{"n": 1}\n')
        folder = f"{bucket.url}/rows"

        def read(url: str) -> list[object]:
            return [row.values["n"] for row in open_source(url, name="data").rows()]

        assert read(folder) == [1]
        bucket.put("rows/a.jsonl", '{"n": 1}\n{"n": 2}\n')
        bucket.put("rows/b.jsonl", '{"n": 3}\n')

        assert read(folder) == [1, 2, 3]
        assert read(f"{folder}/*.jsonl") == [1, 2, 3]
        assert read(f"{folder}/b.jsonl") == [3]

    @pytest.mark.anyio
    async def test_more_names_than_a_page_are_listed(self, bucket: Bucket) -> None:
        for number in range(1_001):
            bucket.put(f"runs/r1/records/{number:04d}", "")

        names = await RunStorageBlock(url=f"{bucket.url}/runs").list_names("r1/records")

        assert names == [f"{number:04d}" for number in range(1_001)]
