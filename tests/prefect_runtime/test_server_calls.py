"""The bounds of a run's calls to its Prefect server before the first line."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from prefect_batchflow.exceptions import PrefectServerError
from prefect_batchflow.prefect_runtime import server_calls
from prefect_batchflow.prefect_runtime.server_calls import Bounds, _ServerCalls


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the run says while it waits, on a server that answers every question about itself."""

    async def answers(_say: Any) -> None:
        pass

    monkeypatch.setattr(server_calls, "check_server", answers)
    monkeypatch.setattr(server_calls, "has_own_server", lambda: False)
    monkeypatch.setattr(server_calls, "name_of_server", lambda: "The server")
    monkeypatch.setattr(server_calls, "BEGIN_SEC", 0.01)
    return []


def bounded(send: Any, say: Any) -> Any:
    """A client whose calls are bounded; no line has begun."""
    http = SimpleNamespace(send=send)
    client: Any = SimpleNamespace(_client=http)
    _ServerCalls(client, Bounds(lambda: False, say, lambda _untold: None), raises=False)
    return http


CREATE = httpx.Request("POST", "http://server/api/flow_runs/", json={})


def test_a_request_that_a_living_server_never_answers_ends_the_run(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_calls, "BUSY_FOR_SEC", 0.05)

    async def never(_request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError("it is cancelled")

    async def run() -> None:
        async with asyncio.timeout(20):
            await bounded(never, said.append).send(CREATE)

    with pytest.raises(
        PrefectServerError, match=r"answers other requests, but did not answer POST /api/flow_runs/ for"
    ):
        asyncio.run(run())
    assert said == ["The server is slow to answer. Waiting for it, at most 0 s."]


@pytest.mark.usefixtures("said")
def test_one_that_is_only_slow_is_waited_for() -> None:
    async def run() -> httpx.Response:
        was_said = asyncio.Event()

        async def slow(request: httpx.Request) -> httpx.Response:
            await was_said.wait()
            return httpx.Response(201, request=request)

        async with asyncio.timeout(20):
            response: httpx.Response = await bounded(slow, lambda _text: was_said.set()).send(CREATE)
        return response

    assert asyncio.run(run()).status_code == 201
