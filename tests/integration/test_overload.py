"""More than a worker can serve: its memory stays bounded, others have their turn, and afterwards it serves as before.

Sockets are driven by hand here, because the clients never leave answers unread. Source: reliability.md B, P24.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterator

import anna
from anna.config import UNREAD_BYTES_MAX, WRITE_BUFFER_BYTES_MAX
from anna.lattices import Set
from tests.anna import frames
from tests.integration.test_bad_input import MIB, Victim, answer_to, last_words, receive, victim

__all__ = ["victim"]

GREEDY = 6
"""Connections that ask and do not read."""

RECOVERED_S = 3.0
"""How long after the load a worker may take to serve as before."""

BURST_BYTES = 4 * MIB
"""What one connection may cost beside the answers that it leaves unread: what arrived, and the last burst."""


@contextlib.contextmanager
def client_of(victim: Victim) -> Iterator[anna.Client]:
    with anna.Client([f"tcp://{victim.address[0]}:{victim.address[1]}"], timeout=RECOVERED_S) as kvs:
        yield kvs


def send_what_is_taken(peer: socket.socket, data: bytes, seconds: float) -> int:
    """Send the same bytes again and again, reading nothing, until no more is taken; return how many were sent."""
    peer.setblocking(False)
    view, sent, until = memoryview(data), 0, time.monotonic() + seconds
    while time.monotonic() < until and select.select([], [peer], [], 0.3)[1]:
        sent += peer.send(view[sent % len(data) :])
    peer.settimeout(20)
    return sent


def test_few_bytes_that_ask_for_many_cost_little_memory_and_hold_up_nobody(victim: Victim) -> None:
    """P24: a frame of 27 bytes asks for a state of a quarter of a megabyte; ten thousand of them came in one read."""
    with client_of(victim) as kvs, contextlib.ExitStack() as stack:
        kvs.put("large", Set(b"element %d" % number for number in range(20_000)))
        kvs.put("small", 1)
        before = victim.resident_bytes()
        for _ in range(GREEDY):
            peer = stack.enter_context(victim.connect())
            peer.sendall(frames.request(frames.GET, b"large") * 5_000)
            assert kvs.get("small") == 1
        bound = GREEDY * (WRITE_BUFFER_BYTES_MAX + BURST_BYTES)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert victim.resident_bytes() - before < bound
            assert kvs.get("small") == 1
    victim.assert_unharmed()


def test_what_waited_to_be_answered_is_answered_in_order_when_it_is_read(victim: Victim) -> None:
    """P24: nothing of a long burst is lost or exchanged, whether its answers are copied or sent from where they lie."""
    count = 400
    with client_of(victim) as kvs, victim.connect() as peer:
        for number, size in ((0, 10), (1, 16_000), (2, 200_000)):
            kvs.put(f"k{number}", bytes([number]) * size)
        peer.sendall(b"".join(frames.request(frames.GET, b"k%d" % (n % 3), id=n + 1) for n in range(count)))
        for number in range(count):
            head = receive(peer, 4)
            (answer,) = frames.replies(head + receive(peer, struct.unpack("<I", head)[0]))
            assert (answer.request, answer.status, answer.payload[-1]) == (number + 1, frames.OK, number % 3)
        assert answer_to(peer, frames.request(frames.GET, b"k0")).status == frames.OK


def test_writes_whose_answers_nobody_reads_cost_no_memory_and_service_is_back_at_once(victim: Victim) -> None:
    """P24: ten connections send as fast as the worker takes it; it stops reading from them, and goes on with others."""
    write = b"".join(frames.put(b"k%d" % number, bytes(1000)) for number in range(60))
    with client_of(victim) as kvs, contextlib.ExitStack() as stack:
        kvs.mput({f"k{number}": bytes(1000) for number in range(60)})
        before = victim.resident_bytes()
        peers = [stack.enter_context(victim.connect()) for _ in range(10)]
        sent = sum(send_what_is_taken(peer, write, 0.5) for peer in peers)
        assert sent > 20 * MIB, "this is no load"
        assert victim.resident_bytes() - before < len(peers) * (WRITE_BUFFER_BYTES_MAX + BURST_BYTES)
        stack.close()
        begun = time.monotonic()
        assert kvs.get("k1") == bytes(1000)
        assert time.monotonic() - begun < RECOVERED_S
    victim.assert_unharmed()


def test_a_watcher_that_does_not_read_is_ended_before_it_costs_much_memory(victim: Victim) -> None:
    """P24: what is pushed is not asked for each time, so that no reading can be stopped."""
    with client_of(victim) as kvs, victim.connect() as watcher:
        kvs.put("k", b"")
        watcher.sendall(frames.request(frames.SUBSCRIBE, b"k"))
        before = victim.resident_bytes()
        for number in range(3 * UNREAD_BYTES_MAX // (2 * MIB)):
            kvs.put("k", bytes([number]) * 2 * MIB)
            time.sleep(0.011)  # so that the next epoch pushes it, and not it and the next one joined
            assert victim.resident_bytes() - before < 2 * UNREAD_BYTES_MAX
        assert len(last_words(watcher)) < UNREAD_BYTES_MAX, "it was waited for"
    victim.assert_unharmed()
