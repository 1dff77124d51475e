"""The messages between a run and its workers: a JSON head and a body of bytes, each with its length before it.

The head is small and for the engine; the body (a line's inputs, a line's record) is passed on as it is. Nothing that comes
from a worker is unpickled: user code runs there.
"""

from __future__ import annotations

import json
import struct
from typing import Any

RUN, SKIP = b"r", b"s"
"""Permits of a worker of sync code, one for each job it is sent: to run it, or to pass it over."""
NEXT_LINE = b"\x1enext line\x1e"
"""What such a worker prints behind a line's output that nobody has read yet."""

_LENGTHS = struct.Struct(">II")
_encode = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` would make the encoder anew each time

Frame = tuple[dict[str, Any], bytes]


def pack(head: dict[str, Any], body: bytes = b"") -> bytes:
    """One message as bytes."""
    encoded = _encode(head).encode()
    return b"".join((_LENGTHS.pack(len(encoded), len(body)), encoded, body))


class Unpacker:
    """Cuts a stream of bytes into messages; what is not whole yet waits."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes, give the messages that are whole now."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at = 0
        while len(buffer) - at >= _LENGTHS.size:
            head_length, body_length = _LENGTHS.unpack_from(buffer, at)
            body_at = at + _LENGTHS.size + head_length
            end = body_at + body_length
            if len(buffer) < end:
                break
            frames.append((json.loads(buffer[at + _LENGTHS.size : body_at]), bytes(buffer[body_at:end])))
            at = end
        del buffer[:at]
        return frames
