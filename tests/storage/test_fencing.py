"""Leases that errors leave behind, lock files that people remove, clocks that jump, and writers that wake up late."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from scripted_storage import Script, keep, kept, scripted
from waiting import eventually

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import RunInUseError, StorageError
from prefect_batchflow.storage import lease as lease_module
from prefect_batchflow.storage import retries
from prefect_batchflow.storage.file_lock import FileLock
from prefect_batchflow.storage.lease import Lease, is_held

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefect_batchflow.storage.keys import RunKeys

pytestmark = pytest.mark.anyio

DAY = 86_400.0


@pytest.fixture(params=["local", "remote"])
def files(request: pytest.FixtureRequest) -> RunStorageBlock:
    block: RunStorageBlock = request.getfixturevalue(request.param)
    return block


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WATCH_SEC": 0.1, "RENEW_EVERY_SEC": 0.02, "ABSENT_AGAIN_SEC": 0.0}.items():
        monkeypatch.setattr(lease_module, name, value)


async def newest(files: RunStorageBlock, keys: RunKeys) -> tuple[int, dict[str, Any]]:
    seen = await lease_module._newest(files, keys)
    assert seen.lease is not None
    return seen.number, seen.lease


async def forge(files: RunStorageBlock, keys: RunKeys, number: int = 1, **facts: Any) -> None:
    """Leave the lease of another process of this machine's next boot, but for `facts`."""
    here = {**lease_module.this_process(), "boot_id": "another boot", "host": "far"}
    lease = {"owner": "other", **here, "renewed_at": time.time(), "released": False, **facts}
    await files.write_path(keys.lease(number), json.dumps(lease).encode())


def lock_of(files: RunStorageBlock, keys: RunKeys) -> Path:
    path = files.local_path(keys.lock)
    assert path is not None
    return path


async def taken(files: RunStorageBlock, keys: RunKeys) -> int:
    """Take the run and give it back; the fencing number."""
    async with Lease(files, keys) as lease:
        return lease.number


class TestLeftBehind:
    """An error or a cancel at any call of entry or release locks nobody out, least of all the same process."""

    @pytest.mark.parametrize("call", ["list_names", "read_path", "write_path", "create_path"])
    @pytest.mark.parametrize("when", ["before", "after"], ids=["not done", "done, and the answer is lost"])
    @pytest.mark.parametrize("error", [OSError("time-out"), asyncio.CancelledError()], ids=["error", "cancel"])
    @pytest.mark.parametrize("nth", [1, 3])
    async def test_a_lease_can_be_taken_again_at_once(
        self,
        files: RunStorageBlock,
        keys: RunKeys,
        monkeypatch: pytest.MonkeyPatch,
        call: str,
        when: str,
        error: BaseException,
        nth: int,
    ) -> None:
        monkeypatch.setattr(lease_module, "CREATE_AGAIN_SEC", 0.0)
        monkeypatch.setattr(lease_module, "RENEW_EVERY_SEC", 60)
        really, calls = getattr(RunStorageBlock, call), 0

        async def fails(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if when == "before" and calls >= nth:
                raise error
            done = await really(*arguments)
            if calls >= nth:
                raise error
            return done

        with monkeypatch.context() as broken:
            broken.setattr(RunStorageBlock, call, fails)
            try:
                async with Lease(files, keys):
                    pass
            except (StorageError, RunInUseError, asyncio.CancelledError):
                pass

        assert not await is_held(files, keys)
        await taken(files, keys)

    async def test_a_cancel_during_the_release_gives_the_lock_back(
        self, local: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        never = asyncio.Event()

        async def hold() -> None:
            async with Lease(local, keys):
                monkeypatch.setattr(Lease, "_release", lambda _: never.wait())
                holding.set()

        holding = asyncio.Event()
        task = asyncio.create_task(hold())
        await holding.wait()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        monkeypatch.undo()

        await taken(local, keys)

    async def test_a_forked_child_does_not_keep_the_lock(self, local: RunStorageBlock, keys: RunKeys) -> None:
        """flock belongs to the open file, which a child shares."""
        async with Lease(local, keys) as lease:
            assert lease._lock is not None
            assert lease._lock._fd is not None
            inherited = os.dup(lease._lock._fd)
        try:
            await taken(local, keys)
        finally:
            os.close(inherited)

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"null", b"[]", b"{}", b'{"owner": "oth', b"\xff\xfe", b'{"owner": 1, "pid": "x", "released": 0}'],
        ids=["empty", "torn", "null", "a list", "no facts", "half", "no text", "other types"],
    )
    async def test_a_torn_lease_is_taken_over_without_a_person(
        self, files: RunStorageBlock, keys: RunKeys, content: bytes
    ) -> None:
        await forge(files, keys, 1, released=True)
        await files.write_path(keys.lease(2), content)

        assert not await is_held(files, keys)
        assert await taken(files, keys) == 3

    @pytest.mark.parametrize("content", [b"", b"{"], ids=["empty", "torn"])
    async def test_where_a_free_file_lock_proves_that_nobody_runs_a_torn_lease_is_not_watched(
        self, local: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch, content: bytes
    ) -> None:
        monkeypatch.setattr(lease_module, "WATCH_SEC", 600)
        await local.write_path(keys.lease(1), content)

        async with asyncio.timeout(20):
            assert await taken(local, keys) == 2

    async def test_a_torn_lease_of_a_living_holder_is_written_again_and_keeps_others_out(
        self, remote: RunStorageBlock, keys: RunKeys
    ) -> None:
        lost: list[Exception] = []
        async with Lease(remote, keys, lost.append) as lease:
            await remote.write_path(keys.lease(lease.number), b"")
            with pytest.raises(RunInUseError):
                await taken(remote, keys)
            await lease.check()
        assert lost == []

    async def test_a_foreign_lock_of_a_dead_holder_is_taken_over(self, local: RunStorageBlock, keys: RunKeys) -> None:
        """A forked child of the killed run still has its lock."""
        await forge(local, keys, **{**lease_module.this_process(), "pid": 2**22 + 1})
        path = lock_of(local, keys)
        with path.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)

            assert await taken(local, keys) == 2


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_lock_file_that_goes_while_it_is_locked_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Two processes would otherwise have the locks of two files of one name."""
    path, really_lock, left = tmp_path / "lock", fcntl.flock, [True]

    def locked(descriptor: int, operation: int) -> None:
        if left:
            left.clear()
            path.unlink()
            if how == "replaced":
                path.touch()
        really_lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", locked)
    first, second = FileLock(path), FileLock(path)
    try:
        assert first.take()
        assert first.inode == path.stat().st_ino
        assert not second.take()
    finally:
        first.release()
        second.release()


class TestRemoved:
    """A lock file, a lease or a folder that somebody removes or replaces lets no second process in."""

    @staticmethod
    def _remove_lock(run: Path) -> None:
        (run / "lock").unlink()

    @staticmethod
    def _replace_lock(run: Path) -> None:
        (run / "new").touch()
        (run / "new").replace(run / "lock")

    @staticmethod
    def _copy_back(run: Path) -> None:
        shutil.move(run, run.with_name("away"))
        shutil.copytree(run.with_name("away"), run)

    @pytest.mark.parametrize("renews", [True, False], ids=["after a renewal", "before a renewal"])
    @pytest.mark.parametrize("how", ["_remove_lock", "_replace_lock", "_copy_back"])
    async def test_the_second_is_refused_and_the_first_goes_on(
        self, local: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch, how: str, renews: bool
    ) -> None:
        if not renews:
            monkeypatch.setattr(lease_module, "RENEW_EVERY_SEC", 60)
        lost: list[Exception] = []
        async with Lease(local, keys, lost.append) as lease:
            getattr(self, how)(lock_of(local, keys).parent)
            if renews:
                before = lease._beats
                await eventually(lambda: lease._beats > before + 2, description="it was renewed")
            assert await is_held(local, keys)
            with pytest.raises(RunInUseError, match=f"process {os.getpid()} on"):
                await taken(local, keys)
            await lease.check()
        assert lost == []
        await taken(local, keys)

    @pytest.mark.parametrize("part", ["", "leases"], ids=["the run's folder", "its leases"])
    async def test_who_lost_its_lease_writes_nothing_more(
        self, local: RunStorageBlock, keys: RunKeys, part: str
    ) -> None:
        lost: list[Exception] = []
        async with Lease(local, keys, lost.append) as lease:
            run = lock_of(local, keys).parent
            shutil.rmtree(run / part)
            mine = local.fenced(lease.check)
            with pytest.raises(StorageError, match="removed or replaced the run's folder"):
                await mine.write_path(keys.outputs, b"late")
            assert await taken(local, keys) == 1, "the second one begins"
            with pytest.raises(StorageError):
                await mine.write_path(keys.outputs, b"late")
        assert len(lost) == 1
        assert not (run / "outputs.jsonl").exists()

    async def test_a_listing_that_is_late_ends_no_run(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def nothing_yet(*_: Any) -> list[str]:
            return []

        lost: list[Exception] = []
        async with Lease(remote, keys, lost.append) as lease:
            monkeypatch.setattr(RunStorageBlock, "list_names", nothing_yet)
            await lease.check()
        assert lost == []


class TestFence:
    """A process that wakes up after another one has taken its run over."""

    @pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
    def files(self, request: pytest.FixtureRequest) -> RunStorageBlock:
        if request.param == "local":
            return request.getfixturevalue("local")  # type: ignore[no-any-return]
        place = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else request.getfixturevalue("bucket").url
        return RunStorageBlock(url=f"{place}/runs")

    @pytest.mark.parametrize("write", ["write_path", "create_path", "put_file", "move", "delete_path", "delete_folder"])
    async def test_its_next_write_is_refused_and_changes_nothing(
        self, files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: str
    ) -> None:
        monkeypatch.setattr(lease_module, "_look_holds_sec", lambda: 0.0)  # its last look was long ago
        monkeypatch.setattr(lease_module, "RENEW_EVERY_SEC", 60)
        lost: list[Exception] = []
        async with Lease(files, keys, lost.append) as late:
            mine = files.fenced(late.check)
            await mine.write_path(keys.manifest, b"mine")
            await forge(files, keys, late.number + 1)
            source = tmp_path / "source"
            source.write_bytes(b"late")
            given: dict[str, list[Any]] = {
                "put_file": [keys.outputs, source],
                "move": [keys.manifest, keys.outputs],
                "delete_path": [keys.manifest],
                "delete_folder": [keys.run_id],
            }
            with pytest.raises(RunInUseError, match=r"taken over by process .* on far"):
                await getattr(mine, write)(*given.get(write, [keys.outputs, b"late"]))
            with pytest.raises(RunInUseError):
                await mine.check_writer()
        assert [type(error) for error in lost] == [RunInUseError]
        assert "outputs.jsonl" not in await files.list_names(keys.run_id)
        assert await files.read_path(keys.manifest) == b"mine"
        assert (await newest(files, keys))[1]["released"] is False, "the new holder's lease is as it was"

    async def test_the_number_grows_with_each_holder(self, files: RunStorageBlock, keys: RunKeys) -> None:
        numbers = [await taken(files, keys) for _ in range(3)]
        await forge(files, keys, 12, released=True)

        assert [*numbers, await taken(files, keys)] == [1, 2, 3, 13]

    async def test_a_stopped_holder_is_taken_over_and_a_renewing_one_never(
        self, files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease_module, "LEASE_EXPIRES_AFTER_SEC", 0.0)
        async with Lease(files, keys) as first:
            with pytest.raises(RunInUseError):
                await taken(files, keys)
            assert first._renewing is not None
            first._renewing.cancel()  # stopped

            second = await taken(files, keys)

            assert second == first.number + 1
            with pytest.raises(RunInUseError, match="taken over"):
                await first.check()

    async def test_the_refusal_says_who_since_when_and_until_when(self, files: RunStorageBlock, keys: RunKeys) -> None:
        await forge(files, keys, pid=77, since=time.time() - 5)
        with pytest.raises(RunInUseError) as caught:
            await taken(files, keys)

        said = str(caught.value)
        moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        assert caught.match(
            rf"by process 77 on far, since {moment}\. Its lease holds until {moment}\. A live process renews"
        ), said


class TestLooks:
    """On object stores a look holds for a while: at most as long as whoever takes the run over waits."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The time that a holder sees; a stopped process sees it jump."""
        now = [1000.0]
        monkeypatch.setattr(lease_module, "_now", lambda: now[0])
        monkeypatch.setattr(lease_module, "RENEW_EVERY_SEC", 60)
        monkeypatch.setattr(lease_module, "WATCH_SEC", 25.0)
        return now

    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        seen, really = list[str](), RunStorageBlock.list_names

        async def list_names(self: RunStorageBlock, folder: str) -> list[str]:
            seen.append(folder)
            return await really(self, folder)

        monkeypatch.setattr(RunStorageBlock, "list_names", list_names)
        return seen

    async def test_records_need_a_look_each_few_seconds_and_the_end_of_a_run_always_does(
        self, remote: RunStorageBlock, keys: RunKeys, clock: list[float], looks: list[str]
    ) -> None:
        async with Lease(remote, keys) as lease:
            mine = remote.fenced(lease.check)
            looks.clear()
            for number in range(20):
                await mine.write_path(keys.segment(str(number)), b"")
                clock[0] += 1.0
            assert len(looks) == 3
            looks.clear()
            for key in (keys.outputs, keys.batch_result, ""):
                await lease.check(key)
            assert len(looks) == 3

    async def test_on_a_local_disk_each_write_is_looked_for(
        self, local: RunStorageBlock, keys: RunKeys, clock: list[float], looks: list[str]
    ) -> None:
        async with Lease(local, keys) as lease:
            looks.clear()
            for number in range(3):
                await local.fenced(lease.check).write_path(keys.segment(str(number)), b"")
            assert len(looks) == 3

    async def test_a_store_without_conditional_writes_gets_a_look_for_each_write(
        self,
        remote: RunStorageBlock,
        keys: RunKeys,
        clock: list[float],
        looks: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        async def create_path(*_: Any) -> None:
            raise NotImplementedError

        monkeypatch.setattr(RunStorageBlock, "create_path", create_path)
        async with Lease(remote, keys) as lease:
            looks.clear()
            for number in range(3):
                await remote.fenced(lease.check).write_path(keys.segment(str(number)), b"")
            assert len(looks) == 3

    @pytest.mark.parametrize("slept", [5.0, 60.0, DAY])
    async def test_a_process_that_was_stopped_looks_before_its_next_record(
        self, remote: RunStorageBlock, keys: RunKeys, clock: list[float], slept: float
    ) -> None:
        async with Lease(remote, keys) as lease:
            await forge(remote, keys, lease.number + 1)
            clock[0] += slept
            with pytest.raises(RunInUseError, match="taken over"):
                await remote.fenced(lease.check).write_path(keys.segment("late"), b"")
        assert await remote.list_names(keys.records) == []

    async def test_a_look_counts_from_before_its_request(
        self, remote: RunStorageBlock, keys: RunKeys, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process can be stopped between the store's answer and its own next step."""
        really = Lease._newest_number

        async def stopped_after(self: Lease) -> int:
            number = await really(self)
            clock[0] += 60.0
            return number

        async with Lease(remote, keys) as lease:
            clock[0] += 60.0
            monkeypatch.setattr(Lease, "_newest_number", stopped_after)
            await lease.check(keys.segment("first"))
            monkeypatch.undo()
            await forge(remote, keys, lease.number + 1)
            with pytest.raises(RunInUseError):
                await lease.check(keys.segment("second"))

    async def test_each_further_try_of_a_write_is_looked_for(
        self, keys: RunKeys, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The wait before a try can be longer than a look holds."""
        monkeypatch.setattr(retries, "DELAYS_SEC", (0.0,) * 7)
        files = RunStorageBlock(url=f"scripted://{uuid.uuid4().hex}/runs")
        async with Lease(files, keys) as lease:
            really = lease.check

            async def check(key: str) -> None:
                await really(key)
                # Meanwhile the process is stopped, and another one takes the run over.
                clock[0] += 60.0
                root = files.url.partition("://")[2]
                keep(root, {**kept(root), f"/{root}/{keys.lease(lease.number + 1)}": b"{}"})

            with scripted(Script("503", 1, "write")) as script, pytest.raises(RunInUseError, match="taken over"):
                await files.fenced(check).write_path(keys.segment("late"), b"")
            assert script.struck.endswith("/late")
        assert await files.list_names(keys.records) == []

    async def test_who_takes_over_a_holder_that_is_perhaps_alive_waits_until_its_looks_hold_no_more(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease_module, "WATCH_SEC", 0.5)
        await forge(remote, keys, renewed_at=time.time() - DAY)
        created = 0.0
        really = RunStorageBlock.create_path

        async def create_path(self: RunStorageBlock, path: str, content: bytes) -> None:
            nonlocal created
            await really(self, path, content)
            created = time.monotonic()

        monkeypatch.setattr(RunStorageBlock, "create_path", create_path)
        async with Lease(remote, keys):
            assert time.monotonic() - created >= 0.5 / lease_module.LOOKS_PER_WATCH

    async def test_who_takes_a_released_run_does_not_wait(
        self, remote: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease_module, "WATCH_SEC", 10_000.0)
        assert [await taken(remote, keys), await taken(remote, keys)] == [1, 2]


class TestClock:
    """The wall clock jumps; what is taken over, and when, does not depend on it."""

    @pytest.fixture
    def wall(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        jump, really = 0.0, time.time

        def to(seconds: float) -> None:
            nonlocal jump
            jump = seconds

        monkeypatch.setattr(time, "time", lambda: really() + jump)
        return to

    @pytest.mark.parametrize("jump", [DAY, -DAY, 365 * DAY], ids=["a day on", "a day back", "a year on"])
    async def test_a_living_holder_keeps_its_run(
        self, files: RunStorageBlock, keys: RunKeys, wall: Callable[[float], None], jump: float
    ) -> None:
        lost: list[Exception] = []
        async with Lease(files, keys, lost.append) as lease:
            wall(jump)
            with pytest.raises(RunInUseError):
                await taken(files, keys)
            await lease.check()
        assert lost == []

    async def test_a_living_holder_keeps_its_run_while_the_clock_stands_still(
        self, files: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease_module, "LEASE_EXPIRES_AFTER_SEC", 0.0)
        monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
        async with Lease(files, keys):
            with pytest.raises(RunInUseError):
                await taken(files, keys)

    @pytest.mark.parametrize("jump", [DAY, -DAY], ids=["a day on", "a day back"])
    async def test_a_dead_holder_on_another_machine_is_no_endless_lease(
        self, files: RunStorageBlock, keys: RunKeys, wall: Callable[[float], None], jump: float
    ) -> None:
        await forge(files, keys)
        wall(jump)

        assert await taken(files, keys) == 2

    async def test_the_watch_takes_its_time_however_the_clock_jumps(
        self, remote: RunStorageBlock, keys: RunKeys, wall: Callable[[float], None]
    ) -> None:
        await forge(remote, keys, renewed_at=time.time() - DAY)
        watch = asyncio.create_task(taken(remote, keys))
        began = time.monotonic()
        while not watch.done():
            wall(9 * DAY if int(time.monotonic() * 100) % 2 else -9 * DAY)
            await asyncio.sleep(0.01)

        assert await watch == 2
        assert time.monotonic() - began >= lease_module.WATCH_SEC


async def test_a_lease_on_a_disk_without_file_locks_is_one_of_a_remote_storage(
    local: RunStorageBlock, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    async with Lease(local, keys):
        with pytest.raises(RunInUseError):
            await taken(local, keys)
    assert await taken(local, keys) == 2
