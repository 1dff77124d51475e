"""One writer a run: who is refused, what is taken over, and from whom."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from waiting import eventually

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import BatchflowException, RunInUseError, StorageError
from prefect_batchflow.storage import lease as lease_module
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.lease import Lease, is_held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

GONE = 2**22 + 1
"""A process id beyond what Linux gives."""


@pytest.fixture(params=["local", "remote"])
def files(request: pytest.FixtureRequest) -> RunStorageBlock:
    block: RunStorageBlock = request.getfixturevalue(request.param)
    return block


async def lease_of(files: RunStorageBlock, keys: RunKeys) -> dict[str, Any]:
    lease = (await lease_module._newest(files, keys)).lease
    assert lease is not None
    return lease


async def forge(files: RunStorageBlock, keys: RunKeys, number: int = 1, **facts: Any) -> None:
    """Leave the lease of another engine of this process, but for `facts`."""
    lease = {"owner": "other", **lease_module.this_process(), "renewed_at": time.time(), "released": False, **facts}
    await files.write_path(keys.lease(number), json.dumps(lease).encode())


@contextmanager
def process(code: str, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, killed at the end of the block."""
    with subprocess.Popen([sys.executable, "-c", code], cwd=cwd) as started:
        try:
            yield started
        finally:
            started.kill()


class TestEveryStorage:
    async def test_a_second_engine_of_this_process_is_refused_by_name(
        self, files: RunStorageBlock, keys: RunKeys
    ) -> None:
        async with Lease(files, keys):
            with pytest.raises(
                RunInUseError, match=rf"'run-1' is already running by process {os.getpid()} on"
            ) as caught:
                async with Lease(files, keys):
                    pass
            assert caught.value.run_id == "run-1"  # type: ignore[attr-defined]
            async with Lease(files, RunKeys("run-2")):
                pass

    async def test_who_only_looks_sees_whether_it_is_held(self, files: RunStorageBlock, keys: RunKeys) -> None:
        assert not await is_held(files, keys)
        async with Lease(files, keys):
            assert await is_held(files, keys)
        assert not await is_held(files, keys)

    async def test_a_released_run_is_free(self, files: RunStorageBlock, keys: RunKeys) -> None:
        for _ in range(3):
            async with Lease(files, keys):
                pass

    async def test_a_run_that_failed_is_released(self, files: RunStorageBlock, keys: RunKeys) -> None:
        with pytest.raises(ZeroDivisionError):
            async with Lease(files, keys):
                _ = 1 / 0

        async with Lease(files, keys):
            pass

    async def test_a_refused_engine_leaves_the_lease_as_it_was(self, files: RunStorageBlock, keys: RunKeys) -> None:
        async with Lease(files, keys):
            before = await lease_of(files, keys)
            with pytest.raises(RunInUseError):
                async with Lease(files, keys):
                    pass

            assert await lease_of(files, keys) == before

    async def test_a_storage_that_cannot_be_written_is_told_before_anything_runs(
        self, files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class NoCredentialsError(Exception):
            """Remote file systems raise what is no OSError, too."""

        async def fail(self: RunStorageBlock, path: str, content: bytes) -> None:
            raise NoCredentialsError("who are you?")

        with monkeypatch.context() as broken:
            broken.setattr(RunStorageBlock, "write_path", fail)
            broken.setattr(RunStorageBlock, "create_path", fail)
            with pytest.raises(StorageError, match=r"\(NoCredentialsError\) who are you\?\. Nothing was run") as caught:
                async with Lease(files, keys):
                    pass
        assert files.location("run-1") in str(caught.value)
        async with Lease(files, keys):
            pass


class TestThisMachine:
    async def test_another_process_is_refused_until_it_dies_however_it_dies(
        self, local: RunStorageBlock, keys: RunKeys, tmp_path: Path
    ) -> None:
        script = f"""
import asyncio
from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.storage.keys import RunKeys
from prefect_batchflow.storage.lease import Lease, is_held

async def main():
    async with Lease(RunStorageBlock(url={local.url!r}), RunKeys("run-1")):
        open("held", "w").close()
        await asyncio.Event().wait()

asyncio.run(main())
"""
        with process(script, tmp_path) as holder:
            await eventually((tmp_path / "held").exists, description="the other process holds the run", timeout_sec=60)
            with pytest.raises(RunInUseError, match=f"process {holder.pid} "):
                async with Lease(local, keys):
                    pass

        async with Lease(local, keys):
            assert (await lease_of(local, keys))["pid"] == os.getpid()

    async def test_who_only_looks_keeps_nobody_out(self, local: RunStorageBlock, keys: RunKeys) -> None:
        path = local.local_path(keys.lock)
        assert path is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        looking = os.open(path, os.O_RDONLY | os.O_CREAT)
        fcntl.flock(looking, fcntl.LOCK_SH)
        asyncio.get_running_loop().call_later(0.1, os.close, looking)

        async with Lease(local, keys):
            assert await is_held(local, keys)

    async def test_a_living_process_keeps_its_run_though_its_lease_looks_stale(
        self, local: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease_module, "RENEW_EVERY_SEC", 0.02)
        async with Lease(local, keys) as held:
            await forge(local, keys, renewed_at=0, owner=held._owner)
            with pytest.raises(RunInUseError):
                async with Lease(local, keys):
                    pass

    async def test_a_folder_that_cannot_be_made_is_told(self, keys: RunKeys, tmp_path: Path) -> None:
        (tmp_path / "runs").write_text("a file is in the way")
        files = RunStorageBlock(url=str(tmp_path / "runs"))

        with pytest.raises(StorageError, match="Nothing was run") as caught:
            async with Lease(files, keys):
                pass

        assert str(tmp_path / "runs" / "run-1") in str(caught.value)


class TestElsewhere:
    @pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.s3)])
    def remote(self, request: pytest.FixtureRequest) -> RunStorageBlock:
        """Also a real object store, which takes its time."""
        place = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else request.getfixturevalue("bucket").url
        return RunStorageBlock(url=f"{place}/runs")

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lease_module, "WATCH_SEC", 0.2)

    @pytest.mark.parametrize(
        "facts",
        [
            {},
            {"host": "elsewhere", "boot_id": "another boot", "pid": GONE},
            {"pid_namespace": "pid:[1]", "pid": GONE},
        ],
        ids=["this process", "another machine", "another container, whose processes are not seen here"],
    )
    async def test_a_living_holder_is_respected(self, remote: RunStorageBlock, keys: RunKeys, facts: Any) -> None:
        await forge(remote, keys, **facts)

        with pytest.raises(RunInUseError):
            async with Lease(remote, keys):
                pass

    @pytest.mark.parametrize(
        "facts",
        [
            {"pid": GONE},
            {"start_ticks": "1"},
            {"released": True},
            {"boot_id": "another boot", "renewed_at": 0},
            {"boot_id": "another boot", "renewed_at": time.time() + 86_400},
            {"boot_id": "another boot", "renewed_at": time.time() - 86_400},
        ],
        ids=["dead", "its id came round again", "released", "stale", "a clock a day ahead", "a clock a day behind"],
    )
    async def test_what_a_dead_holder_left_is_taken_over(
        self, remote: RunStorageBlock, keys: RunKeys, facts: Any
    ) -> None:
        await forge(remote, keys, **facts)

        async with Lease(remote, keys):
            assert (await lease_of(remote, keys))["owner"] != "other"

    async def test_a_dead_holder_does_not_look_like_one_that_runs(self, remote: RunStorageBlock, keys: RunKeys) -> None:
        await forge(remote, keys, pid=GONE)
        assert not await is_held(remote, keys)

    async def test_a_holder_that_nobody_buried_is_dead(
        self, remote: RunStorageBlock, keys: RunKeys, tmp_path: Path
    ) -> None:
        with process("import time; time.sleep(600)", tmp_path) as zombie:
            _, start_ticks = lease_module._state_and_start(zombie.pid)
            await forge(remote, keys, pid=zombie.pid, start_ticks=start_ticks)
            with pytest.raises(RunInUseError):
                async with Lease(remote, keys):
                    pass
            os.kill(zombie.pid, signal.SIGKILL)
            await eventually(lambda: lease_module._state_and_start(zombie.pid)[0] == "Z", description="it is a zombie")

            async with Lease(remote, keys):
                pass

    @pytest.mark.parametrize("age_sec", [3600, -3600], ids=["old", "from the future"])
    async def test_a_lease_that_only_looks_dead_is_watched_first(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch, age_sec: float
    ) -> None:
        """The clocks of two machines are an hour apart, and the holder lives."""
        monkeypatch.setattr(lease_module, "WATCH_SEC", 60)
        facts: dict[str, Any] = {"boot_id": "another boot", "pid": 7, "host": "far"}
        await forge(remote, keys, **facts, renewed_at=time.time() - age_sec)
        watching = asyncio.Event()
        really_sleep = asyncio.sleep

        async def renewed_meanwhile(_: float) -> None:
            watching.set()
            await forge(remote, keys, **facts, renewed_at=time.time() - age_sec + 1)
            await really_sleep(0)

        monkeypatch.setattr(asyncio, "sleep", renewed_meanwhile)
        with pytest.raises(RunInUseError, match="by process 7 on far"):
            async with Lease(remote, keys):
                pass
        assert watching.is_set()

    async def test_of_two_that_write_at_once_one_is_refused(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        really_create = RunStorageBlock.create_path

        async def created_first(self: RunStorageBlock, path: str, content: bytes) -> None:
            await forge(remote, keys, host="far")
            await really_create(self, path, content)

        monkeypatch.setattr(RunStorageBlock, "create_path", created_first)

        with pytest.raises(RunInUseError, match=" on far"):
            async with Lease(remote, keys):
                pass
        assert (await lease_of(remote, keys))["owner"] == "other"

    async def test_of_many_that_begin_at_once_one_does(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        really_create, comparing = RunStorageBlock.create_path, asyncio.Lock()

        async def compared(self: RunStorageBlock, path: str, content: bytes) -> None:
            async with comparing:  # as a store does; those of the tests look first, and write then
                await really_create(self, path, content)

        monkeypatch.setattr(RunStorageBlock, "create_path", compared)
        over, begun = asyncio.Event(), 0

        async def begin() -> None:
            nonlocal begun
            async with Lease(remote, keys):
                begun += 1
                await over.wait()

        starts = [asyncio.create_task(begin()) for _ in range(10)]
        await eventually(lambda: sum(start.done() for start in starts) == 9, description="nine are refused")
        over.set()
        ends = await asyncio.gather(*starts, return_exceptions=True)

        assert begun == 1
        assert sorted(type(end).__name__ for end in ends) == ["NoneType"] + ["RunInUseError"] * 9

    async def test_a_store_that_does_not_compare_gives_the_run_to_who_wrote_last(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def written_over(self: RunStorageBlock, path: str, content: bytes) -> None:
            await self.write_path(path, json.dumps({**json.loads(content), "owner": "other"}).encode())

        monkeypatch.setattr(RunStorageBlock, "create_path", written_over)

        with pytest.raises(RunInUseError):
            async with Lease(remote, keys):
                pass

    async def test_a_store_that_refuses_to_compare_is_written_to_all_the_same(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = OSError(errno.ENOSYS, "NotImplemented: If-None-Match")
        monkeypatch.setattr(RunStorageBlock, "create_path", _failing(refused))

        async with Lease(remote, keys):
            assert (await lease_of(remote, keys))["pid"] == os.getpid()
            with pytest.raises(RunInUseError):
                async with Lease(remote, keys):
                    pass

    async def test_cannot_tell_is_not_free(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await forge(remote, keys, released=True)
        monkeypatch.setattr(RunStorageBlock, "read_path", _failing(PermissionError("403")))

        with pytest.raises(StorageError, match="PermissionError"):
            async with Lease(remote, keys):
                pass

    async def test_it_is_renewed_while_it_is_held_through_errors_of_any_kind(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease_module, "RENEW_EVERY_SEC", 0.005)
        lost: list[Exception] = []
        async with Lease(remote, keys, lost.append):
            first = await lease_of(remote, keys)
            failing = 0

            async def fail(self: RunStorageBlock, path: str) -> bytes:
                nonlocal failing
                failing += 1
                raise RuntimeError("no OSError")

            with monkeypatch.context() as broken:
                broken.setattr(RunStorageBlock, "read_path", fail)
                await eventually(lambda: failing >= 3, description="three renewals have failed")
            renewed: list[dict[str, Any]] = []
            really_write = RunStorageBlock.write_path

            async def counted(self: RunStorageBlock, path: str, content: bytes) -> None:
                renewed.append(json.loads(content))
                await really_write(self, path, content)

            monkeypatch.setattr(RunStorageBlock, "write_path", counted)
            await eventually(lambda: len(renewed) >= 2, description="it is renewed again")

        assert {lease["owner"] for lease in renewed} == {first["owner"]}
        assert first["renewed_at"] < renewed[0]["renewed_at"]
        assert lost == []
        assert renewed[-1]["released"] is True

    async def test_a_late_holder_is_told_and_leaves_the_new_one_alone(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It was stopped past its lease, another took over, and it wakes up."""
        monkeypatch.setattr(lease_module, "RENEW_EVERY_SEC", 0.005)
        lost: list[BatchflowException] = []
        async with Lease(remote, keys, lost.append):
            await forge(remote, keys, 2, pid=77, host="far", renewed_at=1.0)
            await eventually(lambda: lost, description="it is told")

        [error] = lost
        assert "taken over by process 77 on far" in str(error)
        assert (await lease_of(remote, keys))["renewed_at"] == 1.0
        assert (await lease_of(remote, keys))["released"] is False

    async def test_a_conditional_write_that_meets_another_is_tried_again(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """S3 answers 409 while another one's write of the same key goes on, which may fail."""
        monkeypatch.setattr(lease_module, "CREATE_AGAIN_SEC", 0.0)
        really_create, refusals = RunStorageBlock.create_path, 3

        async def meets(self: RunStorageBlock, path: str, content: bytes) -> None:
            nonlocal refusals
            refusals -= 1
            if refusals:
                raise OSError(errno.EIO, "ConditionalRequestConflict")
            await really_create(self, path, content)

        monkeypatch.setattr(RunStorageBlock, "create_path", meets)

        async with Lease(remote, keys):
            assert (await lease_of(remote, keys))["pid"] == os.getpid()

    async def test_one_that_meets_another_whose_write_has_ended_is_refused(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def meets(self: RunStorageBlock, path: str, content: bytes) -> None:
            await forge(remote, keys, host="far")
            raise OSError(errno.EIO, "ConditionalRequestConflict")

        monkeypatch.setattr(RunStorageBlock, "create_path", meets)

        with pytest.raises(RunInUseError, match=" on far"):
            async with Lease(remote, keys):
                pass
        assert (await lease_of(remote, keys))["owner"] == "other"

    async def test_who_lost_the_lease_to_one_of_the_same_number_does_not_release_it(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a store that does not compare both have written it, and the other one last."""
        monkeypatch.setattr(lease_module, "RENEW_EVERY_SEC", 0.005)
        lost: list[BatchflowException] = []
        async with Lease(remote, keys, lost.append):
            async with asyncio.timeout(60):
                while not lost:  # a renewal that was under way writes once more
                    await forge(remote, keys, host="far")
                    await asyncio.sleep(0.01)

        assert (await lease_of(remote, keys))["owner"] == "other"
        assert (await lease_of(remote, keys))["released"] is False


def _failing(error: Exception) -> Callable[..., Any]:
    async def fail(*_: Any) -> Any:
        raise error

    return fail
