"""A model server that answers what it was asked: each reply follows from its request alone, as recordings need it.

The reply to a chat is `model(parameters): role=text; role=text`; tokens are words. A text that is `STATUS 400` gets that
status instead. The model `whole-request` replies with all that it was sent, as JSON. `python echo_model.py` prints the address
and serves until its standard input ends.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARAMETERS = ("temperature", "max_tokens", "top_p", "stop", "presence_penalty", "frequency_penalty", "seed")
WHOLE_REQUEST = "whole-request"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, reply = _reply(self.path, asked)
        if asked.get("stream") and status == 200:
            self._send(200, "text/event-stream", "".join(_events(reply)).encode())
        else:
            self._send(status, "application/json", json.dumps(reply).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _reply(path: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The status and body for a request."""
    # Azure names the model in the path.
    model = asked.get("model") or path.partition("/deployments/")[2].partition("/")[0]
    head = {"id": "parity", "created": 0, "model": model}
    if "/embeddings" in path:
        vector = {"object": "embedding", "index": 0, "embedding": [float(len(str(asked["input"]))), 0.5]}
        return 200, {**head, "object": "list", "data": [vector], "usage": _usage(str(asked["input"]), "")}
    if "/chat/" in path:
        said = [f"{message['role']}={_text(message.get('content'))}" for message in asked["messages"]]
    else:
        said = [str(asked["prompt"])]
    for status in (400, 401, 404, 422):
        if any(f"STATUS {status}" in text for text in said):
            return status, {"error": {"message": f"as asked: {status}", "type": "test", "code": "test", "param": None}}
    # Clients send defaults of their own as floats or not at all: only what differs from them is worth telling.
    given = {name: asked[name] for name in _PARAMETERS if asked.get(name) not in (None, 1, 0, [])}
    if "/chat/" not in path and given.get("max_tokens") == 16:
        del given["max_tokens"]
    text = f"{model}({json.dumps(given, sort_keys=True)}): {'; '.join(said)}"
    if model == WHOLE_REQUEST:
        text = json.dumps(asked, sort_keys=True)
    if (asked.get("response_format") or {}).get("type") == "json_object":
        text = json.dumps({"said": said, "count": len(said)})
    usage = _usage(" ".join(said), text)
    if "/chat/" not in path:
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        return 200, {**head, "object": "text_completion", "choices": [choice], "usage": usage}
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if asked.get("tools"):
        called = {"name": asked["tools"][0]["function"]["name"], "arguments": json.dumps({"text": said[-1]})}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call", "type": "function", "function": called}],
        }
    return 200, {
        **head,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
    }


def _text(content: Any) -> str:
    """A message's text; of an image its kind and a hash."""
    if not isinstance(content, list):
        return str(content)
    parts = []
    for part in content:
        if part["type"] == "image_url":
            url = part["image_url"]["url"]
            kind, _, encoded = url.partition(",")
            parts.append(f"<{kind} {hashlib.sha256(encoded.encode()).hexdigest()[:8]}>" if encoded else f"<{url}>")
        else:
            parts.append(part["text"])
    return "+".join(parts)


def _usage(asked: str, replied: str) -> dict[str, int]:
    prompt, completion = len(asked.split()), len(replied.split())
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _events(reply: dict[str, Any]) -> Iterator[str]:
    """A chat's reply as a stream, a word at a time."""
    head = {"id": reply["id"], "created": 0, "model": reply["model"], "object": "chat.completion.chunk"}
    for word in reply["choices"][0]["message"]["content"].split(" "):
        choice = {"index": 0, "delta": {"role": "assistant", "content": f"{word} "}, "finish_reason": None}
        yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
    yield f"data: {json.dumps({**head, 'choices': [{'index': 0, 'delta': {}, 'finish_reason': 'stop'}]})}\n\n"
    yield "data: [DONE]\n\n"


@contextmanager
def running_model() -> Iterator[str]:
    """Serve on a free port of this machine alone; the address that an OpenAI client is given."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="echo-model", kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    with running_model() as address:
        print(address, flush=True)  # noqa: T201 - what its caller waits for
        sys.stdin.read()
