"""A worker and clients of any kind in its shared memory: honest ones, slow ones and liars."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anna.config import RING_BYTES, RINGS_MAX
from anna.errors import ProtocolError
from anna.shared.segment import Segment
from tests.anna import frames
from tests.anna.conftest import RunningWorkers
from tests.anna.local.processes import eventually
from tests.anna.shared.conftest import Count
from tests.anna.shared.peer import PAGE, PATIENCE_S, REPLIES_HEAD, REQUESTS_TAIL, RINGS, Peer, Refused

BIG = b"v" * 100_000


def statuses(peer: Peer, count: int) -> list[int]:
    return [answer.status for answer in peer.receive(count)]


def test_a_client_written_from_the_protocol_is_served(one_worker: RunningWorkers) -> None:
    with Peer(one_worker.unix()) as peer:
        assert (peer.version, peer.size) == (1, RING_BYTES)
        peer.send(frames.put(b"k", b"value") + frames.request(frames.GET, b"k", id=8))
        written, read = peer.receive(2)
        assert (written.status, read.status, read.request) == (frames.OK, frames.OK, 8)
        assert read.payload[16:] == b"\x06value"


def test_frames_that_come_in_pieces_are_put_together(one_worker: RunningWorkers) -> None:
    with Peer(one_worker.unix()) as peer:
        message = frames.put(b"k", b"value") + frames.put(b"big", BIG) + frames.request(frames.GET, b"k")
        for at in list(range(90)) + list(range(90, len(message), 7001)):
            end = at + 1 if at < 90 else at + 7001
            peer.send(message[at:end])
        assert statuses(peer, 3) == [frames.OK] * 3


def test_changes_are_pushed_through_the_ring_to_who_sleeps(one_worker: RunningWorkers) -> None:
    with Peer(one_worker.unix()) as watcher, Peer(one_worker.unix()) as writer:
        watcher.send(frames.request(frames.SUBSCRIBE, b"k"))
        assert statuses(watcher, 1) == [frames.MISSING]
        writer.send(frames.put(b"k", b"new"))
        assert statuses(writer, 1) == [frames.OK]
        (push,) = watcher.receive(1)
        assert (push.request, push.flags) == (0, frames.PUSH)
        assert push.payload.endswith(b"new")


def test_who_does_not_read_is_not_read_from_and_gets_all_when_it_reads(one_worker: RunningWorkers) -> None:
    """40 MB of answers: more than WRITE_BUFFER_BYTES_MAX, so the worker stops taking requests long before the end."""
    with Peer(one_worker.unix()) as peer, Peer(one_worker.unix()) as other:
        peer.send(frames.put(b"big", BIG, id=1))
        assert statuses(peer, 1) == [frames.OK]
        # Frames that are small and many: the ring of requests has room for some 9,000 of them.
        count = 400
        asked = b"".join(
            frames.request(frames.GET, b"big", id=2 + number) + frames.request(99, b"", bytes(1500), id=10_000)
            for number in range(count)
        )
        sent = 0
        for _ in range(200):
            sent += peer.put(asked[sent:])
            other.send(frames.request(frames.VIEW))
            assert statuses(other, 1) == [frames.OK]
        assert sent < len(asked), "the worker took requests of who does not read what was answered"
        answers: list[frames.Reply] = []
        data = b""
        while len(answers) < 2 * count:
            sent += peer.put(asked[sent:])
            data += peer.take()
            while len(data) >= 4 and len(data) >= (size := 4 + int.from_bytes(data[:4], "little")):
                answers += frames.replies(data[:size])
                data = data[size:]
        assert [a.request for a in answers if a.request != 10_000] == list(range(2, 2 + count))
        assert {a.status for a in answers} == {frames.OK, frames.NOT_SUPPORTED}


def test_a_few_bytes_that_ask_for_much_are_answered_in_turns(one_worker: RunningWorkers) -> None:
    with Peer(one_worker.unix()) as peer:
        peer.send(frames.put(b"big", BIG))
        peer.send(b"".join(frames.request(frames.GET, b"big", id=number) for number in range(1, 300)))
        assert [answer.request for answer in peer.receive(300)] == [7, *range(1, 300)]


def test_malformed_bytes_are_answered_before_the_connection_ends(one_worker: RunningWorkers) -> None:
    with Peer(one_worker.unix()) as peer:
        peer.send(b"\xff" * 40)
        assert statuses(peer, 1) == [frames.MALFORMED]
        assert peer.is_ended()


@pytest.mark.parametrize(
    ("place", "value"),
    [(REQUESTS_TAIL, RING_BYTES + 1), (REQUESTS_TAIL, -1), (REPLIES_HEAD, 1), (REPLIES_HEAD, -1 - RING_BYTES)],
)
def test_an_index_that_cannot_be_ends_its_connection_alone(
    one_worker: RunningWorkers, place: int, value: int, shared: Count
) -> None:
    with Peer(one_worker.unix()) as liar, Peer(one_worker.unix()) as other:
        liar.set_index(place, value)
        if place == REPLIES_HEAD:
            liar.put(frames.request(frames.VIEW))
        liar.ring()
        assert liar.is_ended()
        other.send(frames.request(frames.VIEW))
        assert statuses(other, 1) == [frames.OK]
    eventually(lambda: shared(one_worker.pids[0]) == 0, "the worker keeps memory")


def test_bytes_by_the_socket_end_a_connection_that_has_rings(one_worker: RunningWorkers) -> None:
    with Peer(one_worker.unix()) as peer:
        peer.socket.sendall(frames.request(frames.VIEW))
        assert peer.is_ended()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_a_client_does_to_its_memory_harms_others(one_worker: RunningWorkers, data: st.DataObject) -> None:
    """Up to 30 rounds each: some 5,000 in all."""
    words = st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 64), st.integers(RING_BYTES - 8, RING_BYTES + 8))
    step = st.one_of(
        st.tuples(st.just("word"), st.integers(0, 127).map(lambda n: 4 * n), words),
        st.tuples(st.just("page"), st.integers(0, PAGE // 64 - 1), st.binary(min_size=64, max_size=64)),
        st.tuples(st.just("data"), st.integers(0, 500), st.binary(max_size=200)),
        st.tuples(st.just("frame"), st.integers(1, 14), st.binary(max_size=60)),
        st.tuples(st.just("move"), st.integers(1, 300), st.just(b"")),
    )
    with Peer(one_worker.unix()) as liar:
        for what, number, value in data.draw(st.lists(step, min_size=1, max_size=30)):
            if what == "word":
                liar.set_index(number, value)
            elif what == "page":
                liar.memory[64 * number : 64 * number + 64] = value
            elif what == "data":
                liar.memory[PAGE + number : PAGE + number + len(value)] = value
            elif what == "frame" and liar.room() <= liar.size:
                liar.put(frames.request(number, value[:20], value))
            else:
                liar.set_index(REQUESTS_TAIL, liar.index(REQUESTS_TAIL) + number)
            liar.ring()
    with Peer(one_worker.unix()) as honest:
        honest.send(frames.put(b"k", b"value") + frames.request(frames.GET, b"k"))
        assert statuses(honest, 2) == [frames.OK] * 2
    assert os.waitpid(one_worker.pids[0], os.WNOHANG) == (0, 0)


def test_a_worker_shares_memory_with_so_many_and_serves_all_others_by_socket(
    one_worker: RunningWorkers, shared: Count
) -> None:
    with contextlib.ExitStack() as stay:
        peers = [stay.enter_context(Peer(one_worker.unix())) for _ in range(RINGS_MAX - 1)]
        with Peer(one_worker.unix()), pytest.raises(Refused) as refused:
            Peer(one_worker.unix())
        assert refused.value.args[0].status == frames.NOT_SUPPORTED
        eventually(lambda: shared(one_worker.pids[0]) == RINGS_MAX - 1, "the worker keeps memory")
        peers.append(stay.enter_context(Peer(one_worker.unix())))
        for peer in peers:
            peer.send(frames.request(frames.VIEW))
        for peer in peers:
            assert statuses(peer, 1) == [frames.OK]


def test_memory_that_is_not_what_it_says_is_not_taken_up() -> None:
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.truncate(loose, PAGE + 2 * 64)
    os.pwrite(loose, struct.pack("<II", 1, 64), 0)
    with pytest.raises(ProtocolError, match="seals 0"):
        Segment.take_up(loose, os.eventfd(0))
    honest = Segment.make(64)
    os.pwrite(honest.memory_fd, struct.pack("<II", 1, 128), 0)
    with pytest.raises(ProtocolError, match="224 bytes; two rings of 128"):
        Segment.take_up(os.dup(honest.memory_fd), os.eventfd(0))


def test_nobody_can_cut_off_the_memory_under_a_worker() -> None:
    segment = Segment.make(RING_BYTES)
    for size in (0, PAGE, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.memory_fd, size)


def test_rings_are_refused_among_other_requests_and_the_connection_goes_on(one_worker: RunningWorkers) -> None:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(PATIENCE_S)
        plain.connect(one_worker.unix().removeprefix("unix:"))
        plain.sendall(frames.request(RINGS, id=1) + frames.request(frames.GET, b"k", id=2))
        data = b""
        while not data or len(data) < 4 + int.from_bytes(data[:4], "little") + 24:
            data += plain.recv(65536)
        assert [(a.status, a.request) for a in frames.replies(data)] == [(frames.NOT_SUPPORTED, 1), (frames.MISSING, 2)]
