"""A model service for tests and benchmarks: OpenAI's and Azure OpenAI's API over real HTTP, with its troubles on order.

`python tests/support/model_server.py --port 8000 --delay-sec 0.5 --rate-limited 10 --failing 5` serves until it is ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import time
from collections import deque
from dataclasses import dataclass, field
from email.utils import formatdate
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEPT_CALLS = 1_000
_PATH = re.compile(
    r"^(?:/v1|/openai/v1|/openai/deployments/(?P<deployment>[^/]+))/(?P<api>chat/completions|completions|embeddings)(?:\?|$)"
)


@dataclass(frozen=True)
class Reply:
    """What the server does with one call."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    """Sent instead of an answer; text as it is, anything else as JSON."""
    message: dict[str, Any] | None = None
    """The chat message to answer with; `None` is an echo."""
    finish_reason: str = "stop"
    delay_sec: float = 0.0
    fault: Literal["reset", "silence"] | None = None
    """`reset` breaks off in mid-body, `silence` never answers."""


def error_reply(status: int, message: str, *, code: str | None = None, kind: str = "", **headers: str) -> Reply:
    """An error as OpenAI words it; `retry_after` and other headers by keyword."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, named, {"error": {"message": message, "type": kind, "code": code, "param": None}})


def rate_limited(retry_after: str | None = None) -> Reply:
    """A 429, with the header if there is one."""
    headers = {} if retry_after is None else {"retry_after": retry_after}
    return error_reply(429, "Rate limit reached", code="rate_limit_exceeded", kind="requests", **headers)


def at(seconds_from_now: float) -> str:
    """A moment as HTTP writes it."""
    return formatdate(time.time() + seconds_from_now, usegmt=True)


@dataclass(frozen=True)
class Call:
    """One call as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class ModelServer:
    """Serves in a thread of its own, on 127.0.0.1; a context manager."""

    def __init__(
        self,
        *,
        port: int = 0,
        delay_sec: float = 0.0,
        rate_limited_percent: float = 0.0,
        failing_percent: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.port = port
        self.script: deque[Reply] = deque()
        """What the next calls get, in turn; then comes what the percentages say."""
        self.answer: Callable[[dict[str, Any]], Reply] | None = None
        """Decides by its body of each call beyond these."""
        self.hold_until = 0
        """No call is answered before so many are there at once."""
        self.tells_usage = True
        """Whether the answers of streams say what they used."""
        self.calls: deque[Call] = deque(maxlen=KEPT_CALLS)
        self.call_count = 0
        self.answered = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        """Of all answers that were sent whole."""
        self.now = 0
        self.most_at_once = 0
        self.connections = 0
        self._delay_sec = delay_sec
        self._rate_limited = rate_limited_percent / 100
        self._failing = failing_percent / 100
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, name="model-server", daemon=True)
        self._started = Event()
        self._full: asyncio.Event
        self._stop: asyncio.Event
        self._open: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The address, without path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI connection takes."""
        return f"{self.url}/v1"

    @property
    def tokens(self) -> dict[str, int]:
        """What it has given, as a line's record has it."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "total_tokens": total,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def __enter__(self) -> ModelServer:
        self._thread.start()
        assert self._started.wait(10), "the model server does not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the model server does not end"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop, self._full = asyncio.Event(), asyncio.Event()
        server = await asyncio.start_server(self._on_connection, "127.0.0.1", self.port, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._one_call(reader, writer):
                    pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _one_call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve a call; whether the connection is kept."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name: value for name, _, value in (line.lower().partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = head[0].split(" ")[1]
        self.now += 1
        try:
            call = Call(path, headers, json.loads(body) if body else {})
            self.calls.append(call)
            self.call_count += 1
            self.most_at_once = max(self.most_at_once, self.now)
            if self.now >= self.hold_until:
                self._full.set()
            elif self.hold_until:
                await asyncio.wait_for(self._full.wait(), 30)
            return await self._reply(self._next(call), call, writer)
        finally:
            self.now -= 1

    def _next(self, call: Call) -> Reply:
        if self.script:
            return self.script.popleft()
        chance = self._random.random()
        if chance < self._rate_limited:
            return rate_limited("0.2")
        if chance < self._rate_limited + self._failing:
            return error_reply(500, "The server had an error", kind="server_error")
        return Reply(delay_sec=self._delay_sec) if self.answer is None else self.answer(call.body)

    async def _reply(self, reply: Reply, call: Call, writer: asyncio.StreamWriter) -> bool:
        if reply.delay_sec:
            await asyncio.sleep(reply.delay_sec)
        if reply.fault == "silence":
            await self._stop.wait()
            return False
        found = _PATH.match(call.path)
        if found is None:
            reply = error_reply(404, f"Unknown path {call.path}")
        if reply.body is not None:
            text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
            kind = "text/html" if isinstance(reply.body, str) else "application/json"
            await self._send(writer, reply, text.encode(), kind)
            return True
        assert found is not None
        answer = _answer(found["api"], call.body, found["deployment"], reply)
        if reply.fault != "reset":
            # Before it is sent: whoever has the answer may ask at once what was counted.
            self.answered += 1
            self.prompt_tokens += answer["usage"]["prompt_tokens"]
            self.completion_tokens += answer["usage"].get("completion_tokens", 0)
        if call.body.get("stream"):
            await self._stream(writer, reply, answer, call.body)
        else:
            await self._send(writer, reply, json.dumps(answer).encode(), "application/json")
        return True

    async def _send(self, writer: asyncio.StreamWriter, reply: Reply, body: bytes, kind: str) -> None:
        head = {"content-type": kind, "content-length": str(len(body)), "x-request-id": f"req_{self.call_count}"}
        writer.write(_head(reply.status, head | reply.headers))
        if reply.fault == "reset":
            writer.write(body[: len(body) // 2])
            await writer.drain()
            writer.transport.abort()
            raise ConnectionResetError
        writer.write(body)
        await writer.drain()

    async def _stream(
        self, writer: asyncio.StreamWriter, reply: Reply, answer: dict[str, Any], asked: dict[str, Any]
    ) -> None:
        writer.write(_head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"} | reply.headers))
        wants_usage = (asked.get("stream_options") or {}).get("include_usage")
        async for chunk in _chunks(answer, usage=self.tells_usage and bool(wants_usage)):
            _write_event(writer, json.dumps(chunk))
            await writer.drain()
            if reply.fault == "reset":
                writer.transport.abort()
                raise ConnectionResetError
        _write_event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _write_event(writer: asyncio.StreamWriter, data: str) -> None:
    event = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))


def _answer(api: str, asked: dict[str, Any], deployment: str | None, reply: Reply) -> dict[str, Any]:
    model = asked.get("model") or deployment
    if api == "embeddings":
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        data = [{"object": "embedding", "index": n, "embedding": [float(len(t)), 1.0]} for n, t in enumerate(texts)]
        used = sum(map(_tokens, texts))
        return {
            "object": "list",
            "model": model,
            "data": data,
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }
    if api == "completions":
        text = f"echo: {asked['prompt']}"
        choice = {"index": 0, "text": text, "finish_reason": reply.finish_reason, "logprobs": None}
        return _with_usage("text_completion", model, choice, _tokens(asked["prompt"]), _tokens(text))
    message = reply.message or {"role": "assistant", "content": f"echo: {_text(asked['messages'][-1])}"}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason, "logprobs": None}
    prompt = sum(_tokens(_text(m)) for m in asked["messages"])
    return _with_usage("chat.completion", model, choice, prompt, _tokens(_text(message)))


def _with_usage(kind: str, model: Any, choice: dict[str, Any], prompt: int, completion: int) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"id": "answer", "object": kind, "created": 1, "model": model, "choices": [choice], "usage": usage}


async def _chunks(answer: dict[str, Any], *, usage: bool) -> AsyncIterator[dict[str, Any]]:
    """An answer word by word."""
    choice = answer["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"].get("content") or ""
    base = {**answer, "object": answer["object"] + ".chunk", "usage": None}
    for word in re.findall(r"\s*\S+|\s+$", text):
        part = {"text": word} if "text" in choice else {"delta": {"content": word}}
        yield base | {"choices": [{"index": 0, "finish_reason": None, **part}]}
    end: dict[str, Any] = {"text": ""} if "text" in choice else {"delta": {}}
    yield base | {"choices": [{"index": 0, "finish_reason": choice["finish_reason"], **end}]}
    if usage:
        yield base | {"choices": [], "usage": answer["usage"]}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _tokens(text: Any) -> int:
    return len(str(text).split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-sec", type=float, default=0.0, help="before each answer")
    parser.add_argument("--rate-limited", type=float, default=0.0, help="percent of calls that get a 429")
    parser.add_argument("--failing", type=float, default=0.0, help="percent of calls that get a 500")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    options = {"rate_limited_percent": given.rate_limited, "failing_percent": given.failing, "seed": given.seed}
    with ModelServer(port=given.port, delay_sec=given.delay_sec, **options) as server:
        print(server.base_url, flush=True)  # noqa: T201 - whoever starts it reads it
        with contextlib.suppress(KeyboardInterrupt):
            Event().wait()


if __name__ == "__main__":
    main()
