"""Branches of a line, two at once: on threads for sync code, as tasks of the event loop for async code.

A separate module, because most flows run one node after another and need neither threads nor asyncio.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from inspect import GEN_CREATED, getgeneratorstate
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_batchflow.execution.program.steps import Canceled, Handover, Raised

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from prefect_batchflow.execution.program.steps import Branch, Steps

    Outcomes = list[tuple[str, Any]]
    """Names of branches and their results, in the order in which they began."""

NODES_AT_ONCE = 2
"""How many nodes of a line run at once; other ready nodes wait for a place.

Source: promptflow `executor/_flow_nodes_scheduler.py`, `DEFAULT_CONCURRENCY_BULK`.
"""


_idle: list[ThreadPoolExecutor] = []
"""Pools of threads that no line uses. Starting two threads per line costs more than most nodes."""


class Begun(NamedTuple):
    """The branches of a line that moves from threads to an event loop."""

    outcomes: Outcomes
    """Results that the walk has not got yet, and a `Handover` for each branch that needs the loop."""
    branches: Mapping[str, Branch]
    """All branches that have begun, by name."""
    running: Mapping[Future[Any], Branch]
    """Those that still run on threads."""
    ending: bool
    """Whether the walk waits for the end of all."""


class Threads:
    """The branches of one line of a sync program, each driven by `drive`."""

    def __init__(self, drive: Callable[[Steps], Any]) -> None:
        self._drive = drive
        self._pool: ThreadPoolExecutor | None = None
        self._running: dict[Future[Any], Branch] = {}
        self._begun: dict[str, Branch] = {}

    def begin(self, branches: Sequence[Branch]) -> Outcomes:
        """Begin these, and wait until at least one of all is done. A single one runs in this thread."""
        self._begun.update({branch.name: branch for branch in branches})
        if len(branches) == 1 and not self._running:
            (branch,) = branches
            return [(branch.name, branch.context.run(self._drive, branch.steps))]
        if self._pool is None:
            self._pool = _pool()
        for branch in branches:
            self._running[self._pool.submit(branch.context.run, self._drive, branch.steps)] = branch
        wait(self._running, return_when=FIRST_COMPLETED)
        return self._take()

    def end(self) -> Outcomes:
        """Cancel those that have not begun, and wait for the others; nothing can interrupt a thread."""
        for future in [future for future in self._running if future.cancel()]:
            del self._running[future]
        wait(self._running)
        return self._take()

    def close(self) -> None:
        """Leave the threads to the next line if they are idle."""
        if self._pool is None:
            return
        if self._running:
            self._pool.shutdown(cancel_futures=True)
        else:
            _idle.append(self._pool)

    def release(self, outcomes: Outcomes, *, ending: bool) -> Begun:
        """Give the branches, one of which needs an event loop, to `Tasks.take_over`."""
        begun = Begun(outcomes, self._begun, self._running, ending)
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        return begun

    def _take(self) -> Outcomes:
        done = [future for future in self._running if future.done()]
        return [(self._running.pop(future).name, future.result()) for future in done]


def _pool() -> ThreadPoolExecutor:
    try:
        return _idle.pop()
    except IndexError:
        return ThreadPoolExecutor(NODES_AT_ONCE, "nodes")


class Tasks:
    """The branches of one line of an async program, each driven by `drive`."""

    def __init__(self, drive: Callable[[Steps, Handover | None], Awaitable[Any]]) -> None:
        self._drive = drive
        self._running: dict[asyncio.Task[Any], Branch] = {}
        self._places = asyncio.Semaphore(NODES_AT_ONCE)

    async def begin(self, branches: Sequence[Branch]) -> Outcomes:
        """Begin these, and wait until at least one of all is done."""
        loop = asyncio.get_running_loop()
        for branch in branches:
            self._running[loop.create_task(self._drive_in_place(branch), context=branch.context)] = branch
        await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        return self._take(canceled=False)

    async def take_over(self, begun: Begun) -> Outcomes:
        """Continue branches that threads have begun, and wait as the walk does; gives the results that are there."""
        outcomes: Outcomes = []
        loop = asyncio.get_running_loop()
        for name, outcome in begun.outcomes:
            if isinstance(outcome, Handover):
                self._running[self._continue(begun.branches[name], outcome)] = begun.branches[name]
            else:
                outcomes.append((name, outcome))
        for future, branch in begun.running.items():
            self._running[loop.create_task(self._end_of(future, branch))] = branch
        if begun.ending:
            return outcomes + await self.end()
        return outcomes or await self.begin(())

    async def end(self) -> Outcomes:
        """Cancel those that wait for a place or run on the event loop, and wait for all; nothing can interrupt a thread."""
        for task, branch in self._running.items():
            if branch.is_async or getgeneratorstate(branch.steps) == GEN_CREATED:
                task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        return self._take(canceled=True)

    async def abandon(self) -> None:
        """Cancel all, because nobody needs the line any more; the pool takes care of threads that still run."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        for task in self._running:
            if not task.cancelled():
                task.exception()  # otherwise asyncio logs an exception that was never retrieved

    async def _drive_in_place(self, branch: Branch) -> Any:
        async with self._places:
            return await self._drive(branch.steps, None)

    def _continue(self, branch: Branch, rest: Handover) -> asyncio.Task[Any]:
        branch.is_async = True

        async def drive() -> Any:
            return await self._drive(rest.steps, rest)

        return asyncio.get_running_loop().create_task(drive(), context=branch.context)

    async def _end_of(self, future: Future[Any], branch: Branch) -> Any:
        """The result of a branch that a thread runs, at least until it needs the loop."""
        outcome = await asyncio.wrap_future(future)
        return await self._continue(branch, outcome) if isinstance(outcome, Handover) else outcome

    def _take(self, *, canceled: bool) -> Outcomes:
        """Take the results of those that are done. One that was cancelled without `canceled` has cancelled itself: an error."""
        outcomes: Outcomes = []
        for task in [task for task in self._running if task.done()]:
            branch = self._running.pop(task)
            if not task.cancelled():
                outcomes.append((branch.name, task.result()))
                continue
            resume = partial(branch.steps.throw, Canceled())
            if not canceled:
                resume = partial(branch.steps.send, Raised(asyncio.CancelledError("it has cancelled its own task")))
            outcomes += _conclude(branch, resume)
        return outcomes


def _conclude(branch: Branch, resume: Callable[[], Any]) -> Outcomes:
    """Let a branch whose call was cancelled return its result; one that had not begun has none."""
    try:
        resume()
    except StopIteration as stop:
        return [(branch.name, stop.value)]
    except Canceled:
        pass
    return []
