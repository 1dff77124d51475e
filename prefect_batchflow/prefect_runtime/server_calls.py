"""The calls of a run's Prefect engine to its server. Each has a bound; Prefect alone would try for minutes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import re
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import httpx
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_batchflow.exceptions import PrefectServerError
from prefect_batchflow.prefect_runtime.gone_server import server_answers
from prefect_batchflow.prefect_runtime.own_server import has_own_server
from prefect_batchflow.prefect_runtime.reached_server import BUSY_FOR_SEC, cause_of, check_server, name_of_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from prefect.client.orchestration import PrefectClient

BEGIN_SEC = 10.0
"""How long the server may take for one answer before the first line, until it is asked whether it still answers."""
MOST_TRIES: Final = 3
"""How often a call before the first line is made while the server answers other questions."""
LAST_STATE_SEC = 8.0
"""How long to try to tell the server the last state of a run."""
_TRY_AGAIN_AFTER_SEC: Final = 0.5

_FINAL: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})
_FLOW_RUN = re.compile(r"/flow_runs/([0-9a-f-]{36})(/set_state)?$")
_PASSES: Final = frozenset({408, 409, 423, 425, 429})
"""Refusals that can pass, besides all 5xx."""

_is_inner: contextvars.ContextVar[bool] = contextvars.ContextVar("is_inner", default=False)


@dataclass(frozen=True, slots=True)
class Untold:
    """A last state that the server does not know."""

    flow_run_id: str
    state: str
    """Its type, such as `COMPLETED`."""
    cause: str
    """A sentence without its full stop."""
    is_unknown: bool = False
    """Whether the server says that it has no such flow run."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the calls of a run need to know of it."""

    has_begun: Callable[[], bool]
    """Whether lines have begun."""
    say: Callable[[str], None]
    """Gets one sentence if the run waits for a busy server."""
    on_untold: Callable[[Untold], None]
    """Called with the last state that could not be told."""


@contextlib.asynccontextmanager
async def bounded_clients(bounds: Bounds) -> AsyncIterator[None]:
    """One client of each kind for a Prefect flow that is called in the block, and for all that the flow asks the server.

    Prefect would make several, each of which loads the certificates anew, for about 20 ms, and has a connection of its own.

    The calls have bounds. Before the first line, a call ends with the cause if the server has stopped answering. During the
    lines, callers have limits of their own. The last state is tried for `LAST_STATE_SEC`, then the flow ends as if the server
    had it.
    """
    context = AsyncClientContext()
    _ServerCalls(context.client, bounds, raises=False)
    async with context:
        with SyncClientContext.get_or_create():
            yield


def bounds_current_client(bounds: Bounds) -> None:
    """Give bounds to the client of the Prefect flow that calls this.

    A last state that cannot be told raises an error: the process that Prefect started must not end as if all was well.
    """
    context = AsyncClientContext.get()
    assert context is not None, "call it inside a Prefect flow only"
    _ServerCalls(context.client, bounds, raises=True)


class _ServerCalls:
    """Takes the place of a client's `send`, until the client is closed."""

    def __init__(self, client: PrefectClient, bounds: Bounds, *, raises: bool) -> None:
        http = client._client
        self._send = http.send
        self._bounds = bounds
        self._raises = raises
        self._deadline: float | None = None
        http.send = self._bounded  # type: ignore[method-assign] # Prefect has no other place between engine and server

    async def _bounded(self, request: httpx.Request, *args: Any, **kwargs: Any) -> httpx.Response:
        if _is_inner.get():  # a part of another call
            return await self._send(request, *args, **kwargs)
        token = _is_inner.set(True)
        try:
            if (last := _last_state(request)) is not None:
                return await self._tell(request, *last)
            if self._bounds.has_begun():
                return await self._send(request, *args, **kwargs)
            try:
                return await self._before_lines(request, *args, **kwargs)
            except PrefectServerError as exc:
                if (found := _FLOW_RUN.search(request.url.path)) is not None:
                    exc.message += (
                        f" Flow run {found[1]} has begun no line. To remove it: prefect flow-run delete {found[1]}"
                    )
                    exc.args = (exc.message,)
                raise
        finally:
            _is_inner.reset(token)

    async def _before_lines(self, request: httpx.Request, *args: Any, **kwargs: Any) -> httpx.Response:
        tries, ends, said = 0, time.monotonic() + BUSY_FOR_SEC, False
        while True:
            tries += 1
            call = asyncio.ensure_future(self._send(request, *args, **kwargs))
            try:
                while not (await asyncio.wait({call}, timeout=BEGIN_SEC))[0]:
                    await self._check()
                    if time.monotonic() > ends:
                        raise PrefectServerError(
                            f"{name_of_server()} answers other requests, but did not answer {request.method} "
                            f"{request.url.path} for {BUSY_FOR_SEC:.0f} s. Its own log says why; a locked database or a full "
                            "disk does this."
                        )
                    if not said:
                        said = True
                        self._bounds.say(
                            f"{name_of_server()} is slow to answer. Waiting for it, at most {BUSY_FOR_SEC:.0f} s."
                        )
                return call.result()
            except httpx.HTTPError as exc:
                status = exc.response.status_code if isinstance(exc, httpx.HTTPStatusError) else 500
                if status < 500 and status not in (401, 403, 429):
                    raise  # Prefect expects some of them
                await self._check()
                if tries == MOST_TRIES:
                    raise
                await asyncio.sleep(_TRY_AGAIN_AFTER_SEC)
            finally:
                if call.cancel():
                    await asyncio.wait({call}, timeout=1)  # before the client closes its connections

    async def _check(self) -> None:
        """Find the cause.

        Raises:
            PrefectServerError: The server cannot be used.
        """
        await check_server(self._bounds.say)
        if has_own_server() and not await server_answers():
            raise PrefectServerError(
                "The Prefect server of this run has stopped answering before the first line. Start the run again."
            )

    async def _tell(self, request: httpx.Request, flow_run_id: str, state: dict[str, Any]) -> httpx.Response:
        if self._deadline is None:
            self._deadline = time.monotonic() + LAST_STATE_SEC
        cause, is_unknown = f"does not answer within {LAST_STATE_SEC:.0f} s", False
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            while (left := self._deadline - time.monotonic()) > 0:
                try:
                    async with asyncio.timeout(left):
                        return await self._send(request)
                except httpx.HTTPError as exc:
                    cause = cause_of(exc)
                    status = exc.response.status_code if isinstance(exc, httpx.HTTPStatusError) else 500
                    is_unknown = status == HTTPStatus.NOT_FOUND
                    if status < 500 and status not in _PASSES:
                        break
                except TimeoutError:
                    break
                await asyncio.sleep(min(_TRY_AGAIN_AFTER_SEC, max(0.0, self._deadline - time.monotonic())))
        untold = Untold(flow_run_id, str(state["type"]), f"{name_of_server()} {cause}", is_unknown)
        self._bounds.on_untold(untold)
        if self._raises:
            raise PrefectServerError(
                f"{untold.cause}. It does not know that the run has ended as {untold.state.title()}."
            )
        made = {"id": str(uuid.uuid4()), "timestamp": datetime.now(UTC).isoformat(), **state}
        accepted = {"state": made, "status": "ACCEPT", "details": {"type": "accept_details"}}
        return httpx.Response(201, json=accepted, request=request)


def _last_state(request: httpx.Request) -> tuple[str, dict[str, Any]] | None:
    """Flow run and state of a request that sets a final one; `None` for any other request."""
    found = _FLOW_RUN.search(request.url.path)
    if found is None or not found[2]:
        return None
    state = json.loads(request.content)["state"]
    return (found[1], state) if state.get("type") in _FINAL else None
