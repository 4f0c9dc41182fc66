"""A node's cache against real workers' cores, message by message, in any order that streams allow."""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

import anna
from anna.kvs.clock import Clock
from anna.kvs.worker import Connection
from anna.messages import NodeInfo, View, WorkerInfo
from cloudburst.cache.cache import Cache
from tests.anna import frames
from tests.anna.frames import Reply, items, multi_get, multi_put, put, register, request
from tests.cloudburst.cache.nodes import MB, Node, Shelf, value, view_of


def test_second_read_is_answered_from_the_node_without_a_message() -> None:
    node = Node()
    client = node.client()
    node.answer(client, put(b"k", b"v"))
    assert value(node.answer(client, request(frames.GET, b"k"))) == b"v"
    node.ask(client, request(frames.GET, b"k"))
    assert value(node.answers[client][-1]) == b"v"
    assert (node.cache.hits, node.cache.misses) == (1, 1)
    assert not any(node.to_owner)
    node.check()


def test_absence_is_cached_and_ends_with_a_push() -> None:
    node = Node()
    client, elsewhere = node.client(), Connection()
    assert node.answer(client, request(frames.GET, b"k")).status == frames.MISSING
    node.ask(client, request(frames.GET, b"k"))
    assert node.answers[client][-1].status == frames.MISSING
    assert node.cache.hits == 1
    for worker in node.workers:
        worker.receive(elsewhere, put(b"k", b"v"), node.now)
    node.settle()
    node.ask(client, request(frames.GET, b"k"))
    assert value(node.answers[client][-1]) == b"v"
    node.check()


def test_a_batch_that_would_expire_is_refused_and_reaches_no_owner() -> None:
    """Its flag went on to the owners, for states without a time before them."""
    node = Node()
    client = node.client()
    batch = bytearray(multi_put((b"a", 1, register(b"1"))))
    batch[7] = 8
    assert node.answer(client, bytes(batch)).status == frames.NOT_SUPPORTED
    assert [len(worker.store) for worker in node.workers] == [0, 0]
    node.check()


def test_a_change_elsewhere_is_pushed_within_one_tick() -> None:
    node = Node(owners=1)
    client = node.client()
    node.answer(client, put(b"k", b"old"))
    node.answer(client, request(frames.GET, b"k"))
    node.workers[0].receive(Connection(), put(b"k", b"new"), node.now)
    node.tick(0)
    node.deliver_to_cache(0)
    node.ask(client, request(frames.GET, b"k"))
    assert value(node.answers[client][-1]) == b"new"


def test_a_cache_that_delays_takes_up_what_others_wrote_at_a_refresh_and_own_writes_at_once() -> None:
    node = Node(owners=1)
    node.cache.delays = True
    client, elsewhere = node.client(), Connection()

    def read(key: bytes) -> bytes:
        node.ask(client, request(frames.GET, key))
        return value(node.answers[client][-1])

    for key in (b"k", b"own"):
        node.answer(client, put(key, b"old"))
        node.answer(client, request(frames.GET, key))
        node.workers[0].receive(elsewhere, put(key, b"new"), node.now)
    node.tick(0)
    node.deliver_to_cache(0)
    assert (read(b"k"), read(b"own")) == (b"old", b"old")
    node.answer(client, put(b"own", b"mine"))
    node.check()
    assert read(b"own") == b"mine"
    node.cache.refresh()
    assert (read(b"k"), read(b"own")) == (b"new", b"mine")
    node.check()


def test_a_delete_elsewhere_is_pushed_and_a_new_type_may_follow() -> None:
    node = Node(owners=1)
    client, elsewhere = node.client(), Connection()
    node.answer(client, put(b"k", b"v"))
    node.answer(client, request(frames.GET, b"k"))
    node.workers[0].receive(elsewhere, request(frames.DELETE, b"k"), node.now)
    state = anna.lattices.REGISTRY[6]({1}).encode()
    node.workers[0].receive(elsewhere, request(frames.PUT, b"k", state, type=6), node.now)
    node.settle()
    answer = node.answer(client, request(frames.GET, b"k"))
    assert (answer.status, answer.type, answer.payload) == (frames.OK, 6, state)
    node.check()


def test_refusals_of_the_owner_reach_the_writer() -> None:
    node = Node()
    client = node.client()
    node.answer(client, put(b"k", b"v"))
    state = anna.lattices.REGISTRY[6]({1}).encode()
    answer = node.answer(client, request(frames.PUT, b"k", state, type=6))
    assert (answer.status, answer.payload) == (frames.TYPE_MISMATCH, b"'k' holds a LWW, got a Set")
    answer = node.answer(client, multi_put((b"a", 1, register(b"1")), (b"k", 6, state)))
    assert (answer.status, [f[:2] for f in msgpack.unpackb(answer.payload)]) == (
        frames.PARTIAL,
        [[1, frames.TYPE_MISMATCH]],
    )
    node.check()


def test_multi_get_joins_what_is_here_and_what_is_fetched() -> None:
    node = Node()
    client = node.client()
    node.answer(client, multi_put(*((b"k%d" % n, 1, register(b"%d" % n)) for n in range(6))))
    node.answer(client, request(frames.GET, b"k3"))
    answer = node.answer(client, multi_get(*(b"k%d" % n for n in range(7))))
    assert [state[17:] for _, _, state in items(answer.payload)] == [b"0", b"1", b"2", b"3", b"4", b"5", b""]
    assert items(answer.payload)[6][0] == frames.MISSING
    node.check()


def test_answers_keep_the_order_of_requests_though_owners_answer_out_of_order() -> None:
    node = Node()
    client = node.client()
    for number in range(1, 9):
        node.ask(client, request(frames.GET, b"k%d" % number, id=number))
    for place in (1, 0):
        while node.to_owner[place]:
            node.deliver_to_owner(place)
        while node.to_cache[place]:
            node.deliver_to_cache(place)
    assert [a.request for a in node.answers[client]] == list(range(1, 9))
    node.check()


def test_a_read_behind_a_write_on_the_same_connection_sees_it() -> None:
    node = Node()
    client = node.client()
    node.answer(client, request(frames.GET, b"k"))
    node.ask(client, request(frames.GET, b"k") + put(b"k", b"1") + request(frames.GET, b"k") + put(b"k", b"2"))
    node.ask(client, request(frames.GET, b"k"))
    node.settle()
    answers = node.answers[client][1:]
    assert [a.status for a in answers] == [frames.MISSING, frames.OK, frames.OK, frames.OK, frames.OK]
    assert (answers[2].payload[17:], answers[4].payload[17:]) == (b"1", b"2")
    node.check()


def test_a_read_never_overtakes_an_earlier_one_that_still_waits() -> None:
    """Found by the histories below: the later was answered from memory, the earlier by a newer word of the owner."""
    node = Node(owners=1)
    client, elsewhere = node.client(), Connection()
    node.ask(client, request(frames.GET, b"k", id=1) + put(b"k", b"mine", id=2) + request(frames.GET, b"k", id=3))
    node.deliver_to_owner(0)
    node.deliver_to_owner(0)
    node.deliver_to_cache(0)
    node.deliver_to_cache(0)
    node.workers[0].receive(elsewhere, put(b"k", b"newer"), node.now)
    node.ask(client, request(frames.GET, b"k", id=4))
    node.settle()
    assert [(a.request, a.payload[17:]) for a in node.answers[client] if a.request > 2] == [
        (3, b"newer"),
        (4, b"newer"),
    ]
    node.check()


def test_large_registers_pass_through() -> None:
    node = Node(bytes_max=8 * MB)
    client = node.client()
    large = bytes(range(256)) * 1000
    frame = put(b"big", large, id=1) + request(frames.GET, b"big", id=2)
    for begin in range(0, len(frame), 70_000):
        node.ask(client, frame[begin : begin + 70_000])
    node.settle()
    assert [a.request for a in node.answers[client]] == [1, 2]
    assert value(node.answers[client][1]) == large
    node.check()


def test_large_value_is_put_on_the_shelf_and_answered_with_its_place() -> None:
    shelf = Shelf(bytes_min=100)
    node = Node(shelf=shelf)
    client = node.client()
    for key, written in ((b"large", b"x" * 99), (b"small", b"y" * 98)):
        node.answer(client, put(key, written))
    [large, small] = [node.answer(client, request(frames.GET, key)).payload for key in (b"large", b"small")]
    assert large[16:] == b"\x0aplace 1"
    assert shelf.whole(large) == node.answer(client, request(frames.GET, b"large")).payload[:16] + b"\x06" + b"x" * 99
    assert small[16:] == b"\x06" + b"y" * 98
    assert node.cache.status()["bytes"] < 250
    node.check()


def test_another_value_has_another_place_and_the_former_is_let_go() -> None:
    shelf = Shelf()
    node = Node(owners=1, shelf=shelf)
    reader, writer = node.client(), node.client()
    node.answer(writer, put(b"k", b"first"))
    node.answer(reader, request(frames.GET, b"k"))
    node.answer(writer, put(b"k", b"own"))
    assert shelf.whole(node.answer(reader, request(frames.GET, b"k")).payload)[17:] == b"own"
    node.workers[0].receive(Connection(), put(b"k", b"elsewhere"), node.now)
    node.settle()
    assert shelf.whole(node.answer(reader, request(frames.GET, b"k")).payload)[17:] == b"elsewhere"
    assert list(shelf.kept.values()) == [b"\x06elsewhere"]
    assert shelf.formers[0] is None
    assert None not in shelf.formers[1:]
    node.answer(writer, request(frames.DELETE, b"k"))
    assert shelf.kept == {}
    node.check()


def test_place_is_let_go_with_the_key_whatever_ends_it() -> None:
    def node_with_a_shared_value(shelf: Shelf) -> Node:
        node = Node(owners=1, shelf=shelf)
        client = node.client()
        node.answer(client, put(b"k", b"value"))
        node.answer(client, request(frames.GET, b"k"))
        assert len(shelf.kept) == 1
        return node

    for end in (
        lambda node: node.crash(0),
        lambda node: node.cache.adopt_owners(view_of(1, version=2)),
        lambda node: node.cache.forget_all(),
    ):
        shelf = Shelf()
        node = node_with_a_shared_value(shelf)
        end(node)
        assert shelf.kept == {}
        node.cache.check()


def test_without_room_on_the_shelf_a_value_is_kept_as_before() -> None:
    node = Node(shelf=Shelf(bytes_max=3))
    client = node.client()
    node.answer(client, put(b"k", b"value"))
    for _ in range(2):
        assert value(node.answer(client, request(frames.GET, b"k"))) == b"value"
    assert node.cache.status()["shared"] == 0
    node.check()


def test_shared_values_keep_to_their_bytes_too() -> None:
    shelf = Shelf()
    node = Node(shelf=shelf, shared_bytes_max=10_000)
    client = node.client()
    for number in range(40):
        node.answer(client, put(b"k%d" % number, b"x" * 999))
        node.answer(client, request(frames.GET, b"k%d" % number))
    assert sum(map(len, shelf.kept.values())) == node.cache.shared_bytes == 10_000
    assert node.cache.evicted == 30
    node.check()


def test_the_cache_keeps_to_its_bytes_and_gives_up_what_was_not_read() -> None:
    node = Node(bytes_max=50_000)
    client = node.client()
    for number in range(100):
        node.answer(client, put(b"k%d" % number, b"x" * 1000))
        node.answer(client, request(frames.GET, b"k%d" % number))
        node.answer(client, request(frames.GET, b"k0"))
    assert node.cache.status()["bytes"] <= 50_000
    assert node.cache.evicted >= 40
    hits = node.cache.hits
    node.answer(client, request(frames.GET, b"k0"))
    assert node.cache.hits == hits + 1
    assert sum(len(s.subscriptions) for s in node.streams) == node.cache.status()["keys"]
    node.check()


def test_a_lost_owner_ends_writes_as_lost_and_reads_go_on() -> None:
    node = Node(owners=1)
    client = node.client()
    node.answer(client, put(b"k", b"v"))
    node.answer(client, request(frames.GET, b"k"))
    node.ask(client, put(b"k", b"w", id=1) + request(frames.GET, b"k", id=2))
    node.crash(0)
    assert [(a.request, a.status) for a in node.answers[client][2:]] == [(1, 24)]
    node.settle()
    assert [(a.request, a.status) for a in node.answers[client][3:]] == [(2, frames.MISSING)]
    node.check()


def test_a_new_view_moves_requests_that_went_to_the_wrong_owner() -> None:
    node = Node(owners=2)
    stale = View(0, (NodeInfo(1, node.view.workers[:1]),))
    node.cache = Cache(view_of(1), stale, Clock(10**9, node.now // 1000), MB)
    for place in range(2):
        node.cache.owner_up(node.id(place))
    client = node.client()
    for number in range(20):
        node.answer(client, put(b"k%d" % number, b"v"))
    assert [a.status for a in node.answers[client]] == [frames.OK] * 20
    assert node.cache.owner_view == node.view
    assert all(len(worker.store) for worker in node.workers)
    node.check()


def copied(version: int = 2) -> View:
    """Two nodes of one worker each, which both own every key."""
    workers = [WorkerInfo(100 + place, (f"unix:/run/{place}.sock",)) for place in range(2)]
    return View(version, tuple(NodeInfo(1 + place, (worker,)) for place, worker in enumerate(workers)), factor=2)


def test_while_an_owner_is_away_another_one_is_asked() -> None:
    """A cache of a cluster waited for the one owner that it knew, until its caller gave up."""
    node = Node(owners=2)
    node.view = copied()
    node.cache = Cache(view_of(1), node.view, Clock(10**9, node.now // 1000), MB)
    for place in range(2):
        node.cache.owner_up(node.id(place))
    first = node.view.index_of(node.cache_owner(b"k"))
    client = node.client()
    node.ask(client, request(frames.GET, b"k"))
    assert len(node.to_owner[first]) == 1
    assert node.cache.owner_down(node.id(first)) == []
    node.flush()
    assert len(node.to_owner[1 - first]) == 1, "the read that waited"
    node.ask(client, put(b"k", b"v"))
    assert len(node.to_owner[1 - first]) == 2, "and what comes after it"
    node.cache.owner_up(node.id(first))
    node.ask(client, put(b"other", b"v"))
    node.check_cache()


def test_what_waits_for_an_owner_that_never_comes_back_goes_to_those_of_the_next_view() -> None:
    node = Node(owners=1)
    gone = View(1, (NodeInfo(7, (WorkerInfo(700, ("unix:/run/gone.sock",)),)),))
    node.cache = Cache(view_of(1), gone, Clock(10**9, node.now // 1000), MB)
    client = node.client()
    node.ask(client, put(b"k", b"v") + request(frames.GET, b"k", id=2))
    assert node.to_owner[0] == deque()
    node.cache.adopt_owners(view_of(1, version=5))
    node.cache.owner_up(node.id(0))
    node.flush()
    node.settle()
    assert [a.status for a in node.answers[client]] == [frames.OK, frames.OK]
    node.check()


def test_request_that_an_owner_does_not_take_is_kept_back_and_not_sent_round_and_round() -> None:
    node = Node(owners=1)
    client = node.client()
    node.ask(client, put(b"k", b"v"))
    [sent] = node.to_owner[0]
    node.to_owner[0].clear()
    body = msgpack.packb(node.view.to_wire())
    number = frames.HEADER.unpack_from(sent)[5]
    wrong = frames.REPLY.pack(frames.REPLY.size - 4 + len(body), 1, frames.WRONG_WORKER, 0, 0, number, 0, 0) + body
    assert node.cache.hear(node.id(0), wrong, node.now) == []
    node.flush()
    assert node.to_owner[0] == deque()
    assert node.cache.holds
    node.check_cache()
    node.cache.retry(node.now)
    node.flush()
    assert len(node.to_owner[0]) == 1
    node.settle()
    assert node.answers[client][-1].status == frames.OK
    node.check()


KEYS = [b"a", b"b"]
steps = st.one_of(
    st.tuples(st.just("get"), st.integers(0, 1), st.sampled_from(KEYS)),
    st.tuples(st.just("mget"), st.integers(0, 1), st.lists(st.sampled_from(KEYS), max_size=5)),
    st.tuples(st.just("put"), st.integers(0, 1), st.sampled_from(KEYS)),
    st.tuples(st.just("mput"), st.integers(0, 1), st.lists(st.sampled_from(KEYS), max_size=4)),
    st.tuples(st.just("elsewhere"), st.sampled_from(KEYS)),
    st.tuples(st.just("to owner"), st.integers(0, 1)),
    st.tuples(st.just("to cache"), st.integers(0, 1)),
    st.tuples(st.just("tick"), st.integers(0, 1)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, min_size=20, max_size=80), st.sampled_from([MB, 30]), st.sampled_from([None, MB, 8]))
def test_any_history_reads_its_own_writes_in_order_and_ends_equal_to_the_owners(
    history: list[tuple[Any, ...]], bytes_max: int, shared_bytes_max: int | None
) -> None:
    """Each connection's reads of a key never go back and never miss its own earlier write.

    30 bytes hold one key, and 8 one shared value. D51: what was read once is never answered in place of what is newer.
    """
    shelf = Shelf() if shared_bytes_max is not None else None
    node = Node(bytes_max=bytes_max, shelf=shelf, shared_bytes_max=shared_bytes_max or 0)
    clients = [node.client() for _ in range(2)]
    asked: dict[Connection, list[tuple[str, list[bytes], list[int]]]] = {c: [] for c in clients}
    written = 0
    for step in history:
        match step:
            case ("to owner", place):
                node.deliver_to_owner(place)
            case ("to cache", place):
                node.deliver_to_cache(place)
            case ("tick", place):
                node.tick(place)
            case ("elsewhere", key):
                written += 1
                for worker in node.workers:
                    worker.receive(Connection(), put(key, struct.pack("<I", written)), node.now)
                node.note_stamps()
            case ("get" | "mget" as op, client, key):
                keys = [key] if op == "get" else key
                node.ask(clients[client], request(frames.GET, key) if op == "get" else multi_get(*keys))
                asked[clients[client]].append((op, keys, []))
            case (op, client, key):
                keys = [key] if op == "put" else key
                numbers = list(range(written + 1, written + 1 + len(keys)))
                written += len(keys)
                states = [struct.pack("<I", n) for n in numbers]
                frame = (
                    put(key, states[0])
                    if op == "put"
                    else multi_put(*((k, 1, register(s)) for k, s in zip(keys, states)))
                )
                node.ask(clients[client], frame)
                asked[clients[client]].append((op, keys, numbers))
        node.check()
    node.settle()
    node.check()
    for client in clients:
        judge(node.stamps, asked[client], node.answers[client])
    for key, state in node.cache.store.states.items():
        owner = next(w for w in node.workers if key in w.store.states)
        kept = state.encode() if shelf is None else shelf.whole(state.encode())
        assert kept == owner.store.states[key].encode()
    if shelf is not None:
        assert len(shelf.kept) == node.cache.status()["shared"]


def judge(given: dict[bytes, int], asked: list[tuple[str, list[bytes], list[int]]], answers: list[Reply]) -> None:
    """One connection's history: every request answered, reads at least as new as what it read and wrote before."""
    assert len(answers) == len(asked)
    stamps: dict[bytes, int] = {}
    own: dict[bytes, int] = {}
    for (op, keys, numbers), answer in zip(asked, answers):
        assert answer.status == frames.OK or (op == "get" and answer.status == frames.MISSING)
        if op in ("put", "mput"):
            own.update(zip(keys, numbers))
            continue
        found = items(answer.payload) if op == "mget" else [(answer.status, answer.type, answer.payload)]
        assert len(found) == len(keys)
        for key, (status, _, state) in zip(keys, found):
            if status == frames.MISSING:
                assert key not in own
                assert key not in stamps
                continue
            stamp, _ = struct.unpack_from("<QQ", state)
            assert stamp >= stamps.get(key, 0), "a read went back"
            stamps[key] = stamp
            if key in own:
                assert stamp >= given[struct.pack("<I", own[key])], "a read missed its connection's own write"
