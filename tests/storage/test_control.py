"""What tasks on a cluster are told through the run storage, and what they make of it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.blocks import RunStorageBlock
from prefect_batchflow.exceptions import StorageError
from prefect_batchflow.storage import control as control_module
from prefect_batchflow.storage.control import Driver, Follower, supersede
from prefect_batchflow.storage.keys import RunKeys

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

KEYS = RunKeys("r")


@pytest.fixture
def files(storage: Path) -> RunStorageBlock:
    return RunStorageBlock(url=str(storage))


def follower_of(driver: Driver, files: RunStorageBlock, session: int = 1) -> Follower:
    return Follower(files, KEYS, session, driver.owner)


class TestOrders:
    @pytest.mark.parametrize("order", ["drain", "stop"])
    async def test_a_task_sees_what_it_is_told(self, order: Any, files: RunStorageBlock) -> None:
        async with Driver(files, KEYS, 1) as driver:
            follower = follower_of(driver, files)
            assert await follower.look() == "run"
            await driver.tell(order)
            assert await follower.look() == order

    async def test_the_last_word_is_that_the_run_is_over(self, files: RunStorageBlock) -> None:
        async with Driver(files, KEYS, 1) as driver:
            pass
        assert await follower_of(driver, files).look() == "end"

    async def test_a_beat_that_is_being_written_does_not_come_after_the_last_word(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_module, "BEAT_EVERY_SEC", 0.0)
        write, slow = RunStorageBlock.write_path, asyncio.Event()

        async def slow_write(self: RunStorageBlock, path: str, content: bytes) -> None:
            beating = json.loads(content)["beats"] == 2
            if beating:
                slow.set()
                await asyncio.sleep(0)
            await write(self, path, content)

        monkeypatch.setattr(RunStorageBlock, "write_path", slow_write)
        async with Driver(files, KEYS, 1) as driver:
            await slow.wait()
        assert await follower_of(driver, files).look() == "end"


class TestLostRuns:
    async def test_a_later_start_of_the_run_supersedes_its_tasks(self, files: RunStorageBlock) -> None:
        async with Driver(files, KEYS, 1) as driver, Driver(files, KEYS, 2):
            assert await follower_of(driver, files).look() == "superseded"

    async def test_a_run_whose_process_is_gone_leaves_orphans(self, files: RunStorageBlock, storage: Path) -> None:
        async with Driver(files, KEYS, 1) as driver:
            follower = follower_of(driver, files)
            assert await follower.look() == "run"
            path = storage / KEYS.control
            path.write_text(json.dumps({**json.loads(path.read_text()), "start_ticks": "0"}))
            assert await follower.look() == "orphaned"

    async def test_so_does_one_on_another_machine_that_writes_no_more(
        self, files: RunStorageBlock, storage: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_module, "BEAT_EVERY_SEC", 1000.0)
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        async with Driver(files, KEYS, 1) as driver:
            follower = follower_of(driver, files)
            await follower.look()
            clock[0] = control_module.ORPHANED_AFTER_SEC
            assert await follower.look() == "run"
            clock[0] += 1
            assert await follower.look() == "orphaned"
            await driver.tell("run")
            assert await follower.look() == "run", "it only was away"

    async def test_a_storage_that_does_not_answer_for_a_while_is_borne(
        self, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*_: object) -> bytes:
            raise OSError("try again")

        async with Driver(files, KEYS, 1) as driver:
            follower = follower_of(driver, files)
            await follower.look()
            monkeypatch.setattr(RunStorageBlock, "read_path", fail)
            assert await follower.look() == "run"


class TestOtherStorages:
    async def test_a_machine_that_does_not_see_the_storage_says_so(
        self, files: RunStorageBlock, tmp_path: Path
    ) -> None:
        elsewhere = RunStorageBlock(url=str(tmp_path / "elsewhere"))
        async with Driver(files, KEYS, 1) as driver:
            with pytest.raises(StorageError, match=r"does not see the run's file.*there is no such file.*shared disk"):
                await follower_of(driver, elsewhere).look()

    async def test_a_folder_of_the_same_name_is_not_taken_for_it(self, files: RunStorageBlock) -> None:
        async with Driver(files, KEYS, 1):
            with pytest.raises(StorageError, match="another run's"):
                await follower_of(Driver(files, KEYS, 1), files).look()
            with pytest.raises(StorageError, match="another run's"):
                await follower_of(Driver(files, KEYS, 2), files, session=2).look()


class TestSupersede:
    async def test_nothing_to_supersede_is_fine(self, files: RunStorageBlock, storage: Path) -> None:
        await supersede(files, KEYS, 2)
        assert not (storage / KEYS.control).exists()

    @pytest.mark.parametrize("killed", [True, False], ids=["killed", "ended"])
    async def test_the_tasks_of_a_killed_start_are_given_time_to_end(
        self, killed: bool, files: RunStorageBlock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited: list[float] = []

        async def sleep(seconds: float) -> None:
            waited.append(seconds)

        driver = Driver(files, KEYS, 1)
        await driver.tell("run" if killed else "end")
        monkeypatch.setattr(asyncio, "sleep", sleep)

        await supersede(files, KEYS, 2)

        assert await follower_of(driver, files).look() == "superseded"
        assert bool(waited) is killed
