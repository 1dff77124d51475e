"""A service that speaks the executor service protocol, rightly or wrongly as each call tells it: `PORT [START]`.

Started by the tests in a folder of their own, in which it leaves what it did.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__)
FOREVER = threading.Event()
HANGING = threading.Event()
"""From here on nothing is answered."""


class Failed(Exception):  # noqa: N818 - an answer
    """What the service answers with another status than 200."""

    def __init__(self, message: str, inner: str) -> None:
        super().__init__(message)
        self.body = {"error": {"message": message, "code": "UserError", "innerError": {"code": inner}, "extra": 1}}


def act(do: str, value: Any) -> Any:
    """What lines and aggregations have in common."""
    if do == "raise":
        raise Failed("(ValueError) as told", "ScriptExecutionError")
    if do == "unserialisable":
        raise Failed("'value' is not JSON", "FlowOutputUnserializable")
    if do == "hang":
        FOREVER.wait()
    if do == "hang all":
        HANGING.set()
        FOREVER.wait()
    if do == "die":
        sys.stdout.write("last words ü")
        sys.stdout.flush()
        os._exit(7)
    while do == "wait" and not Path("go").exists():
        time.sleep(0.001)
    return value


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if HANGING.is_set() or start == "silent":
            FOREVER.wait()
        with Path("health").open("a") as calls:
            calls.write(".")
        is_sick = start == "sick" or (start == "slow" and Path("health").stat().st_size < 4)
        self.reply(503 if is_sick else 200, {"status": "sick" if is_sick else "healthy"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self.reply(200, self.line(body) if self.path == "/execution" else self.aggregation(body))
        except Failed as failed:
            self.reply(500, failed.body)
        except ConnectionAbortedError:
            self.close_connection = True

    def line(self, body: dict[str, Any]) -> Any:
        do, value = body["inputs"]["do"], body["inputs"].get("value")
        with Path("begun").open("a") as begun:
            begun.write(f"{body['line_number']}\n")
        if value is None or isinstance(value, int):
            Path(f"began-{value}").touch()
        if do == "close":
            raise ConnectionAbortedError
        if do == "answer":
            return self.reply(*value)
        if do == "tell":
            return {"output": {name: os.environ.get(name) for name in value} | {"pid": os.getpid(), "argv": sys.argv}}
        return {"output": {"value": act(do, value)}, "aggregation_inputs": {"${x.output}": value}}

    def aggregation(self, body: dict[str, Any]) -> Any:
        values = body["batch_inputs"]["value"]
        act(values[0] if len(values) == 1 else "return", values)
        return {"output": {"references": body["aggregation_inputs"]}, "metrics": {"values": values}}

    def reply(self, status: int, body: Any) -> None:
        if body is None:
            return
        content = (body if isinstance(body, str) else json.dumps(body, ensure_ascii=True)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: what the service prints is part of the tests."""


def ended(*_: Any) -> None:
    if start == "stubborn":
        return
    Path("ended").touch()
    os._exit(0)


if __name__ == "__main__":
    start = sys.argv[2] if len(sys.argv) > 2 else ""
    signal.signal(signal.SIGTERM, ended)
    if start == "exit":
        sys.exit("no model here")
    if start == "port taken" and not Path("taken").exists():
        Path("taken").touch()
        sys.exit("OSError: [Errno 98] Address already in use")
    if start == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        Path("child").write_text(str(child.pid))
    if start == "once" and Path("health").exists():
        sys.exit("only once")
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.serve_forever()
