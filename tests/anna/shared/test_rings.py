"""Rings of bytes: what goes in comes out, whatever the other side does to the memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna.shared.rings import LIE, Rings, memory_bytes

DATA, ROOM = 1, 2
REQUESTS_TAIL, REPLIES_HEAD, REQUESTS_HEAD, REPLIES_TAIL = 64, 128, 192, 256
RING = 64


def pair(ring_bytes: int = RING) -> tuple[bytearray, Rings, Rings]:
    """Return memory, and the client's and the worker's view of it."""
    memory = bytearray(memory_bytes(ring_bytes))
    return memory, Rings(memory, ring_bytes, worker=False), Rings(memory, ring_bytes, worker=True)


@pytest.mark.parametrize("begin", range(RING + 1))
def test_a_message_of_any_length_crosses_the_end_of_a_ring_at_any_place(begin: int) -> None:
    for size in range(1, RING + 1):
        _, client, worker = pair()
        for from_, to in ((client, worker), (worker, client)):
            assert from_.write(bytes(begin)) == begin
            assert to.read(RING) == bytes(begin)
            message = bytes(range(100, 100 + size))
            assert from_.write(message) == size
            assert to.read(RING) == message
            from_.check()
            to.check()


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 2 * RING)), max_size=60))
def test_each_ring_is_a_queue_of_bytes_with_a_limit(steps: list[tuple[bool, bool, int]]) -> None:
    _, client, worker = pair()
    queues = {True: b"", False: b""}
    written = 0
    for upward, writes, size in steps:
        source, sink = (client, worker) if upward else (worker, client)
        if writes:
            data = bytes((written + n) % 251 for n in range(size))
            taken = source.write(data)
            assert taken == min(size, RING - len(queues[upward]))
            queues[upward] += data[:taken]
            written += taken
        else:
            expected, queues[upward] = queues[upward][:size], queues[upward][size:]
            assert sink.read(size) == expected
        client.check()
        worker.check()
    assert worker.counts() == (len(queues[True]), RING - len(queues[False]))


@pytest.mark.parametrize("left", range(1, 3 * RING, 7))
def test_indexes_go_on_past_the_greatest_number(left: int) -> None:
    memory = bytearray(memory_bytes(RING))
    client, worker = (Rings(memory, RING, worker=side, begin=2**32 - left) for side in (False, True))
    for number in range(10):
        data = b"%050d" % number
        assert client.write(data) == len(data)
        assert worker.read(RING) == data
        client.check()
        worker.check()
    assert struct.unpack_from("<I", memory, REQUESTS_TAIL)[0] == 500 - left


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(min_size=RING, max_size=RING))
def test_a_worker_takes_no_more_than_a_ring_whatever_stands_in_the_indexes(tail: int, head: int, junk: bytes) -> None:
    memory, _, worker = pair()
    memory[4096 : 4096 + RING] = junk
    struct.pack_into("<I", memory, REQUESTS_TAIL, tail)
    struct.pack_into("<I", memory, REPLIES_HEAD, head)
    readable, room = worker.counts()
    assert readable == (tail if tail <= RING else LIE)
    assert room == (RING - (-head % 2**32) if -head % 2**32 <= RING else LIE)
    if readable == LIE:
        with pytest.raises(ValueError, match="out of its ring"):
            worker.read(RING)
    else:
        assert worker.read(RING) == junk[:readable]
    assert worker.write(bytes(2 * RING)) == room
    assert worker.counts()[0] == (0 if readable != LIE else LIE)


def test_what_a_side_has_published_is_not_believed_when_the_other_writes_over_it() -> None:
    memory, client, worker = pair()
    client.write(b"abc")
    assert worker.read(2) == b"ab"
    struct.pack_into("<I", memory, REQUESTS_HEAD, 77)
    struct.pack_into("<I", memory, REPLIES_TAIL, 77)
    assert worker.counts() == (1, RING)
    assert worker.read(9) == b"c"
    assert worker.write(b"ok") == 2
    assert struct.unpack_from("<I", memory, REPLIES_TAIL)[0] == 2


def test_who_has_something_to_do_does_not_fall_asleep() -> None:
    _, client, worker = pair()
    client.write(b"x")
    assert not worker.fall_asleep(DATA)
    assert not client.fall_asleep(ROOM)
    assert not client.has_to_wake(DATA)  # who did not fall asleep is not woken


def test_one_bell_is_rung_for_one_sleep_and_only_for_what_is_awaited() -> None:
    _, client, worker = pair()
    assert worker.fall_asleep(DATA)
    assert not client.has_to_wake(ROOM)
    assert client.has_to_wake(DATA)
    assert not client.has_to_wake(DATA)
    assert client.fall_asleep(DATA)
    assert not worker.has_to_wake(ROOM)
    assert worker.has_to_wake(DATA | ROOM)


@pytest.mark.parametrize("ring_bytes", [0, 63, 65, 100, 1 << 31])
def test_a_ring_is_a_power_of_two(ring_bytes: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        memory_bytes(ring_bytes)


def test_rings_are_not_made_in_memory_of_another_size() -> None:
    with pytest.raises(ValueError, match="take 4224"):
        Rings(bytearray(4223), RING, worker=True)
