"""The window of work: never wider than it may be, never waiting when there is room."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_batchflow.run import window as window_module
from prefect_batchflow.run.window import Window

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """What async tests here run on, by anyio's own plugin."""
    return "asyncio"


class Work:
    """Pieces of work that end when they are told to."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.cancelled: list[int] = []
        self._gates: dict[int, asyncio.Future[None]] = {}

    def __call__(self, number: int) -> Any:
        async def piece() -> None:
            self.begun.append(number)
            gate = self._gates.setdefault(number, asyncio.get_running_loop().create_future())
            try:
                await gate
                self.ended.append(number)
            except asyncio.CancelledError:
                self.cancelled.append(number)
                raise

        return piece

    def end(self, number: int, error: BaseException | None = None) -> None:
        gate = self._gates[number]
        if error is None:
            gate.set_result(None)
        else:
            gate.set_exception(error)


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def begin_all(window: Window, work: Work, count: int) -> asyncio.Task[None]:
    async def begin() -> None:
        for number in range(count):
            await window.begin(work(number))

    task = asyncio.create_task(begin())
    await settle()
    return task


async def test_as_many_as_it_is_wide_run_and_the_next_begins_when_one_ends() -> None:
    window, work = Window(lambda: 2), Work()
    beginning = await begin_all(window, work, 4)
    assert work.begun == [0, 1]

    work.end(1)
    await settle()
    assert work.begun == [0, 1, 2]

    work.end(0)
    work.end(2)
    await beginning
    await settle()
    assert work.begun == [0, 1, 2, 3]
    work.end(3)
    await window.drain()
    assert sorted(work.ended) == [0, 1, 2, 3]


async def test_a_load_that_falls_makes_room_once_it_is_told() -> None:
    waiting = 0
    work = Work()
    window = Window(lambda: 2, lambda: len(work.begun) - len(work.ended) - waiting)
    beginning = asyncio.create_task(window.begin(work(0)))
    await settle()
    beginning = asyncio.create_task(window.begin(work(1)))
    await settle()
    beginning = asyncio.create_task(window.begin(work(2)))
    await settle()
    assert work.begun == [0, 1]

    waiting = 1
    await settle()
    assert work.begun == [0, 1], "nobody has said so"
    window.wake()
    await beginning
    await settle()
    assert work.begun == [0, 1, 2]

    for number in range(3):
        work.end(number)
    await window.drain()


async def test_an_error_stops_the_next_beginning_and_is_raised_there() -> None:
    window, work = Window(lambda: 1), Work()
    beginning = await begin_all(window, work, 3)

    work.end(0, ValueError("no"))

    with pytest.raises(ValueError, match="no"):
        await beginning
    assert work.begun == [0]
    with pytest.raises(ValueError, match="no"):
        await window.begin(work(9))


async def test_draining_waits_for_all_and_raises_the_first_error() -> None:
    window, work = Window(lambda: 3), Work()
    await begin_all(window, work, 3)
    draining = asyncio.create_task(window.drain())

    work.end(1, ValueError("first"))
    await settle()
    work.end(0, ValueError("second"))
    await settle()
    assert not draining.done()
    work.end(2)

    with pytest.raises(ValueError, match="first"):
        await draining
    assert work.ended == [2]


async def test_draining_an_empty_window_is_done() -> None:
    await Window(lambda: 1).drain()
    await Window(lambda: 1).end(0)


async def test_work_that_was_cancelled_from_outside_has_ended() -> None:
    window, work = Window(lambda: 1), Work()
    task: list[asyncio.Task[Any]] = []

    async def piece() -> None:
        task.append(asyncio.current_task())  # type: ignore[arg-type]
        await asyncio.Event().wait()

    await window.begin(piece)
    beginning = asyncio.create_task(window.begin(work(1)))
    await settle()
    task[0].cancel()
    await beginning
    await settle()

    assert work.begun == [1]
    work.end(1)
    await window.drain()


async def test_ending_lets_work_end_and_cancels_what_does_not() -> None:
    window, work = Window(lambda: 3), Work()
    await begin_all(window, work, 3)
    ending = asyncio.create_task(window.end(0.05))
    await settle()
    work.end(0)
    work.end(1, ValueError("not raised"))

    await ending

    assert work.ended == [0]
    assert work.cancelled == [2]


async def test_cancelled_work_may_keep_what_it_has_even_without_grace() -> None:
    window = Window(lambda: 1)
    kept = asyncio.Event()

    async def piece() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(lambda: None)
            kept.set()

    await window.begin(piece)
    await settle()
    await window.end(0)

    assert kept.is_set()


async def test_work_that_does_not_obey_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "CANCEL_WITHIN_SEC", 0.05)
    window, release = Window(lambda: 1), asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    await window.begin(stubborn)
    await settle()
    async with asyncio.timeout(10):
        await window.end(0)

    release.set()
    await window.drain()


async def test_an_error_that_nobody_asked_for_is_not_reported_as_lost() -> None:
    window, work = Window(lambda: 2), Work()
    await begin_all(window, work, 2)
    work.end(0, ValueError("one"))
    work.end(1, ValueError("two"))
    await window.end(1)
    await settle()

    assert work.begun == [0, 1]
