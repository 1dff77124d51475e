"""Messages between a run and its workers: whole again, however the pipe cuts them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_batchflow.execution.workers.wire import Unpacker, pack

heads = st.dictionaries(
    st.text(max_size=10),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)
frames = st.lists(st.tuples(heads, st.binary(max_size=300)), max_size=6)


@given(frames=frames, data=st.data())
def test_messages_survive_any_split_of_the_bytes(
    frames: list[tuple[dict[str, Any], bytes]], data: st.DataObject
) -> None:
    stream = b"".join(pack(head, body) for head, body in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    unpacker = Unpacker()

    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += unpacker.feed(stream[start:end])

    assert received == frames


def test_a_byte_at_a_time_gives_each_message_with_its_last_byte() -> None:
    unpacker = Unpacker()
    stream = pack({"op": "line"}, b"body")

    got = [unpacker.feed(stream[at : at + 1]) for at in range(len(stream))]

    assert got[:-1] == [[]] * (len(stream) - 1)
    assert got[-1] == [({"op": "line"}, b"body")]


def test_a_body_of_many_megabytes_arrives_in_the_pieces_of_a_pipe() -> None:
    body = bytes(range(256)) * (20 * 1024 * 4)
    stream = pack({"id": 1}, body) + pack({"id": 2})
    unpacker = Unpacker()

    received = [frame for at in range(0, len(stream), 65536) for frame in unpacker.feed(stream[at : at + 65536])]

    assert [head for head, _ in received] == [{"id": 1}, {"id": 2}]
    assert received[0][1] == body


def test_what_is_handed_out_does_not_change_with_what_comes_next() -> None:
    unpacker = Unpacker()

    [(_, first)] = unpacker.feed(pack({}, b"first") + pack({}, b"second")[:9])
    unpacker.feed(pack({}, b"second")[9:])

    assert first == b"first"


@pytest.mark.parametrize(
    "text", ["\ud800", "\x00", "ü\U0001f600"], ids=["lone surrogate", "NUL", "beyond the basic plane"]
)
def test_any_text_may_be_in_a_head(text: str) -> None:
    assert Unpacker().feed(pack({"text": text})) == [({"text": text}, b"")]
