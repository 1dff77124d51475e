"""A proxy before a Prefect server that lets it be away: killed, frozen, slow, refusing, or replaced by another server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

THERE, KILLED, FROZEN, RESET = "there", "killed", "frozen", "reset"
"""How the server is: it works; nothing listens; it takes requests and does not answer; it breaks each connection.

Also a status as text, such as `503`, which it answers, and `slow 2`: it answers after so many seconds.
"""


class PrefectProxy:
    """Listens on a port of 127.0.0.1 for a server, as a context manager.

    Args:
        upstream: The URL of the server's API.
        on_request: Called with method, path and body of each request before it is passed on, in the proxy's thread. It can set
            `how`, which this request already gets.
    """

    def __init__(self, upstream: str, on_request: Callable[[str, str, Any], object] = lambda *_: None) -> None:
        self.upstream = upstream
        self.on_request = on_request
        self.requests: list[tuple[str, str]] = []
        """Method and path of those that came."""
        self._how = THERE
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="prefect-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._changed: asyncio.Event
        self._port = 0

    @property
    def url(self) -> str:
        """The API's URL through this proxy."""
        return f"http://127.0.0.1:{self._port}/api"

    @property
    def how(self) -> str:
        """How the server is."""
        return self._how

    @how.setter
    def how(self, how: str) -> None:
        self._how = how
        if threading.current_thread() is self._thread:
            self._loop.create_task(self._apply())
        else:
            self._call(self._apply())

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._begin())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _begin(self) -> None:
        self._changed = asyncio.Event()
        await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _apply(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self._how in (KILLED, RESET):
            for writer in list(self._open):
                writer.transport.abort()
        if self._how == KILLED:
            if self._server is not None:
                self._server.close()
                self._server = None
        elif self._server is None:
            await self._listen()

    async def _end(self) -> None:
        self._how = KILLED
        await self._apply()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path = head.split(b" ", 2)[:2]
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        path = path.removeprefix(b"/api")
        with contextlib.suppress(ValueError):
            self.requests.append((method.decode(), path.decode()))
            self.on_request(method.decode(), path.decode(), json.loads(body) if body else None)
        while self._how == FROZEN:
            await self._changed.wait()
        if self._how in (KILLED, RESET):
            writer.transport.abort()
            return False
        if self._how.startswith("slow"):
            await asyncio.sleep(float(self._how.split()[1]))
        if self._how.isdigit():
            text = b'{"detail": "as the test says"}'
            writer.write(b"HTTP/1.1 %s No\r\nContent-Type: application/json\r\n" % self._how.encode())
            writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(text), text))
            await writer.drain()
            return True
        where = urlsplit(self.upstream)
        up_reader, up_writer = await asyncio.open_connection(where.hostname, where.port)
        self._open.add(up_writer)
        try:
            if b"upgrade: websocket" in head.lower():
                up_writer.write(head)
                await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))
                return False
            head = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)
            up_writer.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
            answer = await up_reader.read()
            while self._how == FROZEN:
                await self._changed.wait()
            writer.write(answer)
            await writer.drain()
            return False
        finally:
            self._open.discard(up_writer)
            up_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while some := await reader.read(65536):
            while self._how == FROZEN:
                await self._changed.wait()
            writer.write(some)
            await writer.drain()
        writer.close()
