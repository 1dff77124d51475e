"""The messages between a run and its workers: the lengths of head and body, a head in JSON, a body of bytes.

The head is small and for the engine. The body, such as a line's inputs or its record, is passed on unread. Nothing from a
worker is unpickled, because user code runs there.
"""

from __future__ import annotations

import json
import struct
from typing import Any

RUN, SKIP = b"r", b"s"
"""Permits for a worker of sync code, one per job it is sent: run it or skip it."""
NEXT_LINE = b"\x1enext line\x1e"
"""Such a worker prints this after a line's output if the engine has not read that output yet."""

_LENGTHS = struct.Struct(">II")
_encode = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` would make a new encoder each time

Frame = tuple[dict[str, Any], bytes]


def pack(head: dict[str, Any], body: bytes = b"") -> bytes:
    """One message as bytes."""
    encoded = _encode(head).encode()
    return b"".join((_LENGTHS.pack(len(encoded), len(body)), encoded, body))


class Unpacker:
    """Cuts a stream of bytes into messages, and keeps the incomplete rest."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes, and get the messages that are now complete."""
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
