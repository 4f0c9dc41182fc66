"""What a cache does with its own node's writes: they are read back at once, and large values stay to be read."""

from __future__ import annotations

import struct

import pytest

import anna
from anna.kvs.worker import Connection
from anna.wire import UNAVAILABLE
from tests.anna import frames
from tests.anna.frames import DELETE, NOT_SUPPORTED, OK, Reply, multi_put, put, register, replies, request
from tests.anna.kvs.workers import view_of
from tests.cloudburst.cache.nodes import Node, Shelf, value
from tests.cloudburst.cache.stores import Store

COMPARE, EXPIRES = 4, 8


def test_own_write_is_read_back_from_the_node() -> None:
    node = Node()
    client = node.client()
    node.answer(client, request(frames.GET, b"k"))
    node.answer(client, put(b"k", b"mine"))
    misses = node.cache.misses
    assert value(node.answer(client, request(frames.GET, b"k"))) == b"mine"
    assert node.cache.misses == misses
    node.check()


def test_own_write_is_read_back_before_any_push() -> None:
    node = Node(owners=1)
    client = node.client()
    node.answer(client, put(b"k", b"old"))
    node.answer(client, request(frames.GET, b"k"))
    node.ask(client, put(b"k", b"new"))
    node.deliver_to_owner(0)
    node.deliver_to_cache(0)
    node.ask(client, request(frames.GET, b"k"))
    assert value(node.answers[client][-1]) == b"new"


def test_an_increment_is_read_back_through_its_owner() -> None:
    node = Node()
    client = node.client()
    for total in (3, 6, 9):
        counter = anna.lattices.REGISTRY[5](+3).encode()
        assert node.answer(client, request(frames.PUT, b"n", counter, type=5)).status == frames.OK
        answer = node.answer(client, request(frames.GET, b"n"))
        assert anna.lattices.REGISTRY[5].decode(answer.payload).value == total
    node.check()


def test_an_increment_is_read_back_before_any_push() -> None:
    node = Node(owners=1)
    client = node.client()
    counter = anna.Counter(+3).encode()
    for total in (3, 6):
        node.ask(client, request(frames.PUT, b"n", counter, type=5) + request(frames.GET, b"n"))
        for _ in range(4):
            node.deliver_to_owner(0)
            node.deliver_to_cache(0)
        assert anna.Counter.decode(node.answers[client][-1].payload).value == total
        node.ask(client, request(frames.GET, b"n"))
        for _ in range(4):
            node.deliver_to_owner(0)
            node.deliver_to_cache(0)
        assert anna.Counter.decode(node.answers[client][-1].payload).value == total
    node.check()


@pytest.mark.parametrize("flags", [EXPIRES, COMPARE, COMPARE | EXPIRES])
@pytest.mark.parametrize("is_there", [True, False])
def test_own_write_with_a_time_or_a_condition_is_read_back_before_any_push(flags: int, is_there: bool) -> None:
    """What such a write has before its state was taken for the state: the former value was read, or none at all."""
    node = Node(owners=1)
    client = node.client()
    stamp = 0
    if is_there:
        stamp = node.answer(client, put(b"k", b"old")).stamp
    node.answer(client, request(frames.GET, b"k"))
    before = struct.pack("<Q", stamp) * bool(flags & COMPARE) + struct.pack("<Q", 3_600_000_000) * bool(flags & EXPIRES)
    node.ask(client, request(frames.PUT, b"k", before + register(b"new"), type=1, flags=flags))
    node.deliver_to_owner(0)
    node.deliver_to_cache(0)
    assert node.answers[client][-1].status == frames.OK
    node.ask(client, request(frames.GET, b"k"))
    assert value(node.answers[client][-1]) == b"new"
    node.settle()
    assert value(node.answer(client, request(frames.GET, b"k"))) == b"new"
    node.check()


def sent_to(node: Node, place: int) -> int:
    """Return how many bytes are on their way from an owner to the cache."""
    return sum(map(len, node.to_cache[place]))


def test_large_value_that_this_node_has_written_is_there_before_anybody_has_read_it() -> None:
    node = Node(owners=1, shelf=Shelf(bytes_min=100))
    writer, reader = node.client(), node.client()
    node.ask(writer, put(b"k", b"x" * 1000))
    brought = 0
    while node.to_owner[0] or node.to_cache[0]:
        node.deliver_to_owner(0)
        brought += sent_to(node, 0)
        node.deliver_to_cache(0)
    assert brought < 200
    node.ask(reader, request(frames.GET, b"k"))
    assert node.answers[reader][-1].payload[16:17] == b"\x0a"
    assert (node.cache.hits, node.cache.misses) == (1, 0)
    node.workers[0].receive(Connection(), put(b"k", b"elsewhere"), node.now)
    node.settle()
    assert value(node.answer(reader, request(frames.GET, b"k"))) == b"elsewhere"
    node.check()


def test_small_value_that_this_node_has_written_is_not_kept_unless_it_is_read() -> None:
    node = Node(owners=1, shelf=Shelf(bytes_min=100))
    node.answer(node.client(), put(b"k", b"x" * 10))
    assert node.cache.offered == 0
    assert len(node.cache.store) == 0
    node.check()


def test_value_that_was_replaced_meanwhile_comes_from_its_owner() -> None:
    node = Node(owners=1, shelf=Shelf(bytes_min=100))
    client = node.client()
    node.ask(client, put(b"k", b"x" * 1000))
    node.deliver_to_owner(0)
    node.workers[0].receive(Connection(), put(b"k", b"y" * 1000), node.now)
    node.settle()
    state = node.answer(client, request(frames.GET, b"k")).payload
    assert node.cache.offered == 1
    shelf = node.shelf
    assert shelf is not None
    assert shelf.whole(state)[17:] == b"y" * 1000
    node.check()


def test_large_values_of_a_batch_are_kept_each_by_itself() -> None:
    shelf = Shelf(bytes_min=100)
    node = Node(shelf=shelf)
    written = {b"k%d" % number: bytes([number]) * 500 for number in range(10)}
    node.answer(node.client(), multi_put(*((key, 1, register(state)) for key, state in written.items())))
    node.settle()
    reader = node.client()
    for key, state in written.items():
        node.ask(reader, request(frames.GET, key))
        assert shelf.whole(node.answers[reader][-1].payload)[17:] == state
    assert node.cache.misses == 0
    node.check()


def ask_worker(node: Node, connection: Connection, frame: bytes) -> Reply:
    """Ask an owner itself."""
    data = node.workers[0].receive(connection, frame, node.now)
    [reply] = replies(data)
    return reply


def test_owner_gives_no_value_to_who_has_it_and_pushes_what_comes_after() -> None:
    node, subscriber = Node(owners=1), Connection()
    written = ask_worker(node, Connection(), put(b"k", b"v"))
    state = ask_worker(node, Connection(), request(frames.GET, b"k")).payload
    for known, expected in ((state[:16], b""), (struct.pack("<QQ", written.stamp + 1, 0), state), (b"", state)):
        answer = ask_worker(node, subscriber, request(frames.SUBSCRIBE, b"k", known))
        assert (answer.status, answer.payload) == (frames.OK, expected)
    ask_worker(node, Connection(), put(b"k", b"next"))
    node.now += 1_000_000
    pushed = [data for connection, data in node.workers[0].tick(node.now) if connection is subscriber]
    assert len(pushed) == 1
    assert b"next" in (pushed[0] if isinstance(pushed[0], bytes) else b"".join(pushed[0]))


def test_owner_gives_what_is_there_when_the_register_that_is_known_has_gone() -> None:
    node, subscriber = Node(owners=1), Connection()
    ask_worker(node, Connection(), put(b"k", b"v"))
    known = ask_worker(node, Connection(), request(frames.GET, b"k")).payload[:16]
    ask_worker(node, Connection(), request(frames.DELETE, b"k"))
    assert ask_worker(node, subscriber, request(frames.SUBSCRIBE, b"k", known)).status == frames.MISSING
    other = anna.lattices.REGISTRY[6]({1}).encode()
    ask_worker(node, Connection(), request(frames.PUT, b"k", other, type=6))
    assert ask_worker(node, subscriber, request(frames.SUBSCRIBE, b"k", known)).payload == other


def test_a_write_through_the_cache_is_as_safe_as_its_client_asked_and_told_to_be() -> None:
    """What a client asked was not passed on: its write was acknowledged as soon as the owner's default allowed."""
    store = Store(view_of(3, factor=3))
    for frame in (put(b"k", b"v", ack=3), multi_put_of(3), request(DELETE, b"k", ack=3)):
        answer = store.answer(frame)
        assert (answer.status, answer.type, answer.flags) == (OK, 2, 0), answer
    assert store.answer(put(b"k", b"v", ack=1)).type == 0
    assert store.answer(put(b"k", b"v", ack=4)).status == UNAVAILABLE
    assert store.answer(put(b"k", b"v", ack=255)).status == NOT_SUPPORTED
    store.check()


def multi_put_of(ack: int) -> bytes:
    frame = bytearray(multi_put((b"a", 1, register(b"1")), (b"b", 1, register(b"2"))))
    struct.pack_into("<H", frame, 14, ack)
    return bytes(frame)
