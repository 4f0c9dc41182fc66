"""Frames: however a stream is cut, the same frames come out; what is too long or is none is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudburst import frames
from cloudburst.errors import ExecutorLost, FunctionNotFound, ProtocolError

FRAMES = [
    frames.hello(7, "cpython 3.11"),
    frames.call(1, b"f", b"payload", invocation=(1, 2), extras=b"xx", timeout_us=5),
    frames.cancel(1),
    frames.reply(frames.OK, 3, b"z" * 1000, output=b"printed", run_us=17),
    frames.reply(frames.OK, 4, b""),
]


@given(st.lists(st.sampled_from(FRAMES), max_size=8), st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_stream_cut_anywhere_gives_the_same_frames(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(sent)
    reader = frames.FrameReader()
    received: list[bytes] = []
    at = turn = 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        received += reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert received == sent
    assert not reader.unfinished


def test_reader_says_how_much_is_missing_of_a_large_frame() -> None:
    large = frames.reply(frames.OK, 1, bytes(1_000_000))
    reader = frames.FrameReader()
    assert reader.feed(large[:10_000]) == []
    assert reader.unfinished
    assert reader.missing == len(large) - 10_000
    assert reader.feed(large[10_000:]) == [large]


@pytest.mark.parametrize("length", [0, 1, 4, 1001, 2**32 - 1])
def test_impossible_length_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="a frame claims"):
        frames.FrameReader(1000).feed(length.to_bytes(4, "little") + bytes(20))


def test_call_carries_what_it_was_given() -> None:
    frame = frames.call(
        9, b"name", b"payload", invocation=(2**64 - 1, 5), flags=1, version=3, timeout_us=17, extras=b"ex"
    )
    header = frames.CALL_HEADER.unpack_from(frame)
    assert header == (len(frame) - 4, frames.CALL, 1, 4, 9, 2, 3, 17, 2**64 - 1, 5)
    assert frame[frames.CALL_HEADER_BYTES :] == b"name" + b"ex" + b"payload"


def test_reply_carries_output_before_its_payload_and_bounds_its_numbers() -> None:
    frame = frames.reply(frames.RAISED, 9, b"payload", flags=2, waiting=10**6, run_us=10**12, output=b"out")
    header = frames.REPLY_HEADER.unpack_from(frame)
    assert header == (len(frame) - 4, frames.RAISED, 2, 65535, 9, 2**32 - 1, 3)
    assert frame[frames.REPLY_HEADER_BYTES :] == b"outpayload"


def test_error_travels_by_name_with_its_definiteness_and_text() -> None:
    sent = ExecutorLost("gone", definite=True)
    frame = frames.error(1, sent)
    received = frames.fault_of(frame[frames.REPLY_HEADER_BYTES :])
    assert type(received) is ExecutorLost
    assert (str(received), received.definite) == ("gone", True)
    assert frames.fault_of(frames.error(1, FunctionNotFound("x"))[frames.REPLY_HEADER_BYTES :]).definite


def test_what_is_no_msgpack_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="3 bytes are not msgpack"):
        frames.unpack(b"\xc1\xc1\xc1")
